"""Numbers for the slots that a segment touches: ``core/slot_numbers.py`` on the GPU, by a table in place of sorting."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array, SlotNumbers

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct

THREADS = 256
MOST = 2**31 - 1  # accesses, cells, and places of a head: numbers of them have 4 bytes
SIDE = ParamStruct(
    "Side",
    index=POINTER, numbers=POINTER, accesses=UNSIGNED, top_k=INT, live_from=UNSIGNED, masked_from=UNSIGNED,
)  # fmt: skip
NUMBERS_PARAMS = ParamStruct(
    "NumbersParams",
    write=SIDE, read=SIDE, mask=POINTER, cells=POINTER, marks=POINTER, sums=POINTER, keys=POINTER, bounds=POINTER,
    first_tokens=POINTER, cell_count=LONG, slots=LONG, places=LONG, tokens=INT, heads=INT, all_heads=INT, shift=INT,
)  # fmt: skip
NUMBERS = Specialisation(
    "sparse/numbers.cu",
    ("note_uses", "mark_firsts", "number_cells", "take_numbers", "note_tokens"),
    (("THREADS", THREADS),),
    (NUMBERS_PARAMS,),
)


class Numbers:
    """The numbers of a segment's slots on the GPU, which need not tell the host how many there are.

    ``write``, ``read``: (B, T, H, K) int32, in place of slots; ``keys``: of the slots, by heads and then by numbers,
    with room for more; ``bounds``: (2 B*H + 1,) int64, where a head's keys begin, how many there are, and how many of a
    head's slots are written; ``heads``: B*H; ``params``: of further launches.
    """

    def __init__(self, write: Array, read: Array, keys: Array, bounds: Array, heads: int, params: dict[str, Any]):
        self.write, self.read, self.keys, self.bounds, self.heads = write, read, keys, bounds, heads
        self._params = params

    @functools.cached_property
    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """``start`` and ``written``, as of ``SlotNumbers``. Waits for the GPU."""
        start, written = np.split(self.bounds.get(), [self.heads + 1])
        return start, written

    def first_tokens(self) -> Array:
        """The first token that uses each slot, (N,) uint32 in the order of ``keys``."""
        import cupy

        first = cupy.full(self.keys.size, 2**32 - 1, dtype=np.uint32)
        _launch("note_tokens", self.write.size + self.read.size, self._params | {"first_tokens": first})
        return first


def number_slots(write: Array, read: Array, mask: Array | None, slots: int) -> SlotNumbers:
    """Number the slots of a segment. Waits for the GPU once, for how many there are."""
    numbers = number_on_gpu(write, read, mask, slots)
    if numbers is NotImplemented:
        return NotImplemented
    start, written = numbers.on_host
    return SlotNumbers(numbers.write, numbers.read, numbers.keys[: start[-1]], start, written)


def number_on_gpu(write: Array, read: Array, mask: Array | None, slots: int) -> Numbers:
    """Number the slots of a segment; the host waits for nothing. NotImplemented for too many accesses, or none."""
    import cupy

    B, T, H, Kw = write.shape
    count, writes, reads = write.size + read.size, T * Kw, T * read.shape[3]
    cells, shift = table_of(count, B * H * slots)
    places = (writes if mask is None else 2 * writes) + reads
    if not count or max(count, cells, places) > MOST:
        return NotImplemented
    write, read = contiguous_aligned(write), contiguous_aligned(read)
    table = cupy.full((cells, 2), -1, dtype=np.int64)  # of which the second is two numbers of 4 bytes
    marks = cupy.zeros((B * H, places), dtype=np.int32)
    keys = cupy.empty(min(count, B * H * slots), dtype=np.int64)  # as many as there may be, for now
    bounds = cupy.empty(2 * B * H + 1, dtype=np.int64)
    numbers = [cupy.empty(side.shape, dtype=np.int32) for side in (write, read)]
    params = {
        "write": _side(write, numbers[0], 0, writes), "read": _side(read, numbers[1], places - reads, 0),
        "mask": None if mask is None else contiguous_aligned(mask), "cells": table, "marks": marks, "sums": None,
        "keys": keys, "bounds": bounds, "first_tokens": None, "cell_count": cells, "slots": slots, "places": places,
        "tokens": T, "heads": H, "all_heads": B * H, "shift": shift,
    }  # fmt: skip
    _launch("note_uses", count, params)
    _launch("mark_firsts", cells, params)
    params["sums"] = cupy.cumsum(marks, dtype=np.int32)
    _launch("number_cells", cells, params)
    _launch("take_numbers", count, params)
    later = params | dict.fromkeys(("cells", "marks", "sums", "mask"))  # which are of no use then
    return Numbers(numbers[0], numbers[1], keys, bounds, B * H, later)


def table_of(count: int, most: int) -> tuple[int, int]:
    """(cells, shift) of a table for ``count`` accesses to ``most`` slots in all.

    A cell for every slot, whose number it has (shift 0), or a hash table that is at most half full.

    >>> table_of(count=1000, most=2048)
    (2048, 0)
    >>> table_of(count=1000, most=2049)
    (2048, 53)
    """
    bits = (2 * count - 1).bit_length() if count else 0
    return (most, 0) if most <= 1 << bits else (1 << bits, 64 - bits)


def _side(index: Array, numbers: Array, live_from: int, masked_from: int) -> Any:
    return SIDE(
        index=index, numbers=numbers, accesses=index.size, top_k=index.shape[3], live_from=live_from,
        masked_from=masked_from,
    )  # fmt: skip


def _launch(name: str, count: int, params: dict[str, Any]) -> None:
    Launch(NUMBERS, name, (-(-count // THREADS),), THREADS)(NUMBERS_PARAMS(**params))
