"""Rows for the slots that are written, so that time and memory follow the accesses and not M: see ``renumber.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.core.state import Address

from .arrays import plain
from .module import Specialisation, get_kernel

RENUMBER = Specialisation("renumber.cu", ("renumber_writes", "renumber_look_up"), ())
NULL = np.uint64(0)
THREADS = 256


def renumber(write: Address, read: Address, mask: Any) -> tuple[Address, Address]:
    """The same addresses with rows for slots.

    A slot's row is the number t * K_w + k of its first write, below T * K_w; -1 for a slot never written. Tokens where
    ``mask`` (B, T) is False write nothing.
    """
    import cupy

    B, T, H, Kw = write.index.shape
    places = 1 << (2 * T * Kw - 1).bit_length()
    keys = cupy.full((B * H, places), -1, dtype=np.int32)
    first = cupy.full((B * H, places), 2**31 - 1, dtype=np.int32)

    def launch(name: str, index: Any, more: Any) -> None:
        sizes = np.int64(index.size), np.int32(T), np.int32(H), np.int32(index.shape[3]), np.uint32(places)
        if index.size:
            get_kernel(RENUMBER, name)((-(-index.size // THREADS),), (THREADS,), (index, *sizes, keys, first, more))

    slots = [plain(write.index), plain(read.index)]
    rows = [cupy.empty_like(s) for s in slots]
    launch("renumber_writes", slots[0], NULL if mask is None else mask)
    for s, r in zip(slots, rows, strict=True):
        launch("renumber_look_up", s, r)
    return Address(rows[0], write.weight), Address(rows[1], read.weight)
