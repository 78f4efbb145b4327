"""Slots as pigeonholes: a wall of them above which a text is read, and a rack that CAPE turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle, Wedge

from ramnet_np.plot.style import current, themed

Arrow = tuple[str, int, int]  # ("write" or "read", token, slot)


@themed
def pigeonholes(
    tokens: Sequence[str],
    contents: Mapping[int, str],
    columns: int,
    rows: int,
    *,
    arrows: Sequence[Arrow] = (),
    erased: int | None = None,
    title: str = " ",
) -> Figure:
    """A text, and below it a wall of slots with what they hold; slot 0 is at the bottom left, as on a map.

    ``contents``: slot -> a short word; ``arrows``: from a token to the slot that it writes, or from a slot to the token
    that reads it; ``erased``: a slot that is crossed out.

    >>> pigeonholes(["Tom"], {5: "fox"}, columns=4, rows=2, arrows=[("write", 0, 5)]).axes[0].texts[0].get_text()
    'Tom'
    """
    colors = current()
    figure = Figure(figsize=(7, 0.42 * rows + 1.3), layout="constrained")
    axes = figure.subplots()
    touched = {slot: colors.write if kind == "write" else colors.read for kind, _, slot in arrows}
    at = np.linspace(-0.4, columns - 0.6, len(tokens) + 2)[1:-1]
    for x, token in zip(at, tokens, strict=True):
        axes.text(x, rows + 0.6, token, ha="center", va="center", fontsize=12, family="monospace", color=colors.ink)
    for slot in range(rows * columns):
        x, y = slot % columns, slot // columns
        color = touched.get(slot)
        axes.add_patch(
            Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, facecolor="none" if color is None else color + "22",
                      edgecolor=color or colors.faint, linewidth=2 if color else 0.7)
        )  # fmt: skip
        axes.text(x - 0.43, y - 0.4, str(slot), fontsize=6.5, color=colors.muted, ha="left", va="bottom")
        if slot in contents:
            axes.text(x + 0.03, y + 0.05, contents[slot], ha="center", va="center", fontsize=10, color=colors.ink)
        if slot == erased:
            axes.plot([x - 0.4, x + 0.4], [y - 0.36, y + 0.36], color=colors.write, linewidth=2.5)
            axes.plot([x - 0.4, x + 0.4], [y + 0.36, y - 0.36], color=colors.write, linewidth=2.5)
    for kind, number, slot in arrows:
        text, hole = (float(at[number]), rows + 0.35), (float(slot % columns), slot // columns + 0.46)
        start, end = (text, hole) if kind == "write" else (hole, text)
        _arrow(axes, start, end, kind)
    axes.set(xlim=(-0.6, columns - 0.4), ylim=(-0.55, rows + 1.0))
    axes.set_title(title, fontsize=11, loc="left")
    axes.axis("off")
    return figure


@themed
def rack(
    tokens: Sequence[str], contents: Mapping[int, str], slots: int, t: int, *, arrows: Sequence[Arrow] = ()
) -> Figure:
    """CAPE as a rack that turns: slots in a ring, the address that each answers to at token ``t``, and the text.

    Slot i stands where its address (i + t) mod M is: address 0 is at the top, and the contents come past it.
    ``contents`` and ``arrows`` as in :func:`pigeonholes`; the slots of the arrows are slots, not addresses.

    >>> rack(["Tom", "Fox"], {0: "Tom"}, slots=8, t=1).axes[0].get_title(loc="left")
    'token 1: Fox'
    """
    colors = current()
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for i, token in enumerate(tokens):
        now = i == t
        axes.text(
            -3.6 + 0.75 * i, 1.85, token, ha="center", va="center", family="monospace",
            fontsize=13 if now else 11, fontweight="bold" if now else "normal",
            color=colors.ink if now else colors.muted,
        )  # fmt: skip
    touched = {slot: colors.write if kind == "write" else colors.read for kind, _, slot in arrows}
    width = 360 / slots
    for slot in range(slots):
        address = (slot + t) % slots
        middle = 90 - width * address
        color = touched.get(slot)
        axes.add_patch(
            Wedge((0, 0), 1.25, middle - width / 2 + 1, middle + width / 2 - 1, width=0.62,
                  facecolor="none" if color is None else color + "22", edgecolor=color or colors.faint,
                  linewidth=2 if color else 0.8)
        )  # fmt: skip
        x, y = np.cos(np.radians(middle)), np.sin(np.radians(middle))
        axes.text(1.40 * x, 1.40 * y, str(address), ha="center", va="center", fontsize=9, color=colors.muted)
        axes.text(0.94 * x, 0.94 * y, contents.get(slot, ""), ha="center", va="center", fontsize=10, color=colors.ink)
        axes.text(0.47 * x, 0.47 * y, f"slot {slot}", ha="center", va="center", fontsize=6.5, color=colors.muted)
    axes.text(0, 0, f"t = {t}", ha="center", va="center", fontsize=11, color=colors.ink)
    lines = [
        f"{'writes' if kind == 'write' else 'reads'} address {(slot + t) % slots} = slot {slot}"
        for kind, _, slot in arrows
    ]
    for row, (line, (kind, _, _)) in enumerate(zip(lines, arrows, strict=True)):
        axes.text(1.9, 0.3 - 0.4 * row, line, fontsize=10, color=colors.write if kind == "write" else colors.read)
    axes.set(xlim=(-4.1, 4.1), ylim=(-1.55, 2.05), aspect="equal")
    axes.set_title(f"token {t}: {tokens[t]}", fontsize=11, loc="left")
    axes.axis("off")
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
    color = current().write if kind == "write" else current().read
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=14, linewidth=1.8, color=color, shrinkA=0, shrinkB=0
        )
    )
