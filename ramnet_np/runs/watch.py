"""Who hears from the ranks: the process that started them. It ends all of them when one fails, and names that one.

    rank 0 ──┐                      {"rank": 0, "process": 71}    the first words of a rank
    rank 1 ──┼─ socket ─▶ Watch     {"ended": 0}                  the last words, with its exit status
    rank 2 ──┘                      {"failed": "..."}             or what went wrong

A connection that breaks before the last words is that of a rank that was killed or crashed.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

from ramnet_np.train.interrupt import SIGNALS, exit_status

SOCKET = "RAMNET_NP_STARTER"  # the variable that names it
GRACE = 0.3  # seconds in which other ranks may say that the same went wrong there
OWN_WORDS = ("[proxy:", "[mpiexec@")  # how lines begin that MPICH's mpiexec adds about a rank that has died
END = 10.0  # seconds that the processes may take to end after the last words of all ranks


class Starter:
    """What a rank tells the process that started it; nothing, if that was none of ours.

    >>> Starter({}, rank=0).listens
    False
    """

    def __init__(self, environment: Mapping[str, str], rank: int):
        self._socket: socket.socket | None = None
        if SOCKET in environment:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(environment[SOCKET])
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # how MPICH's mpiexec tells that another rank has died
            self._send({"rank": rank, "process": os.getpid()})

    @property
    def listens(self) -> bool:
        return self._socket is not None

    def tell(self, kind: str, what: Any) -> None:
        """``kind``: "ended", with a status, or "failed", with a sentence."""
        if self._socket is not None:
            with suppress(OSError):  # the starter was killed
                self._send({kind: what})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps(message).encode() + b"\n")


class _Pipe(NamedTuple):
    """What the processes write comes out of it."""

    target: TextIO


class _Rank:
    """A connection, and what has come over it."""

    rank = -1
    process: int | None = None

    def __init__(self, connection: socket.socket):
        self.connection, self._unread = connection, b""

    def messages(self) -> list[dict[str, Any]]:
        """Those that have come now, and an empty one at the end of the connection."""
        with suppress(ConnectionError):
            if data := self.connection.recv(65536):
                *lines, self._unread = (self._unread + data).split(b"\n")
                return [json.loads(line) for line in lines]
        return [{}]


class Watch:
    """Hears from ``size`` ranks until all have ended or one has failed; within the context signals go to rank 0.

    ``environment``: variables for the ranks; ``processes``: what was started, and ends with the context.
    """

    def __init__(self, size: int, timeout: float):
        self._size, self._timeout = size, timeout
        self.processes: list[subprocess.Popen[bytes]] = []
        self._ranks: list[_Rank] = []
        self._ended: dict[int, int] = {}  # rank -> exit status
        self._failed: dict[int, str] = {}  # rank -> what went wrong
        self._signals: list[int] = []

    def __enter__(self) -> Watch:
        self._folder = Path(tempfile.mkdtemp(prefix="ramnet-np-"))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self._folder / "socket"))
        self._server.listen(self._size)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self.environment = {SOCKET: str(self._folder / "socket")}
        heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._handlers = {number: signal.signal(number, self._pass_on) for number in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_all()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for key in list(self._selector.get_map().values()):  # the server, connections, pipes
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def status(self) -> int:
        """Wait; returns the exit status, after a sentence on stderr where a rank has failed."""
        began, is_running = time.monotonic(), True
        for process in self.processes:
            for pipe, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                if pipe is not None:
                    self._selector.register(pipe, selectors.EVENT_READ, _Pipe(target))
        while len(self._ended) < self._size and not self._failed and len(self._signals) < 2 and is_running:
            is_running = any(process.poll() is None for process in self.processes)
            self._hear(0.2 if is_running else 0)
            if len(self._ranks) < self._size and time.monotonic() > began + self._timeout:
                missing = set(range(self._size)) - {one.rank for one in self._ranks}
                self._failed = {rank: f"it has not started within {self._timeout:g} s" for rank in missing}
        if len(self._ended) == self._size:
            with suppress(subprocess.TimeoutExpired):
                for process in self.processes:
                    process.wait(END)
            deadline = time.monotonic() + END
            while time.monotonic() < deadline and self._is_written_to():
                self._hear(0.05)
            return self._ended[0]
        deadline = time.monotonic() + GRACE
        while self._failed and time.monotonic() < deadline:
            self._hear(0.05)
        if self._signals:
            print("\nramnet-np: interrupted", file=sys.stderr)
            return exit_status(self._signals[0])
        print(f"\nramnet-np: {self._why()}", file=sys.stderr)
        return 2

    def _why(self) -> str:
        if not self._failed:
            return "the ranks could not be started, or ended without a word"
        if len(self._failed) == self._size and len(set(self._failed.values())) == 1:
            return self._failed[0]
        rank = next(iter(self._failed))  # the first that was heard of
        return f"rank {rank}: {self._failed[rank]}"

    def _hear(self, seconds: float) -> None:
        # what the processes wrote comes last: where a rank has failed, it is mpiexec's page about that
        for key, _ in sorted(self._selector.select(seconds), key=lambda pair: isinstance(pair[0].data, _Pipe)):
            if isinstance(key.data, _Pipe):
                self._show(key.fileobj, key.data.target)
            elif key.fileobj is self._server:
                new = _Rank(self._server.accept()[0])
                self._selector.register(new.connection, selectors.EVENT_READ, new)
            else:
                for message in key.data.messages():
                    self._understand(key.data, message)

    def _is_written_to(self) -> bool:
        return any(isinstance(key.data, _Pipe) for key in self._selector.get_map().values())

    def _show(self, pipe: Any, target: TextIO) -> None:
        if not (data := pipe.read1(65536)):
            self._selector.unregister(pipe)
            pipe.close()
            return
        lines = data.decode(errors="replace").splitlines(keepends=True)
        if self._failed:  # what the ranks wrote on stderr may tell why
            lines = [] if target is sys.stdout else [line for line in lines if not line.startswith(OWN_WORDS)]
        target.write("".join(lines))
        target.flush()

    def _understand(self, one: _Rank, message: dict[str, Any]) -> None:
        if "rank" in message:
            one.rank, one.process = message["rank"], message["process"]
            self._ranks.append(one)
        elif "ended" in message:
            self._ended[one.rank] = message["ended"]
        elif "failed" in message:
            self._failed.setdefault(one.rank, message["failed"])
        else:
            self._selector.unregister(one.connection)
            one.connection.close()
            if one.rank not in self._ended and one.rank >= 0:
                words = f"its process {one.process} was killed or has crashed; the last checkpoint is whole"
                self._failed.setdefault(one.rank, words)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """The first signal goes to rank 0, which tells the others; a second one ends all at once."""
        self._signals.append(number)
        for one in self._ranks:
            if one.rank == 0 and one.process is not None:
                with suppress(ProcessLookupError):
                    os.kill(one.process, number)

    def _end_all(self) -> None:
        left = [one.process for one in self._ranks if one.process is not None and one.rank not in self._ended]
        for process in self.processes:  # first, so that mpiexec adds no words of its own
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for process_id in left:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
