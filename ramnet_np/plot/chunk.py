"""The accesses of a chunk of tokens, as the CUDA kernels of the memory group them (``docs/kernels.md``)."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ramnet_np.contract import Array
from ramnet_np.plot.style import current, themed

_APART = 0.16  # a token writes before it reads: its squares stand left of its rings


@themed
def chunk_accesses(writes: Array, reads: Array, slots: int) -> Figure:
    """Which slots the tokens of a chunk write and read, and which of these accesses conflict.

    ``writes``, ``reads``: (L, K) slots of each token; ``slots``: M. A token writes (squares), then reads (rings). A
    line is a chain: the accesses of a slot where a write follows another access. They must run in order. Accesses
    without a line are faint; a kernel can run them all at once, writes before reads.

    >>> chunk_accesses([[5], [5], [7]], [[9], [5], [9]], slots=16).axes[0].get_title()
    '3 tokens, 6 accesses, 1 chain'
    """
    history: dict[int, list[tuple[float, bool]]] = {}  # slot -> (position, whether it writes), in order
    for t, (written, read) in enumerate(zip(np.asarray(writes), np.asarray(reads), strict=True)):
        for slot in written:
            history.setdefault(int(slot), []).append((t - _APART, True))
        for slot in read:
            history.setdefault(int(slot), []).append((t + _APART, False))
    chains = {slot for slot, accesses in history.items() if any(write for _, write in accesses[1:])}
    colors = current()
    tokens, total = len(writes), sum(map(len, history.values()))
    figure = Figure(figsize=(8.5, 4.4), layout="constrained")
    axes = figure.subplots()
    for slot, accesses in history.items():
        if slot in chains:
            axes.plot([x for x, _ in accesses], [slot] * len(accesses), color=colors.ink, linewidth=1.4, zorder=1)
        for marker, wanted, color in (("s", True, colors.write), ("o", False, colors.read)):
            at = [x for x, write in accesses if write == wanted]
            axes.plot(
                at, [slot] * len(at), marker, color=color, markersize=7, markeredgewidth=1.6, linestyle="",
                markerfacecolor=color if wanted else colors.paper, alpha=1 if slot in chains else 0.45,
            )  # fmt: skip
    axes.set(
        xlabel="token of the chunk", ylabel=f"slot (of {slots})", xticks=range(tokens), xlim=(-0.6, tokens - 0.4),
        ylim=(-0.03 * slots, 1.03 * slots),
        title=f"{tokens} tokens, {total} accesses, {len(chains)} chain{'s' * (len(chains) != 1)}",
    )  # fmt: skip
    axes.title.set_fontsize(10.5)
    axes.grid(axis="x", alpha=0.25)
    marks = [
        Line2D([], [], color=colors.write, marker="s", linestyle="", label="write"),
        Line2D([], [], color=colors.read, marker="o", linestyle="", fillstyle="none", label="read"),
        Line2D([], [], color=colors.ink, linewidth=1.4, label="chain: in order"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False)
    return figure
