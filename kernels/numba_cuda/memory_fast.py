"""Launches of the fast kernels of the memory.

``mass_forward.py``, ``content_forward.py``, ``content_backward.py``, ``mass_backward.py`` say who computes what.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array, RAMState

from .arrays import NUMBERS
from .content_backward import content_backward_kernel, content_recompute_kernel
from .content_forward import content_forward_kernel
from .context import ContentResults, MassResults, MemoryContext, mass_of, slots_of, state_pass
from .groups_of_8 import padded
from .launch import THREADS, Kernel, shared_limit
from .layout import ContentLayout, content_layout, mass_layout
from .mass_backward import (
    AccessGradients,
    FinalDots,
    mass_backward_finish_kernel,
    mass_backward_prepare_kernel,
    mass_backward_scan_kernel,
)
from .mass_forward import TOKENS, mass_finish_kernel, mass_prepare_kernel, mass_scan_kernel
from .records import (
    ContentDots,
    ContentGradients,
    ContentSizes,
    MassSizes,
    SlopeNumbers,
    StateDots,
    TokenArrays,
    WeightGradients,
)


def widths(Kw: int, Kr: int) -> tuple[int, int]:
    """(W, R): accesses of a token in memory."""
    return padded(Kw), padded(Kr)


def state_fits_shared(n_rows: int, C: int, Kw: int, Kr: int, itemsize: int) -> bool:
    """Whether a block can have a slice of the state in shared memory."""
    return content_layout("forward", n_rows, C, *widths(Kw, Kr), itemsize, shared_limit()).in_shared


def masses_forward(ctx: MemoryContext, final: RAMState | None) -> None:
    """Where every access goes, eta, weights, in ``ctx``; and the masses of ``final``, if given."""
    (B, T, H, _), (W, R), dtype = ctx.sizes, ctx.widths, ctx.accesses.coef.dtype
    arrays, number, aware, options = ctx.arrays, NUMBERS[dtype], ctx.options.mass_aware, ctx.options
    layout = mass_layout(1, ctx.n_rows, W, R, dtype.itemsize, shared_limit())
    working = None if layout.in_shared else arrays.empty((B * H, ctx.n_rows + W + R), dtype)
    alpha, sizes, blocks = arrays.empty((B * H, T, W), dtype), _mass_sizes(ctx), -(-B * H * T // TOKENS)
    mass_prepare_kernel(number, options.update, W, R)(
        blocks, THREADS, arrays.stream, ctx.address, ctx.token_options, ctx.accesses, alpha, sizes
    )
    mass_scan_kernel(number, layout.in_shared, W, R, aware)(
        B * H, layout.threads, arrays.stream, ctx.accesses, alpha, ctx.masses,
        state_pass(mass_of(ctx.state), working, mass_of(final)), 1 / options.slots, sizes, shared=layout.shared,
    )  # fmt: skip
    mass_finish_kernel(number, W, R, aware)(
        blocks, THREADS, arrays.stream, ctx.accesses.coef, alpha, ctx.read.weight, ctx.masses.read_mass,
        dtype.type(options.eps), sizes,
    )  # fmt: skip


def contents_forward(ctx: MemoryContext, final: RAMState | None) -> Array:
    """y (B, T, H, C), and the contents of ``final``, if given."""
    y, layout = ctx.arrays.empty(ctx.sizes, ctx.accesses.coef.dtype), _content_layout("forward", ctx)
    state = state_pass(slots_of(ctx.state), _working(layout, ctx), slots_of(final))
    kernel = content_forward_kernel(*_specialisation(layout, ctx))
    _launch(kernel, layout, ctx, ctx.accesses, ctx.values, state, y)
    return y


def contents_backward(
    dy: Array, dstate: RAMState | None, dgiven: RAMState | None, ctx: MemoryContext
) -> ContentResults:
    """The contents once more forward, then in reverse; the contents of ``dgiven``, if given."""
    (B, T, H, C), (W, R), dtype, arrays = ctx.sizes, ctx.widths, ctx.accesses.coef.dtype, ctx.arrays
    recompute, backward = _content_layout("recompute", ctx), _content_layout("backward", ctx)
    again, back = _slices(recompute, C), _slices(backward, C)
    dy_dot_s = arrays.empty((again, B * H, T, R), dtype)
    d_dot_v, d_dot_before = arrays.empty((back, B * H, T, W), dtype), arrays.empty((back, B * H, T), dtype)
    final_dots = None if dstate is None else arrays.empty((again, B * H, ctx.n_rows), dtype)
    before, dv = arrays.empty((B, T, H, C), dtype), arrays.empty((B, T, H, C), dtype)
    tokens = TokenArrays(ctx.values, dy, before)
    state = state_pass(slots_of(ctx.state), _working(recompute, ctx), None)
    kernel = content_recompute_kernel(*_specialisation(recompute, ctx))
    dots = StateDots(slots_of(dstate), final_dots, int(dstate is not None))
    _launch(kernel, recompute, ctx, ctx.accesses, tokens, state, dots, dy_dot_s)
    adjoint = state_pass(slots_of(dstate), _working(backward, ctx), slots_of(dgiven))
    kernel = content_backward_kernel(*_specialisation(backward, ctx))
    _launch(kernel, backward, ctx, ctx.accesses, tokens, adjoint, ContentGradients(dv, d_dot_v, d_dot_before))
    return ContentResults(dv, d_dot_v, d_dot_before, dy_dot_s, final_dots)


def masses_backward(
    contents: ContentResults, dstate: RAMState | None, dgiven: RAMState | None, ctx: MemoryContext
) -> MassResults:
    """Gradients of weights and gamma; the masses of ``dgiven``, if given."""
    (B, T, H, _), (W, R), dtype, arrays = ctx.sizes, ctx.widths, ctx.accesses.coef.dtype, ctx.arrays
    number, aware, options, heads = NUMBERS[dtype], ctx.options.mass_aware, ctx.options, B * H
    layout = mass_layout(2, ctx.n_rows, W, R, dtype.itemsize, shared_limit())
    working = None if layout.in_shared else arrays.empty((heads, 2, ctx.n_rows + W + R), dtype)
    terms, gains = arrays.empty((5, heads, T, W), dtype), arrays.empty((1 + aware, heads, T, R), dtype)
    dw, dr = arrays.empty(ctx.write.weight.shape, dtype), arrays.empty(ctx.read.weight.shape, dtype)
    dgamma = arrays.empty((B, T, H), dtype)
    blocks, eps = -(-heads * T // TOKENS), dtype.type(options.eps)
    sizes, token_options = _mass_sizes(ctx), ctx.token_options
    again = contents.dy_dot_s.shape[0]
    dots = ContentDots(
        contents.d_dot_v, contents.d_dot_before, contents.dy_dot_s, contents.d_dot_v.shape[0], again
    )  # fmt: skip
    mass_backward_prepare_kernel(number, options.update, W, R, aware)(
        blocks, THREADS, arrays.stream, ctx.address, token_options, ctx.masses, dots,
        AccessGradients(terms, gains, dr), eps, sizes,
    )  # fmt: skip
    mass_backward_scan_kernel(number, layout.in_shared, W, R, aware)(
        heads, layout.threads, arrays.stream, ctx.accesses.row, terms, gains, FinalDots(contents.final_dots, again),
        state_pass(mass_of(dstate), working, mass_of(dgiven)), sizes, shared=layout.shared,
    )  # fmt: skip
    mass_backward_finish_kernel(number, options.update, W)(
        blocks, THREADS, arrays.stream, ctx.write.weight, token_options, ctx.masses.old_mass, terms,
        WeightGradients(dw, dgamma), SlopeNumbers(eps, options.proxy_eps, float(np.finfo(dtype).epsneg)), sizes,
    )  # fmt: skip
    return MassResults(dw, dr, dgamma)


def _mass_sizes(ctx: MemoryContext) -> MassSizes:
    B, T, H, _ = ctx.sizes
    return MassSizes(B * H * T, T, H, ctx.n_rows, ctx.write.index.shape[3], ctx.read.index.shape[3])


def _content_layout(name: str, ctx: MemoryContext) -> ContentLayout:
    W, R = ctx.widths
    return content_layout(name, ctx.n_rows, ctx.sizes[3], W, R, ctx.accesses.coef.dtype.itemsize, shared_limit())


def _specialisation(layout: ContentLayout, ctx: MemoryContext) -> tuple[object, ...]:
    """What a kernel of the contents is compiled for."""
    number = NUMBERS[ctx.accesses.coef.dtype]
    return number, layout.in_shared, layout.lanes, layout.groups, *ctx.widths, layout.tile


def _launch(kernel: Kernel, layout: ContentLayout, ctx: MemoryContext, *arguments: object) -> None:
    """A pass over the contents: a block for each (batch, head) and slice of channels."""
    B, T, H, C = ctx.sizes
    slices = _slices(layout, C)
    sizes = ContentSizes(T, H, C, ctx.n_rows, slices, B * H)
    threads = layout.groups * layout.lanes
    kernel(B * H * slices, threads, ctx.arrays.stream, *arguments, sizes, shared=layout.shared)


def _slices(layout: ContentLayout, channels: int) -> int:
    return -(-channels // layout.lanes)


def _working(layout: ContentLayout, ctx: MemoryContext) -> Array | None:
    """Device memory for the slices of the state that blocks work on, or None where they have it in shared memory."""
    if layout.in_shared:
        return None
    (B, _, H, C), (W, R) = ctx.sizes, ctx.widths
    return ctx.arrays.empty((B * H * _slices(layout, C), ctx.n_rows + W + R, layout.lanes), ctx.accesses.coef.dtype)
