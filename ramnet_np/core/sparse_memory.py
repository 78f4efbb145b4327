"""The memory over a sparse state: a segment's slots are gathered into a small dense state, worked on, scattered back.

    number the slots that the segment touches          slot_numbers.py
    gather their rows into a dense state               sparse_state.py
    write and read as ever, with numbers for slots     the memory of the backend
    scatter the rows of written slots back             sparse_state.py

The backend's kernels stay as they are: they see a memory of as many slots as the segment touches. Its results have the
bits of a dense state of all M slots. The gradient is that of the segment: it ends where the state came in, because the
state before it may by then be on a disk.
Cost: that of the dense memory, and a copy of the touched rows each way; time and memory follow the accesses.
Source: paper section 7, which proposes a memory whose slots are kept outside of the GPU.
"""

from __future__ import annotations

from typing import Any

from ramnet_np.backend import Backend
from ramnet_np.contract import Address, Array, DecodeOptions, MemoryOptions, RAMState, SlotNumbers
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.slot_numbers import number_slots
from ramnet_np.core.sparse_state import SparseRAMState


def sparse_memory_forward(
    backend: Backend,
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: SparseRAMState,
    options: MemoryOptions,
    return_state: bool,
) -> tuple[Array, SparseRAMState | None, Any]:
    """Write and read token by token. Returns y (B, T, H, C), the state (or None), ctx of the backend's memory.

    ``backend``: whose memory works on the rows; shapes as of :func:`ramnet_np.core.memory.memory_forward`.
    With ``return_state`` the given state is UPDATED IN PLACE and returned: a copy would cost as much as everything that
    was ever written. Without it the state is left alone.
    MemoryError or OSError where there is no room for the rows.

    >>> import numpy as np
    >>> from ramnet_np.core.numpy_backend import BACKEND
    >>> address = Address(np.full((1, 2, 1, 1), 2**31 - 2), np.full((1, 2, 1, 1), 0.5))
    >>> state = SparseRAMState.initial(batch=1, heads=1, slots=2**31 - 1, channels=1, dtype=np.float64)
    >>> options, values = MemoryOptions(slots=2**31 - 1), np.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> y, state, _ = sparse_memory_forward(BACKEND, address, address, values, 1.0, None, state, options, True)
    >>> y.ravel().round(3).tolist(), state.written
    ([0.5, 1.167], 1)
    """
    numbers = number_slots(write.index, read.index, mask, options.slots)
    rows = state.gather(numbers.keys)
    xp = namespace_of(values)
    every = xp.arange(numbers.keys.size)
    head = xp.searchsorted(numbers.start, every, side="right") - 1  # of each key
    small, place = _dense(rows, numbers, every, head, values)
    y, final, ctx = backend.memory_forward(
        write._replace(index=numbers.write), read._replace(index=numbers.read), values, gamma, mask, small,
        options._replace(slots=small.mass.shape[2]), return_state,
    )  # fmt: skip
    if final is None:
        return y, None, ctx
    stored = every - numbers.start[head] < numbers.written[head]
    at, rows = place[stored], rows[stored]
    rows[:, :-1], rows[:, -1] = final.slots.reshape(-1, values.shape[3])[at], final.mass.reshape(-1)[at]
    state.scatter(numbers.keys[stored], rows)
    return y, state, ctx


def sparse_step(
    backend: Backend,
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array,
    positions: Array | None,
    mask: Array | None,
    state: SparseRAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Array:
    """One token (T = 1): update ``state`` in place and return y (B, 1, H, C); shapes as of the backend's step.

    >>> import numpy as np
    >>> from ramnet_np.core.numpy_backend import BACKEND
    >>> state, logits = SparseRAMState.initial(1, 1, 4, 1, np.float64), np.zeros((1, 1, 1, 2, 2))
    >>> decode = DecodeOptions(write_k=1, read_k=1, write_renorm=False, read_renorm=False, cape_heads=0)
    >>> position, v = np.zeros((1, 1), np.int64), np.ones((1, 1, 1, 1))
    >>> sparse_step(BACKEND, logits, logits, v, 1.0, position, None, state, decode, MemoryOptions(slots=4)).item()
    0.14285714285681633
    """
    state.require_whole()
    token = write_logits, read_logits, values, gamma, positions, mask
    if backend.sparse_step is not None:
        try:
            y = backend.sparse_step(*token, state, decode, options)
        except (KeyboardInterrupt, SystemExit) as error:  # rows may be new before the state counts them
            state.lose(error)
            raise
        if y is not NotImplemented:
            return y
    logits, cape_heads = (write_logits, read_logits), decode.cape_heads
    write, read = backend.decode_forward(logits, decode.top_k, decode.renorm, cape_heads, positions)
    addresses = Address(*write[:2]), Address(*read[:2])
    y, _, _ = sparse_memory_forward(backend, *addresses, values, gamma, mask, state, options, return_state=True)
    return y


def _dense(rows: Array, numbers: SlotNumbers, every: Array, head: Array, values: Array) -> tuple[RAMState, Array]:
    """A dense state of ``rows`` (N, C + 1), and where each of them is in it, (N,) of B*H*n.

    n: the most slots that a head touches. A head that touches fewer has rows left over, which nothing addresses.
    """
    xp = namespace_of(rows)
    B, _, H, C = values.shape
    counts = numbers.start[1:] - numbers.start[:-1]
    n = max(1, int(counts.max())) if counts.size else 1
    place = head * n + every - numbers.start[head]
    slots, mass = xp.zeros((B * H * n, C), dtype=rows.dtype), xp.ones(B * H * n, dtype=rows.dtype)
    slots[place], mass[place] = rows[:, :-1], rows[:, -1]
    return RAMState(slots.reshape(B, H, n, C), mass.reshape(B, H, n)), place
