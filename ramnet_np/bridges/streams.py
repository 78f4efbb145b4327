"""The stream of another library as one of CuPy's."""

from __future__ import annotations

from typing import Any


class ForeignStream:
    """A stream of the current GPU by its address, in the form in which libraries hand each other streams.

    >>> ForeignStream(7).__cuda_stream__()
    (0, 7)
    """

    def __init__(self, address: int):
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address  # the version of the form, then the address


def cupy_stream(address: int) -> Any:
    """CuPy's object for a stream of the current GPU; a context in which CuPy runs on that stream."""
    import cupy

    return cupy.cuda.Stream.from_external(ForeignStream(address))
