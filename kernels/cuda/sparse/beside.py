"""Rows that go over the bus beside other work, on a stream of their own.

    stream   masses, couplings │ contents │ way out, network, the next layers ···│ next segment
    ahead    └ rows come over the bus ──┘
    back                                  └ rows that were written go back ──────┘

What is to come is known before it is needed (``arriving.py``), and what a segment has written is of no use to anyone
before the same layer's next segment or token. So the bus, which takes long, works meanwhile. Whoever uses the rows next
waits for it on the device; the host waits for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Beside:
    """Work on the stream ``name``, one for each way over the bus, that someone may still be waiting for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._done: Any = None  # the event behind the last work, until someone has waited for it
        self._gpu = 0  # where that work runs, and what waits for it

    def run(self, work: Callable[[], None], needs: Any) -> None:
        """Launch ``work`` behind what the current stream has begun; what it ``needs`` lives until it has ended.

        None where someone else sees to that.
        """
        import cupy

        stream, self._gpu = _stream(self._name), cupy.cuda.runtime.getDevice()
        stream.wait_event(cupy.cuda.get_current_stream().record())
        with stream:
            work()
        self._done = stream.record()
        if needs is not None:
            _keep(self._done, needs)

    def wait(self) -> None:
        """What the current stream of the work's GPU does from now on comes behind the work."""
        if self._done is None:
            return
        import cupy

        with cupy.cuda.Device(self._gpu):  # whoever asks how many rows there are may be on another one
            cupy.cuda.get_current_stream().wait_event(self._done)
        self._done = None

    def finish(self) -> None:
        """Wait, on the host, before memory that the work writes to is given back."""
        if self._done is not None:
            with suppress(Exception):  # of a CUDA that ends with the process
                self._done.synchronize()


def _keep(done: Any, needs: Any) -> None:
    """Keep what work needs, and give back what only work that has ended needed.

    CuPy's pool gives memory that is free to later work of the first stream, which does not wait for the others.
    """
    with _lock:
        _running[:] = [*(pair for pair in _running if not pair[0].done), (done, needs)]


def _stream(name: str) -> Any:
    """This thread's stream of that name on the current GPU."""
    import cupy

    made: dict[tuple[str, int], Any] = _streams.__dict__.setdefault("made", {})
    key = name, cupy.cuda.runtime.getDevice()
    if key not in made:
        made[key] = cupy.cuda.Stream(non_blocking=True)
    return made[key]


_streams = threading.local()
_running: list[tuple[Any, Any]] = []  # events, and what the work before them needs
_lock = threading.Lock()
