"""One run of a grid: data, model, training, accuracy on the validation sets and, once, on the test sets.

While it trains it saves a checkpoint now and then. So it can be ended at any moment: the next call goes on from there,
on a CPU to the same bits.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import ramnet_np
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.data.gpu_dataset import ResidentSet, ResidentSets
from ramnet_np.data.mqar import MQARSettings, mqar_data, mqar_validation, setting_names
from ramnet_np.experiment.grid import GridRun
from ramnet_np.experiment.records import Record
from ramnet_np.model import RAMNet, state_elements
from ramnet_np.model.network import Device
from ramnet_np.runs.hardware import hardware
from ramnet_np.train.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from ramnet_np.train.loop import evaluate, restore, steps_for
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import Diverged

LOOK_EVERY = 50  # steps between two looks at loss and accuracy, for which a GPU is waited for
GPU_TOKENS = 2**17  # of one forward pass while measuring
SAVE_SECONDS = 10.0  # between two checkpoints: so much of a run can be lost


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int
    training: float  # accuracy of the last batch looked at
    validation: float | None  # mean accuracy when last measured
    pace: float | None  # seconds a step, all counted; None before the first one of this call


@dataclass(frozen=True)
class _Data:
    train: list[Batch]
    validation: dict[str, Batch]
    test: dict[str, Batch]
    resident: list[ResidentSet]  # the training sets on the GPU, if that is where it runs


def checkpoints_of(run: GridRun, device: Device, out: Path) -> Path:
    """The folder of a run's checkpoints, below the folder ``out`` of the results: its own for each run and device.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> checkpoints_of(load_grid("mqar-order").points[0].base, "cpu", Path("runs")).parent.name
    'unfinished'
    """
    digest = hashlib.sha256(f"{device} {run.key}".encode()).hexdigest()[:12]
    return out / "unfinished" / f"{re.sub(r'[^A-Za-z0-9.-]', '_', run.name)}-seed{run.seed}-{digest}"


def run_one(
    run: GridRun,
    device: Device,
    tell: Callable[[Progress], None] = lambda progress: None,
    out: Path | None = None,
    session: str = "",
) -> Record:
    """Train and measure; returns the record. A run that diverges has a record too. ``tell``: called now and then.

    ``out``: where checkpoints go, and whence the run goes on if there is one; the caller removes them when the record
    is safe. None: nothing is saved. ``session``: which call of the program this is, for the record.

    The test sets are measured once, after the last step. Validation is measured ``evaluations`` times, evenly spread,
    and may end the run early (``train.stop_at``).

    >>> from ramnet_np.experiment.grid import read_grid
    >>> text = '''
    ... epochs = 1
    ... seeds = [0]
    ... learning_rates = [1e-3]
    ... model = { width = 8, order = 2, radix = 2, top_k = 2, ffn = "none" }
    ... data = { vocab = 32, train = [[2, 12, 32]], test = [[2, 12, 8]] }
    ... train = { batch = 8 }
    ... points = [{ name = "tiny" }]
    ... '''
    >>> record = run_one(read_grid(text, "mine").points[0].base, "cpu")
    >>> record["status"], record["steps"], list(record["accuracy"])
    ('finished', 4, ['2 pairs, length 12', 'mean'])
    """
    config, started = run.train, time.perf_counter()
    data = _data(run.data, run.validation, run.seed, device)
    sets = ShuffledSets(data.train, {}, config.batch, run.seed)
    source = ResidentSets(sets, data.resident) if data.resident else sets
    model = RAMNet(run.model, seed=run.seed).to(device)
    state, earlier = adamw_init(model.params), tuple[dict[str, Any], ...]()
    folder = None if out is None else checkpoints_of(run, device, out)
    if folder and latest_checkpoint(folder):
        with suppress(OSError, ValueError):  # damaged: the run begins again
            _, state, _, _, earlier = restore(model, folder, run.settings)
    looks = {round(config.steps * i / run.evaluations) for i in range(1, run.evaluations + 1)} - {0}
    tokens = GPU_TOKENS if device == "gpu" else None
    validation: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    status, step, seen, trained, training = "finished", state.step, 0, 0.0, 0.0
    saved = time.perf_counter()

    def calls() -> tuple[dict[str, Any], ...]:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if device == "gpu" else None
        seconds = round(time.perf_counter() - started, 2)
        return *earlier, {"session": session, "gpu": gpu, "date": now, "seconds": seconds}

    if step:
        tell(Progress(step, 0.0, None, None))
    try:
        # numbers that are not finite are noticed as such, NumPy need not warn of how they came about
        with np.errstate(all="ignore"), steps_for(model, config, state, "auto") as steps:
            while step < config.steps:
                before = time.perf_counter()
                while step < config.steps:
                    batch = source.batch(step)
                    steps.run(batch)
                    seen += batch.tokens
                    step += 1
                    if step % LOOK_EVERY == 0 or step in looks:
                        break
                training = steps.report().accuracy
                trained += time.perf_counter() - before
                if step in looks:
                    validation = evaluate(model, data.validation, tokens)
                pace = (time.perf_counter() - started) / (step - state.step)
                tell(Progress(step, training, validation.get("mean"), pace))
                if step in looks and config.stop_at is not None and validation["mean"] >= config.stop_at:
                    status = "reached stop_at"
                    break
                if folder and step < config.steps and time.perf_counter() - saved >= SAVE_SECONDS:
                    save_checkpoint(folder, Checkpoint(model, steps.state, run.settings, 0.0, calls()))
                    saved = time.perf_counter()
            accuracy = evaluate(model, data.test, tokens)
    except Diverged as error:
        status, step = "diverged", error.step
    spent = calls()
    return {
        **spent[-1],
        "name": run.name,
        "status": status,
        "seed": run.seed,
        "learning_rate": config.learning_rate,
        "accuracy": accuracy,
        "validation": validation,
        "training": training,
        "steps": step,
        "epochs": round(step / sets.batches_per_epoch, 3),
        "seconds": round(sum(call["seconds"] for call in spent), 2),
        "tokens_per_second": round(seen / trained) if trained else 0,
        "state_elements": state_elements(run.model),
        "parameters": model.num_parameters(),
        "quick": run.quick,
        "version": ramnet_np.__version__,
        "hardware": hardware(device),
        "settings": run.settings,
        **({"calls": spent} if earlier else {}),
    }


_making = threading.Lock()
_made: dict[tuple[MQARSettings, int, int, Device], _Data] = {}


def _data(settings: MQARSettings, validation: int, seed: int, device: Device) -> _Data:
    """The data of a seed, made once for all runs of this process."""
    key = settings, validation, seed, device
    with _making:
        if key not in _made:
            train, test = mqar_data(settings, seed)
            held_out = mqar_validation(settings, train, validation, seed)
            sets = [Batch(*examples) for examples in train]
            resident = [ResidentSet(examples, settings.vocab) for examples in sets] if device == "gpu" else []
            if resident:
                gpu_namespace().cuda.get_current_stream().synchronize()  # other streams will read them
            _made[key] = _Data(sets, _named(settings.train, held_out), _named(settings.test, test), resident)
    return _made[key]


def _named(settings: Any, sets: Any) -> dict[str, Batch]:
    return {name: Batch(*examples) for name, examples in zip(setting_names(settings), sets, strict=True)}
