"""Runs side by side: one process for each GPU, in it a thread for each run; on a CPU one process for each run.

Threads of one process share a GPU better than processes do: their streams overlap, and what is compiled, drawn and sent
to the GPU is there once. On a CPU the kernels' own threads do not serve two callers at once, so there it is processes.
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
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from ramnet_np.experiment.grid import GridRun
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.records import Record
from ramnet_np.model.network import Device

RunOne = Callable[..., Record]  # run_one with all but the run and ``tell``

SWITCH_SECONDS = 1e-4  # after which a thread that waits gets its turn in Python: steps are short


class Event(NamedTuple):
    """What became of a run, or how far it is."""

    kind: str  # "progress", "done", "failed", or "lost": its process ended
    run: GridRun
    what: Any  # a Progress, a Record, what went wrong, None


class Team:
    """Processes that wait for runs. Used as a context, whose end ends them, with whatever still runs.

    ``gpus``: which of the visible ones, for ``device`` "gpu"; ``side_by_side``: runs on each GPU, or on the CPU;
    ``out``, ``session``: as in :func:`~ramnet_np.experiment.one_run.run_one`.
    """

    def __init__(
        self, device: Device, gpus: Sequence[int], side_by_side: int, out: Path | None = None, session: str = ""
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
        one = partial(run_one, device=device, out=out, session=session)
        self._members = [_Member(one, threads, environment) for environment in environments]

    @property
    def running(self) -> list[GridRun]:
        """Those that were started and have not ended."""
        return [run for member in self._members for run in member.running.values()]

    @property
    def free(self) -> int:
        """How many more can be started."""
        return sum(member.free for member in self._members)

    def start(self, run: GridRun) -> None:
        """Hand a run to the process that has most room."""
        max(self._members, key=lambda member: member.free).start(run)

    def events(self, seconds: float) -> Iterator[Event]:
        """What has happened, waiting up to so long for something to happen."""
        by_connection = {member.connection: member for member in self._members}
        for connection in wait(list(by_connection), timeout=seconds):
            yield from by_connection[connection].events()  # type: ignore[index]

    def __enter__(self) -> Team:
        for member in self._members:
            member.begin()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for member in self._members:
            member.end()


class _Member:
    """A process and what it has been given."""

    def __init__(self, one: RunOne, threads: int, environment: dict[str, str]):
        self._one, self._threads, self._environment = one, threads, environment
        self.running: dict[str, GridRun] = {}

    @property
    def free(self) -> int:
        return self._threads - len(self.running)

    def begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._one, self._threads), daemon=True)
        with _environment(self._environment):
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
            lost, self.running = list(self.running.values()), {}
            self.begin()
            for run in lost:
                yield Event("lost", run, None)

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()


def _work(connection: Connection, one: RunOne, threads: int) -> None:
    """The life of a process: receive runs, have them run by as many threads, send what comes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    sys.setswitchinterval(SWITCH_SECONDS)
    from threadpoolctl import threadpool_limits

    runs: SimpleQueue[GridRun] = SimpleQueue()
    sending = threading.Lock()

    def send(kind: str, run: GridRun, what: Any) -> None:
        with sending:
            connection.send((kind, run.key, what))

    with threadpool_limits(1, user_api="blas"):
        for _ in range(threads):
            threading.Thread(target=_serve, args=(runs, one, send), daemon=True).start()
        while True:
            try:
                runs.put(connection.recv())
            except (EOFError, OSError):  # nobody is left to send any
                os._exit(0)


def _serve(runs: SimpleQueue[GridRun], one: RunOne, send: Any) -> None:
    """One thread's runs, one after the other."""
    while True:
        run = runs.get()
        try:
            send("done", run, one(run, tell=partial(send, "progress", run)))
        except Exception as error:
            send("failed", run, f"{type(error).__name__}: {error}")
            if type(error).__name__.startswith("CUDA"):  # such an error may leave the GPU unusable to this process
                os._exit(1)


def _visible(names: Sequence[str], gpu: int) -> str:
    if gpu >= len(names):
        raise ValueError(f"gpus must be below {len(names)}, as CUDA_VISIBLE_DEVICES leaves so many, got {gpu}")
    return names[gpu]


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """``variables`` set for the processes that are started within."""
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
