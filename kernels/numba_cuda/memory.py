"""The memory on the GPU: masses first, then contents; in reverse, contents first.

Same mathematics as ``ramnet_np/core/memory.py``. Cost: O((K_w + K_r) C) operations per token and head. Nothing of the
size of the accesses times C is kept for the backward.

``memory_fast.py`` and ``memory_plain.py`` have the same functions: the first launches the kernels that are fast, for up
to ``MAX_FAST_K`` accesses of a token, the second the plain ones, for any number.

The sequences of a packed row are run one after another, each as a batch of one: its tokens lie together in memory.
"""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState

from . import memory_fast, memory_plain
from .arrays import arrays_like, working_dtype
from .context import MemoryContext, new_context
from .layout import MAX_FAST_K, MAX_ROWS
from .renumber import renumber


class Part(NamedTuple):
    """One sequence of a packed row."""

    begin: int  # its tokens in the row
    end: int
    ctx: MemoryContext


def memory_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any = None,
) -> tuple[Array, RAMState | None, MemoryContext | tuple[Part, ...]]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    if cu_seqlens is not None:
        return _packed_forward(write, read, values, gamma, mask, state, options, return_state, cu_seqlens)
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


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext | tuple[Part, ...]) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    if not isinstance(ctx, MemoryContext):
        return _packed_backward(dy, dstate, ctx)
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


def _packed_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any,
) -> tuple[Array, RAMState | None, tuple[Part, ...]]:
    """``memory_forward`` of the sequences of a packed row; states (N, H, M, C)."""
    arrays, (_, _, H, C), parts = arrays_like(values), values.shape, []
    y, final = arrays.empty(values.shape, values.dtype), None
    if return_state:
        states, dtype = len(cu_seqlens) - 1, working_dtype(values.dtype)
        slots = arrays.empty((states, H, options.slots, C), dtype)
        final = RAMState(slots, arrays.empty((states, H, options.slots), dtype))
    for n, (begin, end) in enumerate(itertools.pairwise(map(int, cu_seqlens))):
        first, last = _some_token(begin, end)
        own_mask = None if mask is None else _tokens(mask, first, last)
        own_y, own_final, ctx = memory_forward(
            Address(*(_tokens(part, first, last) for part in write)),
            Address(*(_tokens(part, first, last) for part in read)),
            _tokens(values, first, last),
            gamma if isinstance(gamma, float) else _tokens(gamma, first, last),
            own_mask if end > begin else arrays.contiguous(np.zeros((1, 1), dtype=np.bool_), np.bool_),
            _state_of(state, n),
            options,
            return_state,
        )
        assert isinstance(ctx, MemoryContext)
        parts.append(Part(begin, end, ctx))
        if end > begin:
            arrays.scatter(own_y, _tokens(y, begin, end))
        _put_state(own_final, final, n)
    return y, final, tuple(parts)


def _packed_backward(dy: Array, dstate: RAMState | None, parts: tuple[Part, ...]) -> MemoryGrads:
    """``memory_backward`` of the sequences of a packed row."""
    arrays, (_, T, H, _), first = arrays_like(dy), dy.shape, parts[0].ctx
    dtype = working_dtype(first.dtype)
    grads = MemoryGrads(
        arrays.empty((1, T, H, first.write.index.shape[3]), dtype),
        arrays.empty((1, T, H, first.read.index.shape[3]), dtype),
        arrays.empty(dy.shape, first.dtype),
        arrays.empty((1, T, H), first.dtype),
        None,
    )
    if first.state is not None:
        shape = (len(parts), *first.state.slots.shape[1:])
        grads = grads._replace(state=RAMState(arrays.empty(shape, dtype), arrays.empty(shape[:3], dtype)))
    for n, (begin, end, ctx) in enumerate(parts):
        own = memory_backward(_tokens(dy, *_some_token(begin, end)), _state_of(dstate, n), ctx)
        if end > begin:
            for part, whole in zip(own[:4], grads[:4], strict=True):
                arrays.scatter(part, _tokens(whole, begin, end))
        _put_state(own.state, grads.state, n)
    return grads


def _some_token(begin: int, end: int) -> tuple[int, int]:
    """A sequence's tokens; of an empty one any token, which its caller masks: kernels need one."""
    return (begin, end) if end > begin else (max(begin - 1, 0), max(begin - 1, 0) + 1)


def _tokens(array: Array, begin: int, end: int) -> Array:
    """Tokens of a packed row (1, T, ...), in the same memory."""
    return array.reshape(array.shape[1:])[begin:end].reshape((1, end - begin, *array.shape[2:]))


def _state_of(state: RAMState | None, n: int) -> RAMState | None:
    """Sequence n's part of states (N, H, M, C)."""
    return None if state is None else RAMState(*(part[n : n + 1] for part in state))


def _put_state(own: RAMState | None, states: RAMState | None, n: int) -> None:
    """Copy a sequence's state to its place, where there is one."""
    if own is None or states is None:
        return
    for part, whole in zip(own, states, strict=True):
        arrays_like(part).scatter(part, whole[n : n + 1])
