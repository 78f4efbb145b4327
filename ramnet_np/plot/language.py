"""Language models beside each other: their bits a byte, and how a figure changes with distance or position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ramnet_np.plot.style import current, palette, themed

_MARKS = "osD^vPX<>ph*"
_DASHES = ("-", "--", "-.", ":")


@themed
def scores_by_model(
    scores: Mapping[str, Sequence[float]], xlabel: str, title: str = "", ylabel: str = "model"
) -> Figure:
    """A row for each model: a mark at the mean over its seeds, a bar from the lowest to the highest.

    ``scores``: model -> a number for each seed; rows stand in this order. ``ylabel``: what a row is.
    ValueError for no model.

    >>> figure = scores_by_model({"RAM-Net": [1.2, 1.3], "window": [1.4]}, "bits a byte")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['RAM-Net', 'window']
    """
    if not scores:
        raise ValueError("scores must hold at least one model, got none")
    figure = Figure(figsize=(5.6, 1.2 + 0.32 * len(scores)), layout="constrained")
    axes, rows = figure.subplots(), range(len(scores))
    [color] = palette(1)
    axes.hlines(rows, [min(v) for v in scores.values()], [max(v) for v in scores.values()], color=color, linewidth=1.5)
    axes.plot([sum(v) / len(v) for v in scores.values()], rows, color=color, marker="o", linestyle="none", markersize=6)
    axes.set_yticks(rows, list(scores))
    axes.set(ylim=(len(scores) - 0.5, -0.5), xlabel=xlabel, ylabel=ylabel, title=title)
    axes.margins(x=0.08)
    axes.grid(alpha=0.25)
    return figure


@themed
def lines_by_range(
    lines: Mapping[str, Mapping[str, float]],
    xlabel: str,
    ylabel: str,
    title: str = "",
    guess: float | None = None,
    ranges: Sequence[str] = (),
) -> Figure:
    """A line for each model over ranges of positions or distances, which stand side by side, evenly.

    ``lines``: model -> range -> number. ``guess``: what a guess would reach, a thin line. ``ranges``: their order;
    none: that in which they first occur. ValueError for no model.

    >>> figure = lines_by_range({"a": {"0 to 10": 1.0, "10 on": 0.9}, "b": {"0 to 10": 1.1}}, "bytes", "bits a byte")
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['0 to 10', '10 on']
    """
    if not lines:
        raise ValueError("lines must hold at least one model, got none")
    ranges = list(ranges) or list(dict.fromkeys(name for line in lines.values() for name in line))
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    for i, ((model, line), color) in enumerate(zip(lines.items(), palette(len(lines)), strict=True)):
        style: Any = {"color": color, "marker": _MARKS[i % len(_MARKS)], "linestyle": _DASHES[i % len(_DASHES)]}
        axes.plot([ranges.index(name) for name in line], list(line.values()), label=model, markersize=5, **style)
    if guess is not None:
        axes.axhline(guess, color=current().muted, linewidth=1, linestyle=":", label="a guess")
    axes.set_xticks(range(len(ranges)), ranges, fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False, handlelength=3)
    return figure
