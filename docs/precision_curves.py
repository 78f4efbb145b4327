"""The figure of docs/gpu-training.md: the loss of one model trained in float32 and in bfloat16.

    python docs/precision_curves.py docs/images

Draws docs/results/precision/bfloat16.jsonl, for light and for dark pages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ramnet_np.plot.style import current, palette, theme, themed

RECORDS = Path(__file__).parent / "results/precision/bfloat16.jsonl"
SMOOTHED = 5  # records, of every fifth step: a mean over 25 steps


def losses() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps, and for each dtype the mean loss of the records up to them, ``SMOOTHED`` at a time."""
    rows = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    kept = {name: [row for row in rows if row["dtype"] == name and "loss" in row] for name in ("float32", "bfloat16")}
    mean = np.ones(SMOOTHED) / SMOOTHED
    steps = np.array([row["step"] for row in kept["float32"]])[SMOOTHED - 1 :]
    return steps, {name: np.convolve([row["loss"] for row in own], mean, "valid") for name, own in kept.items()}


def figure() -> Figure:
    """Both losses, and below them how far apart they are."""
    steps, series = losses()
    drawn = Figure(figsize=(7, 4.6), layout="constrained")
    above, below = drawn.subplots(2, sharex=True, height_ratios=(2, 1))
    for (name, values), colour, dash in zip(series.items(), palette(2), ("-", "--"), strict=True):
        above.plot(steps, values, dash, color=colour, linewidth=1.8, label=name)
    above.set(ylabel="nats per byte")
    above.legend(fontsize=9, framealpha=0.8)
    below.axhline(0, color=current().muted, linewidth=1)
    below.plot(steps, 100 * (series["bfloat16"] / series["float32"] - 1), color=palette(2)[1], linewidth=1.8)
    below.set(xlabel="step", ylabel="difference, %", ylim=(-0.6, 0.6))
    for axes in (above, below):
        axes.grid(alpha=0.25)
    return drawn


def main(folder: Path) -> None:
    """Write the two figures."""
    for name, kind in (("precision-curves", "light"), ("precision-curves-dark", "dark")):
        with theme(kind):
            themed(figure)().savefig(folder / f"{name}.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
