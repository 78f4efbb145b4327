"""Stop strings: text that comes in pieces is let through up to the first of them.

The pieces are those that a tokeniser makes, so a stop string may begin in one and end in another: what may still become
one is held back until that is decided. The string that is complete first counts, and of two that end together the
longer; so the result is the same however the text is cut.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScan:
    """One text on its way. ``stop``: the strings, which the text is let through up to.

    >>> scan = StopScan(["END"])
    >>> [scan.feed(piece) for piece in ("an E", "N", "tity E", "ND.")], scan.stopped
    (['an ', '', 'ENtity ', ''], True)
    """

    def __init__(self, stop: Sequence[str]):
        check_stop(stop)
        self._stop, self._held, self.stopped = tuple(stop), "", False

    def feed(self, piece: str) -> str:
        """The text that is certain with one more piece; "" for what comes behind a stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def check_stop(stop: Sequence[str]) -> None:
    """TypeError or ValueError unless ``stop`` are strings of at least one character.

    >>> check_stop(["END", ""])
    Traceback (most recent call last):
        ...
    ValueError: stop must hold strings of at least one character, got ''
    """
    if isinstance(stop, str):
        raise TypeError(f"stop must be a list of strings, got the string {stop!r}")
    for one in stop:
        if not isinstance(one, str):
            raise TypeError(f"stop must hold strings, got {one!r}")
        if not one:
            raise ValueError("stop must hold strings of at least one character, got ''")


def _begun(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` may begin with."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
