"""A run that SIGKILL ends at any moment, or whose disk is full at any write, goes on to the same bits.

`make test-kill` kills 50 runs, 20 of them while they save; `make test` kills three, two of them while they save.
"""

import errno
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from ramnet_np.model import checkpoint as model_checkpoint
from ramnet_np.model.files import WriteError
from ramnet_np.train import checkpoint as train_checkpoint
from ramnet_np.train import metrics as train_metrics
from ramnet_np.train.checkpoint import checkpoint_step, latest_checkpoint, load_checkpoint
from ramnet_np.train.metrics import read_metrics
from tests.killed_process import PROCESSES, ended, killed
from tests.train.killed_run import STEPS, Counted, run, run_until_killed, run_up_to_line

SEED = 26
PARTS = ("model.safetensors", "config.json", "optimizer.safetensors", "training.json")


@pytest.fixture
def folder():
    """In memory where the machine can: hundreds of saves would wait for its disk, and SIGKILL loses no write."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def what_is_left(out):
    """Every bit that a run leaves: its last checkpoint, and its metrics but for their times."""
    last = latest_checkpoint(out / "checkpoints")
    records = [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(out / "metrics.jsonl")]
    return last.name, {part: (last / part).read_bytes() for part in PARTS}, records


PROCESSES.set_forkserver_preload(["tests.train.killed_run"])  # so that no run has to import it


def killed_at_step(out, step, seconds):
    """Kill a run so many seconds after it asked for the batch of ``step``."""
    return killed(seconds, run_until_killed, out, step)


def killed_at_line(out, line):
    """Kill a run at a line of Python of its saves."""
    return ended(run_up_to_line, out, line)


def kills(folder, anywhere, saving):
    """Kill as many runs, resume each, and compare. The checkpoints that they had: how far each had come."""
    with Counted() as counted:
        run(folder / "whole")
    whole = what_is_left(folder / "whole")
    began = time.monotonic()
    run(folder / "timed")
    seconds = time.monotonic() - began
    draw = random.Random(SEED)
    moments = [(killed_at_step, draw.randrange(STEPS), draw.random() * 2 * seconds / STEPS) for _ in range(anywhere)]
    moments += [(killed_at_line, draw.randrange(1, counted.lines + 1)) for _ in range(saving)]
    had = []
    with tqdm(total=len(moments), desc=f"runs killed, seed {SEED}") as bar:
        for number, (kill, *moment) in enumerate(moments):
            out = folder / str(number)
            assert kill(out, *moment) == -signal.SIGKILL, (kill, moment)
            last = latest_checkpoint(out / "checkpoints")
            if last is not None:
                load_checkpoint(last)
            had.append(last and checkpoint_step(last))
            run(out)
            assert what_is_left(out) == whole, f"{kill.__name__} {moment}, seed {SEED}"
            bar.update()
    print(f"{anywhere + saving} runs killed, {saving} of them while they saved; all ended with the same bits")
    print(f"seed {SEED}; step of the last checkpoint when each was killed: {had}")
    return had


def test_a_killed_run_goes_on_to_the_same_bits(folder):
    kills(folder, anywhere=1, saving=2)


@pytest.mark.kill
def test_fifty_killed_runs_go_on_to_the_same_bits(folder):
    had = kills(folder, anywhere=30, saving=20)
    assert len(set(had)) >= 8  # of none, 6, 12 .. 54: the moments are spread over the run


class Ended(Exception):
    """A run has come as far as a test wants it to."""


class FullDisk:
    """Stands in for what writes to the disk. The ``at``-th call fails; a file that was to be written is cut off."""

    CALLS = (
        (os, "mkdir"), (os, "fsync"), (os, "replace"), (Path, "touch"), (Path, "write_text"),
        (model_checkpoint, "save_file"), (train_checkpoint, "save_file"),
    )  # fmt: skip

    def __init__(self, patch, at):
        self.at, self.calls, self.failed = at, 0, None
        for owner, name in self.CALLS:
            patch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name, call):
        def counted(*arguments, **options):
            self.calls += 1
            if self.calls != self.at:
                return call(*arguments, **options)
            self.failed = name
            if name in ("write_text", "save_file"):
                path = Path(arguments[0] if name == "write_text" else arguments[1])
                call(*arguments, **options)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return counted


def test_a_disk_that_is_full_at_any_write_leaves_the_last_checkpoint(folder, monkeypatch):
    """For every n: the n-th call that writes fails, from the first save on. One sentence says it; the run goes on."""
    run(folder / "whole", steps=24)
    whole, failed = what_is_left(folder / "whole"), []
    save = train_metrics.MetricsWriter.sync  # the first thing that a save does
    for at in range(1, 1000):
        out, saves, disk = folder / str(at), [], None

        def begins(writer, saves=saves, at=at):
            nonlocal disk
            saves.append(at)
            if len(saves) == 3:
                disk = FullDisk(patch, at)
            elif len(saves) == 4:
                raise Ended
            save(writer)

        with monkeypatch.context() as patch:
            patch.setattr(train_metrics.MetricsWriter, "sync", begins)
            with pytest.raises((WriteError, Ended)) as stopped:
                run(out, steps=24)
        kept = latest_checkpoint(out / "checkpoints")
        load_checkpoint(kept)
        if disk.failed is None:
            break
        failed.append(disk.failed)
        if isinstance(stopped.value, WriteError):
            sentence = str(stopped.value)
            assert sentence.startswith("training stopped after step 18: "), sentence
            assert sentence.endswith(f"No space left on device; the last good checkpoint is {kept}"), sentence
            assert "\n" not in sentence
        run(out, steps=24)
        assert what_is_left(out) == whole, (at, disk.failed)
    assert set(failed) == {name for _, name in FullDisk.CALLS}
    assert len(failed) > 20
    print(f"the disk was full at each of {len(failed)} calls of a save")
