"""Two programs that write one file: each file is whole, the last to end wins, and nothing is left behind."""

import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest

pytest.importorskip("safetensors")  # a model runs without it

from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.files import write_text
from ramnet_np.model.generation import Generation
from ramnet_np.model.state_file import load_generation, save_generation
from ramnet_np.model.unfinished import unfinished
from ramnet_np.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ramnet_np.train.optim import adamw_init

CONFIG = RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2)
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
LOCKS = pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")


def save(kind, folder, seed):
    """What a program with this seed writes into ``folder``."""
    if kind == "text":
        write_text(folder / "a", str(seed))
    elif kind == "model":
        RAMNet(CONFIG, seed=seed).save_pretrained(folder)
    elif kind == "state":
        save_generation(folder / "a", Generation(RAMNet(CONFIG), np.array([[seed, seed]]), backend="numpy"))
    else:
        model = RAMNet(CONFIG, seed=seed)
        save_checkpoint(folder, Checkpoint(model, adamw_init(model.params), {"seed": seed}, best=0.0))


def seed_of(kind, folder):
    """The seed of what is there now. It raises unless that is whole."""
    if kind == "text":
        return int((folder / "a").read_text())
    if kind == "state":
        return int(load_generation(folder / "a", RAMNet(CONFIG), backend="numpy").standing().seen.argmax())
    whole = load_checkpoint(folder / "step-00000000") if kind == "checkpoint" else None
    model = whole.model if whole else RAMNet.from_pretrained(folder)
    seed = next(seed for seed in (0, 1, 2) if np.array_equal(model.head, RAMNet(CONFIG, seed=seed).head))
    assert whole is None or whole.settings == {"seed": seed}
    return seed


def save_with_a_pause(kind, folder, seed, pipe):
    """Save, but say so and wait for word before the first file of it is flushed."""
    flush, paused = os.fsync, []

    def waits(number):
        if not paused:
            paused.append(number)
            pipe.send("written")
            pipe.recv()
        flush(number)

    os.fsync = waits
    save(kind, folder, seed)


@pytest.fixture
def paused(request, tmp_path):
    """A function that starts a process in the midst of a save; it is told to go on by ``pipe.send``."""
    started = []

    def start(kind, seed):
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=save_with_a_pause, args=(kind, tmp_path, seed, theirs))
        process.start()
        started.append(process)
        assert ours.poll(60)
        assert ours.recv() == "written"
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["text", "model", "state", "checkpoint"])
def test_each_of_two_programs_writes_a_whole_file(kind, tmp_path, paused):
    save(kind, tmp_path, 0)
    whole = names(tmp_path)
    other, pipe = paused(kind, 1)
    between = names(tmp_path)
    assert len(between) > len(whole)
    assert seed_of(kind, tmp_path) == 0
    save(kind, tmp_path, 2)
    assert seed_of(kind, tmp_path) == 2
    assert names(tmp_path) == between  # what the other one has written is left to it
    pipe.send("go on")
    other.join(60)
    assert other.exitcode == 0
    assert seed_of(kind, tmp_path) == 1
    assert names(tmp_path) == whole


@LOCKS
@pytest.mark.parametrize("kind", ["text", "model", "state", "checkpoint"])
def test_what_a_killed_program_left_goes_with_the_next_save(kind, tmp_path, paused):
    save(kind, tmp_path, 0)
    whole = names(tmp_path)
    for _ in range(2):
        killed, _ = paused(kind, 1)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
    assert names(tmp_path) != whole
    assert seed_of(kind, tmp_path) == 0
    save(kind, tmp_path, 2)
    assert seed_of(kind, tmp_path) == 2
    assert names(tmp_path) == whole


def test_without_locks_what_is_left_goes_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr("ramnet_np.model.unfinished._lock", lambda folder: None)
    now = time.time()
    for name, hours in (("0123abcd", 23), ("1123abcd", 25), ("2123abcd", 25)):
        folder = tmp_path / f".a.{name}.partial"
        folder.mkdir()
        (folder / "a").touch()
        os.utime(folder / "a", 2 * (now - 3600 * hours,))
        os.utime(folder, 2 * (now - 3600 * (23 if name[0] == "2" else 25),))
    (tmp_path / ".a.partial").touch()  # of version 0.1, a file
    os.utime(tmp_path / ".a.partial", 2 * (now - 3600 * 25,))
    others = (".b.0123abcd.partial", ".a.partial.txt", ".a.mine.partial", "a.0123abcd.partial", ".ab.0123abcd.partial")
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, 2 * (now - 3600 * 25,))
    with unfinished(tmp_path / "a") as own:
        assert own.is_dir()
        assert names(tmp_path) == {".a.0123abcd.partial", ".a.2123abcd.partial", own.name, *others}


@LOCKS
def test_a_writer_that_is_taken_for_a_dead_one_makes_another_folder(tmp_path, monkeypatch):
    """Between making its folder and locking it, another writer may lock it or remove it."""
    from ramnet_np.model import unfinished as module

    lock, seen, held = module._lock, [], []

    def lock_late(folder):
        seen.append(folder)
        if len(seen) == 1:
            folder.rmdir()
        elif len(seen) == 2:
            held.append(lock(folder))
        elif len(seen) == 3:
            number = lock(folder)
            folder.rmdir()
            return number
        return lock(folder)

    monkeypatch.setattr(module, "_lock", lock_late)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    with unfinished(tmp_path / "a") as own:
        assert own == seen[3]
        assert own.is_dir()
    os.close(held[0])
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
