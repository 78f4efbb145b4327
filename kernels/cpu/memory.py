"""The memory: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py``, in two passes: ``mass.py`` for what does not depend on channels,
``content.py`` for what does. Cost: O((K_w + K_r) C) per token and head in time, O(K_w C) in memory, whatever M is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState

from .arrays import contiguous, flat_gamma, mask_array
from .content import Channels, ContentGrads, content_backward, content_forward, slice_width, store
from .mass import Accesses, MassGrads, Reads, Rows, Writes, mass_backward, mass_forward
from .retention import Options, kernel_options
from .slots import hash_size


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    accesses: Accesses
    channels: Channels
    options: Options
    writes: Writes
    reads: Reads
    rows: Rows
    versions: np.ndarray  # (B*H, base + T*K_w, C) every content that a slot ever had: dividing an update out again
    #                       would recover it too, but not at eta = 1, and not exactly
    given_state: bool
    slots: int  # M


def memory_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: Array | float,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
) -> tuple[np.ndarray, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx.

    ValueError for an update rule without kernels here, or for more writes than an int32 can number.
    """
    B, T, H, C = values.shape
    M, Kw, dtype = options.slots, write.index.shape[3], values.dtype
    rule = kernel_options(options, dtype)
    mask = mask_array(mask)
    # Only slots that are written need a row, unless there is a given state to read and to differentiate.
    touches = T * (Kw if state is None else Kw + read.index.shape[3])
    n = min(M, touches)
    base = 1 if state is None else n
    if base + T * Kw > np.iinfo(np.int32).max:  # versions are int32
        raise ValueError(
            f"T must be below {(2**31 - 1 - base) // Kw + 1} on backend 'numba' for {Kw} writes a token, got {T}"
        )

    accesses = Accesses(
        contiguous(write.index),
        contiguous(write.weight),
        contiguous(read.index),
        contiguous(read.weight),
        flat_gamma(gamma, values),
        mask,
    )
    channels = Channels(contiguous(values), mask, slice_width(B * H, C))

    state_slots, state_mass = _state_arrays(state, dtype)
    entries, multiplier, shift = hash_size(M, touches)
    table = np.empty((B * H, entries), dtype=np.int32), multiplier, shift
    writes, reads, rows = _coefficients(accesses, n, options.mass_aware)
    # 1. masses
    start = state_mass, dtype.type(1 / M), base
    mass_forward(accesses, rule, start, table, writes, reads, rows)
    # 2. contents
    y = np.empty((B, T, H, C), dtype=dtype)
    versions = np.empty((B * H, base + T * Kw, C), dtype=dtype)
    content_forward(channels, (state_slots, base), writes, reads, rows, versions, y)
    final = None
    if return_state:
        final = _copy_of(state, (B, H, M, C), dtype, 1 / M)
        store(rows, versions, False, rows.mass, final)
    ctx = MemoryContext(accesses, channels, rule, writes, reads, rows, versions, state is not None, M)
    return y, final, ctx


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    B, T, H, C = dy.shape
    heads, n, Kw, Kr = B * H, ctx.rows.slot.shape[1], ctx.writes.row.shape[2], ctx.reads.row.shape[2]
    dtype, slices = dy.dtype, -(-C // ctx.channels.width)
    dstate_slots, dstate_mass = _state_arrays(dstate, dtype)

    # 2. contents
    dcontent = ContentGrads(
        eta=np.empty((slices, heads, T, Kw), dtype=dtype),
        read_weight=np.empty((slices, heads, T, Kr), dtype=dtype),
        values=np.empty((B, T, H, C), dtype=dtype),
        first_versions=np.empty((heads, n, C), dtype=dtype),
    )
    dout = contiguous(dy), dstate_slots
    content_backward(ctx.channels, dout, ctx.writes, ctx.reads, ctx.rows, ctx.versions, dcontent)
    # 1. masses
    dmass = MassGrads(
        write_weight=np.empty((B, T, H, Kw), dtype=dtype),
        read_weight=np.empty((B, T, H, Kr), dtype=dtype),
        gamma=np.empty((B, T, H), dtype=dtype),
        initial_mass=np.empty((heads, n), dtype=dtype),
    )
    dcoefficients = dcontent.eta, dcontent.read_weight, dstate_mass
    mass_backward(ctx.accesses, ctx.options, dcoefficients, ctx.writes, ctx.reads, ctx.rows, dmass)

    dgiven = None
    if ctx.given_state:
        dgiven = _copy_of(dstate, (B, H, ctx.slots, C), dtype, 0.0)
        store(ctx.rows, dcontent.first_versions, True, dmass.initial_mass, dgiven)
    return MemoryGrads(dmass.write_weight, dmass.read_weight, dcontent.values, dmass.gamma, dgiven)


def _coefficients(accesses: Accesses, n: int, mass_aware: bool) -> tuple[Writes, Reads, Rows]:
    """Arrays for what the masses leave, ``n`` rows a head. Whole numbers are set: at masked tokens they stay so."""
    B, T, H, Kw = accesses.write_weight.shape
    heads, Kr, dtype = B * H, accesses.read_weight.shape[3], accesses.write_weight.dtype
    writes = Writes(
        row=np.zeros((heads, T, Kw), dtype=np.int32),
        prev=np.zeros((heads, T, Kw), dtype=np.int32),
        eta=np.empty((heads, T, Kw), dtype=dtype),
        alpha=np.empty((heads, T, Kw), dtype=dtype),
        old_mass=np.empty((heads, T, Kw), dtype=dtype),
    )
    reads = Reads(
        row=np.zeros((heads, T, Kr), dtype=np.int32),
        version=np.zeros((heads, T, Kr), dtype=np.int32),
        weight=np.empty((heads, T, Kr), dtype=dtype),
        mass=np.empty((heads, T, Kr) if mass_aware else (0, 0, 0), dtype=dtype),
    )
    rows = Rows(
        used=np.empty(heads, dtype=np.int64),
        slot=np.zeros((heads, n), dtype=np.int32),
        latest=np.zeros((heads, n), dtype=np.int32),
        mass=np.empty((heads, n), dtype=dtype),
    )
    return writes, reads, rows


def _state_arrays(state: RAMState | None, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A state's arrays as kernels take them: None are arrays of size 0."""
    if state is None:
        return np.empty((0, 0, 0, 0), dtype=dtype), np.empty((0, 0, 0), dtype=dtype)
    return contiguous(state.slots), contiguous(state.mass)


def _copy_of(state: RAMState | None, shape: tuple[int, int, int, int], dtype: np.dtype, mass: float) -> RAMState:
    """A copy of ``state``, or where there is none contents of 0 and masses of ``mass``."""
    if state is None:
        return RAMState(np.zeros(shape, dtype=dtype), np.full(shape[:3], mass, dtype=dtype))
    return RAMState(np.array(state.slots, order="C"), np.array(state.mass, order="C"))
