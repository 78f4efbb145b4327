"""The memory on the GPU: masses first, then contents; in reverse, contents first.

Same mathematics as ``ramnet_np/core/memory.py``. Cost: O((K_w + K_r) C) operations per token and head. Nothing of the
size of the accesses times C is kept for the backward.

``memory_fast.py`` and ``memory_plain.py`` have the same functions: the first launches the kernels that are fast, for up
to ``MAX_FAST_K`` accesses of a token, the second the plain ones, for any number.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState

from . import memory_fast, memory_plain
from .arrays import arrays_like, working_dtype
from .context import MemoryContext, new_context
from .layout import MAX_FAST_K, MAX_ROWS
from .renumber import renumber


def memory_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
) -> tuple[Array, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    B, T, H, C = values.shape
    Kw, Kr = write.index.shape[3], read.index.shape[3]
    arrays, dtype, kernels, n_rows = arrays_like(values), working_dtype(values.dtype), _kernels(Kw, Kr), options.slots
    no_state = state is None and not return_state
    if no_state and n_rows > T * Kw and not kernels.state_fits_shared(n_rows, C, Kw, Kr, dtype.itemsize):
        n_rows = T * Kw
        write, read = renumber(write, read, None if mask is None else arrays.contiguous(mask, np.bool_))
    if n_rows >= MAX_ROWS:
        raise ValueError(f"the state must have fewer than {MAX_ROWS} slots on the GPU, got {n_rows}")
    final = None
    if return_state:
        final = RAMState(arrays.empty((B, H, n_rows, C), dtype), arrays.empty((B, H, n_rows), dtype))
    ctx = new_context(write, read, values, gamma, mask, state, options, n_rows, kernels.widths(Kw, Kr))
    # 1. masses: eta of every write, weight of every read
    kernels.masses_forward(ctx, final)
    # 2. contents
    y = kernels.contents_forward(ctx, final)
    return arrays.contiguous(y, values.dtype), final, ctx


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    B, _, H, C = dy.shape
    arrays, dtype, n_rows = ctx.arrays, ctx.accesses.coef.dtype, ctx.n_rows
    kernels = _kernels(ctx.write.index.shape[3], ctx.read.index.shape[3])
    if dstate is not None:
        dstate = RAMState(*(arrays.contiguous(part, dtype) for part in dstate))
    dgiven = None
    if ctx.state is not None:
        dgiven = RAMState(arrays.empty((B, H, n_rows, C), dtype), arrays.empty((B, H, n_rows), dtype))
    # 2. contents: once more forward, for the gradients of the reads; then back
    contents = kernels.contents_backward(arrays.contiguous(dy, dtype), dstate, dgiven, ctx)
    # 1. masses
    dw, dr, dgamma = kernels.masses_backward(contents, dstate, dgiven, ctx)
    dv, dgamma = arrays.contiguous(contents.dv, ctx.dtype), arrays.contiguous(dgamma, ctx.dtype)
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


def _kernels(Kw: int, Kr: int) -> ModuleType:
    """Who serves tokens with this many accesses."""
    return memory_fast if max(Kw, Kr) <= MAX_FAST_K else memory_plain
