"""Runs of a grid on a Ray cluster: on each GPU a process with a thread for each run; on CPUs a process for each run.

    this program ── RayPool ── start(run) ─▶ actor on GPU 0 of host a      threads: run_one ─▶ events
                        ▲      start(run) ─▶ actor on GPU 1 of host b
                        └───────── events of each actor, as they come

It has the interface of :class:`~ramnet_np.experiment.workers.WorkerPool`, so choosing runs, writing results and
stopping in time are the same. Every host needs this package; where hosts share the folder of the results, a run that
was interrupted resumes on any of them.
Source of the actors: Moritz et al., "Ray: a distributed framework for emerging AI applications" (arXiv 1712.05889).
"""

from __future__ import annotations

import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.workers import SWITCH_SECONDS, Event, serve
from ramnet_np.model.network import Device
from ramnet_np.train.interrupt import SIGNALS

START_SECONDS = 60.0  # that a cluster has to start a process
POLL_SECONDS = 5.0  # an actor answers after so long, also when nothing has happened

_Message = tuple[str, str, Any]  # kind of an event, key of its run, what


class RayPool:
    """Processes on a Ray cluster that wait for runs. Used as a context: its end kills them.

    ``address``: of the cluster; None: that of RAY_ADDRESS, or the one this host is part of, or a new one on this host.
    ``side_by_side``: runs on each GPU, or on the CPUs of each host; ``out``, ``invocation``, ``text``,
    ``keep_model``: as in :func:`~ramnet_np.experiment.one_run.run_one`. Hosts that join later are not used.
    Entering it raises RuntimeError where Ray is missing, the cluster cannot be reached, or none of it is free.
    """

    def __init__(
        self,
        address: str | None,
        device: Device,
        side_by_side: int,
        out: Path,
        invocation: str,
        text: Path | None = None,
        keep_model: bool = False,
    ):
        self._address, self._device, self._side_by_side = address, device, side_by_side
        text = None if text is None else text.absolute()
        self._arguments = device, side_by_side if device == "gpu" else 1, out.absolute(), invocation, text, keep_model
        self._actors: list[_Actor] = []

    @property
    def running(self) -> list[GridRun]:
        """The runs that were started and have not ended."""
        return [run for actor in self._actors for run in actor.running.values()]

    @property
    def free(self) -> int:
        """How many more can be started."""
        return sum(actor.free for actor in self._actors)

    @property
    def size(self) -> int:
        """How many processes there are."""
        return len(self._actors)

    def start(self, run: GridRun) -> None:
        """Hand a run to the process that has fewest."""
        max(self._actors, key=lambda actor: actor.free).start(run)

    def events(self, seconds: float) -> Iterator[Event]:
        """What has happened; waits up to ``seconds`` for something to happen. RuntimeError if no process is left."""
        asked = {actor.asked: actor for actor in self._actors}
        for answer in self._ray.wait(list(asked), num_returns=1, timeout=seconds)[0]:
            actor = asked[answer]
            try:
                messages = self._ray.get(answer)
            except self._ray.exceptions.RayError:  # the process has ended, or its host
                self._actors.remove(actor)
                self._begin([actor.again])
                yield from (Event("died", run, None) for run in actor.running.values())
                if not self._actors:
                    raise RuntimeError("the Ray cluster has no process left that could take runs") from None
            else:
                yield from actor.understand(messages)

    def __enter__(self) -> RayPool:
        try:
            import ray
        except ImportError as error:
            raise RuntimeError(f"runs on a Ray cluster need Ray: pip install 'ramnet-np[ray]' ({error})") from error
        self._ray, self._is_ours = ray, not ray.is_initialized()
        if self._is_ours:
            self._connect()
        try:
            self._begin([partial(_Actor, ray, options, self._arguments) for options in self._places()])
            if not self._actors:
                raise RuntimeError(f"no {self._device.upper()} of the Ray cluster was free for {START_SECONDS:g} s")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        for actor in self._actors:
            actor.end()
        if self._is_ours:
            self._ray.shutdown()

    def _connect(self) -> None:
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            self._ray.init(address=self._address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            raise RuntimeError(f"the Ray cluster {self._address or 'of this host'} cannot be used: {why}") from error
        finally:
            for number, handler in handlers.items():  # Ray has set its own
                if handler is not None:  # one that is not of Python cannot be set again
                    signal.signal(number, handler)

    def _places(self) -> list[dict[str, Any]]:
        """Where the processes are to run: options of Ray's for each."""
        if self._device == "gpu":
            gpus = int(self._ray.cluster_resources().get("GPU", 0))
            if not gpus:
                raise RuntimeError("the Ray cluster must have a GPU for device 'gpu', got none")
            return [{"num_gpus": 1, "num_cpus": 0}] * gpus
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        places = []
        for node in (one for one in self._ray.nodes() if one["Alive"]):
            cores = int(node["Resources"].get("CPU", 0))
            each = max(1, cores // self._side_by_side)
            place = {
                "num_cpus": each,
                "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                "runtime_env": {"env_vars": {"NUMBA_NUM_THREADS": str(each)}},
            }
            places += [place] * min(self._side_by_side, cores)
        return places

    def _begin(self, makers: list[Callable[[], _Actor]]) -> None:
        """Start processes, and keep those that answer in time."""
        actors = [make() for make in makers]
        deadline = time.monotonic() + START_SECONDS
        for actor in actors:
            try:
                self._ray.get(actor.asked, timeout=max(0.0, deadline - time.monotonic()))
            except (self._ray.exceptions.RayError, self._ray.exceptions.GetTimeoutError):
                actor.end()
            else:
                self._actors.append(actor)


class _Actor:
    """A process of the cluster and the runs that it was given."""

    def __init__(self, ray: Any, options: dict[str, Any], arguments: tuple[Any, ...]):
        self._ray, self.again = ray, partial(_Actor, ray, options, arguments)
        self._threads = arguments[1]
        self._actor = ray.remote(Host).options(max_concurrency=2, **options).remote(*arguments)
        self.running: dict[str, GridRun] = {}
        self.asked = self._actor.events.remote(0)  # the answer to come

    @property
    def free(self) -> int:
        return self._threads - len(self.running)

    def start(self, run: GridRun) -> None:
        self.running[run.key] = run
        self._actor.start.remote(run)

    def understand(self, messages: list[_Message]) -> Iterator[Event]:
        self.asked = self._actor.events.remote(POLL_SECONDS)
        for kind, key, what in messages:
            run = self.running[key] if kind == "progress" else self.running.pop(key)
            yield Event(kind, run, what)

    def end(self) -> None:
        self._ray.kill(self._actor)


class Host:
    """What a process of the cluster does: its threads take runs; :meth:`events` says what became of them.

    >>> host = Host("cpu", 1, Path("runs"), "now")
    >>> host.events(0.0)
    []
    """

    def __init__(
        self,
        device: Device,
        threads: int,
        out: Path,
        invocation: str,
        text: Path | None = None,
        keep_model: bool = False,
    ):
        sys.setswitchinterval(SWITCH_SECONDS)
        # GPUs of two hosts may have one number, so the host is part of the name of the invocation
        session = f"{invocation} {platform.node()}"
        one = partial(run_one, device=device, out=out, invocation=session, text=text, keep_model=keep_model)
        self._runs: SimpleQueue[GridRun] = SimpleQueue()
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        for _ in range(threads):
            threading.Thread(target=serve, args=(self._runs, one, device, self._send), daemon=True).start()

    def start(self, run: GridRun) -> None:
        """Hand a run to the next thread that is free."""
        self._runs.put(run)

    def events(self, seconds: float) -> list[_Message]:
        """What has happened; waits up to ``seconds`` for the first message."""
        found: list[_Message] = []
        try:
            found.append(self._messages.get(timeout=seconds) if seconds else self._messages.get_nowait())
            while True:
                found.append(self._messages.get_nowait())
        except Empty:
            return found

    def _send(self, kind: str, run: GridRun, what: Any) -> None:
        self._messages.put((kind, run.key, what))
