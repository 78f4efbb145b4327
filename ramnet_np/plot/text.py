"""Text with a weight behind every character."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ramnet_np.contract import Array
from ramnet_np.plot.style import current, themed


@themed
def text_weights(
    text: str, rows: Mapping[str, Array], *, xlabel: str, ylabel: str, at: Mapping[str, int] | None = None
) -> Figure:
    """A text once per row; the shade behind each character is its weight there.

    ``text``: N characters; ``rows``: name -> (N,) weights from 0 to 1.
    ``at``: name of a row -> index of the character that reads, framed in the colour of reads.

    >>> text_weights("ab", {"answer": [0.1, 0.9]}, xlabel="byte", ylabel="asked at").axes[0].get_xlabel()
    'byte'
    """
    if not rows:
        raise ValueError("rows must hold at least one row of weights, got none")
    for name, row in rows.items():
        if np.shape(row) != (len(text),):
            raise ValueError(
                f"rows[{name!r}] must have shape ({len(text)},), a weight a character, got {np.shape(row)}"
            )
    colors = current()
    figure = Figure(figsize=(min(11.0, 1.6 + 0.15 * len(text)), 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    weights = np.array([np.asarray(w, dtype=float) for w in rows.values()])
    axes.imshow(weights, cmap=colors.shades(colors.series[0]), vmin=0, vmax=1, aspect="auto")
    for row, name in enumerate(rows):
        for i, character in enumerate(text):
            color = colors.paper if weights[row, i] > 0.55 else colors.ink
            axes.text(i, row, character, ha="center", va="center", fontsize=9, family="monospace", color=color)
        if at and name in at:
            box = Rectangle((at[name] - 0.5, row - 0.46), 1, 0.92, fill=False, edgecolor=colors.read, linewidth=2)
            axes.add_patch(box)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(range(0, len(text), 10))
    return figure
