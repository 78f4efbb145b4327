"""Frames of notebook 6: how the adjoint of an answer flows back through a few slots to the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ramnet_np.plot.style import current, themed


class Token(NamedTuple):
    """A token that writes one slot or reads one."""

    text: str
    slot: int
    eta: float = 0.0  # how much of the slot it replaces; 0: it reads


def adjoints(tokens: Sequence[Token], slots: int, asked: int) -> tuple[np.ndarray, np.ndarray]:
    """For L = the answer of token ``asked``: dL/ds of every slot after each token (slots, T + 1), and dL/dv (T,).

    Column t is the slots as token t found them; column T as the last one left them.
    """
    T = len(tokens)
    ds, dv = np.zeros((slots, T + 1)), np.zeros(T)
    for t in reversed(range(T)):
        ds[:, t] = ds[:, t + 1]
        slot, eta = tokens[t].slot, tokens[t].eta
        if t == asked:
            ds[slot, t] += 1.0  # y = s of this slot
        elif eta:
            dv[t] = eta * ds[slot, t]
            ds[slot, t] *= 1 - eta
    return ds, dv


@themed
def adjoints_so_far(tokens: Sequence[Token], names: Sequence[str], asked: int, back_to: int) -> Figure:
    """The backward after it has walked back to before token ``back_to``; what it has not reached is empty.

    ``names``: of the slots, from the top.
    """
    ds, dv = adjoints(tokens, len(names), asked)
    T, colors = len(tokens), current()
    figure = Figure(figsize=(7.6, 2.9), layout="constrained")
    axes = figure.subplots()
    shade = colors.shades(colors.series[0])
    for (slot, column), number in np.ndenumerate(np.where(np.arange(T + 1) >= back_to, ds, 0)):
        if number:
            axes.add_patch(Rectangle((column - 1, slot - 0.22), 1, 0.44, color=shade(number / 2), linewidth=0))
            axes.text(column - 0.5, slot, f"{number:.2f}", ha="center", va="center", fontsize=10)
    for t, token in enumerate(tokens):
        _mark(axes, t, token)
        if t >= back_to and dv[t]:
            axes.annotate(f"to {token.text}: {dv[t]:.2f}", (t, -0.45), ha="center", fontsize=9.5, color=colors.write)
    if back_to:
        axes.annotate(
            "", (back_to - 1.4, -0.62), (back_to - 0.6, -0.62),
            arrowprops={"arrowstyle": "->", "color": colors.ink, "linewidth": 1.6},
        )  # fmt: skip
    axes.set(
        xticks=range(T), xlim=(-1, T), ylim=(len(names) - 0.5, -0.95), xlabel="the backward goes from right to left"
    )
    axes.set_xticklabels([token.text for token in tokens])
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"gradient of the answer to {tokens[asked].text}", fontsize=10.5)
    return figure


def _mark(axes: Axes, t: int, token: Token) -> None:
    if token.eta:
        axes.plot(t, token.slot, "s", color=current().write, markersize=9)
        axes.annotate(
            rf"$\eta$ = {token.eta:g}", (t, token.slot + 0.36), ha="center", fontsize=9, color=current().write
        )
    else:
        axes.plot(t, token.slot, "o", mfc="none", mew=1.8, color=current().read, markersize=11)
