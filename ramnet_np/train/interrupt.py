"""Ctrl-C between steps instead of inside one: a step that has begun is finished, so what is saved is never torn."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class DeferredInterrupt:
    """Within the block the first Ctrl-C only sets ``requested``; a second one raises KeyboardInterrupt at once.

    Outside the main thread, where Python delivers no signals, it does nothing.

    >>> with DeferredInterrupt() as interrupt:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interrupt.requested
    True
    """

    requested = False

    def __enter__(self) -> DeferredInterrupt:
        self._active = threading.current_thread() is threading.main_thread()
        if self._active:
            self._previous: Any = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
