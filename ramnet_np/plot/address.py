"""Addresses: digits and their product, the radix tree, a step of the beam search, CAPE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ramnet_np.contract import Array
from ramnet_np.plot.style import current, themed


@themed
def digit_product(logits: Array, top_k: int = 0, temperature: float = 1.0, title: str = "") -> Figure:
    """U softmaxes as bars, most significant digit first, and the probability of every slot as a map.

    ``logits``: (U, P) of one token and head. Slots in one row of the map share their upper digits, slots in one column
    share their lower digits. The ``top_k`` most probable slots are framed, with their numbers.

    >>> digit_product(np.zeros((4, 3)), top_k=5).axes[-1].get_xlabel()
    'lower 2 digits'
    """
    p, rho = _digits_and_slots(logits, temperature)
    order, radix = p.shape
    colors = current()
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(1, order + 1, width_ratios=[1] * order + [2.4])
    for column, u in enumerate(reversed(range(order))):
        axes = figure.add_subplot(grid[0, column])
        axes.bar(range(radix), p[u], color=colors.series[0], width=0.8)
        axes.set(ylim=(0, 1.02), xlabel="value", title=f"digit {u}", xticks=range(radix))
        if column:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("probability")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    low = order // 2
    columns = radix**low
    axes = figure.add_subplot(grid[0, order])
    axes.imshow(
        np.sqrt(rho).reshape(-1, columns), cmap=colors.shades(colors.series[0]), vmin=0, aspect="auto", origin="lower"
    )
    for slot in np.argsort(-rho, kind="stable")[:top_k]:
        corner = (slot % columns - 0.5, slot // columns - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colors.write, linewidth=1.6))
        color = colors.paper if rho[slot] > 0.45 * rho.max() else colors.ink
        axes.text(corner[0] + 0.5, corner[1] + 0.5, str(slot), ha="center", va="center", fontsize=8, color=color)
    axes.set(
        xlabel=f"lower {low} digit{'s' * (low > 1)}",
        ylabel=f"upper {order - low} digit{'s' * (order - low > 1)}",
        title=f"{radix}$^{order}$ = {radix**order} slots",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
    return figure


@themed
def address_tree(logits: Array, top_k: int = 0, temperature: float = 1.0) -> Figure:
    """The address as a path in a tree: every level chooses one digit, a slot is a leaf.

    ``logits``: (U, P) of one token and head. The most significant digit is the first level, so leaves are in the order
    of their slots. The thickness of a branch is the probability of reaching it. The ``top_k`` most probable leaves have
    their names beside them.

    >>> address_tree(np.zeros((3, 2)), top_k=2).axes[0].get_ylabel()
    'slot'
    """
    p, rho = _digits_and_slots(logits, temperature)
    order, radix = p.shape
    slots = radix**order
    colors = current()
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.subplots()
    reach, place = np.ones(1), np.array([(slots - 1) / 2])
    for level in range(order):
        width = slots // radix ** (level + 1)  # leaves below a node of the next level
        below = (np.arange(radix ** (level + 1)) + 0.5) * width - 0.5
        chance = np.repeat(reach, radix) * np.tile(p[order - 1 - level], len(reach))
        for child, (y, share) in enumerate(zip(below, chance, strict=True)):
            axes.plot(
                [level, level + 1], [place[child // radix], y], color=colors.series[0],
                linewidth=0.4 + 9 * share, alpha=0.25 + 0.75 * share, solid_capstyle="round",
            )  # fmt: skip
        reach, place = chance, below
    best = np.argsort(-rho, kind="stable")[:top_k]
    axes.plot(np.full(len(best), order), best, "s", color=colors.write, markersize=6)
    at = -np.inf
    for slot in np.sort(best):
        at = max(float(slot), at + slots / 22)  # names of neighbouring slots must not overlap
        digits = "".join(str(slot // radix**u % radix) for u in reversed(range(order)))
        axes.text(order + 0.05, at, f"slot {slot} = {digits}  ({rho[slot]:.2f})", va="center", fontsize=9)
    axes.set_xticks(range(order + 1), ["", *(f"digit {u}" for u in reversed(range(order)))])
    axes.set(xlabel="chosen digit", ylabel="slot", xlim=(-0.1, order + (0.9 if top_k else 0.1)))
    return figure


@themed
def beam_merge(steps: Sequence[tuple[Array, Array]], top_k: int, first: int = 1) -> Figure:
    """The merges of a beam search, one panel per digit: all pairs of a partial address and a value of the next digit.

    ``steps``: (scores, kept) of each merge: scores (n, P) of the pairs, partial addresses (rows) and values (columns)
    both sorted best first; kept (n, P) bool, the K best. ``first``: the digit that the first of them adds.
    The stepped line is the staircase (i+1)(j+1) <= K: for a pair below and right of it there are K better ones, so it
    need not be computed.

    >>> scores = np.log(np.outer([0.6, 0.4], [0.9, 0.1]))
    >>> beam_merge([(scores, scores > -1)], top_k=2).axes[0].get_xlabel()
    'value of digit 1, by rank'
    """
    colors = current()
    figure = Figure(figsize=(2.9 * len(steps) + 0.6, 3.6), layout="constrained")
    for number, (axes, (scores, kept)) in enumerate(
        zip(figure.subplots(1, len(steps), squeeze=False)[0], steps, strict=True), first
    ):
        n, radix = np.shape(scores)
        axes.imshow(np.exp(scores), cmap=colors.shades(colors.series[0]), vmin=0, aspect="auto")
        for i, j in np.ndindex(n, radix):
            share = np.exp(scores[i, j])
            dark = share > 0.6 * np.exp(scores).max()
            axes.text(
                j, i, f"{share:.2f}".lstrip("0"), ha="center", va="center", fontsize=8.5,
                color=colors.paper if dark else colors.ink,
            )  # fmt: skip
            if kept[i, j]:
                axes.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=colors.write, lw=1.8))
        _staircase(axes, n, radix, top_k)
        axes.set(
            title=f"merge {number}: {int(np.sum(kept))} of {n * radix} kept",
            xlabel=f"value of digit {number}, by rank",
            ylabel="partial address, by rank",
            xticks=range(radix),
            yticks=range(n),
            xlim=(-0.55, radix - 0.45),
            ylim=(n - 0.45, -0.55),
        )
        axes.title.set_fontsize(10)
    return figure


@themed
def cape_grid(slots: int, tokens: int, follow: Sequence[int] = ()) -> Figure:
    """Which content address each slot holds under CAPE: the cell of slot i and token t shows (i + t) mod M.

    ``follow``: content addresses to colour; each moves along a diagonal and wraps from slot 0 to slot M - 1.

    >>> cape_grid(slots=8, tokens=12, follow=[5]).axes[0].get_xlabel()
    'token t'
    """
    colors = current()
    figure = Figure(figsize=(0.46 * tokens + 0.9, 0.34 * slots + 0.9), layout="constrained")
    axes = figure.subplots()
    for i, t in np.ndindex(slots, tokens):
        content = (i + t) % slots
        if content in follow:
            color = colors.series[list(follow).index(content) % len(colors.series)]
            axes.add_patch(Rectangle((t - 0.46, i - 0.46), 0.92, 0.92, color=color, alpha=0.35, linewidth=0))
        weight = "bold" if content in follow else "normal"
        axes.text(
            t, i, str(content), ha="center", va="center", fontsize=9, fontweight=weight,
            color=colors.ink if content in follow else colors.muted,
        )  # fmt: skip
    axes.set(
        xlabel="token t", ylabel="slot i", xlim=(-0.5, tokens - 0.5), ylim=(-0.5, slots - 0.5),
        xticks=range(tokens), yticks=range(slots), title="content address found at slot i: (i + t) mod M",
    )  # fmt: skip
    axes.title.set_fontsize(10.5)
    return figure


def _staircase(axes: Axes, n: int, radix: int, top_k: int) -> None:
    """Draw the border of the pairs with (i+1)(j+1) <= K."""
    columns = [min(radix, top_k // (i + 1)) for i in range(n)]
    x, y = [columns[0] - 0.5], [-0.5]
    for i in range(n):
        x += [columns[i] - 0.5, columns[i] - 0.5]
        y += [i - 0.5, i + 0.5]
    axes.plot([*x, -0.5], [*y, y[-1]], color=current().ink, linewidth=2, linestyle="--")


def _digits_and_slots(logits: Array, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """p (U, P) and rho (M,): the product over all slots, which only a figure needs."""
    scores = np.asarray(logits, dtype=float) / temperature
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    rho = p[0]
    for digit in p[1:]:
        rho = np.outer(digit, rho).ravel()
    return p, rho
