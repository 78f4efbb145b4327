"""The memory: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py``, in two passes: ``mass.py`` for what does not depend on channels,
``content.py`` for what does. Cost: O((K_w + K_r) C) per token and head in time, O(K_w C) in memory, whatever M is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, MemoryGrads, MemoryOptions, RAMState

from .arrays import flags_of, per_token, plain
from .content import content_backward, content_forward, slice_width, store
from .mass import Reads, Rows, Writes, mass_backward, mass_forward
from .slots import directory_size


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    write_weight: np.ndarray  # (B, T, H, K_w)
    read_weight: np.ndarray  # (B, T, H, K_r)
    values: np.ndarray  # (B, T, H, C)
    gamma: np.ndarray  # flat, one number or one a token and head
    mask: np.ndarray  # (B, T), or size 0
    writes: Writes
    reads: Reads
    rows: Rows
    versions: np.ndarray  # (B*H, base + T*K_w, C) every content that a slot ever had: dividing an update out again
    #                       would recover it too, but not at eta = 1, and not exactly
    base: int
    given_state: bool
    options: MemoryOptions


def memory_forward(
    write: Address,
    read: Address,
    values: Any,
    gamma: Any,
    mask: Any,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
) -> tuple[np.ndarray, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    B, T, H, C = values.shape
    Kw, Kr = write.index.shape[3], read.index.shape[3]
    units, dtype, given = B * H, values.dtype, state is not None
    values, gamma, mask = plain(values), per_token(gamma, values), flags_of(mask)
    write, read = Address(*map(plain, write)), Address(*map(plain, read))
    state_slots, state_mass = _parts(state, dtype)

    # Only slots that are written need a row, unless there is a given state to read and to differentiate.
    touches = T * (Kw + Kr) if given else T * Kw
    n = min(options.slots, touches)
    base = n if given else 1
    size = directory_size(options.slots, touches)
    writes = Writes(
        row=np.zeros((units, T, Kw), dtype=np.int32),
        prev=np.zeros((units, T, Kw), dtype=np.int32),
        eta=np.empty((units, T, Kw), dtype=dtype),
        alpha=np.empty((units, T, Kw), dtype=dtype),
        old_mass=np.empty((units, T, Kw), dtype=dtype),
    )
    reads = Reads(
        row=np.zeros((units, T, Kr), dtype=np.int32),
        version=np.zeros((units, T, Kr), dtype=np.int32),
        weight=np.empty((units, T, Kr), dtype=dtype),
        mass=np.empty((units, T, Kr) if options.mass_aware else (0, 0, 0), dtype=dtype),
    )
    rows = Rows(
        used=np.empty(units, dtype=np.int64),
        slot=np.zeros((units, n), dtype=np.int32),
        latest=np.zeros((units, n), dtype=np.int32),
        mass=np.empty((units, n), dtype=dtype),
    )
    mass_forward(
        write.index, write.weight, read.index, read.weight, gamma, mask, state_mass, dtype.type(1 / options.slots),
        options.update == "gsu", options.mass_aware, dtype.type(options.eps),
        np.empty((units, size.places), dtype=np.int32), size.multiplier, size.shift, base, writes, reads, rows,
    )  # fmt: skip

    y = np.empty((B, T, H, C), dtype=dtype)
    versions = np.empty((units, base + T * Kw, C), dtype=dtype)
    content_forward(values, mask, state_slots, base, slice_width(units, C), writes, reads, rows, versions, y)
    final = None
    if return_state:
        final = _fresh(state, (B, H, options.slots, C), dtype, 1 / options.slots)
        store(False, rows, versions, rows.mass, *final)
    ctx = MemoryContext(
        write.weight, read.weight, values, gamma, mask, writes, reads, rows, versions, base, given, options
    )
    return y, final, ctx


def memory_backward(dy: Any, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    B, T, H, C = dy.shape
    (units, _, Kw), Kr, n = ctx.writes.row.shape, ctx.reads.row.shape[2], ctx.rows.slot.shape[1]
    dtype, width = dy.dtype, slice_width(units, C)
    slices = -(-C // width)
    dstate_slots, dstate_mass = _parts(dstate, dtype)

    # 2. contents
    ds = np.empty((units, n, C), dtype=dtype)
    deta = np.empty((slices, units, T, Kw), dtype=dtype)
    dread = np.empty((slices, units, T, Kr), dtype=dtype)
    dv = np.empty((B, T, H, C), dtype=dtype)
    content_backward(
        plain(dy), ctx.values, ctx.mask, dstate_slots, ctx.base, width, ctx.writes, ctx.reads, ctx.rows, ctx.versions,
        ds, deta, dread, dv,
    )  # fmt: skip
    # 1. masses
    dz = np.empty((units, n), dtype=dtype)
    dw, dr = np.empty_like(ctx.write_weight), np.empty_like(ctx.read_weight)
    dgamma = np.empty((B, T, H), dtype=dtype)
    mass_backward(
        deta, dread, ctx.write_weight, ctx.read_weight, ctx.gamma, ctx.mask, ctx.options.update == "gsu",
        ctx.options.mass_aware, dtype.type(ctx.options.eps), dtype.type(ctx.options.proxy_eps),
        dtype.type(np.finfo(dtype).epsneg), dstate_mass, ctx.writes, ctx.reads, ctx.rows, dz, dw, dr, dgamma,
    )  # fmt: skip

    dgiven = None
    if ctx.given_state:
        dgiven = _fresh(dstate, (B, H, ctx.options.slots, C), dtype, 0.0)
        store(True, ctx.rows, ds, dz, *dgiven)
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


def _parts(state: RAMState | None, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A state's arrays as kernels take them: None are arrays of size 0."""
    if state is None:
        return np.empty((0, 0, 0, 0), dtype=dtype), np.empty((0, 0, 0), dtype=dtype)
    return plain(state.slots), plain(state.mass)


def _fresh(state: RAMState | None, shape: tuple[int, int, int, int], dtype: Any, mass: float) -> RAMState:
    """A copy of ``state``, or where there is none contents of 0 and masses of ``mass``."""
    if state is None:
        return RAMState(np.zeros(shape, dtype=dtype), np.full(shape[:3], mass, dtype=dtype))
    return RAMState(np.array(state.slots, order="C"), np.array(state.mass, order="C"))
