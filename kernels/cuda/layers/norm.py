"""RMSNorm and LayerNorm on the GPU, one launch forward and two back: see ``norm.cu``.

Every array is read and written once (the inputs of a backward twice, the second time from cache).
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, require_like, require_width
from ramnet_np.layers.norm import LayerNormContext, LayerNormGrads, RMSNormContext, RMSNormGrads

from ..runtime.arrays import contiguous_aligned, empty, zeros
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.overlap import launch
from ..runtime.params import INT, LONG, POINTER, ParamStruct
from .token_sums import add_parts, split

WARPS = 8  # tokens of a block in the forward, one for each warp


@cache
def norm_params(sums: np.dtype) -> ParamStruct:
    """``NormParams``, with numbers of the dtype ``sums``."""
    return ParamStruct(
        "NormParams", x=POINTER, weight=POINTER, bias=POINTER, y=POINTER, mean=POINTER, rstd=POINTER, dy=POINTER,
        add=POINTER, dx=POINTER, parts=POINTER, rows=LONG, width=INT, eps=sums,
    )  # fmt: skip


@cache
def norm_specialisation(element: str, layernorm: bool) -> Specialisation:
    """Arrays of the type ``element``; LayerNorm or RMSNorm."""
    sums = np.dtype(np.float64 if element == "double" else np.float32)
    return Specialisation(
        "layers/norm.cu",
        ("norm_forward", "norm_backward"),
        (("ELEMENT", element), ("LAYERNORM", int(layernorm))),
        (norm_params(sums),),
    )


def rmsnorm_forward(x: Array, weight: Array, eps: float = 1e-6) -> tuple[Array, RMSNormContext]:
    """y = weight * x * rstd; shapes as in ``ramnet_np/layers/norm.py``."""
    y, _, rstd = _forward(x, weight, None, eps)
    return y, RMSNormContext(x, weight, rstd)


def rmsnorm_backward(dy: Array, ctx: RMSNormContext, add: Array | None = None) -> RMSNormGrads:
    """Gradients of x, with ``add`` added, and weight."""
    return RMSNormGrads(*_backward(dy, ctx.x, ctx.weight, None, ctx.rstd, add))


def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple[Array, LayerNormContext]:
    """y = weight * (x - mean) * rstd + bias; shapes as in ``ramnet_np/layers/norm.py``."""
    y, mean, rstd = _forward(x, weight, bias, eps)
    return y, LayerNormContext(x, weight, mean, rstd)


def layernorm_backward(dy: Array, ctx: LayerNormContext, add: Array | None = None) -> LayerNormGrads:
    """Gradients of x, with ``add`` added, weight and bias."""
    dx, sums = _backward(dy, ctx.x, ctx.weight, ctx.mean, ctx.rstd, add)
    width = ctx.weight.shape[0]
    return LayerNormGrads(dx, sums[:width], sums[width:])


def _forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """y, mean (N, 1) and rstd (N, 1); LayerNorm with a bias, else RMSNorm, which has no mean."""
    require_width("x", x, weight.shape[0], weight)
    shape, width = x.shape, x.shape[-1]
    x, weight = contiguous_aligned(x), contiguous_aligned(weight)
    bias = None if bias is None else contiguous_aligned(bias)
    rows, sums = x.size // width, sum_dtype(x.dtype)
    y, rstd = empty(shape, x.dtype), empty((rows, 1), sums)
    mean = None if bias is None else empty((rows, 1), sums)
    if rows:
        kernel = get_kernel(norm_specialisation(type_name(x.dtype), bias is not None), "norm_forward")
        params = norm_params(sums)(
            x=x, weight=weight, bias=bias, y=y, mean=mean, rstd=rstd, dy=None, add=None, dx=None, parts=None, rows=rows,
            width=width, eps=eps,
        )  # fmt: skip
        launch(kernel, (-(-rows // WARPS),), 32 * WARPS, params)
    return y, mean, rstd


def _backward(
    dy: Array, x: Array, weight: Array, mean: Array | None, rstd: Array, add: Array | None
) -> tuple[Array, Array]:
    """dx, and the sums over tokens: dweight (D,), with a mean followed by dbias."""
    require_like("dy", dy, ArraySpec.of(x))
    if add is not None:
        require_like("add", add, ArraySpec.of(x))
        add = contiguous_aligned(add)
    width = x.shape[-1]
    dy, x, weight = contiguous_aligned(dy), contiguous_aligned(x), contiguous_aligned(weight)
    rows, columns = x.size // width, width if mean is None else 2 * width
    if not rows:
        return empty(x.shape, x.dtype), zeros((columns,), rstd.dtype)
    blocks, warps = split(rows, columns, x.dtype)
    dx = empty(x.shape, x.dtype)
    parts = empty((blocks, columns), rstd.dtype)
    kernel = get_kernel(norm_specialisation(type_name(x.dtype), mean is not None), "norm_backward")
    params = norm_params(parts.dtype)(
        x=x, weight=weight, bias=None, y=None, mean=mean, rstd=rstd, dy=dy, add=add, dx=dx, parts=parts, rows=rows,
        width=width, eps=0,
    )  # fmt: skip
    kernel((blocks,), (32 * warps,), (params,), shared_mem=warps * columns * parts.itemsize)
    return dx, add_parts(parts)
