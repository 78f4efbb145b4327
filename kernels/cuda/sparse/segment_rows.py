"""The rows of a segment's slots on the GPU, as a small dense state, and back: one launch each way, or one a part.

Beside ``gather`` and ``scatter`` of rows.py, which know keys alone, these know the numbers of the slots
(``core/slot_numbers.py``), so a row goes to its place in the dense state, and nothing is computed around the launch.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Launch, Specialisation, type_name
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct
from .numbers import Numbers

THREADS = 128
BLOCKS_BESIDE = 64  # where rows go back beside other work: they wait for the bus, and need few multiprocessors for that
BLOCKS_AHEAD = 264  # where they come beside other work, which soon waits for them
SEGMENT_PARAMS = ParamStruct(
    "SegmentParams",
    table=POINTER, keys=POINTER, start=POINTER, written=POINTER, contents=POINTER, mass=POINTER, first=POINTER,
    source=POINTER, places=LONG, most=LONG, channels=INT, begin=UNSIGNED, end=UNSIGNED,
)  # fmt: skip


@functools.cache
def segment_specialisation(row: str) -> Specialisation:
    """For rows whose contents are of the type ``row``: float, double or bfloat16."""
    return Specialisation(
        "sparse/segment_rows.cu",
        ("gather_segment", "gather_masses", "scatter_segment", "gather_part", "take_part"),
        (("ROW", row), ("THREADS", THREADS)),
        (SEGMENT_PARAMS,),
    )


class SegmentRows:
    """The rows of the slots with these ``numbers``, of C = ``channels`` contents each, in a ``table`` (``RowTable``).

    ``most``: n, places for a head's slots, enough for all that it touches; ``dtype``: of a row as it is kept, uint16
    for bfloat16.
    """

    def __init__(self, table: Array, numbers: Numbers, most: int, channels: int, dtype: np.dtype):
        self._table, self._keys, self._bounds, self._heads = table, numbers.keys, numbers.bounds, numbers.heads
        self._numbers, self._most, self._channels = numbers, most, channels
        self._first: Array = None  # the first token that uses each slot, where rows come in parts
        in_16_bits = dtype == np.uint16
        self._dtype = np.dtype(np.float32) if in_16_bits else dtype  # of the dense state
        self._specialisation = segment_specialisation("bfloat16" if in_16_bits else type_name(dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of the contents."""
        return self._heads * self._most * self._channels * self._dtype.itemsize

    def gather(self) -> tuple[Array, Array]:
        """Contents (B*H, n, C) and masses (B*H, n). A place beyond a head's numbers is like a slot never written."""
        contents, mass = self._empty()
        self._launch("gather_segment", contents, mass)
        return contents, mass

    def gather_masses(self) -> tuple[Array, Array]:
        """The same, with contents that are not set: they come with :meth:`gather_part`."""
        contents, mass = self._empty()
        self._first = self._numbers.first_tokens()
        self._launch("gather_masses", contents, mass, lanes=1)
        return contents, mass

    def scatter(self, contents: Array, mass: Array, beside: bool = False) -> None:
        """Store the rows of the slots that are written, for which there must be room; ``beside``: beside other work."""
        arrays = contiguous_aligned(contents), contiguous_aligned(mass)
        self._launch("scatter_segment", *arrays, most_blocks=BLOCKS_BESIDE if beside else None)

    def gather_part(self, begin: int, end: int, contents: Array) -> None:
        """Contents of slots that one of the tokens ``begin`` to ``end`` - 1 is the first to use, beside other work."""
        part = {"first": self._first, "begin": begin, "end": end}
        self._launch("gather_part", contents, None, lanes=1, most_blocks=BLOCKS_AHEAD, **part)

    def take_part(self, begin: int, end: int, source: Array, contents: Array) -> None:
        """The same contents from ``source``, where they were gathered, into ``contents``."""
        part = {"first": self._first, "begin": begin, "end": end}
        self._launch("take_part", contents, None, lanes=1, source=source, **part)

    def _empty(self) -> tuple[Array, Array]:
        import cupy

        shape = self._heads, self._most
        return cupy.empty((*shape, self._channels), dtype=self._dtype), cupy.empty(shape, dtype=self._dtype)

    def _launch(
        self,
        name: str,
        contents: Array,
        mass: Array | None,
        *,
        lanes: int = 32,
        most_blocks: int | None = None,
        **values: Any,
    ) -> None:
        """``lanes``: of a place."""
        places, heads = self._heads * self._most, self._heads
        if places:
            params = SEGMENT_PARAMS(
                **_NO_PART | values, table=self._table, keys=self._keys, start=self._bounds,
                written=self._bounds[heads + 1 :], contents=contents, mass=mass, places=places, most=self._most,
                channels=self._channels,
            )  # fmt: skip
            blocks = -(-places * lanes // THREADS)
            grid = (blocks if most_blocks is None else min(blocks, most_blocks),)
            Launch(self._specialisation, name, grid, THREADS)(params)


_NO_PART = {"first": None, "source": None, "begin": 0, "end": 0}
