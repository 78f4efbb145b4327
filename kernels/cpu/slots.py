"""Numbering the slots that a sequence touches: row 0, 1, ... in the order of their first touch.

A small hash table from slot to row takes the place of an array of M rows, so that time and memory follow the accesses.
A slot's entry is ``slot * multiplier % 2**32 >> shift``, or a later one where that is taken; it holds a row, or -1.
The table's size depends on shapes only. When all M slots fit, slot a has entry a to itself, and nothing ever collides.
"""

from __future__ import annotations

import numpy as np

from .compiling import inner


def hash_size(slots: int, touches: int) -> tuple[int, int, int]:
    """(entries, multiplier, shift) for ``touches`` different slots of ``slots``.

    A power of two, at most half full unless all slots fit.

    >>> hash_size(slots=1024, touches=4096)
    (1024, 1, 0)
    >>> hash_size(slots=65536, touches=100)
    (256, 2654435769, 24)
    """
    bits = (2 * touches - 1).bit_length()
    if slots <= 1 << bits:
        return 1 << (slots - 1).bit_length(), 1, 0
    return 1 << bits, 2654435769, 32 - bits  # 2**32 over the golden ratio: spreads runs of slots


@inner
def entry_of(slot, row, slot_of_row, multiplier, shift):
    """Where ``slot`` stands in the hash table ``row`` of one (batch, head), or the free entry where it belongs."""
    entry = ((np.int64(slot) * multiplier) & 0xFFFFFFFF) >> shift
    while row[entry] >= 0 and slot_of_row[row[entry]] != slot:
        entry = (entry + 1) & (row.size - 1)  # linear probing
    return entry
