"""Every figure of the command, the notebooks and the documentation.

Each function returns a ``matplotlib.figure.Figure`` and touches no global state: show it, or ``figure.savefig(path)``.
Writes are vermilion squares and reads are green rings throughout, a pair of colours that colour-blind readers can tell
apart; their shapes differ too. ``with theme("dark"):`` (``style.py``) draws for a dark page.

``python -m ramnet_np.plot docs/images/ramnet.png`` draws a token's way to its slots for the page
"RAM-Net in five minutes", and beside it ``ramnet-dark.png``.
"""

from ramnet_np.plot.address import address_tree, beam_merge, cape_grid, digit_product
from ramnet_np.plot.chunk import chunk_accesses
from ramnet_np.plot.curves import bars, curves, heatmaps
from ramnet_np.plot.language import lines_by_range, scores_by_model
from ramnet_np.plot.memory import slot_adjoint, slot_jars, slot_life
from ramnet_np.plot.picture import ramnet_picture
from ramnet_np.plot.recall import accuracy_by_order, accuracy_by_setting, accuracy_by_state
from ramnet_np.plot.speed import roofline
from ramnet_np.plot.text import text_weights
from ramnet_np.plot.trace import slot_trace
from ramnet_np.plot.training import training_curves
from ramnet_np.plot.wall import pigeonholes, rack

__all__ = [
    "accuracy_by_order",
    "accuracy_by_setting",
    "accuracy_by_state",
    "address_tree",
    "bars",
    "beam_merge",
    "cape_grid",
    "chunk_accesses",
    "curves",
    "digit_product",
    "heatmaps",
    "lines_by_range",
    "pigeonholes",
    "rack",
    "ramnet_picture",
    "roofline",
    "scores_by_model",
    "slot_adjoint",
    "slot_jars",
    "slot_life",
    "slot_trace",
    "text_weights",
    "training_curves",
]
