"""Curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ramnet_np.plot.style import current, themed


@themed
def training_curves(records: Sequence[Mapping[str, Any]], title: str = "", accuracy: str = "recall accuracy") -> Figure:
    """Accuracy and loss of a run against the step.

    ``records``: those of a metrics.jsonl, as :func:`ramnet_np.train.metrics.read_metrics` returns them. Training values
    are those of single batches (faint) with their running mean; held-out accuracy is drawn per set where there is more
    than one, and as the mean of the sets. ``accuracy``: what the accuracy measures, for the axis.
    TypeError for a path in place of records, ValueError where there is no training record.

    >>> records = [{"kind": "train", "step": s, "loss": 2.0 / s, "accuracy": 0.1 * s} for s in range(1, 5)]
    >>> figure = training_curves(records, title="a run")
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['recall accuracy', 'cross-entropy (nats)']
    """
    if isinstance(records, (str, PathLike)):
        raise TypeError(f"records must be the records of a metrics file, as read_metrics returns them, got {records!r}")
    trained = [r for r in records if r["kind"] == "train"]
    measured = [r for r in records if r["kind"] == "held_out"]
    if not trained:
        raise ValueError("records must hold at least one training record, got none")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    if title:
        figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    steps = [r["step"] for r in trained]
    for axes, key, label in ((left, "accuracy", "training batches"), (right, "loss", "training batches")):
        values = np.array([r[key] for r in trained])
        axes.plot(steps, values, color=current().faint, alpha=0.35, linewidth=0.8)
        axes.plot(steps, _running_mean(values), color=current().ink, linewidth=1.5, label=label)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
    if measured:
        at = [r["step"] for r in measured]
        sets = [name for name in measured[0]["accuracy"] if name != "mean"]
        for name in sets if len(sets) > 1 else ():
            left.plot(at, [r["accuracy"][name] for r in measured], linewidth=0.8, alpha=0.8, label=name)
        mean = [r["accuracy"]["mean"] for r in measured]
        left.plot(at, mean, color=current().read, marker="o", markersize=4, linewidth=1.8, label="held out")
    left.set_ylabel(accuracy)
    left.set_ylim(-0.02, 1.02)
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.set_ylabel("cross-entropy (nats)")
    right.set_yscale("log")
    left.legend(fontsize=8, loc="lower right")
    right.legend(fontsize=8, loc="lower left")
    return figure


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of each value and those before it, up to a twentieth of the run."""
    width = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    return (sums[end] - sums[start]) / (end - start)
