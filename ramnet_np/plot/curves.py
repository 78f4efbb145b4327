"""Curves, bars and heat maps with labelled axes, for the results of most experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ramnet_np.contract import Array
from ramnet_np.plot.style import current, palette, themed

_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P")


@themed
def curves(
    x: Array | Mapping[str, Array],
    series: Mapping[str, Array],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    markers: bool = True,
    mark: Mapping[str, float] | None = None,
) -> Figure:
    """One line per entry of ``series`` against ``x``.

    ``x``: (N,), or a mapping from names to an x each; ``series``: name -> (N,) values; NaN leaves a gap.
    ``xscale``, ``yscale``: as Matplotlib names them ("linear", "log", "symlog").
    ``markers``: a mark at every point; set False for smooth curves with many points.
    ``mark``: name -> x of a dotted vertical line, with its name at the top.

    >>> curves([1, 2, 3], {"a": [1, 4, 9]}, xlabel="n", ylabel="n squared").axes[0].get_xlabel()
    'n'
    """
    if not series:
        raise ValueError("series must hold at least one curve, got none")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, ((name, y), color) in enumerate(zip(series.items(), palette(len(series)), strict=True)):
        axes.plot(
            x[name] if isinstance(x, Mapping) else x,
            y,
            color=color,
            linestyle=_DASHES[i // len(current().series) % len(_DASHES)],
            marker=_MARKERS[i % len(_MARKERS)] if markers else None,
            markersize=4.5,
            linewidth=1.8,
            label=name,
        )
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale=xscale, yscale=yscale)
    for name, at in (mark or {}).items():
        axes.axvline(at, color=current().muted, linewidth=1, linestyle=":")
        axes.annotate(
            name, (at, 1), xycoords=("data", "axes fraction"), xytext=(3, -3), textcoords="offset points",
            rotation=90, va="top", fontsize=8.5, color=current().muted,
        )  # fmt: skip
    axes.grid(alpha=0.25)
    if len(series) > 4:
        figure.legend(fontsize=9, loc="outside right upper", frameon=False)
        figure.set_figwidth(8.6)
    elif len(series) > 1:
        axes.legend(fontsize=9, framealpha=0.8)
    return figure


@themed
def bars(
    values: Mapping[str, float | Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    xscale: str = "linear",
    highlight: Sequence[str] = (),
    unit: str = "{:.3g}",
    mark: Mapping[str, float] | None = None,
) -> Figure:
    """One horizontal bar per entry, top to bottom, with its number at the end.

    ``values``: name -> number, or several numbers (repeats of a measurement): the bar is their mean, a dot shows each.
    ``highlight``: names of bars to draw in the colour of reads; ``unit``: format of the numbers, "{:.0%}" for shares.
    ``mark``: name -> position of a dotted vertical line, named in the legend.

    >>> bars({"a": 1.0, "b": [2.0, 3.0]}, xlabel="seconds", ylabel="way").axes[0].get_xlabel()
    'seconds'
    """
    if not values:
        raise ValueError("values must hold at least one bar, got none")
    repeats = {name: np.atleast_1d(np.asarray(v, dtype=float)) for name, v in values.items()}
    figure = Figure(figsize=(7, 0.6 + 0.36 * len(values) + 0.3 * bool(title)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(values))
    means = [v.mean() for v in repeats.values()]
    colors = [current().read if name in highlight else current().series[0] for name in values]
    axes.barh(rows, means, color=colors, height=0.62)
    for row, v in zip(rows, repeats.values(), strict=True):
        if len(v) > 1:
            axes.plot(v, np.full(len(v), row), ".", color=current().ink, markersize=6)
        axes.annotate(
            unit.format(v.mean()), (v.max(), row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
        )
    for name, at in (mark or {}).items():
        axes.axvline(at, color=current().ink, linewidth=1.2, linestyle=":", label=name)
    if mark:
        axes.legend(fontsize=8.5, loc="lower right", framealpha=0.8)
    axes.set_yticks(rows, list(values))
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale=xscale)
    axes.margins(x=0.14)
    axes.grid(axis="x", alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


@themed
def heatmaps(
    panels: Mapping[str, Array],
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    signed: bool = False,
    limit: float | None = None,
    marks: Mapping[str, Mapping[str, Array]] | None = None,
    width: float | None = None,
    upward: bool = False,
) -> Figure:
    """Matrices side by side on one colour scale: rows along the y axis, columns along the x axis.

    ``panels``: title -> (rows, columns); ``label``: what the colours mean; ``signed``: values have both signs, and 0 is
    the middle of the scale; ``limit``: end of the scale, by default the largest magnitude.
    ``width``: width of the figure in inches; ``upward``: row 0 is at the bottom, as in traces of slots.
    ``marks``: title -> {"write" or "read": (N, 2) points (column, row)}: accesses, as squares and rings.

    >>> heatmaps({"a": np.eye(3)}, xlabel="fact", ylabel="query", label="weight").axes[0].get_ylabel()
    'query'
    """
    if not panels:
        raise ValueError("panels must hold at least one matrix, got none")
    matrices = {name: np.asarray(m, dtype=float) for name, m in panels.items()}
    limit = limit or max(float(np.nanmax(np.abs(m))) for m in matrices.values()) or 1.0
    colors = current()
    figure = Figure(figsize=(width or min(10.5, 3.5 * len(panels) + 1), 3.3), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=len({m.shape[0] for m in matrices.values()}) == 1)[0]
    image: Any = None
    for axes, (name, matrix) in zip(grid, matrices.items(), strict=True):
        cmap = colors.diverging() if signed else colors.shades(colors.series[0])
        image = axes.imshow(
            matrix, cmap=cmap, vmin=-limit if signed else 0, vmax=limit, aspect="auto", interpolation="nearest",
            origin="lower" if upward else "upper",
        )  # fmt: skip
        for kind, points in (marks or {}).get(name, {}).items():
            x, y = np.asarray(points).reshape(-1, 2).T
            style = {"marker": "s", "facecolors": "none", "edgecolors": colors.write, "s": 30}
            if kind == "read":
                style = {"marker": "o", "facecolors": "none", "edgecolors": colors.read, "s": 52}
            axes.scatter(x, y, linewidths=1.4, label=kind, **style)
        if (marks or {}).get(name):
            axes.legend(fontsize=8.5, loc="lower right", bbox_to_anchor=(1.01, 0.99), ncols=2, frameon=False)
        axes.set_title(name, fontsize=10.5, loc="left" if (marks or {}).get(name) else "center")
        axes.set_xlabel(xlabel)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator("auto", integer=True))
    grid[0].set_ylabel(ylabel)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.85, pad=0.02)
    bar.ax.set_ylabel(label)
    bar.ax.set_facecolor(colors.paper)
    return figure
