"""A sparse memory's table and the numbers of a segment's slots: ``core/slot_rows.py`` and ``core/slot_numbers.py``."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array, SlotNumbers

from .arrays import contiguous, mask_array
from .compiling import inner, kernel, parallel_kernel
from .share import share_out
from .slots import hash_size

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # as in the core
FEW_TOUCHES = 4096  # which one thread numbers in less time than starting the others takes


def find_rows(keys: Array, key_of_row: Array, entries: Array) -> np.ndarray:
    """The row of every key, (N,) int64, or -1 where there is none."""
    rows = np.empty(keys.shape, dtype=np.int64)
    _find(contiguous(keys), contiguous(key_of_row), entries, shift_of(entries), rows)
    return rows


def enter_rows(key_of_row: Array, entries: Array, start: int, stop: int) -> None:
    """Put rows ``start`` to ``stop`` - 1 into the table."""
    _enter(contiguous(key_of_row), entries, shift_of(entries), start, stop)


def shift_of(entries: np.ndarray) -> int:
    """By how many bits a product of 64 bits is shifted to be an entry of a table."""
    return 64 - (entries.size.bit_length() - 1)


def number_slots(write: Array, read: Array, mask: Array | None, slots: int) -> SlotNumbers:
    """Number the slots of a segment: heads by themselves, each with a hash table."""
    B, T, H, Kw = write.shape
    touches = T * (Kw + read.shape[3])
    entries, multiplier, shift = hash_size(slots, touches)
    numbers = SlotNumbers(
        write=np.empty(write.shape, dtype=np.int32),
        read=np.empty(read.shape, dtype=np.int32),
        keys=np.empty((B * H, min(slots, touches)), dtype=np.int64),  # of every head as many as there may be, for now
        start=np.zeros(B * H + 1, dtype=np.int64),
        written=np.empty(B * H, dtype=np.int64),
    )
    table = np.full((B * H, entries), -1, dtype=np.int32), multiplier, shift
    run = _number_serial if B * H * touches <= FEW_TOUCHES else _number_parallel
    run((contiguous(write), contiguous(read), mask_array(mask)), slots, table, tuple(numbers))
    start = np.cumsum(numbers.start)
    keys = np.concatenate([row[:count] for row, count in zip(numbers.keys, numbers.start[1:], strict=True)] or [[]])
    return numbers._replace(keys=keys.astype(np.int64, copy=False), start=start)


@kernel
def _number_serial(accesses, slots, table, numbers):
    for bh in range(numbers[4].size):
        _number_head(bh, accesses, slots, table, numbers)


@parallel_kernel
def _number_parallel(accesses, slots, table, numbers):
    share_out(_number_head, numbers[4].size, (accesses, slots, table, numbers))


@inner
def _number_head(bh, accesses, slots, table, numbers):
    write, read, mask = accesses
    write_number, read_number, keys, start, written = numbers
    H = write.shape[2]
    first = np.int64(bh) * slots
    given = keys[bh], first, table[0][bh], table[1], table[2]
    count = _number_side(bh // H, bh % H, write, write_number, mask, True, 0, given)
    written[bh] = count
    if mask.size > 0:
        count = _number_side(bh // H, bh % H, write, write_number, mask, False, count, given)
    start[bh + 1] = _number_side(bh // H, bh % H, read, read_number, mask[:0], True, count, given)


@inner
def _number_side(b, h, index, number, mask, live, count, given):
    """Number the slots of one side at tokens that are ``live``, or of those that are not; returns the count."""
    keys, first, number_of_entry, multiplier, shift = given
    for t in range(index.shape[1]):
        if mask.size > 0 and mask[b, t] != live:
            continue
        for k in range(index.shape[3]):
            slot = index[b, t, h, k]
            entry = ((slot * multiplier) & 0xFFFFFFFF) >> shift
            while number_of_entry[entry] >= 0 and keys[number_of_entry[entry]] != first + slot:
                entry = (entry + 1) & (number_of_entry.size - 1)  # linear probing
            if number_of_entry[entry] < 0:
                number_of_entry[entry] = count
                keys[count] = first + slot
                count += 1
            number[b, t, h, k] = number_of_entry[entry]
    return count


@kernel
def _find(keys, key_of_row, entries, shift, rows):
    for n in range(keys.size):
        rows[n] = find_row(keys[n], key_of_row, entries, shift)


@kernel
def _enter(key_of_row, entries, shift, start, stop):
    for row in range(start, stop):
        enter_row(row, key_of_row, entries, shift)


@inner
def find_row(key, key_of_row, entries, shift):
    """The row of a key, or -1."""
    entry = _first_entry(key, shift)
    while entries[entry] >= 0 and key_of_row[entries[entry]] != key:
        entry = (entry + 1) & (entries.size - 1)  # linear probing
    return np.int64(entries[entry])


@inner
def enter_row(row, key_of_row, entries, shift):
    """Put a row, whose key is not there, into the table."""
    entry = _first_entry(key_of_row[row], shift)
    while entries[entry] >= 0:
        entry = (entry + 1) & (entries.size - 1)
    entries[entry] = row


@inner
def _first_entry(key, shift):
    return np.int64((np.uint64(key) * GOLDEN) >> np.uint64(shift))
