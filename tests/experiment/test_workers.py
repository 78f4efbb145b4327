"""The processes and threads in which the runs of a grid train: they are replaced, refused, ended."""

import multiprocessing
import os
import signal
import threading
from queue import SimpleQueue

import pytest

from ramnet_np.experiment import workers
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.workers import WorkerPool
from tests.experiment.grids import TINY


def test_processes_that_end_are_replaced():
    runs = [p.run(p.seeds[0], rate) for p in read_grid(TINY, "tiny").points for rate in p.learning_rates]
    ended = []
    with WorkerPool("cpu", (), 1) as pool:
        pool.start(runs[0])
        [process] = pool.process_ids
        os.kill(process, signal.SIGKILL)
        while pool.running:
            ended += [(event.kind, event.run) for event in pool.events(1)]
        assert ended == [("died", runs[0])]
        assert pool.free == 1
        pool.start(runs[1])
        while pool.running:
            ended += [(event.kind, event.run) for event in pool.events(1) if event.kind != "progress"]
    assert ended[1:] == [("done", runs[1])]


def test_ctrl_c_is_not_for_the_processes_that_train():
    run = read_grid(TINY, "tiny").points[0].base
    kinds = []
    with WorkerPool("cpu", (), 1) as pool:
        [process] = pool.process_ids
        os.kill(process, signal.SIGINT)  # as a terminal sends it to all, also to one that has hardly begun
        pool.start(run)
        while pool.running:
            for event in pool.events(1):
                kinds.append(event.kind)
                if event.kind == "done" and kinds.count("done") < 2:
                    os.kill(process, signal.SIGINT)
                    pool.start(run)
    assert (kinds.count("done"), kinds.count("died")) == (2, 0)


def test_a_run_for_a_process_that_has_ended_has_died_and_no_more():
    runs = [p.run(p.seeds[0], rate) for p in read_grid(TINY, "tiny").points for rate in p.learning_rates]
    ended = []
    with WorkerPool("cpu", (), 1) as pool:
        [process] = pool.process_ids
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        pool.start(runs[0])
        while pool.running:
            ended += [(event.kind, event.run) for event in pool.events(1)]
    assert ended == [("died", runs[0])]


@pytest.mark.parametrize("error", ["SystemExit", "KeyboardInterrupt"])
def test_a_run_that_ends_its_thread_has_failed(error):
    """Nobody would tell of it: the grid would wait for ever."""
    sent, runs = [], SimpleQueue()
    run = read_grid(TINY, "tiny").points[0].base

    def one(run, on_progress):
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[error]("no more")

    arguments = runs, one, "cpu", lambda *event: sent.append(event)
    (thread := threading.Thread(target=workers.serve, args=arguments, daemon=True)).start()
    runs.put(run)
    thread.join(0.5)
    assert thread.is_alive()
    assert [(kind, of, failure.why) for kind, of, failure in sent] == [("failed", run, f"{error}: no more")]


def test_processes_end_with_a_program_that_does_not_end_them():
    """As after an error while further ones begin: Python waits at its end for children that are not daemons."""
    with WorkerPool("cpu", (), 1) as pool:
        children = {child.pid: child.daemon for child in multiprocessing.active_children()}
        assert [children[process] for process in pool.process_ids] == [True]


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "END_SECONDS", 0.2)
    with WorkerPool("cpu", (), 1) as pool:
        [process] = pool.process_ids
        os.kill(process, signal.SIGSTOP)  # it takes no other signal but SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch):
    def seen(gpus):
        return [environment["CUDA_VISIBLE_DEVICES"] for environment in WorkerPool("gpu", gpus, 4).environments]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen((0, 1)) == ["0", "1"]
    assert WorkerPool("gpu", (0, 1), 4).free == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert seen((1,)) == ["5"]
    with pytest.raises(ValueError, match="gpus must be below 2, as CUDA_VISIBLE_DEVICES leaves so many, got 2"):
        seen((2,))
    for gpus in ((), (-1,)):
        with pytest.raises(ValueError, match=r"gpus must be numbers from 0 on, got \["):
            seen(gpus)
