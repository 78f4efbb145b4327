"""A small training run that test_kill.py kills, in a process of its own."""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ramnet_np.backend import use_backend
from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train import folder
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.loop import TrainConfig, TrainResult, train

MODEL = RAMNetConfig(vocab=12, width=16, layers=1, heads=2, order=2, radix=3, top_k=3, ffn="none")
STEPS = 60


def data():
    """Each label is the token plus one; as in test_loop.py, but no test is imported where a run is killed."""
    ids = np.random.default_rng(0).integers(12, size=(48, 6))
    labels = (ids + 1) % 12
    return ShuffledSets([Batch(ids[:40], labels[:40])], {"rule": Batch(ids[40:], labels[40:])}, 4, 0)


class Telling:
    """A data set that sends word when the batch for step ``at`` is asked for. The last batch never comes."""

    def __init__(self, at: int, asked: Connection):
        self._data, self._at, self._asked = data(), at, asked

    def batch(self, step):
        if step == self._at:
            self._asked.send(True)
        if step == STEPS - 1:
            signal.pause()  # until the run is killed
        return self._data.batch(step)

    def held_out(self):
        return self._data.held_out()


def run(out: Path, steps: int = STEPS, source: Any = None) -> TrainResult:
    """Train to the end, with a checkpoint every 6 steps; go on from the last one in ``out``, if there is one."""
    resume = latest_checkpoint(out / "checkpoints") is not None
    config = TrainConfig(
        steps=steps, batch=4, learning_rate=1e-2, learning_rate_floor=1e-3, warmup=2, log_every=1, evaluate_every=8,
        checkpoint_every=6,
    )  # fmt: skip
    with use_backend("numpy"):
        return train(
            RAMNet(MODEL, seed=99 if resume else 0), source or data(), config, out, settings={"seed": 0}, resume=resume,
            progress=False,
        )  # fmt: skip


def run_until_killed(out: Path, step: int, asked: Connection) -> None:
    """Run, and send word when the batch for ``step`` is asked for."""
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves behind
    run(out, source=Telling(step, asked))


def run_up_to_line(out: Path, line: int) -> None:
    """Run, and end by SIGKILL at that line of Python of all that saving the checkpoints executes."""
    tqdm.set_lock(threading.RLock())
    with Counted(line):
        run(out)


class Counted:
    """Counts the lines of Python that run within ``save_checkpoint``, and kills the process at line ``last``."""

    def __init__(self, last: int | None = None):
        self.last, self.lines, self._save = last, 0, folder.save_checkpoint

    def __enter__(self):
        folder.save_checkpoint = self._counted
        return self

    def __exit__(self, *exc_info):
        folder.save_checkpoint = self._save

    def _counted(self, *arguments):
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return self._save(*arguments)
        finally:
            sys.settrace(before)

    def _trace(self, frame, event, argument):
        self.lines += event == "line"
        if event == "line" and self.lines == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._trace
