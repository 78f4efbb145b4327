"""Pictures on disk: whole or as they were before, and never a reason to lose a run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from ramnet_np.model.files import replacing
from ramnet_np.plot.style import own_settings


def save_picture(draw: Callable[[], Figure], path: Path, dpi: int = 120) -> None:
    """Draw a figure and write it into a PNG file, whatever Matplotlib's settings are.

    :class:`~ramnet_np.model.files.WriteError` where the file cannot be written; what it held is then still there.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_picture(Figure, Path(folder) / "empty.png")
    ...     [path.name for path in Path(folder).iterdir()]
    ['empty.png']
    """
    with own_settings(), replacing(path) as (partial,):
        draw().savefig(partial, dpi=dpi, format="png")


def try_picture(draw: Callable[[], Figure], path: Path) -> None:
    """As :func:`save_picture`, but a picture that fails is a line on stderr: the numbers are there without it.

    >>> try_picture(Figure, Path("/no/such/folder/empty.png"))
    """
    try:
        save_picture(draw, path)
    except Exception as error:  # of Matplotlib, of fonts, of the disk: none of them is worth a run
        print(f"{path} could not be drawn: {' '.join(str(error).split())}", file=sys.stderr)
