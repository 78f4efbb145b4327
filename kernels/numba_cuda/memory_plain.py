"""Launches of the plain kernels of the memory, ``plain_*.py``: the functions of ``memory_fast.py`` for any K."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array, RAMState

from .arrays import NUMBERS
from .context import ContentResults, MassResults, MemoryContext, mass_of, slots_of, state_pass
from .launch import THREADS, shared_limit
from .layout import PLAIN_LANES
from .plain_contents import (
    plain_contents_backward_kernel,
    plain_contents_in_shared_kernel,
    plain_contents_kernel,
    plain_recompute_kernel,
)
from .plain_masses import ReadGradients, plain_masses_backward_kernel, plain_masses_kernel
from .records import (
    ContentDots,
    ContentGradients,
    PlainSizes,
    SlopeNumbers,
    StateDots,
    TokenArrays,
    WeightGradients,
)


def widths(Kw: int, Kr: int) -> tuple[int, int]:
    """(W, R): accesses of a token in memory."""
    return Kw, Kr


def state_fits_shared(n_rows: int, C: int, Kw: int, Kr: int, itemsize: int) -> bool:
    """Whether a block can have a slice of the state in shared memory."""
    return (n_rows + Kw + Kr) * PLAIN_LANES * itemsize <= shared_limit()


def masses_forward(ctx: MemoryContext, final: RAMState | None) -> None:
    """Where every access goes, eta, weights, in ``ctx``; and the masses of ``final``, if given."""
    (B, _, H, _), dtype, options = ctx.sizes, ctx.accesses.coef.dtype, ctx.options
    working = ctx.arrays.empty((B * H, _rows(ctx)), dtype)
    plain_masses_kernel(NUMBERS[dtype], options.update)(
        B * H, THREADS, ctx.arrays.stream, ctx.address, ctx.token_options, ctx.accesses, ctx.masses,
        state_pass(mass_of(ctx.state), working, mass_of(final)), dtype.type(1 / options.slots), dtype.type(options.eps),
        _sizes(ctx),
    )  # fmt: skip


def contents_forward(ctx: MemoryContext, final: RAMState | None) -> Array:
    """y (B, T, H, C), and the contents of ``final``, if given."""
    fits = state_fits_shared(ctx.n_rows, ctx.sizes[3], *ctx.widths, ctx.accesses.coef.dtype.itemsize)
    return contents_in_shared(ctx, final) if fits else contents_in_device_memory(ctx, final)


def contents_in_device_memory(ctx: MemoryContext, final: RAMState | None) -> Array:
    """y by the kernel that has the state in device memory."""
    (B, _, H, C), y = ctx.sizes, ctx.arrays.empty(ctx.sizes, ctx.accesses.coef.dtype)
    state = state_pass(slots_of(ctx.state), _working(ctx), slots_of(final))
    kernel = plain_contents_kernel(NUMBERS[y.dtype])
    kernel(B * H, min(C, THREADS), ctx.arrays.stream, ctx.accesses, ctx.values, state, y, _sizes(ctx))
    return y


def contents_in_shared(ctx: MemoryContext, final: RAMState | None) -> Array:
    """y by the kernel that has a slice of the state in shared memory."""
    (B, _, H, C), y = ctx.sizes, ctx.arrays.empty(ctx.sizes, ctx.accesses.coef.dtype)
    state = state_pass(slots_of(ctx.state), None, slots_of(final))
    plain_contents_in_shared_kernel(NUMBERS[y.dtype], PLAIN_LANES)(
        B * H * -(-C // PLAIN_LANES), PLAIN_LANES, ctx.arrays.stream, ctx.accesses, ctx.values, state, y, _sizes(ctx),
        shared=_rows(ctx) * PLAIN_LANES * y.dtype.itemsize,
    )  # fmt: skip
    return y


def contents_backward(
    dy: Array, dstate: RAMState | None, dgiven: RAMState | None, ctx: MemoryContext
) -> ContentResults:
    """The contents once more forward, then in reverse; the contents of ``dgiven``, if given."""
    (B, T, H, C), (W, R), dtype, arrays = ctx.sizes, ctx.widths, ctx.accesses.coef.dtype, ctx.arrays
    number, working = NUMBERS[dtype], _working(ctx)
    dy_dot_s, d_dot_v = arrays.empty((1, B * H, T, R), dtype), arrays.empty((1, B * H, T, W), dtype)
    d_dot_before = arrays.empty((1, B * H, T), dtype)
    final_dots = None if dstate is None else arrays.empty((1, B * H, ctx.n_rows), dtype)
    tokens = TokenArrays(ctx.values, dy, arrays.empty((B, T, H, C), dtype))
    dots = StateDots(slots_of(dstate), final_dots, int(dstate is not None))
    plain_recompute_kernel(number)(
        B * H, THREADS, arrays.stream, ctx.accesses, tokens, state_pass(slots_of(ctx.state), working, None), dots,
        dy_dot_s, _sizes(ctx),
    )  # fmt: skip
    dv = arrays.empty((B, T, H, C), dtype)
    plain_contents_backward_kernel(number)(
        B * H, THREADS, arrays.stream, ctx.accesses, tokens, state_pass(slots_of(dstate), working, slots_of(dgiven)),
        ContentGradients(dv, d_dot_v, d_dot_before), _sizes(ctx),
    )  # fmt: skip
    return ContentResults(dv, d_dot_v, d_dot_before, dy_dot_s, final_dots)


def masses_backward(
    contents: ContentResults, dstate: RAMState | None, dgiven: RAMState | None, ctx: MemoryContext
) -> MassResults:
    """Gradients of weights and gamma; the masses of ``dgiven``, if given."""
    (B, T, H, _), (W, _), dtype, arrays = ctx.sizes, ctx.widths, ctx.accesses.coef.dtype, ctx.arrays
    options, working = ctx.options, arrays.empty((B * H, 2, _rows(ctx)), dtype)
    dw, dr = arrays.empty(ctx.write.weight.shape, dtype), arrays.empty(ctx.read.weight.shape, dtype)
    dgamma, dgamma_terms = arrays.empty((B, T, H), dtype), arrays.empty((B * H, T, W), dtype)
    plain_masses_backward_kernel(NUMBERS[dtype], options.update)(
        B * H, THREADS, arrays.stream, ctx.address, ctx.token_options, ctx.accesses, ctx.masses,
        ContentDots(contents.d_dot_v, contents.d_dot_before, contents.dy_dot_s, 1, 1),
        state_pass(mass_of(dstate), working, mass_of(dgiven)), WeightGradients(dw, dgamma),
        ReadGradients(dr, dgamma_terms, contents.final_dots),
        SlopeNumbers(dtype.type(options.eps), options.proxy_eps, float(np.finfo(dtype).epsneg)), _sizes(ctx),
    )  # fmt: skip
    return MassResults(dw, dr, dgamma)


def _sizes(ctx: MemoryContext) -> PlainSizes:
    _, T, H, C = ctx.sizes
    return PlainSizes(T, H, C, ctx.n_rows, *ctx.widths, int(ctx.options.mass_aware))


def _rows(ctx: MemoryContext) -> int:
    """Rows of a head's state: the slots, then one for each access of a token that does nothing."""
    return ctx.n_rows + sum(ctx.widths)


def _working(ctx: MemoryContext) -> Array:
    """Device memory for the contents, or their adjoint."""
    B, _, H, C = ctx.sizes
    return ctx.arrays.empty((B * H, _rows(ctx), C), ctx.accesses.coef.dtype)
