"""Rows for the slots that are used, so that time and memory follow the accesses and not M: see ``renumber.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import Address

from ..runtime.arrays import contiguous_aligned, null_or
from ..runtime.module import Specialisation, get_kernel

RENUMBER = Specialisation(
    "memory/renumber.cu", ("renumber_writes", "renumber_reads", "renumber_seen", "renumber_clear"), ()
)
THREADS = 256


def renumber(write: Address, read: Address, mask: Any, slots: int) -> tuple[Address, Address]:
    """The same addresses with rows for slots.

    A slot's row is the number t * K_w + k of its first write, below T * K_w; -1 for a read of a slot that nothing was
    written to yet, and for a write that no later read sees. Tokens where ``mask`` (B, T) is False do neither.
    """
    import cupy

    B, T, H, Kw = write.index.shape
    places = 1 << (2 * T * Kw - 1).bit_length()  # so that at most half of a hash table is taken
    hashed = slots > places
    places = min(places, slots)
    keys = _all_bits(B * H, places) if hashed else None
    table = np.uint32(places), null_or(keys), _all_bits(B * H, places, 2), null_or(mask)
    writes, reads = contiguous_aligned(write.index), contiguous_aligned(read.index)
    write_rows, read_rows = cupy.empty_like(writes), cupy.empty_like(reads)
    _launch("renumber_writes", writes, *table)
    _launch("renumber_reads", reads, *table, np.int32(Kw), read_rows)
    _launch("renumber_seen", writes, *table, write_rows)
    return Address(write_rows, write.weight), Address(read_rows, read.weight)


def clear_rows(write: Address, state: Any) -> None:
    """Set those rows of ``state`` (B*H, rows, C) to 0 that renumbered writes have; the others are left as they are."""
    _, rows, channels = state.shape
    _launch("renumber_clear", write.index, np.int64(rows), np.int32(channels * state.itemsize // 4), state)


def _all_bits(*shape: int) -> Any:
    """-1 everywhere."""
    import cupy

    numbers = cupy.empty(shape, dtype=np.int32)
    if numbers.size:
        numbers.data.memset_async(0xFF, numbers.nbytes)
    return numbers


def _launch(name: str, index: Any, *more: Any) -> None:
    _, T, H, K = index.shape
    if index.size:
        sizes = np.int64(index.size), np.int32(T), np.int32(H), np.int32(K)
        get_kernel(RENUMBER, name)((-(-index.size // THREADS),), (THREADS,), (index, *sizes, *more))
