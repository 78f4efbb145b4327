"""Rows of a linear map scaled in groups on the GPU, one launch each: see ``scale.cu``."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.scale import ScaleContext, ScaleGrads

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.params import INT, POINTER, ParamStruct

THREADS = 256  # of a block, which has the rows of one group


@cache
def scale_params(sums: np.dtype) -> ParamStruct:
    """``ScaleParams``, with numbers of the dtype ``sums``."""
    return ParamStruct(
        "ScaleParams", weight=POINTER, bias=POINTER, scale=POINTER, scaled=POINTER, scaled_bias=POINTER,
        dscaled=POINTER, dscaled_bias=POINTER, dweight=POINTER, dbias=POINTER, dscale=POINTER, group=INT, width=INT,
        tau=sums,
    )  # fmt: skip


@cache
def scale_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    sums = np.dtype(np.float64 if element == "double" else np.float32)
    kernels = "scale_forward", "scale_backward"
    return Specialisation("layers/scale.cu", kernels, (("ELEMENT", element),), (scale_params(sums),))


def scale_forward(weight: Array, bias: Array, scale: Array, tau: float) -> tuple[Array, Array, ScaleContext]:
    """Weight (R, D) and bias (R,) or None, their rows times exp(scale) / tau: as many scales as divide R evenly."""
    weight, scale = contiguous_aligned(weight), contiguous_aligned(scale)
    bias = None if bias is None else contiguous_aligned(bias)
    scaled, scaled_bias = empty(weight.shape, weight.dtype), None if bias is None else empty(bias.shape, bias.dtype)
    _launch(
        "scale_forward", weight.shape, tau, weight=weight, bias=bias, scale=scale, scaled=scaled,
        scaled_bias=scaled_bias, dscaled=None, dscaled_bias=None, dweight=None, dbias=None, dscale=None,
    )  # fmt: skip
    return scaled, scaled_bias, ScaleContext(scaled, scaled_bias, scale, tau)


def scale_backward(dweight: Array, dbias: Array, ctx: ScaleContext) -> ScaleGrads:
    """Gradients of weight, bias (None without) and scale, from those of what was scaled."""
    dscaled, scale = contiguous_aligned(dweight), contiguous_aligned(ctx.scale)
    dscaled_bias = None if dbias is None else contiguous_aligned(dbias)
    dweight, dscale = empty(dscaled.shape, dscaled.dtype), empty(scale.shape, dscaled.dtype)
    dbias = None if dscaled_bias is None else empty(dscaled_bias.shape, dscaled_bias.dtype)
    _launch(
        "scale_backward", dscaled.shape, ctx.tau, weight=None, bias=None, scale=scale, scaled=ctx.weight,
        scaled_bias=ctx.bias, dscaled=dscaled, dscaled_bias=dscaled_bias, dweight=dweight, dbias=dbias, dscale=dscale,
    )  # fmt: skip
    return ScaleGrads(dweight, dbias, dscale)


def _launch(name: str, shape: tuple[int, int], tau: float, **arrays: Any) -> None:
    (rows, width), scale = shape, arrays["scale"]
    params = scale_params(sum_dtype(scale.dtype))(**arrays, group=rows // scale.size, width=width, tau=tau)
    get_kernel(scale_specialisation(type_name(scale.dtype)), name)((scale.size,), (THREADS,), (params,))
