"""The memory on the GPU: launches of the kernels of masses and contents.

``mass_kernels.py``, ``content_kernels.py``, ``mass_backward_kernels.py`` say who computes what.

Same mathematics as ``ramnet_np/core/memory.py``. Cost: O((K_w + K_r) C) operations per token and head. Nothing of the
size of the accesses times C is kept for the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, MemoryGrads, MemoryOptions, RAMState

from .arrays import NUMBERS, Arrays, arrays_like, sum_dtype
from .content_kernels import content_kernels
from .launch import THREADS, shared_limit
from .layout import MOST_ROWS, ContentLayout, content_layout, mass_layout
from .mass_backward_kernels import mass_backward_kernels
from .mass_kernels import TOKENS, mass_kernels
from .octets import padded
from .renumber import renumber


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    write: Address  # index: rows of the working state
    read: Address
    rows: Any  # (B*H, T, W + R): where each access goes, K padded to W and R
    coefs: Any  # (B*H, T, W + R): eta of a write, weight of a read
    old_mass: Any  # (B*H, T, W)
    read_mass: Any  # (B*H, T, R), or None
    values: Any  # (B, T, H, C)
    gamma: Any  # a number, or (B, T, H)
    mask: Any  # (B, T), or None
    state: RAMState | None  # as given
    n_rows: int
    dtype: Any  # of values as they came
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
) -> tuple[Any, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    B, T, H, C = values.shape
    arrays, dtype = arrays_like(values), sum_dtype(values.dtype)
    n_rows = options.slots
    if state is None and not return_state and n_rows > T * write.index.shape[3]:
        W, R = (padded(a.index.shape[3]) for a in (write, read))
        if not content_layout("forward", n_rows, C, W, R, dtype.itemsize, shared_limit()).in_shared:
            n_rows = T * write.index.shape[3]
            write, read = renumber(write, read, None if mask is None else arrays.plain(mask, np.bool_))
    if n_rows >= MOST_ROWS:
        raise ValueError(f"the state must have fewer than {MOST_ROWS} slots on the GPU, got {n_rows}")
    final = None
    if return_state:
        final = RAMState(arrays.empty((B, H, n_rows, C), dtype), arrays.empty((B, H, n_rows), dtype))
    # 1. masses: eta of every write, weight of every read
    ctx = masses_forward(write, read, values, gamma, mask, state, options, final, n_rows)
    # 2. contents
    layout = content_layout("forward", n_rows, C, *_accesses(ctx), dtype.itemsize, shared_limit())
    y = arrays.empty((B, T, H, C), dtype)
    _launch_contents(
        "forward", ctx, layout, arrays,
        (
            ctx.rows, ctx.coefs, ctx.values, _part(ctx.state, "slots"), _working(layout, ctx, arrays),
            _part(final, "slots"), y,
        ),
        (int(state is not None), int(return_state)),
    )  # fmt: skip
    return arrays.plain(y, values.dtype), final, ctx


def masses_forward(
    write: Address,
    read: Address,
    values: Any,
    gamma: Any,
    mask: Any,
    state: RAMState | None,
    options: MemoryOptions,
    final: RAMState | None,
    n_rows: int,
) -> MemoryContext:
    """What the contents need: where every access goes, eta and weights. Writes the masses of ``final``, if given.

    Indices of ``write`` and ``read`` count ``n_rows`` rows.
    """
    B, T, H, _ = values.shape
    Kw, Kr = write.index.shape[3], read.index.shape[3]
    W, R = padded(Kw), padded(Kr)
    arrays, dtype, aware = arrays_like(values), sum_dtype(values.dtype), options.mass_aware
    write, read = (Address(arrays.plain(a.index, np.int32), arrays.plain(a.weight, dtype)) for a in (write, read))
    ctx = MemoryContext(
        write,
        read,
        rows=arrays.empty((B * H, T, W + R), np.int32),
        coefs=arrays.empty((B * H, T, W + R), dtype),
        old_mass=arrays.empty((B * H, T, W), dtype),
        read_mass=arrays.empty((B * H, T, R), dtype) if aware else None,
        values=arrays.plain(values, dtype),
        gamma=gamma if isinstance(gamma, float) else arrays.plain(gamma, dtype),
        mask=None if mask is None else arrays.plain(mask, np.bool_),
        state=None if state is None else RAMState(*(arrays.plain(part, dtype) for part in state)),
        n_rows=n_rows,
        dtype=values.dtype,
        options=options,
    )
    layout = mass_layout(1, n_rows, W, R, dtype.itemsize, shared_limit())
    working = None if layout.in_shared else arrays.empty((B * H, n_rows + W + R), dtype)
    kernels, stream = mass_kernels(NUMBERS[dtype], layout.in_shared, W, R, aware), arrays.stream
    alpha = arrays.empty((B * H, T, W), dtype)
    kernels.prepare(
        -(-B * H * T // TOKENS), THREADS, stream, write.index, read.index, write.weight, read.weight, *_gamma_mask(ctx),
        ctx.rows, ctx.coefs, alpha, _gamma_number(ctx), *_flags(ctx), B * H * T, T, H, n_rows, Kw, Kr,
    )  # fmt: skip
    kernels.scan(
        B * H, layout.threads, stream, ctx.rows, ctx.coefs, alpha, ctx.old_mass, ctx.read_mass,
        _part(ctx.state, "mass"), working, _part(final, "mass"), 1 / options.slots, int(state is not None),
        int(final is not None), T, n_rows, shared=layout.shared,
    )  # fmt: skip
    kernels.finish(
        -(-B * H * T // TOKENS), THREADS, stream, ctx.coefs, alpha, read.weight, ctx.read_mass,
        dtype.type(options.eps), B * H * T, T, H, Kw, Kr,
    )  # fmt: skip
    return ctx


def memory_backward(dy: Any, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    B, T, H, C = dy.shape
    arrays, dtype, limit, n_rows = arrays_like(dy), ctx.coefs.dtype, shared_limit(), ctx.n_rows
    Kw, Kr = ctx.write.index.shape[3], ctx.read.index.shape[3]
    W, R = ctx.old_mass.shape[2], padded(Kr)
    dy = arrays.plain(dy, dtype)
    dfinal = None if dstate is None else RAMState(*(arrays.plain(part, dtype) for part in dstate))
    replay, reverse = (content_layout(name, n_rows, C, W, R, dtype.itemsize, limit) for name in ("replay", "reverse"))
    dread = arrays.empty((_slices(replay, C), B * H, T, R), dtype)
    dwritten = arrays.empty((_slices(reverse, C), B * H, T, W), dtype)
    dfound = arrays.empty((_slices(reverse, C), B * H, T), dtype)
    last = None if dfinal is None else arrays.empty((_slices(replay, C), B * H, n_rows), dtype)
    found, dv = arrays.empty((B, T, H, C), dtype), arrays.empty((B, T, H, C), dtype)
    dw, dr = arrays.empty(ctx.write.weight.shape, dtype), arrays.empty(ctx.read.weight.shape, dtype)
    dgamma, dgiven = arrays.empty((B, T, H), dtype), None
    if ctx.state is not None:
        dgiven = RAMState(arrays.empty((B, H, n_rows, C), dtype), arrays.empty((B, H, n_rows), dtype))
    # 2. contents: once more forward, for the gradients of the reads; then back
    _launch_contents(
        "replay", ctx, replay, arrays,
        (
            ctx.rows, ctx.coefs, ctx.values, dy, _part(ctx.state, "slots"), _working(replay, ctx, arrays),
            _part(dfinal, "slots"), dread, found, last,
        ),
        (int(ctx.state is not None), int(dfinal is not None)),
    )  # fmt: skip
    _launch_contents(
        "reverse", ctx, reverse, arrays,
        (
            ctx.rows, ctx.coefs, ctx.values, dy, found, _part(dfinal, "slots"), _working(reverse, ctx, arrays),
            _part(dgiven, "slots"), dv, dwritten, dfound,
        ),
        (int(dfinal is not None), int(dgiven is not None)),
    )  # fmt: skip
    # 1. masses
    aware, units = ctx.options.mass_aware, B * H
    layout = mass_layout(2, n_rows, W, R, dtype.itemsize, limit)
    working = None if layout.in_shared else arrays.empty((units, 2, n_rows + W + R), dtype)
    terms, gains = arrays.empty((5, units, T, W), dtype), arrays.empty((1 + aware, units, T, R), dtype)
    kernels, stream = mass_backward_kernels(NUMBERS[dtype], layout.in_shared, W, R, aware), arrays.stream
    blocks, eps = -(-units * T // TOKENS), dtype.type(ctx.options.eps)
    kernels.prepare(
        blocks, THREADS, stream, ctx.read.index, ctx.write.weight, ctx.read.weight, *_gamma_mask(ctx), ctx.old_mass,
        ctx.read_mass, dwritten, dfound, dread, terms, gains, dr, _gamma_number(ctx), eps, *_flags(ctx),
        units * T, T, H, Kw, Kr, dwritten.shape[0], dread.shape[0],
    )  # fmt: skip
    kernels.scan(
        units, layout.threads, stream, ctx.rows, terms, gains, last, _part(dfinal, "mass"), working,
        _part(dgiven, "mass"), int(dfinal is not None), int(dgiven is not None), units, T, n_rows,
        dread.shape[0], shared=layout.shared,
    )  # fmt: skip
    kernels.finish(
        blocks, THREADS, stream, ctx.write.weight, *_gamma_mask(ctx), ctx.old_mass, terms, dw, dgamma,
        _gamma_number(ctx), eps, ctx.options.proxy_eps, float(np.finfo(dtype).epsneg), *_flags(ctx), units * T, T, H,
        Kw,
    )  # fmt: skip
    return MemoryGrads(dw, dr, arrays.plain(dv, ctx.dtype), arrays.plain(dgamma, ctx.dtype), dgiven)


def _launch_contents(
    name: str,
    ctx: MemoryContext,
    layout: ContentLayout,
    arrays: Arrays,
    pointers: tuple[Any, ...],
    has: tuple[int, ...],
) -> None:
    """A pass over the contents: a block for each (batch, head) and slice of channels."""
    B, T, H, C = ctx.values.shape
    slices = _slices(layout, C)
    units = (B * H,) if name != "forward" else ()
    kernels = content_kernels(
        NUMBERS[ctx.coefs.dtype], layout.in_shared, layout.lanes, layout.groups, *_accesses(ctx), layout.tile
    )
    getattr(kernels, name)(
        B * H * slices, layout.groups * layout.lanes, arrays.stream, *pointers, *has, T, H, C, ctx.n_rows,
        slices, *units, shared=layout.shared,
    )  # fmt: skip


def _slices(layout: ContentLayout, channels: int) -> int:
    return -(-channels // layout.lanes)


def _working(layout: ContentLayout, ctx: MemoryContext, arrays: Arrays) -> Any:
    """Device memory for the slices of the state that blocks work on, or None where they have it in shared memory."""
    if layout.in_shared:
        return None
    B, _, H, C = ctx.values.shape
    return arrays.empty((B * H * _slices(layout, C), ctx.n_rows + ctx.rows.shape[2], layout.lanes), ctx.coefs.dtype)


def _accesses(ctx: MemoryContext) -> tuple[int, int]:
    """(W, R), writes and reads of a token with what pads them."""
    W = ctx.old_mass.shape[2]
    return W, ctx.rows.shape[2] - W


def _gamma_mask(ctx: MemoryContext) -> tuple[Any, Any]:
    return None if isinstance(ctx.gamma, float) else ctx.gamma, ctx.mask


def _gamma_number(ctx: MemoryContext) -> Any:
    """The number gamma, rounded as the kernels have it."""
    return ctx.coefs.dtype.type(ctx.gamma if isinstance(ctx.gamma, float) else 0)


def _flags(ctx: MemoryContext) -> tuple[int, int, int]:
    return int(isinstance(ctx.gamma, float)), int(ctx.mask is not None), int(ctx.options.update == "gsu")


def _part(state: RAMState | None, part: str) -> Any:
    return None if state is None else getattr(state, part)
