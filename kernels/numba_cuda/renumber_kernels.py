"""Rows for the slots that a sequence writes, so that memory follows the accesses and not M.

A table with room for twice the writes of a (batch, head) holds the slots seen: a slot looks for its place from
``hash(slot)`` on, until it finds itself or a free place. Which slot takes which place depends on timing, but nothing
else does: a slot's row is the number t * K + k of its FIRST write, the smallest, whoever comes first.
Atomics on whole numbers alone, so results are the same every time.
"""

from numba import cuda, int32, int64, types, uint32

from .launch import kernel

FREE, NEVER = -1, 2**31 - 1
ROWS, FLAGS, TABLE = types.CPointer(int32), types.CPointer(types.uint8), types.Array(int32, 1, "C")


@cuda.jit(device=True)
def hashed(slot, places):
    """Where to look first; ``places`` is a power of two."""
    x = uint32(slot) ^ uint32(uint32(slot) >> uint32(15))
    return int64(uint32((int64(x) * int64(2654435769)) & int64(0xFFFFFFFF)) >> uint32(7)) & (places - 1)


@kernel(TABLE, TABLE, int64)
def clear(keys, firsts, size):
    """One thread a place."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i < size:
        keys[i] = FREE
        firsts[i] = NEVER


@kernel(ROWS, FLAGS, TABLE, TABLE, int64, int64, *[int32] * 4)
def enter(slots, mask, keys, firsts, size, places, masked, T, H, K):
    """One thread a write, (B, T, H, K): it finds or takes its slot's place, and lowers what stands there."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i >= size:
        return
    k, h, t, b = i % K, i // K % H, i // K // H % T, i // K // H // T
    if masked != 0 and mask[b * T + t] == 0:
        return
    slot, base = slots[i], (b * H + h) * places
    place = hashed(slot, places)
    while True:
        found = cuda.atomic.cas(keys, base + place, FREE, slot)
        if found == FREE or found == slot:  # noqa: SIM109  (kernels have no tuples to look in)
            break
        place = (place + 1) & (places - 1)
    cuda.atomic.min(firsts, base + place, t * K + k)


@kernel(ROWS, TABLE, TABLE, ROWS, int64, int64, *[int32] * 3)
def look_up(slots, keys, firsts, rows, size, places, T, H, K):
    """One thread an access: the row of its slot, -1 if nothing is ever written there."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i >= size:
        return
    h, b = i // K % H, i // K // H // T
    slot, base = slots[i], (b * H + h) * places
    place = hashed(slot, places)
    while keys[base + place] != FREE and keys[base + place] != slot:
        place = (place + 1) & (places - 1)
    rows[i] = -1 if keys[base + place] == FREE else firsts[base + place]
