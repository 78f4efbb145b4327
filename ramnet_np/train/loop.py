"""A whole run, for any data set that names its batches by step and any RAMNet.

:func:`train` takes the steps of ``steps.py``, writes metrics and checkpoints, shows a progress bar and resumes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tqdm import TqdmWarning, tqdm

from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.data.batches import DataSource, Share
from ramnet_np.model import RAMNet
from ramnet_np.model.files import WriteError
from ramnet_np.train.checkpoint import STEPS, Checkpoint, flat_settings, latest_checkpoint, restore
from ramnet_np.train.config import TrainConfig, learning_rate
from ramnet_np.train.folder import OthersFolder, RunFolder, run_folder
from ramnet_np.train.gpu_trainer import Graphs
from ramnet_np.train.interrupt import DeferredInterrupt
from ramnet_np.train.metrics import Measured, Meter, MetricsWriter, evaluate
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.ranks import ONE, Ranks, gathered_rows, of_every_rank, require_rows
from ramnet_np.train.shards import own
from ramnet_np.train.steps import StepResult, has_ended, trainer_for, training
from ramnet_np.train.trainer import Diverged, Trainer


@dataclass(frozen=True)
class Extras:
    """What a run may have beside the loop's own."""

    measure: Callable[[RAMNet], Measured] | None = None  # on held-out data; None: accuracy on ``data.held_out()``
    meter: Meter | None = None  # for the progress bar
    files: Mapping[str, str] = field(default_factory=dict)  # text files for every checkpoint: name -> content


class TrainResult(NamedTuple):
    """How a run ended."""

    model: RAMNet
    step: int
    status: str  # "finished", "reached stop_at" or "interrupted"
    accuracy: dict[str, float]  # last measured, per held-out set and "mean"
    seconds: float  # of this call
    checkpoint: Path  # folder of the last checkpoint
    metrics: Path  # the metrics file
    signal: int | None = None  # that interrupted it: SIGINT for Ctrl-C
    measured: Mapping[str, Any] = MappingProxyType({})  # what else was measured, last
    tokens_per_second: float = 0.0  # of this call, measuring and saving included


@on_gpu_of_arrays
def train(
    model: RAMNet,
    data: DataSource,
    config: TrainConfig,
    out: Path | str,
    *,
    settings: Mapping[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    graphs: Graphs = "auto",
    extras: Extras | None = None,
    ranks: Ranks = ONE,
) -> TrainResult:
    """Train ``model`` in place on ``data``; write metrics.jsonl and checkpoints/ below the folder ``out``.

    ``settings``: everything that decides the result (nested, JSON values); it is stored in every checkpoint, and a run
        is only resumed under the same settings, save for how often it logs and saves, and for more ``train.steps``.
    ``resume``: go on from the last checkpoint in ``out``, to the same bits as a run that was never stopped. The
        parameters and moments come from the checkpoint; where the last one is damaged, from the one before. With more
        ``config.steps`` than before, the learning rate is from now on that of a run of so many steps.
    ``overwrite``: replace the run that ``out`` holds. It is there until the new run has saved its first checkpoint.
        Without either of the two, an ``out`` in use is an error.
    ``graphs``: for a model on the GPU: whether a step is captured as a CUDA graph; see :class:`GPUTrainer`.
    ``extras``: how to measure, what to show and to save beside.
    ``ranks``: those that train together. ``data`` then gives each its share of ``config.batch``; ``out`` is one folder
        for all, which rank 0 alone writes. A signal to any rank ends all of them, at the next step whose numbers are
        read. A run may be resumed on another number of ranks.

    Ctrl-C and SIGTERM finish the step, save and return with status "interrupted"; a second one ends the program at
    once. A loss or gradient that is not finite raises FloatingPointError before it reaches the parameters; the last
    checkpoint stays. So it does where the disk is full, an OSError. No other program may use ``out`` meanwhile.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.data.batches import Batch, ShuffledSets
    >>> import numpy as np
    >>> ids = np.arange(12).reshape(3, 4) % 8
    >>> data = ShuffledSets([Batch(ids, ids)], {"seen": Batch(ids, ids)}, batch=3, seed=0)
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> with TemporaryDirectory() as out:
    ...     result = train(model, data, TrainConfig(steps=2, batch=3, warmup=1), out, settings={}, progress=False)
    >>> result.status, result.step, list(result.accuracy)
    ('finished', 2, ['seen', 'mean'])
    """
    if not str(out):
        raise ValueError("out must name a folder, got an empty name")
    out, began, extras = Path(out), time.perf_counter(), extras or Extras()
    require_rows(ranks.size, config.batch, config.accumulate)
    log = tqdm.write if ranks.rank == 0 else _say_nothing
    measure = extras.measure or (lambda model: Measured(evaluate(model, data.held_out(), ranks=ranks)))
    with _folder(out, resume, overwrite, ranks) as folder:
        updated = own(model.params, ranks) if config.shard_optimizer else model.params
        start = Checkpoint(model, adamw_init(updated), dict(settings), best=0.0, files=extras.files)
        if resume:
            start = _resumed(start, folder, config, ranks, log)
        for arrays in (model.params, *(() if config.shard_optimizer else start.optimizer[1:])):
            for array in arrays.values():
                ranks.broadcast(array)
        trainer = trainer_for(model, config, start.optimizer, graphs, log, _own_rows(start.carried, ranks), ranks)
        task = _Task(start, data, config, folder, resume, progress and ranks.rank == 0, measure, extras.meter, ranks)
        try:
            best, measured, signal, speed = _train_from(task, trainer)
        except Diverged as error:
            raise FloatingPointError(_stopped(error, folder.checkpoints)) from error
        except WriteError as error:
            kept = _kept(folder.checkpoints)
            raise WriteError(f"training stopped after step {trainer.state.step}: {error}; {kept}") from error
        step, ended = trainer.state.step, has_ended(config, trainer.state.step, best)
        status = "finished" if step >= config.steps else "reached stop_at" if ended else "interrupted"
        if ended and not measured.accuracy:  # nothing was left to do
            measured = measure(model)
        ranks.barrier()  # rank 0 has saved
        last = latest_checkpoint(folder.checkpoints)
        assert last is not None  # written just now, or resumed from
    return TrainResult(
        model, step, status, measured.accuracy, time.perf_counter() - began, last, folder.metrics,
        signal if status == "interrupted" else None, measured.more, speed,
    )  # fmt: skip


def _folder(out: Path, resume: bool, overwrite: bool, ranks: Ranks) -> AbstractContextManager[RunFolder]:
    if ranks.rank == 0:
        return run_folder(out, resume=resume, overwrite=overwrite)
    return nullcontext(OthersFolder(out))


def _resumed(
    new: Checkpoint, folder: RunFolder, config: TrainConfig, ranks: Ranks, log: Callable[[str], None]
) -> Checkpoint:
    """The checkpoint that a run goes on from, with the settings and files of this call."""
    if ranks.rank > 0:  # rank 0 first: it sets a damaged checkpoint aside
        ranks.barrier()
    saved = restore(new.model, folder.checkpoints, new.settings, log, new.optimizer.mean)
    if ranks.rank == 0:
        ranks.barrier()
    _say_if_longer(saved, config, log)
    return saved._replace(settings=new.settings, files=new.files)


def _own_rows(carried: dict[str, Any] | None, ranks: Ranks) -> dict[str, Any] | None:
    """This rank's part of the memories in a checkpoint, which have one row for each row of the batch."""
    if carried is None:
        return None
    return {name: Share(ranks.rank, ranks.size).of(array) for name, array in carried.items()}


def _say_nothing(words: str) -> None:
    pass


def _logging_above_the_bar() -> AbstractContextManager[None]:
    """Warnings are written above the progress bar, not through it."""
    with warnings.catch_warnings():  # in a notebook, what is imported misses the widgets that this bar does not use
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.contrib.logging import logging_redirect_tqdm
    return logging_redirect_tqdm()


class _Task(NamedTuple):
    """What :func:`_train_from` needs to know."""

    start: Checkpoint
    data: DataSource
    config: TrainConfig
    folder: RunFolder
    resumed: bool
    progress: bool
    measure: Callable[[RAMNet], Measured]
    meter: Meter | None
    ranks: Ranks


def _train_from(task: _Task, trainer: Trainer) -> tuple[float, Measured, int | None, float]:
    """Train, write and show, up to the end or a signal.

    Returns the best mean accuracy, the last measurement, the signal and the tokens a second.
    """
    start, data, config, ranks = task.start, task.data, task.config, task.ranks
    first, best, accuracy, speed = start.optimizer.step, start.best, start.accuracy, 0.0
    measured = Measured({})

    def saves_at(step: int) -> bool:
        return step % config.checkpoint_every == 0

    def save() -> None:
        metrics.sync()
        carried = trainer.carried
        if carried is not None:
            carried = {name: gathered_rows(ranks, array) for name, array in carried.items()}
        state = trainer.whole_state()
        task.folder.save(start._replace(optimizer=state, best=best, accuracy=accuracy, carried=carried))

    def measure() -> dict[str, float]:
        nonlocal measured
        measured = task.measure(trainer.model)
        return measured.accuracy

    steps = training(
        trainer,
        data,
        config,
        measure,
        evaluates_at=lambda step: step % config.evaluate_every == 0 or step == config.steps,
        # before a checkpoint too: what is saved is known to be good
        reports_at=lambda step: trainer.report_is_free or step % config.log_every == 0 or saves_at(step),
        best=best,
        ranks=ranks,
    )
    signal = None
    with (
        trainer,
        DeferredInterrupt("ending this step, then saving; once more stops at once") as interrupt,
        tqdm(total=config.steps, initial=first, unit="step", disable=not task.progress, dynamic_ncols=True) as bar,
        _logging_above_the_bar(),
    ):
        one = next(steps, None)
        if one is None:  # it had ended before
            return best, measured, signal, speed
        with task.folder.begin(first if task.resumed else None) as metrics:
            for done in chain([one], steps):
                best, saved, speed = done.best, False, done.tokens / done.seconds
                accuracy = done.accuracy["mean"] if done.accuracy else accuracy
                _write_metrics(metrics, done, config, measured.more)
                if saves_at(done.step) and not done.is_last:
                    save()
                    saved = True
                _show_progress(bar, done, measured, task.meter)
                signal = _signal_of_any(interrupt, done, ranks)
                if signal is not None:
                    break
            trainer.report()  # on a GPU the last steps may be unread: this raises if one of them diverged
            if not saved:
                save()
    return best, measured, signal, speed


def _signal_of_any(interrupt: DeferredInterrupt, done: StepResult, ranks: Ranks) -> int | None:
    """The signal that a rank has got. Several ranks tell each other after the steps whose numbers they read anyway."""
    if ranks.size == 1:
        return interrupt.signal
    if done.report is None:
        return None
    signals = of_every_rank(ranks, interrupt.signal or 0)
    return int(signals.max()) or None


def _say_if_longer(saved: Checkpoint, config: TrainConfig, log: Callable[[str], None]) -> None:
    """What becomes of the learning rate where a run is resumed with more steps."""
    before, step = flat_settings(saved.settings).get(STEPS, config.steps), saved.optimizer.step
    if config.steps > before:
        log(
            f"train.steps grows from {before} to {config.steps}: from step {step} on the learning rate is that of a "
            f"run of {config.steps} steps, {learning_rate(config, step):.3g} now and "
            f"{config.learning_rate_floor:.3g} in the last step"
        )


def _write_metrics(metrics: MetricsWriter, done: StepResult, config: TrainConfig, more: Mapping[str, Any]) -> None:
    """A record for a measurement; one for the step every ``config.log_every`` steps and at the end."""
    seconds = {"seconds": round(done.seconds, 2)}
    if done.accuracy is not None:
        metrics.write({"step": done.step, "kind": "held_out", "accuracy": done.accuracy, **more, **seconds})
    if done.report is not None and (done.step % config.log_every == 0 or done.is_last):
        metrics.write({"step": done.step, "kind": "train"} | done.report._asdict() | seconds)


def _show_progress(bar: tqdm, done: StepResult, measured: Measured, meter: Meter | None) -> None:
    if done.report is not None:
        speed = done.tokens / done.seconds
        shown = {"loss": f"{done.report.loss:.3f}", "accuracy": f"{done.report.accuracy:.1%}"}
        shown["tokens/s"] = f"{speed:,.0f}"
        if meter:
            shown["FLOP/s"] = meter.shown(speed)
        if measured.accuracy:
            shown["held out"] = f"{measured.accuracy['mean']:.1%}"
        if "bits_per_byte" in measured.more:
            shown["bits/byte"] = f"{measured.more['bits_per_byte']:.3f}"
        bar.set_postfix(shown, refresh=False)
    bar.update()


def _stopped(error: Diverged, checkpoints: Path) -> str:
    kept = _kept(checkpoints)
    return f"training stopped at step {error.step}: {error.why}; {kept}. A lower train.learning_rate usually helps"


def _kept(checkpoints: Path) -> str:
    last = latest_checkpoint(checkpoints)
    return f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
