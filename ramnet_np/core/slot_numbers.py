"""Numbers for the slots that a segment touches, so that a small dense memory takes the place of a large sparse one.

The addresses of a segment are known before any memory is touched. In every head its slots are numbered from 0 in the
order of their first use, those that are written before those that are only read. A memory with so many rows, and with
numbers in place of slots, gives the bits that the whole memory would give: no result depends on where a row lies.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array, SlotNumbers
from ramnet_np.core.accelerated import accelerated_everywhere
from ramnet_np.core.arrays import namespace_of


@accelerated_everywhere
def number_slots(write: Array, read: Array, mask: Array | None, slots: int) -> SlotNumbers:
    """Number the slots of a segment.

    ``write``: (B, T, H, K_w) int32, ``read``: (B, T, H, K_r) int32; ``mask``: (B, T) bool or None: a masked token's
    slots get numbers too, and are not written; ``slots``: M. Cost: that of sorting the accesses.

    >>> write, read = np.array([[[[7]], [[5]]]]), np.array([[[[2]], [[7]]]])
    >>> numbers = number_slots(write, read, None, 16)
    >>> numbers.write.ravel().tolist(), numbers.read.ravel().tolist(), numbers.keys.tolist(), numbers.written.tolist()
    ([0, 1], [2, 0], [7, 5, 2], [2])
    """
    xp = namespace_of(write)
    B, _, H, _ = write.shape
    head = xp.arange(B * H, dtype=np.int64).reshape(B, 1, H, 1) * slots
    # 1. writes that count, then the others and the reads
    only_read = xp.ones(read.shape, dtype=np.bool_)
    masked = xp.zeros(write.shape, dtype=np.bool_)
    if mask is not None:
        masked |= ~mask[:, :, None, None]
    later = xp.concatenate([masked.ravel(), only_read.ravel()])
    order = xp.argsort(later.astype(np.int8), kind="stable")
    keys = xp.concatenate([(head + write).ravel(), (head + read).ravel()])
    # 2. every key once, with its first use
    unique, first, which = xp.unique(keys[order], return_index=True, return_inverse=True)
    # 3. by heads, and there by the first use
    by_head = xp.lexsort(xp.stack([first, unique // slots]))
    unique, is_written = unique[by_head], ~later[order[first[by_head]]]
    start = xp.searchsorted(unique // slots, xp.arange(B * H + 1))
    number = xp.empty(unique.size, dtype=np.int64)
    number[by_head] = xp.arange(unique.size) - start[unique // slots]
    numbers = xp.empty(keys.size, dtype=np.int32)
    numbers[order] = number[which.reshape(-1)]
    before = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(is_written, dtype=np.int64)])
    written = before[start[1:]] - before[start[:-1]]
    at = numbers[: write.size], numbers[write.size :]
    return SlotNumbers(at[0].reshape(write.shape), at[1].reshape(read.shape), unique, start, written)
