"""How fast a kernel can be: the roofline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ramnet_np.plot.style import current, palette, themed


@themed
def roofline(points: Mapping[str, tuple[float, float]], *, peak: float, bandwidth: float, title: str = "") -> Figure:
    """Operations per second against operations per byte moved, below the limits of a machine.

    ``points``: name -> (operations per byte, operations per second reached); ``peak``: most operations per second;
    ``bandwidth``: most bytes per second. Left of the ridge memory is the limit, right of it arithmetic.

    >>> roofline({"ours": (4.0, 2e12)}, peak=67e12, bandwidth=3e12).axes[0].get_xlabel()
    'operations per byte moved'
    """
    if not points:
        raise ValueError("points must hold at least one kernel, got none")
    ridge = peak / bandwidth
    reached = [intensity for intensity, _ in points.values()]
    x = np.geomspace(min([*reached, ridge]) / 4, max([*reached, ridge]) * 4, 200)
    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, np.minimum(peak, x * bandwidth), color=current().ink, linewidth=2)
    axes.annotate(
        f"memory: {bandwidth / 1e12:.2g} TB/s", (x[60], x[60] * bandwidth), xytext=(-4, 12), textcoords="offset points",
        ha="right", fontsize=9, color=current().muted,
    )  # fmt: skip
    axes.annotate(
        f"arithmetic: {peak / 1e12:.3g} T operations/s", (x[-1], peak), xytext=(0, 6), textcoords="offset points",
        ha="right", fontsize=9, color=current().muted,
    )  # fmt: skip
    for (name, (intensity, rate)), color in zip(points.items(), palette(len(points)), strict=True):
        axes.plot([intensity] * 2, [rate, min(peak, intensity * bandwidth)], color=color, linewidth=1, linestyle=":")
        axes.plot(intensity, rate, "o", color=color, markersize=8, label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="operations per byte moved", ylabel="operations per second", title=title,
        ylim=(None, 3 * peak),
    )  # fmt: skip
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, loc="lower right", framealpha=0.8)
    return figure
