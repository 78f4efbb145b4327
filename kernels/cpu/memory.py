"""The memory: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py``, in two passes: ``mass.py`` for what does not depend on channels,
``content.py`` for what does. Cost: O((K_w + K_r) C) per token and head in time, O(K_w C) in memory, whatever M is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState

from .arrays import contiguous, flat_gamma, mask_array
from .content import Channels, ContentGrads, content_backward, content_forward, slice_width, store
from .mass import Accesses, MassGrads, Reads, Rows, Writes, mass_backward, mass_forward
from .retention import Options, kernel_options
from .spans import Spans, place, spans


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    spans: Spans
    accesses: Accesses
    channels: Channels
    options: Options
    writes: Writes
    reads: Reads
    rows: Rows
    versions: np.ndarray  # (H, versions, C) every content that a slot ever had: dividing an update out again would
    #                       recover it too, but not at eta = 1, and not exactly
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
    cu_seqlens: Any = None,
) -> tuple[np.ndarray, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx.

    Packed sequences, ``cu_seqlens`` (N + 1,), have states (N, H, M, C), one each.
    ValueError for an update rule without kernels here, or for more writes than an int32 can number.
    """
    B, T, H, C = values.shape
    M, Kw, Kr, dtype = options.slots, write.index.shape[3], read.index.shape[3], values.dtype
    rule = kernel_options(options, dtype)
    token, length = place(B, T, cu_seqlens)
    where, sizes = spans(token, length, M, Kw, Kr, state is not None)
    sequences = length.size

    mask = mask_array(mask).reshape(-1)
    accesses = Accesses(
        contiguous(write.index).reshape(B * T, H, Kw),
        contiguous(write.weight).reshape(B * T, H, Kw),
        contiguous(read.index).reshape(B * T, H, Kr),
        contiguous(read.weight).reshape(B * T, H, Kr),
        flat_gamma(gamma, values),
        mask,
    )
    # sums over channels are those of one sequence alone, where no other may change their bits
    alone = options.batch_invariant or cu_seqlens is not None
    width = slice_width(H if alone else B * H, C)
    channels = Channels(contiguous(values).reshape(B * T, H, C), mask, width)

    state_slots, state_mass = _state_arrays(state, dtype)
    writes, reads, rows = _coefficients(accesses, sequences, sizes.rows, options.mass_aware)
    # 1. masses
    mass_forward(where, accesses, rule, (state_mass, dtype.type(1 / M)), writes, reads, rows)
    # 2. contents
    y = np.empty((B * T, H, C), dtype=dtype)
    versions = np.empty((H, sizes.versions, C), dtype=dtype)
    content_forward(where, channels, state_slots, writes, reads, rows, versions, y)
    final = None
    if return_state:
        final = _copy_of(state, (sequences, H, M, C), dtype, 1 / M)
        store(where, rows, versions, False, rows.mass, final)
    ctx = MemoryContext(where, accesses, channels, rule, writes, reads, rows, versions, state is not None, M)
    return y.reshape(B, T, H, C), final, ctx


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    B, T, H, C = dy.shape
    tokens, where, n = B * T, ctx.spans, ctx.rows.slot.shape[1]
    Kw, Kr = ctx.writes.row.shape[2], ctx.reads.row.shape[2]
    dtype, slices = dy.dtype, -(-C // ctx.channels.width)
    dstate_slots, dstate_mass = _state_arrays(dstate, dtype)

    # 2. contents
    dcontent = ContentGrads(
        eta=np.empty((slices, H, tokens, Kw), dtype=dtype),
        read_weight=np.empty((slices, H, tokens, Kr), dtype=dtype),
        values=np.empty((tokens, H, C), dtype=dtype),
        first_versions=np.empty((H, n, C), dtype=dtype),
    )
    dout = contiguous(dy).reshape(tokens, H, C), dstate_slots
    content_backward(where, ctx.channels, dout, ctx.writes, ctx.reads, ctx.rows, ctx.versions, dcontent)
    # 1. masses
    dmass = MassGrads(
        write_weight=np.empty((tokens, H, Kw), dtype=dtype),
        read_weight=np.empty((tokens, H, Kr), dtype=dtype),
        gamma=np.empty((tokens, H), dtype=dtype),
        initial_mass=np.empty((H, n), dtype=dtype),
    )
    dcoefficients = dcontent.eta, dcontent.read_weight, dstate_mass
    mass_backward(where, ctx.accesses, ctx.options, dcoefficients, ctx.writes, ctx.reads, ctx.rows, dmass)

    dgiven = None
    if ctx.given_state:
        dgiven = _copy_of(dstate, (where.length.size, H, ctx.slots, C), dtype, 0.0)
        store(where, ctx.rows, dcontent.first_versions, True, dmass.initial_mass, dgiven)
    return MemoryGrads(
        dmass.write_weight.reshape(B, T, H, Kw),
        dmass.read_weight.reshape(B, T, H, Kr),
        dcontent.values.reshape(dy.shape),
        dmass.gamma.reshape(B, T, H),
        dgiven,
    )


def _coefficients(accesses: Accesses, sequences: int, n: int, mass_aware: bool) -> tuple[Writes, Reads, Rows]:
    """Arrays for what the masses leave, ``n`` rows a head. Whole numbers are set: at masked tokens they stay so."""
    T, H, Kw = accesses.write_weight.shape
    Kr, dtype = accesses.read_weight.shape[2], accesses.write_weight.dtype
    writes = Writes(
        row=np.zeros((H, T, Kw), dtype=np.int32),
        prev=np.zeros((H, T, Kw), dtype=np.int32),
        eta=np.empty((H, T, Kw), dtype=dtype),
        alpha=np.empty((H, T, Kw), dtype=dtype),
        old_mass=np.empty((H, T, Kw), dtype=dtype),
    )
    reads = Reads(
        row=np.zeros((H, T, Kr), dtype=np.int32),
        version=np.zeros((H, T, Kr), dtype=np.int32),
        weight=np.empty((H, T, Kr), dtype=dtype),
        mass=np.empty((H, T, Kr) if mass_aware else (0, 0, 0), dtype=dtype),
    )
    rows = Rows(
        used=np.empty(sequences * H, dtype=np.int64),
        slot=np.zeros((H, n), dtype=np.int32),
        latest=np.zeros((H, n), dtype=np.int32),
        mass=np.empty((H, n), dtype=dtype),
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
