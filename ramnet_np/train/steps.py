"""The steps of a training, one after another, for any data set that names its batches by step and any RAMNet.

:func:`training` is the loop: batch, step, numbers, measurement. Two callers use it: ``loop.py`` for a whole run,
``experiment/one_run.py`` for a record of a grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ramnet_np.backend import array_kind, backend_for
from ramnet_np.data.batches import BatchSource
from ramnet_np.model import RAMNet
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer, Graphs
from ramnet_np.train.optim import AdamWState
from ramnet_np.train.ranks import ONE, Ranks
from ramnet_np.train.trainer import CPUTrainer, Report, Trainer


class StepResult(NamedTuple):
    """What :func:`training` knows after a step."""

    step: int  # updates made since the run began, this one included
    report: Report | None  # the numbers of this step, if they were read
    accuracy: dict[str, float] | None  # per held-out set and "mean", if it was measured after this step
    best: float  # highest mean accuracy so far
    is_last: bool  # config.steps are made, or config.stop_at is reached
    tokens: int  # trained on since the loop began
    seconds: float  # since the loop began, up to this step's report
    step_seconds: float  # the part of them that went into batches, steps and reports: no measuring, no caller


def training(
    trainer: Trainer,
    data: BatchSource,
    config: TrainConfig,
    evaluate: Callable[[], dict[str, float]],
    *,
    evaluates_at: Callable[[int], bool],
    reports_at: Callable[[int], bool],
    best: float = 0.0,
    ranks: Ranks = ONE,
) -> Iterator[StepResult]:
    """Train until ``config.steps`` or ``config.stop_at``, and yield after every step, for the caller to log or to save.

    A generator in place of a method ``fit`` with hooks: what is to happen after a step stands in the body of the
    caller's ``for``, in the order in which it happens, and ``break`` ends the training.

    ``trainer``: an entered context, at the step to go on from; ``evaluate``: measures the model on held-out data;
    ``evaluates_at``, ``reports_at``: whether to do so after a given step, and whether to read its numbers (which a
    GPU is waited for; the step before a measurement is always read). ``best``: the highest accuracy before.
    ``ranks``: those that train together; ``tokens`` counts those of all.
    :class:`Diverged` comes from the step, or on a GPU from the next report, always before a measurement.

    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.data.batches import Batch, ShuffledSets
    >>> from ramnet_np.train.metrics import evaluate
    >>> from ramnet_np.train.optim import adamw_init
    >>> import numpy as np
    >>> ids = np.arange(12).reshape(3, 4) % 8
    >>> data = ShuffledSets([Batch(ids, ids)], {"seen": Batch(ids, ids)}, batch=3, seed=0)
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> config = TrainConfig(steps=2, batch=3, warmup=1)
    >>> with trainer_for(model, config, adamw_init(model.params)) as trainer:
    ...     for done in training(
    ...         trainer, data, config, lambda: evaluate(model, data.held_out()),
    ...         evaluates_at=lambda step: step == 2, reports_at=lambda step: True,
    ...     ):
    ...         print(done.step, done.tokens, done.report.learning_rate, list(done.accuracy or ()), done.is_last)
    1 12 0.001 [] False
    2 24 0.0001 ['seen', 'mean'] True
    """
    tokens, step_seconds, started = 0, 0.0, time.perf_counter()
    while not has_ended(config, trainer.state.step, best):
        began = time.perf_counter()
        batch = data.batch(trainer.state.step)
        trainer.step(batch)
        step = trainer.state.step
        evaluates = evaluates_at(step)
        report = trainer.report() if evaluates or reports_at(step) else None
        now = time.perf_counter()
        tokens, step_seconds = tokens + batch.tokens * ranks.size, step_seconds + now - began
        accuracy = evaluate() if evaluates else None
        if accuracy is not None:
            best = max(best, accuracy["mean"])
        is_last = has_ended(config, step, best)
        yield StepResult(step, report, accuracy, best, is_last, tokens, now - started, step_seconds)


def has_ended(config: TrainConfig, step: int, best: float) -> bool:
    """Whether a run is over after ``step`` updates, with ``best`` as its highest mean accuracy.

    >>> has_ended(TrainConfig(steps=200, stop_at=0.9), step=5, best=0.95)
    True
    """
    return step >= config.steps or (config.stop_at is not None and best >= config.stop_at)


def trainer_for(
    model: RAMNet,
    config: TrainConfig,
    state: AdamWState,
    graphs: Graphs = "auto",
    log: Callable[[str], None] = print,
    carried: dict[str, Any] | None = None,
    ranks: Ranks = ONE,
) -> Trainer:
    """The trainer that suits where the model is; ``graphs`` and ``log`` as in :class:`GPUTrainer`.

    ``carried``: memories to go on from, as a trainer has them in ``carried``; ``ranks``: those that train together.

    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.train.optim import adamw_init
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> trainer_for(model, TrainConfig(), adamw_init(model.params)).report_is_free
    True
    """
    parameter = next(iter(model.params.values()))
    # the NumPy core can serve CuPy arrays, but reads numbers back in between, which no graph can
    if array_kind(parameter) == "cupy" and backend_for(parameter).name != "numpy":
        return GPUTrainer(model, config, state, graphs, log, carried, ranks)
    if config.dtype != "float32":
        raise ValueError(f"train.dtype must be 'float32' where no GPU backend computes the steps, got {config.dtype!r}")
    return CPUTrainer(model, config, state, carried, ranks)
