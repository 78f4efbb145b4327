"""One run of a grid: data, model, training, measurements on the validation sets and, once, on the test sets.

While it trains it saves a checkpoint now and then. So it can be ended at any moment: the next call resumes from there,
on a CPU to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ramnet_np
from ramnet_np.data.text import TextSettings
from ramnet_np.data.tokens import TOKENIZER
from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.records import Record
from ramnet_np.experiment.sweep import score
from ramnet_np.experiment.tasks import TaskData, figure, task_data
from ramnet_np.model import RAMNet, state_elements
from ramnet_np.model.count import CONTEXT
from ramnet_np.model.files import read_json, write_text
from ramnet_np.model.network import Device
from ramnet_np.model.unfinished import in_turn
from ramnet_np.runs.hardware import hardware
from ramnet_np.train.checkpoint import Checkpoint, latest_checkpoint, restore, save_checkpoint
from ramnet_np.train.metrics import Measured
from ramnet_np.train.optim import AdamWState, adamw_init
from ramnet_np.train.steps import trainer_for, training
from ramnet_np.train.trainer import Diverged, Trainer

REPORT_EVERY = 50  # steps between two reports of loss and accuracy, for which a GPU is waited for
SAVE_SECONDS = 10.0  # between two checkpoints: a run that is killed loses about as much
RUN = "run.json"  # in the folder of a kept model: the settings of its run
SAVE_SHARE = 0.05  # of the time goes into checkpoints at most: a large one is saved less often
BYTES_A_SECOND = 1e9  # that are written to a disk, until a checkpoint was timed


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    training: float  # accuracy of the last batch that was reported
    validation: float | None  # mean accuracy, or bits a byte, when last measured
    pace: float | None  # seconds a step, all counted; None before the first step of this call


def checkpoints_of(run: GridRun, device: Device, out: Path) -> Path:
    """The folder of a run's checkpoints, below the folder ``out`` of the results: its own for each run and device.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> checkpoints_of(load_grid("mqar-order").points[0].base, "cpu", Path("runs")).parent.name
    'unfinished'
    """
    return out / "unfinished" / file_name(run, f"{device} ")


def file_name(run: GridRun, also: str = "") -> str:
    """A name for a file or folder of a run: no other run has it. ``also``: what tells several such names apart.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> run = load_grid("mqar-order").points[0].base
    >>> file_name(run).rpartition("-")[0] == f"{run.name}-seed{run.seed}"
    True
    """
    digest = hashlib.sha256(f"{also}{run.key}".encode()).hexdigest()[:12]
    return f"{_plain_name(run.name)}-seed{run.seed}-{digest}"


def run_one(
    run: GridRun,
    device: Device,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    out: Path | None = None,
    invocation: str = "",
    text: Path | None = None,
    keep_model: bool = False,
) -> Record:
    """Train and measure; returns the record. A run that diverges has a record too.

    ``on_progress``: called after every report. ``out``: checkpoint folder; if it holds a checkpoint of this run, the
    run resumes from it. The caller deletes it once the record is on disk. None: nothing is saved. ``invocation``: which
    call of the program this is; the record has it as "session". ``text``: what a run on text reads. ``keep_model``:
    leave the model of a run at full length in ``out``/models, as ``RAMNet.from_pretrained`` and the command take it.

    The test sets are measured once, after the last step, and not at all by a run that only searches. Validation is
    measured ``evaluations`` times, evenly spread, and may end the run early (``train.stop_at``).

    >>> from ramnet_np.experiment.grid import read_grid
    >>> text = '''
    ... epochs = 1
    ... seeds = [0]
    ... learning_rates = [1e-3]
    ... model = { width = 8, order = 2, radix = 2, top_k = 2, ffn = "none" }
    ... data = { vocab = 32, train = [[2, 12, 32]], test = [[2, 12, 8]] }
    ... train = { batch = 8, warmup = 0 }
    ... points = [{ name = "tiny" }]
    ... '''
    >>> record = run_one(read_grid(text, "mine").points[0].base, "cpu")
    >>> record["status"], record["steps"], list(record["accuracy"])
    ('finished', 4, ['2 pairs, length 12', 'mean'])
    """
    saves = _Saves(run, device, out, invocation)
    data = task_data(run, device, text)
    model = RAMNet(run.model, seed=run.seed).to(device)
    trained = _train(run, model, data, saves, on_progress)
    if keep_model and out is not None and trained.accuracy:
        _keep(model, run, trained, data.tokenizer, out)
    calls = saves.calls()
    return {
        **calls[-1],
        "name": run.name,
        "status": trained.status,
        "seed": run.seed,
        "learning_rate": run.train.learning_rate,
        "accuracy": trained.accuracy,
        "validation": trained.validation,
        "training": trained.training,
        "steps": trained.steps,
        "epochs": trained.epochs,
        "seconds": round(sum(call["seconds"] for call in calls), 2),
        "tokens_per_second": trained.tokens_per_second,
        "state_elements": state_elements(run.model, run.data.length if isinstance(run.data, TextSettings) else CONTEXT),
        "parameters": model.num_parameters(),
        "quick": run.quick,
        "version": ramnet_np.__version__,
        "hardware": hardware(device),
        "settings": run.settings,
        **trained.more,
        **({"calls": calls} if len(calls) > 1 else {}),
    }


class _Trained(NamedTuple):
    """The part of a record that training leaves; its names are the record's."""

    status: str
    steps: int
    epochs: float
    training: float  # accuracy of the last batch that was reported
    validation: dict[str, float]
    accuracy: dict[str, float]  # on the test sets; empty if the run diverged, or if it only searches
    tokens_per_second: int
    more: dict[str, Any]  # of runs on text: the loss by position, and how the slots were used


def _train(
    run: GridRun, model: RAMNet, data: TaskData, saves: _Saves, on_progress: Callable[[Progress], None]
) -> _Trained:
    """Train ``model`` from where ``saves`` has it, report, save, and measure on the test sets at the end."""
    config = run.train
    evaluations = {round(config.steps * i / run.evaluations) for i in range(1, run.evaluations + 1)}
    state, carried = saves.restore(model)
    if state.step:
        on_progress(Progress(state.step, 0.0, None, None))
    status, steps, last, speed = "finished", state.step, 0.0, 0
    validation, tested, slots = dict[str, float](), Measured({}), saves.slots

    def validate() -> dict[str, float]:
        found = data.validate(model)
        if "slots" in found.more:
            slots.append({"step": trainer.state.step, "layers": found.more["slots"]})
        return found.accuracy

    try:
        # the trainer notices numbers that are not finite: NumPy need not warn of the operations that made them
        with np.errstate(all="ignore"), trainer_for(model, config, state, carried=carried) as trainer:
            for done in training(
                trainer,
                data.batches,
                config,
                validate,
                evaluates_at=lambda step: step in evaluations,
                reports_at=lambda step: step % REPORT_EVERY == 0,
            ):
                if done.report is None:
                    continue
                last, validation = done.report.accuracy, done.accuracy or validation
                steps, speed = done.step, round(done.tokens / done.step_seconds)
                pace = saves.seconds() / (steps - state.step)
                on_progress(Progress(steps, last, figure(validation) if validation else None, pace))
                if config.stop_at is not None and done.best >= config.stop_at:
                    status = "reached stop_at"
                if not done.is_last:
                    # whole books are a long test, and a run that is ended then should not train again for long
                    ends = run.task == "text" and not run.search and config.steps - steps <= REPORT_EVERY
                    saves.save_if_due(model, trainer, ends)
            tested = Measured({}) if run.search else data.test(model)
    except Diverged as error:
        status, steps = "diverged", error.step
    epochs, more = round(steps / data.steps_per_epoch, 3), {**tested.more, **({"slots": slots} if slots else {})}
    return _Trained(status, steps, epochs, last, validation, tested.accuracy, speed, more)


def _keep(model: RAMNet, run: GridRun, trained: _Trained, tokenizer: str | None, out: Path) -> None:
    """Leave the model in a folder of its own, with its tokenizer, the settings of the run and, as "measured", its
    validation. Runs that differ in the learning rate alone share a folder: the one that validation prefers stays."""
    variant = f"-{_plain_name(run.variant)}" if run.variant else ""
    folder = out / "models" / f"{_plain_name(run.name)}{variant}-seed{run.seed}"
    kept = {**run.settings, "measured": trained.validation}
    folder.mkdir(parents=True, exist_ok=True)
    with in_turn(folder):  # such runs may end at the same time
        if _is_better(folder / RUN, kept):
            return
        (folder / RUN).unlink(missing_ok=True)  # written last: where it is, the folder is whole
        model.save_pretrained(folder)
        if tokenizer is not None:
            write_text(folder / TOKENIZER, tokenizer)
        write_text(folder / RUN, json.dumps(kept, indent=1) + "\n")


def _is_better(path: Path, kept: dict[str, Any]) -> bool:
    """Whether the file is of a run that differs from ``kept`` in the learning rate alone, and was measured better."""
    try:
        before = read_json(path)
        rate, own = before["train"]["learning_rate"], kept["train"]
        same = {**before, "measured": 0} == {**kept, "measured": 0, "train": {**own, "learning_rate": rate}}
        earlier, now = (score({"status": "finished", "validation": one["measured"]}) for one in (before, kept))
    except (OSError, ValueError, LookupError, TypeError):  # no such file, or of something else
        return False
    return same and earlier is not None and now is not None and earlier > now


def _plain_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)


class _Saves:
    """The checkpoints of one run, and the calls of the program that trained it; made when the call begins."""

    def __init__(self, run: GridRun, device: Device, out: Path | None, invocation: str):
        self._run, self._device, self._invocation = run, device, invocation
        self._folder = None if out is None else checkpoints_of(run, device, out)
        self._earlier: tuple[dict[str, Any], ...] = ()
        self._started = self._saved = time.perf_counter()
        self._took = 0.0  # seconds, of the last checkpoint
        self.slots: list[dict[str, Any]] = []  # how they were used, whenever that was measured

    def restore(self, model: RAMNet) -> tuple[AdamWState, dict[str, Any] | None]:
        """The optimiser's state to go on from and the memories, and ``model`` with them; the initial ones without a
        checkpoint."""
        state, carried = adamw_init(model.params), None
        if self._folder and latest_checkpoint(self._folder):
            with suppress(OSError, ValueError):  # damaged: the run begins again
                checkpoint = restore(model, self._folder, self._run.settings, lambda word: None)
                state, carried = checkpoint.optimizer, checkpoint.carried
                *earlier, last = checkpoint.calls
                self.slots += last.pop("slots", [])
                self._earlier = *earlier, last
        self._saved = time.perf_counter()
        return state, carried

    def save_if_due(self, model: RAMNet, trainer: Trainer, ends: bool = False) -> None:
        """Save, unless the last checkpoint is younger than ``SAVE_SECONDS`` or than what it took allows, or there is no
        folder. ``ends``: it may be younger, unless it takes ``SAVE_SECONDS``."""
        began = time.perf_counter()
        if not self._took:
            arrays = *3 * [*model.params.values()], *(trainer.carried or {}).values()  # the moments are as large
            self._took = sum(array.nbytes for array in arrays) / BYTES_A_SECOND
        due = began - self._saved >= max(SAVE_SECONDS, self._took / SAVE_SHARE)
        if self._folder and (due or (ends and self._took < SAVE_SECONDS)):
            # best: a run that reaches train.stop_at ends, and so is not resumed
            *earlier, last = self.calls()
            calls = *earlier, {**last, "slots": self.slots}
            checkpoint = Checkpoint(
                model, trainer.state, self._run.settings, best=0.0, calls=calls, carried=trainer.carried
            )
            save_checkpoint(self._folder, checkpoint)
            self._saved = time.perf_counter()
            self._took = self._saved - began

    def seconds(self) -> float:
        """Since this call began."""
        return time.perf_counter() - self._started

    def calls(self) -> tuple[dict[str, Any], ...]:
        """The earlier calls and this one, as the record has them."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if self._device == "gpu" else None
        call = {"session": self._invocation, "gpu": gpu, "date": now, "seconds": round(self.seconds(), 2)}
        return *self._earlier, call
