"""Ctrl-C between steps instead of inside one: a step that has begun is finished, so what is saved is never torn."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

# what asks a program to end: Ctrl-C, a batch system or a shutdown, a terminal that is closed
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class DeferredInterrupt:
    """Within the block the first Ctrl-C, SIGTERM or SIGHUP only sets ``signal``; a second one ends the program at once.

    The first prints ``says`` at once. The second raises KeyboardInterrupt, or SystemExit with the status that a shell
    gives to a program that a signal ended. A signal that was ignored before stays ignored.
    Outside the main thread, where Python delivers no signals, it does nothing.

    >>> with DeferredInterrupt("") as interrupt:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupt.requested
    True
    """

    signal: int | None = None  # the first that came

    def __init__(self, says: str):
        self._says = says

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> DeferredInterrupt:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(exit_status(number))
        self.signal = number
        with suppress(OSError):  # the terminal may be gone
            # not by print: the program may be within one
            os.write(2, f"\n{self._says}\n".encode() if self._says else b"")


def exit_status(number: int) -> int:
    """What a program that this signal ended exits with, as shells have it: 130 for Ctrl-C, 143 for SIGTERM.

    >>> exit_status(signal.SIGINT)
    130
    """
    return 128 + number
