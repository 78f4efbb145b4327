"""Short causal convolutions on the GPU: see ``short_conv.cu``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, require_like
from ramnet_np.layers.short_conv import ShortConvContext, ShortConvGrads, require_short_conv

from ..runtime.arrays import contiguous_aligned, empty, zeros
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from .token_sums import add_parts, split

THREADS = 256  # of a block of the first two kernels, one an element


@cache
def short_conv_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    kernels = "conv_forward", "conv_backward", "conv_weights"
    return Specialisation("layers/short_conv.cu", kernels, (("ELEMENT", element),))


def short_conv_forward(x: Array, weight: Array, before: Array | None = None) -> tuple[Array, ShortConvContext]:
    """y (B, T, D) of x (B, T, D), weight (D, width) and the tokens before these (B, S, D) or None."""
    require_short_conv(x, weight, before)
    if before is not None:
        import cupy

        x = cupy.concatenate([before, x], axis=1)
    y = empty(x.shape, x.dtype)
    _launch("conv_forward", contiguous_aligned(x), contiguous_aligned(weight), y)
    if before is not None:
        y = y[:, before.shape[1] :]
    return y, ShortConvContext(x, weight, ArraySpec.of(y))


def short_conv_backward(dy: Array, ctx: ShortConvContext) -> ShortConvGrads:
    """dx (B, T, D) and dweight (D, width) of dy (B, T, D) and x (B, S + T, D), whose first S tokens are constant."""
    require_like("dy", dy, ctx.y)
    if not dy.size:
        return ShortConvGrads(empty(dy.shape, dy.dtype), zeros(ctx.weight.shape, sum_dtype(dy.dtype)))
    dy, x, weight = contiguous_aligned(dy), contiguous_aligned(ctx.x), contiguous_aligned(ctx.weight)
    dx = empty(dy.shape, dy.dtype)
    _launch("conv_backward", dy, weight, dx)
    _, tokens, width = dy.shape
    rows, reach = dy.size // width, weight.shape[1]
    blocks, warps = split(rows, weight.size, dy.dtype)
    parts = empty((blocks, weight.size), sum_dtype(dy.dtype))
    kernel = get_kernel(short_conv_specialisation(type_name(dy.dtype)), "conv_weights")
    sizes = np.int64(rows), *map(np.int32, (tokens, x.shape[1] - tokens, width, reach))
    kernel((blocks,), (32 * warps,), (dy, x, *sizes, parts), shared_mem=warps * weight.size * parts.itemsize)
    return ShortConvGrads(dx, add_parts(parts).reshape(weight.shape))


def _launch(name: str, x: Array, weight: Array, out: Array) -> None:
    _, tokens, width = x.shape
    sizes = np.int64(x.size), *map(np.int32, (tokens, width, weight.shape[1]))
    if x.size:
        kernel = get_kernel(short_conv_specialisation(type_name(x.dtype)), name)
        kernel((-(-x.size // THREADS),), (THREADS,), (x, weight, *sizes, out))
