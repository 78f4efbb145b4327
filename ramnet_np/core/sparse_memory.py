"""The memory over a sparse state: a segment's slots are gathered into a small dense state, worked on, scattered back.

    number the slots that the segment touches          slot_numbers.py
    gather their rows into a dense state               sparse_state.py
    write and read as ever, with numbers for slots     the memory of the backend
    scatter the rows of written slots back             sparse_state.py

The backend's kernels stay as they are: they see a memory of as many slots as the segment touches, or a few more. Its
results have the bits of a dense state of all M slots. Rows on a GPU do the first two steps and the last by themselves.
The gradient is that of the segment: it ends where the state came in, because the state before it may by then be on a
disk.
Cost: that of the dense memory, and a copy of the touched rows each way; time and memory follow the accesses.
Source: paper section 7, which proposes a memory whose slots are kept outside of the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ramnet_np.backend import Backend
from ramnet_np.contract import Address, Array, DecodeOptions, MemoryOptions, RAMState, SlotNumbers
from ramnet_np.core.arrays import namespace_of, on_host
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
    write_numbers, read_numbers, small, arriving, put_back = _gathered(state, write.index, read.index, mask)
    forward: Callable[..., tuple[Array, RAMState | None, Any]] = backend.memory_forward
    if arriving is not None and backend.sparse_forward is not None:
        forward = partial(backend.sparse_forward, arriving=arriving)
    elif arriving is not None:
        arriving.wait()
    y, final, ctx = forward(
        write._replace(index=write_numbers), read._replace(index=read_numbers), values, gamma, mask, small,
        options._replace(slots=small.mass.shape[2]), return_state,
    )  # fmt: skip
    if final is None:
        return y, None, ctx
    put_back(final)
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
        _bring_up(backend, write_logits, read_logits, positions, state, decode)
        try:
            y = backend.sparse_step(*token, state, decode, options)
        except (KeyboardInterrupt, SystemExit) as error:  # rows may be new before the state counts them
            state.lose(error)
            raise
        if y is not NotImplemented:
            return y
    addresses = _decoded(backend, write_logits, read_logits, positions, decode)
    y, _, _ = sparse_memory_forward(backend, *addresses, values, gamma, mask, state, options, return_state=True)
    return y


def _decoded(
    backend: Backend, write_logits: Array, read_logits: Array, positions: Array | None, decode: DecodeOptions
) -> tuple[Address, Address]:
    """The addresses that are written and read."""
    logits = write_logits, read_logits
    write, read = backend.decode_forward(logits, decode.top_k, decode.renorm, decode.cape_heads, positions)
    return Address(*write[:2]), Address(*read[:2])


def _bring_up(
    backend: Backend,
    write_logits: Array,
    read_logits: Array,
    positions: Array | None,
    state: SparseRAMState,
    decode: DecodeOptions,
) -> None:
    """What a token asks for comes up from a disk, as the launch that steps cannot wait for it."""
    B, H, M, _ = state.shape
    new = B * H * decode.write_k
    if state.tiers.disk is None or state.xp is np or state.rows.all_up(new):
        return
    addresses = _decoded(backend, write_logits, read_logits, positions, decode)
    slots = on_host(state.xp.concatenate([address.index for address in addresses], axis=3))
    head = np.arange(B * H, dtype=np.int64).reshape(B, 1, H, 1)
    state.bring_up((head * M + slots).ravel(), new)


def _gathered(
    state: SparseRAMState, write: Array, read: Array, mask: Array | None
) -> tuple[Array, Array, RAMState, Any, Callable[[RAMState], None]]:
    """Numbers in place of the slots that a segment touches, these as a dense state, and what stores the written ones.

    Before the last: what says when the dense state's contents are there, None where they are.

    The dense state (B, H, n, C) has room for the most slots that a head touches, or more. What a head has left over is
    addressed by nothing.
    """
    taken = state.segment(write, read, mask)
    if taken is not NotImplemented:
        return taken
    numbers = number_slots(write, read, mask, state.shape[2])
    rows = state.gather(numbers.keys)
    small, place, stored = _dense(rows, numbers, state.shape)

    def put_back(final: RAMState) -> None:
        at, xp = place[stored], namespace_of(rows)
        new = xp.empty((at.size, rows.shape[1]), dtype=rows.dtype)
        new[:, :-1], new[:, -1] = final.slots.reshape(-1, rows.shape[1] - 1)[at], final.mass.reshape(-1)[at]
        state.scatter(numbers.keys[stored], new)

    return numbers.write, numbers.read, small, None, put_back


def _dense(rows: Array, numbers: SlotNumbers, shape: tuple[int, ...]) -> tuple[RAMState, Array, Any]:
    """A dense state of ``rows`` (N, C + 1), where each of them is in it, (N,) of B*H*n, and which of them are written.

    ``shape``: (B, H, M, C). n is the most slots that a head touches.
    """
    xp = namespace_of(rows)
    B, H, _, C = shape
    counts = np.diff(numbers.start)
    n = max(1, int(counts.max())) if counts.size else 1
    every, start = xp.arange(len(rows)), xp.asarray(numbers.start)
    head = xp.searchsorted(start, every, side="right") - 1  # of each row
    number = every - start[head]
    place = head * n + number
    slots, mass = xp.zeros((B * H * n, C), dtype=rows.dtype), xp.ones(B * H * n, dtype=rows.dtype)
    slots[place], mass[place] = rows[:, :-1], rows[:, -1]
    written: Any = slice(None)
    if (numbers.written < counts).any():  # else a GPU need not be asked which ones are
        written = xp.nonzero(number < xp.asarray(numbers.written)[head])[0]
    return RAMState(slots.reshape(B, H, n, C), mass.reshape(B, H, n)), place, written
