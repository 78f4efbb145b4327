"""Access traces: which slots the tokens of a sequence write and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ramnet_np.contract import Address
from ramnet_np.plot.style import current, themed


@themed
def slot_trace(
    trace: Sequence[Mapping[str, Address]],
    slots: int,
    *,
    example: int = 0,
    cape_heads: Sequence[int] = (),
    tokens: Sequence[str] = (),
) -> Figure:
    """Which slots each token writes and reads: slot index against token, one panel per layer and head.

    ``trace``: the result of ``RAMNet.trace``, a mapping with "write" and "read" addresses (B, T, H, K) per layer.
    ``slots``: M; ``example``: which sequence of the batch; ``cape_heads``: number of CAPE heads per layer, for titles.
    ``tokens``: a few letters for each of the T tokens, below the axis; none: their numbers.
    A smaller weight is a fainter mark. CAPE heads show diagonals of slope -1 that wrap at M, content heads show rows.
    Source: paper, appendix B, fig. 5.

    >>> from ramnet_np import decode_address
    >>> address = decode_address(np.zeros((1, 6, 2, 3, 4)), top_k=2, cape_heads=1)
    >>> figure = slot_trace([{"write": address, "read": address}], slots=64, cape_heads=(1,))
    >>> [axes.get_title() for axes in figure.axes]
    ['layer 0, head 0 (CAPE)', 'layer 0, head 1 (content)']
    """
    layers, heads = len(trace), trace[0]["write"].index.shape[2]
    figure = Figure(figsize=(4.2 * heads + 0.6, 2.7 * layers + 0.7), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer, head]
            _scatter_address(axes, trace[layer]["write"], example, head, current().write, "s")
            _scatter_address(axes, trace[layer]["read"], example, head, current().read, "o")
            kind = ("CAPE" if head < cape_heads[layer] else "content") if layer < len(cape_heads) else ""
            axes.set_title(f"layer {layer}, head {head}" + (f" ({kind})" if kind else ""), fontsize=10)
            axes.set_ylim(-0.02 * slots, 1.02 * slots)
            axes.grid(alpha=0.2)
            if len(tokens):
                axes.set_xticks(range(len(tokens)), tokens, fontsize=8)
            if layer == layers - 1:
                axes.set_xlabel("token")
            if head == 0:
                axes.set_ylabel(f"slot (of {slots})")
    marks = [Line2D([], [], color=current().write, marker="s", markersize=3, linestyle="", label="write")]
    marks += [
        Line2D([], [], color=current().read, marker="o", markersize=5, linestyle="", fillstyle="none", label="read")
    ]
    figure.legend(handles=marks, loc="outside upper right", ncols=2, frameon=False)
    return figure


def _scatter_address(axes: Axes, address: Address, example: int, head: int, color: str, marker: str) -> None:
    index, weight = (np.asarray(a[example, :, head]) for a in (address.index, address.weight))  # (T, K)
    tokens = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    shown = np.maximum(weight.ravel() / max(float(weight.max()), 1e-30), 0.08)
    shades = [to_rgba(color, float(alpha)) for alpha in shown]
    if marker == "s":
        axes.scatter(tokens.ravel(), index.ravel(), marker=marker, s=9, color=shades, edgecolors="none")
    else:
        axes.scatter(
            tokens.ravel(), index.ravel(), marker=marker, s=22, facecolors="none", edgecolors=shades, linewidths=0.9
        )
