"""Runs side by side: one process for each GPU, in it a thread for each run; on a CPU one process for each run.

Threads of one process share a GPU better than processes do: their streams overlap, and compiled kernels and training
sets are there once. On a CPU the kernels' own threads do not serve two callers at once, so there it is processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from ramnet_np.experiment.failures import failure_of
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.records import Record
from ramnet_np.model.network import Device

RunOne = Callable[..., Record]  # run_one with all but the run and ``on_progress``

END_SECONDS = 5.0  # for a process to end when it is asked to
SWITCH_SECONDS = 1e-4  # how long a thread may keep Python to itself while others wait: steps are short


class Event(NamedTuple):
    """What became of a run, or how far it is."""

    kind: str  # "progress", "done", "failed", or "died": the worker's process ended
    run: GridRun
    what: Any  # a Progress, a Record, a Failure, None


class WorkerPool:
    """Processes that wait for runs. Used as a context: its end kills them, with whatever still runs.

    ``gpus``: which of the visible ones, for ``device`` "gpu"; ``side_by_side``: runs on each GPU, or on the CPU;
    ``out``, ``invocation``, ``text``, ``keep_model``: as in :func:`~ramnet_np.experiment.one_run.run_one`.
    """

    def __init__(
        self,
        device: Device,
        gpus: Sequence[int],
        side_by_side: int,
        out: Path | None = None,
        invocation: str = "",
        text: Path | None = None,
        keep_model: bool = False,
    ):
        if side_by_side < 1:
            raise ValueError(f"side_by_side must be at least 1, got {side_by_side}")
        if device == "gpu" and min(gpus, default=-1) < 0:
            raise ValueError(f"gpus must be numbers from 0 on, got {list(gpus)}")
        cores = os.cpu_count() or 1
        if device == "gpu":
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = [_visible(visible.split(","), gpu) if visible else str(gpu) for gpu in gpus]
            threads, environments = side_by_side, [{"CUDA_VISIBLE_DEVICES": name} for name in names]
        else:
            threads, environments = 1, [{"NUMBA_NUM_THREADS": str(max(1, cores // side_by_side))}] * side_by_side
        one = partial(run_one, device=device, out=out, invocation=invocation, text=text, keep_model=keep_model)
        self._workers = [_Worker(one, device, threads, environment) for environment in environments]

    @property
    def running(self) -> list[GridRun]:
        """The runs that were started and have not ended."""
        return [run for worker in self._workers for run in worker.running.values()]

    @property
    def free(self) -> int:
        """How many more can be started."""
        return sum(worker.free for worker in self._workers)

    @property
    def process_ids(self) -> list[int]:
        """The operating system's number of each worker's process, within the context."""
        return [worker.process_id for worker in self._workers]

    @property
    def environments(self) -> list[dict[str, str]]:
        """The environment variables that each worker's process is started with, beside those of this one."""
        return [worker.environment for worker in self._workers]

    def start(self, run: GridRun) -> None:
        """Hand a run to the worker that has fewest."""
        max(self._workers, key=lambda worker: worker.free).start(run)

    def events(self, seconds: float) -> Iterator[Event]:
        """What has happened; waits up to ``seconds`` for something to happen."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout=seconds):
            yield from by_connection[connection].events()  # type: ignore[index]

    def __enter__(self) -> WorkerPool:
        for worker in self._workers:
            worker.begin()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._workers:
            worker.end()


class _Worker:
    """A process and the runs that it was given."""

    def __init__(self, one: RunOne, device: Device, threads: int, environment: dict[str, str]):
        self._one, self._device, self._threads, self.environment = one, device, threads, environment
        self.running: dict[str, GridRun] = {}

    @property
    def free(self) -> int:
        return self._threads - len(self.running)

    @property
    def process_id(self) -> int:
        assert self._process.pid is not None  # begun
        return self._process.pid

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = theirs, self._one, self._device, self._threads
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        with _environment(self.environment), _without_ctrl_c():
            self._process.start()
        theirs.close()

    def start(self, run: GridRun) -> None:
        self.running[run.key] = run
        with suppress(OSError):  # the process has ended, which events() will notice
            self.connection.send(run)

    def events(self) -> Iterator[Event]:
        try:
            while self.connection.poll():
                kind, key, what = self.connection.recv()
                run = self.running[key] if kind == "progress" else self.running.pop(key)
                yield Event(kind, run, what)
        except (EOFError, OSError):  # the process has ended: begin another
            self.end()
            unfinished, self.running = list(self.running.values()), {}
            self.begin()
            for run in unfinished:
                yield Event("died", run, None)

    def end(self) -> None:
        self._process.terminate()
        self._process.join(END_SECONDS)
        self._process.kill()  # one that is stopped, or that cannot be ended otherwise
        self._process.join()
        self.connection.close()


def _work(connection: Connection, one: RunOne, device: Device, threads: int) -> None:
    """What a worker's process does: receive runs, hand them to its threads, send back what becomes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, where none can be held back from the start
    sys.setswitchinterval(SWITCH_SECONDS)
    from threadpoolctl import threadpool_limits

    runs: SimpleQueue[GridRun] = SimpleQueue()
    sending = threading.Lock()

    def send(kind: str, run: GridRun, what: Any) -> None:
        with sending:
            connection.send((kind, run.key, what))

    with threadpool_limits(1, user_api="blas"):
        for _ in range(threads):
            threading.Thread(target=serve, args=(runs, one, device, send), daemon=True).start()
        while True:
            try:
                runs.put(connection.recv())
            except (EOFError, OSError):  # nobody is left to send any
                os._exit(0)


def serve(runs: SimpleQueue[GridRun], one: RunOne, device: Device, send: Callable[[str, GridRun, Any], None]) -> None:
    """What a thread of a worker does: its runs, one after the other; ``send`` gets the parts of an :class:`Event`.

    >>> runs, sent = SimpleQueue(), SimpleQueue()
    >>> arguments = runs, lambda run, on_progress: {"status": "finished"}, "cpu", lambda *event: sent.put(event)
    >>> threading.Thread(target=serve, args=arguments, daemon=True).start()
    >>> runs.put("a run")
    >>> sent.get()
    ('done', 'a run', {'status': 'finished'})
    """
    while True:
        run = runs.get()
        try:
            send("done", run, one(run, on_progress=partial(send, "progress", run)))
        except BaseException as error:  # a thread that ended would leave its run waiting for ever
            send("failed", run, failure_of(error, device))
            if type(error).__name__.startswith("CUDA"):  # such an error may leave the GPU unusable to this process
                os._exit(1)


def _visible(names: Sequence[str], gpu: int) -> str:
    if gpu >= len(names):
        raise ValueError(f"gpus must be below {len(names)}, as CUDA_VISIBLE_DEVICES leaves so many, got {gpu}")
    return names[gpu]


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back from the processes that are started within the block, from their first instant on: a terminal
    sends it to all, and it is for this one alone, which hears it behind the block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # to start it within the block would end what the block is for
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set ``variables`` for the processes that are started within the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
