"""Rows that go back to the host's memory beside the work that follows, on a second stream.

    stream      memory of the segment │ way out, network, the next layers ···········│ rows of the next segment
    second                            └ rows that were written go back over the bus ─┘

What a segment has written is of no use to anyone before the same layer's next segment or token. So the bus, which takes
long, works meanwhile. Whoever uses the rows next waits for it on the device; the host waits for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class WriteBack:
    """The work on a second stream that one memory's rows may still be waiting for."""

    def __init__(self) -> None:
        self._done: Any = None  # the event behind the last work, until someone has waited for it
        self._gpu = 0  # where that work runs, and what waits for it

    def run(self, work: Callable[[], None], needs: Any) -> None:
        """Launch ``work`` behind what the current stream has begun; what it ``needs`` lives until it has ended."""
        import cupy

        second, self._gpu = _second_stream(), cupy.cuda.runtime.getDevice()
        second.wait_event(cupy.cuda.get_current_stream().record())
        with second:
            work()
        self._done = second.record()
        _keep(self._done, needs)

    def wait(self) -> None:
        """What the current stream of the rows' GPU does from now on comes behind the work."""
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

    CuPy's pool gives memory that is free to later work of the first stream, which does not wait for the second one.
    """
    with _lock:
        _running[:] = [*(pair for pair in _running if not pair[0].done), (done, needs)]


def _second_stream() -> Any:
    """This thread's second stream on the current GPU."""
    import cupy

    of_device: dict[int, Any] = _streams.__dict__.setdefault("of_device", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in of_device:
        of_device[device] = cupy.cuda.Stream(non_blocking=True)
    return of_device[device]


_streams = threading.local()
_running: list[tuple[Any, Any]] = []  # events, and what the work before them needs
_lock = threading.Lock()
