"""The memory over time: one slot's content and mass, and its adjoint in the backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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


@themed
def slot_jars(
    content: Mapping[str, float], mass: Mapping[str, float], ends: tuple[str, str], title: str = ""
) -> Figure:
    """Slots as jars, filled up to their mass, in the colour of what they hold.

    ``content``: name of the slot -> from -1 to 1; ``mass``: name -> 0 or more, drawn up to 2.5.
    ``ends``: what contents of -1 and of 1 stand for.

    >>> slot_jars({"a": 0.5}, {"a": 1.0}, ends=("cat", "fox")).axes[0].get_ylabel()
    'mass z'
    """
    colors, most = current(), 2.5
    figure = Figure(figsize=(7, 2.9), layout="constrained")
    axes = figure.subplots()
    shades = colors.diverging()
    for x, (name, s) in enumerate(content.items()):
        shape = (x - 0.3, 0), 0.6, min(mass[name], most)
        axes.add_patch(
            Rectangle(*shape, facecolor=shades((s + 1) / 2), edgecolor=colors.faint, hatch="..", linewidth=1)
        )
        axes.plot([x - 0.3, x - 0.3, x + 0.3, x + 0.3], [most, 0, 0, most], color=colors.ink, linewidth=1.5)
        said = f"s = {round(s, 2) + 0:.2f}   z = {mass[name]:.2f}"
        axes.text(x, most + 0.1, said, ha="center", fontsize=9.5, color=colors.ink)
    axes.set(xlim=(-0.6, len(content) - 0.4), ylim=(0, most + 0.35), ylabel="mass z", yticks=[0, 1, 2])
    axes.set_xticks(range(len(content)), list(content))
    axes.set_title(title, fontsize=11, loc="left")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    scale = ScalarMappable(Normalize(-1, 1), shades)
    bar = figure.colorbar(scale, ax=axes, ticks=[-1, 0, 1], shrink=0.8)
    bar.ax.set_yticklabels([ends[0], "0", ends[1]])
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
