"""``python -m ramnet_np.plot FILE.png``: draw the picture that opens the README."""

import sys

from ramnet_np.plot.picture import main

if __name__ == "__main__":
    main(sys.argv[1:])
