"""Recall accuracy against the size of a memory: slots and digits of an address, or elements of state; or by setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ramnet_np.plot.style import current, palette, themed

_SIZE = 5.6, 5.0  # inches: readable on a phone
_ACCURACY = "accuracy, mean of the test settings"
_MARKS = "osD^vPX<>"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)))


@themed
def accuracy_by_order(
    ours: Mapping[int, Mapping[int, Sequence[float]]],
    paper: Mapping[int, Mapping[int, float]] | None = None,
    title: str = "",
) -> Figure:
    """Accuracy against the order U, one line per number of slots M.

    ``ours``: M -> U -> accuracies, one per seed: the line is their mean, thin bars go from the lowest to the highest.
    ``paper``: M -> U -> accuracy, drawn as open marks for every M in ``ours``.

    >>> figure = accuracy_by_order({64: {1: [0.2, 0.3], 2: [0.5]}}, {64: {1: 0.255}})
    >>> figure.axes[0].get_xlabel()
    'order U (digits of an address)'
    """
    if not ours:
        raise ValueError("ours must hold at least one number of slots, got none")
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    orders: set[int] = set()
    for i, (slots, color) in enumerate(zip(sorted(ours, reverse=True), palette(len(ours)), strict=True)):
        line = {order: list(ours[slots][order]) for order in sorted(ours[slots])}
        style = {"color": color, "marker": _MARKS[i % len(_MARKS)], "linestyle": _DASHES[i % len(_DASHES)]}
        _seeds(axes, line, f"M = {slots}", style)
        read_off = dict(sorted((paper or {}).get(slots, {}).items()))
        _open_marks(axes, list(read_off), list(read_off.values()), style)
        orders |= line.keys() | read_off.keys()
    axes.set(xlabel="order U (digits of an address)", xscale="log", title=title)
    axes.set_xticks(sorted(orders), [str(order) for order in sorted(orders)])
    axes.minorticks_off()
    _finish(figure, axes, paper)
    return figure


@themed
def accuracy_by_state(
    ours: Mapping[str, Mapping[int, Sequence[float]]],
    paper: Mapping[str, Sequence[Sequence[float]]] | None = None,
    title: str = "",
) -> Figure:
    """Accuracy against the elements of state in all layers, one line per kind of model.

    ``ours``: kind -> elements -> accuracies, one per seed. The first kind has the thickest line. ``paper``: kind ->
    (elements, lowest, highest) as read off, drawn as open marks at the middle for every kind in ``ours``.

    >>> figure = accuracy_by_state({"RAM-Net": {4224: [0.6], 16896: [0.9]}}, {"RAM-Net": [(18000, 0.89, 0.915)]})
    >>> figure.axes[0].get_xscale()
    'log'
    """
    if not ours:
        raise ValueError("ours must hold at least one kind of model, got none")
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    for i, ((kind, points), color) in enumerate(zip(ours.items(), palette(len(ours)), strict=True)):
        line = {size: list(points[size]) for size in sorted(points)}
        style = {"color": color, "marker": _MARKS[i % len(_MARKS)], "linestyle": _DASHES[i % len(_DASHES)]}
        _seeds(axes, line, kind, style, width=2.4 if i == 0 else 1.4)
        read_off = sorted((paper or {}).get(kind, ()), key=lambda mark: mark[0])
        _open_marks(axes, [size for size, _, _ in read_off], [(low + high) / 2 for _, low, high in read_off], style)
    axes.set(xlabel="elements of state, all layers", xscale="log", title=title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value / 1000:g}k" if f"{value:e}"[0] in "25" else "")
    _finish(figure, axes, paper)
    return figure


@themed
def accuracy_by_setting(
    ours: Mapping[str, Mapping[str, Sequence[float]]], paper: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Accuracy of several models under several settings: a row per setting, a mark per model.

    ``ours``: model -> setting -> accuracies, one per seed; rows stand in the order in which settings first occur.
    ``paper``: model -> accuracy, drawn as open marks in a last row.

    >>> figure = accuracy_by_setting({"U = 1": {"base": [0.7], "K = 8": [0.6]}, "U = 3": {"base": [0.7]}})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['base', 'K = 8']
    """
    if not ours:
        raise ValueError("ours must hold at least one model, got none")
    settings = list(dict.fromkeys(setting for line in ours.values() for setting in line))
    rows = [*settings, *["the paper's, read off"] * bool(paper)]
    figure = Figure(figsize=(_SIZE[0], 1.4 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.6 / len(ours)  # of a row, for each model: marks do not hide each other
    for i, ((model, line), color) in enumerate(zip(ours.items(), palette(len(ours)), strict=True)):
        shift = (i - (len(ours) - 1) / 2) * height
        style: Any = {"color": color, "marker": _MARKS[i % len(_MARKS)], "linestyle": "none", "markersize": 6}
        at = [settings.index(setting) + shift for setting in line]
        axes.hlines(at, [min(v) for v in line.values()], [max(v) for v in line.values()], color=color, linewidth=1)
        axes.plot([sum(v) / len(v) for v in line.values()], at, label=model, **style)
        if paper and model in paper:
            axes.plot([paper[model]], [len(settings) + shift], markerfacecolor="none", **style)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-0.02, 1.02), xlabel=_ACCURACY, ylabel="setting", title=title)
    axes.grid(alpha=0.25)
    handles, _ = axes.get_legend_handles_labels()
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _seeds(axes: Any, line: Mapping[int, Sequence[float]], label: str, style: Any, width: float = 1.8) -> None:
    """Draw the mean over seeds as a line, the range as bars."""
    at = list(line)
    means = [sum(values) / len(values) for values in line.values()]
    axes.vlines(at, [min(v) for v in line.values()], [max(v) for v in line.values()], color=style["color"], linewidth=1)
    axes.plot(at, means, label=label, linewidth=width, markersize=6, **style)


def _open_marks(axes: Any, x: Sequence[float], y: Sequence[float], style: Any) -> None:
    if x:
        style = {**style, "linestyle": "-"}
        axes.plot(x, y, markerfacecolor="none", markersize=7, linewidth=0.5, alpha=0.8, **style)


def _finish(figure: Figure, axes: Any, paper: Any) -> None:
    axes.set_ylabel(_ACCURACY)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    handles, _ = axes.get_legend_handles_labels()
    if paper:
        note: dict[str, Any] = {"color": current().muted, "markerfacecolor": "none", "linewidth": 0.5}
        handles.append(Line2D([], [], marker="o", label="the paper's, read off", **note))
    # below the axes: inside a full figure the legend would cover marks
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=2, frameon=False, handlelength=3)
