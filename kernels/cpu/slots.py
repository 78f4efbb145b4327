"""Numbering the slots that a sequence touches: row 0, 1, ... in the order of their first touch.

A small open-addressing hash table, the directory, takes the place of an array of M rows, so that time and memory
follow the accesses. Its size depends on shapes only. When all M slots fit, slot a has place a to itself, and nothing
ever collides.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class DirectorySize(NamedTuple):
    """How large a directory is, and how a slot finds its place: ``slot * multiplier % 2**32 >> shift``."""

    places: int
    multiplier: int
    shift: int


def directory_size(slots: int, touches: int) -> DirectorySize:
    """Room for ``touches`` different slots of ``slots``: a power of two, at most half full unless all slots fit.

    >>> directory_size(slots=1024, touches=4096)
    DirectorySize(places=1024, multiplier=1, shift=0)
    >>> directory_size(slots=65536, touches=100)
    DirectorySize(places=256, multiplier=2654435769, shift=24)
    """
    bits = (2 * touches - 1).bit_length()
    if slots <= 1 << bits:
        return DirectorySize(1 << (slots - 1).bit_length(), 1, 0)
    return DirectorySize(1 << bits, 2654435769, 32 - bits)  # 2**32 over the golden ratio: spreads runs of slots


@njit(cache=True)
def place_of(slot, directory, touched, multiplier, shift):
    """Where ``slot`` stands in the directory, or the free place (row -1) where it belongs."""
    place = ((np.int64(slot) * multiplier) & 0xFFFFFFFF) >> shift
    while directory[place] >= 0 and touched[directory[place]] != slot:
        place = (place + 1) & (directory.size - 1)
    return place
