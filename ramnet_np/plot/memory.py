"""The memory over time: one slot's content and mass, and its adjoint in the backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ramnet_np.contract import Array
from ramnet_np.plot.style import current, themed


@themed
def slot_life(
    content: Mapping[str, Array],
    mass: Mapping[str, Array],
    writes: Sequence[int],
    values: Array,
    reads: Sequence[int] = (),
) -> Figure:
    """One slot over time: its content and its mass, under one or several update rules.

    ``content``, ``mass``: name of the rule -> (T,) values after each token (one channel of the content).
    ``writes``: tokens that write the slot; ``values``: (T,) the values they write; ``reads``: tokens that read it.

    >>> life = slot_life({"ema": [0, 1, 1]}, {"ema": [0.1, 1, 1]}, writes=[1], values=[0, 1, 0], reads=[2])
    >>> [axes.get_ylabel() for axes in life.axes]
    ['content s', 'mass z']
    """
    colors = current()
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.7, 1])
    others = [color for color in colors.series if color not in (colors.write, colors.read)]
    for i, name in enumerate(content):
        color = others[i % len(others)]
        tokens = range(len(content[name]))
        top.step(tokens, content[name], where="post", color=color, linewidth=1.8, label=name)
        bottom.step(tokens, mass[name], where="post", color=color, linewidth=1.8)
    top.plot(writes, np.asarray(values)[list(writes)], "s", color=colors.write, markersize=6, label="value written")
    _read_marks(top, reads)
    top.set_ylabel("content s")
    bottom.set_ylabel("mass z")
    bottom.set_xlabel("token")
    top.legend(fontsize=8.5, loc="best", framealpha=0.8)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
    return figure


@themed
def slot_adjoint(content: Array, adjoint: Array, writes: Sequence[int], reads: Sequence[int]) -> Figure:
    """One slot forward and backward: its content jumps at writes, its adjoint at reads (and shrinks at writes).

    ``content``: (T,) one channel after each token; ``adjoint``: (T,) the same channel of dL/ds_t in the backward, after
    the reads of token t and before that token's write.

    >>> slot_adjoint([0, 1, 1], [0.5, 1, 1], writes=[1], reads=[2]).axes[1].get_ylabel()
    'adjoint dL/ds'
    """
    colors = current()
    figure = Figure(figsize=(8.5, 4.2), layout="constrained")
    there, back = figure.subplots(2, 1, sharex=True)
    tokens = np.arange(len(content))
    there.step(tokens, content, where="post", color=colors.ink, linewidth=1.8)
    there.plot(writes, np.asarray(content)[list(writes)], "s", color=colors.write, markersize=6, label="write")
    there.set_ylabel("content s")
    _arrow_of_time(there, "forward", 0, 1)
    back.step(tokens, adjoint, where="pre", color=colors.ink, linewidth=1.8)
    back.plot(reads, np.asarray(adjoint)[list(reads)], "o", mfc="none", color=colors.read, markersize=8, label="read")
    back.plot(writes, np.asarray(adjoint)[list(writes)], "s", color=colors.write, markersize=6, label="write")
    back.set_ylabel("adjoint dL/ds")
    back.set_xlabel("token")
    _arrow_of_time(back, "backward", 1, 0)
    _read_marks(there, reads)
    for axes in (there, back):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8.5, loc="best", framealpha=0.8)
    return figure


def _arrow_of_time(axes: Axes, name: str, start: float, end: float) -> None:
    """The name of a pass above ``axes``, and an arrow along its whole width; 0 is the left edge, 1 the right one."""
    axes.annotate(
        "", (end, 1.07), (start, 1.07), xycoords="axes fraction", textcoords="axes fraction",
        arrowprops={"arrowstyle": "->", "color": current().muted, "linewidth": 1.4},
    )  # fmt: skip
    axes.set_title(name, fontsize=10, y=1.09, pad=2)


def _read_marks(axes: Axes, reads: Sequence[int]) -> None:
    """Draw rings just above the lower edge at the tokens that read."""
    if len(reads):
        axes.plot(
            reads, np.full(len(reads), 0.06), "o", mfc="none", color=current().read, markersize=8, clip_on=False,
            transform=axes.get_xaxis_transform(), label="read",
        )  # fmt: skip
