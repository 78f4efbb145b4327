"""Rows for the slots that are written: launches of ``renumber_kernels.py``."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Address, Array

from .arrays import arrays_like
from .launch import THREADS
from .renumber_kernels import clear, enter, look_up


def renumber(write: Address, read: Address, mask: Array | None) -> tuple[Address, Address]:
    """The same addresses with rows for slots.

    A slot's row is the number t * K_w + k of its first write, below T * K_w; -1 for a slot never written. Tokens where
    ``mask`` (B, T) is False write nothing.
    """
    B, T, H, Kw = write.index.shape
    arrays = arrays_like(write.index)
    capacity = 1 << (2 * T * Kw - 1).bit_length()
    keys, firsts = (arrays.empty((B * H * capacity,), np.int32) for _ in range(2))

    def blocks(size: int) -> int:
        return -(-size // THREADS)

    clear(blocks(keys.size), THREADS, arrays.stream, keys, firsts, keys.size)
    enter(
        blocks(write.index.size), THREADS, arrays.stream, write.index, mask, keys, firsts, write.index.size, capacity,
        int(mask is not None), T, H, Kw,
    )  # fmt: skip
    rows = []
    for address in (write, read):
        slots = address.index
        row = arrays.empty(slots.shape, np.int32)
        look_up(
            blocks(slots.size), THREADS, arrays.stream, slots, keys, firsts, row, slots.size, capacity, T, H,
            slots.shape[3],
        )  # fmt: skip
        rows.append(Address(row, address.weight))
    return rows[0], rows[1]
