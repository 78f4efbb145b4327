"""The picture that opens the README: what RAM-Net is, with computed numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from ramnet_np.contract import Address
from ramnet_np.core.attention import decode_address
from ramnet_np.plot.style import current, own_settings, theme, themed

_ORDER, _RADIX, _TOP_K, _CHANNELS, _SIDE = 3, 4, 4, 8, 8  # the 64 slots are drawn as 8 x 8


@themed
def ramnet_picture(seed: int = 1209) -> Figure:
    """What RAM-Net is, in one picture with computed numbers: digits, product softmax, top-K slots, write, read.

    The key of one token and the query of a later token each select K of M slots. The write moves the key's slots
    towards the value. The read mixes the query's slots. The query is the key with some noise, so it reads most of what
    was written.

    >>> len(ramnet_picture().axes)  # twice three digits and a table of slots; memory, value, answer
    11
    """
    rng = np.random.default_rng(seed)
    key = 2.0 * rng.standard_normal((_ORDER, _RADIX))
    query = key + 0.3 * rng.standard_normal((_ORDER, _RADIX))
    memory = 0.15 * rng.standard_normal((_RADIX**_ORDER, _CHANNELS))
    value = 1.2 * np.cos(np.linspace(0, 1.6 * np.pi, _CHANNELS))
    write, read = (decode_address(logits[None, None, None], top_k=_TOP_K, backend="numpy") for logits in (key, query))
    slots, weight = write.index.ravel(), write.weight.ravel()[:, None]
    memory[slots] += weight / (1 / len(memory) + weight) * (value - memory[slots])  # a first write: z was 1/M
    slots, weight = read.index.ravel(), read.weight.ravel()[:, None]
    answer = (weight * memory[slots]).sum(axis=0)

    figure = Figure(figsize=(11, 5.2))
    headings = (
        (0.155, "1  digits", f"U = {_ORDER} softmaxes over P = {_RADIX} values"),
        (0.435, "2  product softmax, top K", f"$P^U$ = {len(memory)} slots, the best K = {_TOP_K} are selected"),
        (0.69, "3  memory", "a token uses only K slots"),
        (0.895, "4  write, then read", "C channels per slot"),
    )
    for x, heading, text in headings:
        figure.text(x, 0.94, heading, ha="center", fontsize=13, fontweight="bold", color=current().ink)
        figure.text(x, 0.89, text, ha="center", fontsize=9.5, color=current().muted)

    table = figure.add_axes((0.645, 0.07, 0.09, 0.77))
    limit = float(np.abs(memory).max())
    colors: dict[str, Any] = {"cmap": current().diverging(), "vmin": -limit, "vmax": limit}
    colors |= {"aspect": "auto", "interpolation": "nearest"}
    table.imshow(memory, **colors)
    table.set_yticks([0, len(memory) - 1], ["slot 0", f"slot {len(memory) - 1}"])
    table.tick_params(labelsize=8, length=2, colors=current().muted)
    table.set_xticks([])

    rows = (
        (0.51, key, write, current().write, value, "key of a token", "$v$", r"$s \leftarrow s + \eta\,(v - s)$"),
        (0.08, query, read, current().read, answer, "query of a later token", "$y$", r"$y = \sum_a r_a\, s_a$"),
    )
    for bottom, logits, address, color, vector, name, symbol, formula in rows:
        figure.text(
            0.022,
            bottom + 0.14,
            name,
            rotation=90,
            va="center",
            ha="center",
            fontsize=11,
            color=color,
            fontweight="bold",
        )
        _draw_digits(figure, bottom, logits, color)
        cells = _draw_slots(figure, bottom, logits, address, color)
        strip = figure.add_axes((0.825, bottom + 0.115, 0.14, 0.05))
        strip.imshow(vector[None], **colors)
        _bare(strip, color)
        figure.text(0.895, bottom + 0.195, symbol, ha="center", fontsize=14, color=color)
        figure.text(0.895, bottom + 0.04, formula, ha="center", fontsize=13, color=current().ink)
        for slot, strength in zip(address.index.ravel(), address.weight.ravel(), strict=True):
            width = 0.8 + 6 * float(strength)
            _connect(figure, cells, (slot % _SIDE + 0.5, slot // _SIDE), table, (-0.5, slot), "-", color, width)
            style = "<|-" if color == current().write else "-|>"
            _connect(figure, table, (_CHANNELS - 0.5, slot), strip, (-0.5, 0), style, color, width)
            table.add_patch(
                Rectangle((-0.5, slot - 0.5), _CHANNELS, 1, fill=False, edgecolor=current().paper, linewidth=1)
            )
    return figure


def _draw_digits(figure: Figure, bottom: float, logits: np.ndarray, color: str) -> None:
    """Draw one bar chart per digit, the most significant digit first."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for u in range(_ORDER):
        axes = figure.add_axes((0.05 + 0.075 * (_ORDER - 1 - u), bottom + 0.03, 0.06, 0.22))
        axes.bar(range(_RADIX), p[u], color=color, alpha=0.85, width=0.8)
        axes.set_ylim(0, 1)
        axes.set_xticks(range(_RADIX))
        axes.set_yticks([])
        axes.tick_params(labelsize=8, length=0, colors=current().muted)
        axes.set_title(f"digit {u}", fontsize=9, color=current().muted, pad=3)
        for side in ("top", "left", "right"):
            axes.spines[side].set_visible(False)
        if u:
            figure.text(
                0.05 + 0.075 * (_ORDER - u) - 0.0075,
                bottom + 0.13,
                r"$\times$",
                ha="center",
                fontsize=12,
                color=current().ink,
            )
    figure.text(0.285, bottom + 0.13, "=", ha="center", fontsize=14, color=current().ink)


def _draw_slots(figure: Figure, bottom: float, logits: np.ndarray, address: Address, color: str) -> Axes:
    """Draw the probability of every slot, and a frame around each selected slot."""
    every = decode_address(logits[None, None, None], top_k=_RADIX**_ORDER, backend="numpy")
    rho = np.empty(_RADIX**_ORDER)
    rho[every.index.ravel()] = every.weight.ravel()
    axes = figure.add_axes((0.335, bottom, 0.155, 0.155 * 11 / 5.2))
    axes.imshow(rho.reshape(_SIDE, _SIDE) ** 0.5, cmap=current().shades(color), vmin=0)
    for slot in address.index.ravel():
        axes.add_patch(
            Rectangle(
                (slot % _SIDE - 0.5, slot // _SIDE - 0.5), 1, 1, fill=False, edgecolor=current().ink, linewidth=1.6
            )
        )
    _bare(axes, current().faint)
    return axes


def _connect(
    figure: Figure,
    a: Axes,
    at_a: tuple[float, float],
    b: Axes,
    at_b: tuple[float, float],
    style: str,
    color: str,
    width: float,
) -> None:
    """Draw a line or arrow from a point of one panel to a point of another, both in data coordinates."""
    line = ConnectionPatch(
        at_a, at_b, "data", "data", axesA=a, axesB=b, arrowstyle=style, color=color, linewidth=width, mutation_scale=8
    )
    line.set_annotation_clip(False)  # the points lie on the panels' frames
    figure.add_artist(line)


def _bare(axes: Axes, color: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor(color)


def main(arguments: Sequence[str]) -> None:
    """Draw the opening picture into the file named by the only argument, and for dark pages into one beside it."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m ramnet_np.plot FILE.png")
    light = Path(arguments[0])
    light.parent.mkdir(parents=True, exist_ok=True)
    for name, path in (("light", light), ("dark", light.with_stem(light.stem + "-dark"))):
        with theme(name), own_settings():
            ramnet_picture().savefig(path, dpi=150)
        print(f"wrote {path}")
