"""Rows for the slots that a sequence writes, so that memory follows the accesses and not M.

A hash table with at least twice as many entries as a (batch, head) has writes holds the slots seen: a slot is looked
for from entry ``hash(slot)`` on, until it is found or an entry is free. Which slot takes which entry depends on timing,
but nothing else does: a slot's row is the number t * K + k of its FIRST write, the smallest, whoever comes first.
Atomics on whole numbers alone, so results are the same every time.
"""

from .compiler import carray, cuda, int32, int64, uint32
from .launch import kernel
from .records import FLAGS, INDICES

FREE, NEVER = -1, 2**31 - 1


@cuda.jit(device=True)
def hashed(slot, capacity):
    """The entry to look at first; ``capacity`` is a power of two."""
    x = uint32(slot) ^ uint32(uint32(slot) >> uint32(15))
    return int64(uint32((int64(x) * int64(2654435769)) & int64(0xFFFFFFFF)) >> uint32(7)) & (capacity - 1)


@kernel(INDICES, INDICES, int64)
def clear(keys, firsts, size):
    """One thread an entry."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i < size:
        keys[i] = FREE
        firsts[i] = NEVER


@kernel(INDICES, FLAGS, INDICES, INDICES, int64, int64, *[int32] * 4)
def enter(slots, mask, keys, firsts, size, capacity, masked, T, H, K):
    """One thread a write, (B, T, H, K): it finds or takes its slot's entry, and lowers the row there."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i >= size:
        return
    k, h, t, b = i % K, i // K % H, i // K // H % T, i // K // H // T
    if masked != 0 and mask[b * T + t] == 0:
        return
    slot, base = slots[i], (b * H + h) * capacity
    entry = hashed(slot, capacity)
    key_array, first_array = carray(keys, 1), carray(firsts, 1)  # atomics take arrays; none looks at the length
    while True:
        key = cuda.atomic.cas(key_array, base + entry, FREE, slot)
        if key == FREE or key == slot:  # noqa: SIM109  (kernels have no tuples to look in)
            break
        entry = (entry + 1) & (capacity - 1)
    cuda.atomic.min(first_array, base + entry, t * K + k)


@kernel(*[INDICES] * 4, int64, int64, *[int32] * 3)
def look_up(slots, keys, firsts, rows, size, capacity, T, H, K):
    """One thread an access: the row of its slot, -1 if nothing is ever written there."""
    i = cuda.blockIdx.x * int64(cuda.blockDim.x) + cuda.threadIdx.x
    if i >= size:
        return
    h, b = i // K % H, i // K // H // T
    slot, base = slots[i], (b * H + h) * capacity
    entry = hashed(slot, capacity)
    while keys[base + entry] != FREE and keys[base + entry] != slot:
        entry = (entry + 1) & (capacity - 1)
    rows[i] = -1 if keys[base + entry] == FREE else firsts[base + entry]
