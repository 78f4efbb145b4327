"""Training small models on the recall task of notebook 9, one at a time or several seeds side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.data.mqar import MQARSettings, mqar_data
from ramnet_np.model import RAMNet, preset
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import CPUTrainer

Watch = Callable[[int, float], None]
__all__ = ["LENGTH", "PAIRS", "STEPS", "fresh", "measure", "recall_data", "train", "trained_together"]

PRESET = "mqar-demo"
PAIRS, LENGTH, VOCAB, STEPS = 4, 32, 256, 300
SPEEDS = TrainConfig(steps=STEPS, batch=32, learning_rate=2e-3, learning_rate_floor=2e-4, warmup=50)


def recall_data(examples: int = 20_000) -> tuple[Batch, Batch]:
    """``examples`` sequences to train on and 500 to test on: ids and labels (N, 32), a label of -100 where nothing is
    asked."""
    sizes = {"train": ((PAIRS, LENGTH, examples),), "test": ((PAIRS, LENGTH, 500),)}
    train, test = mqar_data(MQARSettings(vocab=VOCAB, **sizes), seed=0)
    return Batch(*train[0]), Batch(*test[0])


def train(model: RAMNet, seed: int = 0, watch: Watch | None = None) -> list[float]:
    """The accuracy on unseen sequences after 50, 100, ..., STEPS steps.

    ``watch(step, loss)`` is called at each step.
    """
    data, test = recall_data()
    batches = ShuffledSets([data], {"test": test}, SPEEDS.batch, seed=seed)
    accuracies = []
    moments = adamw_init(model.params)
    with threadpool_limits(1, user_api="blas"), CPUTrainer(model, SPEEDS, moments) as trainer:
        for step in range(1, STEPS + 1):
            trainer.step(batches.batch(step - 1))  # forward, backward, clipping, AdamW
            if watch:
                watch(step, trainer.report().loss)
            if step % 50 == 0:
                accuracies.append(measure(model, test)["right"])
    return accuracies


def probabilities(model: RAMNet, test: Batch) -> np.ndarray:
    """(N, vocab) probabilities at the N queries."""
    logits = model.forward(test.ids)[0][test.labels >= 0]
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def measure(model: RAMNet, test: Batch) -> dict[str, float]:
    """What the model makes of the queries: shares of first choices, probability, and cross-entropy in nats."""
    p, right = probabilities(model, test), test.labels[test.labels >= 0]
    told = test.ids[np.nonzero(test.labels >= 0)[0], 1 : 2 * PAIRS : 2]  # (N, PAIRS) values in the query's sequence
    guess = p.argmax(axis=-1)
    return {
        "right": float((guess == right).mean()),
        "among the told": float((guess[:, None] == told).any(axis=1).mean()),
        "probability of the told": float(np.take_along_axis(p, told, 1).sum(axis=1).mean()),
        "cross-entropy": float(-np.log(p[np.arange(len(p)), right]).mean()),
    }


def fresh(seed: int = 0, prior: bool = True, **changes: Any) -> RAMNet:
    """An untrained model: the preset with ``changes``; without ``prior`` all address biases start at 0."""
    model = RAMNet(replace(preset(PRESET), **changes), seed=seed)
    if not prior:
        for name, array in model.params.items():
            if name.endswith(("w_proj.bias", "r_proj.bias")):
                array[...] = 0
    return model


def trained(job: tuple[dict[str, Any], int]) -> tuple[list[float], dict[str, float]]:
    """``train`` a ``fresh`` model (its changes, its seed): what that returns, and ``measure`` at the end."""
    changes, seed = job
    model = fresh(seed, **changes)
    accuracies = train(model, seed)
    return accuracies, measure(model, recall_data()[1])


def trained_together(jobs: Iterable[tuple[dict[str, Any], int]]) -> list[tuple[list[float], dict[str, float]]]:
    """``trained`` of each, two at a time in processes of their own."""
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=_one_thread) as pool:
        return list(pool.map(trained, jobs))


def _one_thread() -> None:
    os.environ["NUMBA_NUM_THREADS"] = "1"
