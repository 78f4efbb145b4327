"""Norms, gates, short convolutions and sums over tokens on the GPU: one launch each, two where parts are to be added.

Same mathematics as ``ramnet_np/layers/norm.py``, ``gate.py`` and ``short_conv.py``; ``layers.cu`` says who computes
what. Every array is read and written once (the inputs of a norm's backward twice, the second time from cache).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..runtime.arrays import NULL, contiguous_aligned, null_or
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name

PARTS = 528  # blocks that share the tokens: four for each multiprocessor of an H100, and the same bits on any GPU
GATHERED_BYTES = 200 * 1024  # of shared memory, at most, for what the warps of a block gather

_NAMES = (
    "norm_forward", "norm_backward", "column_sums", "add_parts", "gate_forward", "gate_backward", "scale_forward",
    "scale_backward", "conv_forward", "conv_backward", "conv_weights",
)  # fmt: skip


@cache
def layers_specialisation(element: str, layernorm: bool = False) -> Specialisation:
    """Arrays of the type ``element``; LayerNorm or RMSNorm."""
    return Specialisation("layers/layers.cu", _NAMES, (("ELEMENT", element), ("LAYERNORM", int(layernorm))))


def rmsnorm_forward(x: Any, weight: Any, eps: float) -> tuple[Any, Any]:
    """y (N, D) and rstd (N, 1) of x (N, D), weight (D,)."""
    y, _, rstd = _norm_forward(x, weight, None, eps)
    return y, rstd


def rmsnorm_backward(dy: Any, x: Any, weight: Any, rstd: Any) -> tuple[Any, Any]:
    """dx (N, D), dweight (D,)."""
    return _norm_backward(dy, x, weight, None, rstd)


def layernorm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """y (N, D), mean (N, 1) and rstd (N, 1) of x (N, D), weight (D,), bias (D,)."""
    return _norm_forward(x, weight, bias, eps)


def layernorm_backward(dy: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any, Any]:
    """dx (N, D), dweight (D,), dbias (D,)."""
    dx, sums = _norm_backward(dy, x, weight, mean, rstd)
    width = weight.shape[0]
    return dx, sums[:width], sums[width:]


def column_sum(x: Any) -> Any:
    """The sum of x (N, D) over its rows, (D,)."""
    import cupy

    rows, width = x.shape
    if not rows * width:
        return cupy.zeros(width, dtype=x.dtype)
    x = contiguous_aligned(x)
    blocks, warps = _split(rows, width, x.dtype)
    parts = cupy.empty((blocks, width), dtype=sum_dtype(x.dtype))
    kernel = get_kernel(layers_specialisation(type_name(x.dtype)), "column_sums")
    arguments = (x, np.int64(rows), np.int32(width), parts)
    kernel((blocks,), (32 * warps,), arguments, shared_mem=warps * width * parts.itemsize)
    return add_parts(parts, x.dtype)


def gate_forward(a: Any, b: Any, silu: bool) -> Any:
    """act(a) * b, act the sigmoid or, with ``silu``, a * sigmoid(a); arrays of one shape."""
    import cupy

    a, b = contiguous_aligned(a), contiguous_aligned(b)
    out = cupy.empty(a.shape, dtype=a.dtype)
    _launch_gate("gate_forward", out.size, (a, b, np.int64(a.size), np.int32(silu), out))
    return out


def gate_backward(dout: Any, a: Any, b: Any, silu: bool) -> tuple[Any, Any]:
    """da, db."""
    import cupy

    dout, a, b = contiguous_aligned(dout), contiguous_aligned(a), contiguous_aligned(b)
    da, db = (cupy.empty(a.shape, dtype=a.dtype) for _ in range(2))
    _launch_gate("gate_backward", a.size, (dout, a, b, np.int64(a.size), np.int32(silu), da, db))
    return da, db


def short_conv_forward(x: Any, weight: Any) -> Any:
    """y (B, T, D) of x (B, T, D), weight (D, reach)."""
    import cupy

    x, weight = contiguous_aligned(x), contiguous_aligned(weight)
    y = cupy.empty(x.shape, dtype=x.dtype)
    _launch_conv("conv_forward", x, weight, y)
    return y


def short_conv_backward(dy: Any, x: Any, weight: Any) -> tuple[Any, Any]:
    """dx (B, T, D) and dweight (D, reach) of dy (B, T, D) and x (B, S + T, D), whose first S tokens are constant."""
    import cupy

    if not dy.size:
        return cupy.empty(dy.shape, dtype=dy.dtype), cupy.zeros(weight.shape, dtype=weight.dtype)
    dy, x, weight = contiguous_aligned(dy), contiguous_aligned(x), contiguous_aligned(weight)
    dx = cupy.empty(dy.shape, dtype=dy.dtype)
    _launch_conv("conv_backward", dy, weight, dx)
    _, tokens, width = dy.shape
    rows, reach = dy.size // width, weight.shape[1]
    blocks, warps = _split(rows, weight.size, dy.dtype)
    parts = cupy.empty((blocks, weight.size), dtype=sum_dtype(dy.dtype))
    kernel = get_kernel(layers_specialisation(type_name(dy.dtype)), "conv_weights")
    sizes = np.int64(rows), *map(np.int32, (tokens, x.shape[1] - tokens, width, reach))
    kernel((blocks,), (32 * warps,), (dy, x, *sizes, parts), shared_mem=warps * weight.size * parts.itemsize)
    return dx, add_parts(parts, dy.dtype).reshape(weight.shape)


def _launch_conv(name: str, x: Any, weight: Any, out: Any) -> None:
    _, tokens, width = x.shape
    sizes = np.int64(x.size), *map(np.int32, (tokens, width, weight.shape[1]))
    if x.size:
        get_kernel(layers_specialisation(type_name(x.dtype)), name)(
            (-(-x.size // 256),), (256,), (x, weight, *sizes, out)
        )


def scale_forward(matrix: Any, bias: Any, scales: Any, tau: float) -> tuple[Any, Any]:
    """Matrix (R, D) and bias (R,) or None, their rows times exp(scales) / tau: as many scales as divide R evenly."""
    import cupy

    matrix, scales = contiguous_aligned(matrix), contiguous_aligned(scales)
    bias = None if bias is None else contiguous_aligned(bias)
    scaled = cupy.empty(matrix.shape, dtype=matrix.dtype)
    scaled_bias = None if bias is None else cupy.empty(bias.shape, dtype=bias.dtype)
    arguments = (matrix, null_or(bias), scales, *_scale_sizes(matrix, scales, tau), scaled, null_or(scaled_bias))
    _launch_scale("scale_forward", scales, arguments)
    return scaled, scaled_bias


def scale_backward(
    dscaled: Any, dbias: Any, scaled: Any, scaled_bias: Any, scales: Any, tau: float
) -> tuple[Any, Any, Any]:
    """Gradients of matrix, bias (None without) and scales, from those of what was scaled."""
    import cupy

    dscaled, scales = contiguous_aligned(dscaled), contiguous_aligned(scales)
    dbias = None if dbias is None else contiguous_aligned(dbias)
    dmatrix, dscales = (cupy.empty(a.shape, dtype=a.dtype) for a in (dscaled, scales))
    out_bias = None if dbias is None else cupy.empty(dbias.shape, dtype=dbias.dtype)
    arguments = (
        dscaled, null_or(dbias), scaled, null_or(scaled_bias), scales, *_scale_sizes(dscaled, scales, tau), dmatrix,
        null_or(out_bias), dscales,
    )  # fmt: skip
    _launch_scale("scale_backward", scales, arguments)
    return dmatrix, out_bias, dscales


def _scale_sizes(matrix: Any, scales: Any, tau: float) -> tuple[Any, ...]:
    rows, width = matrix.shape
    return np.int32(rows // scales.size), np.int32(width), sum_dtype(matrix.dtype).type(tau)


def _launch_scale(name: str, scales: Any, arguments: tuple[Any, ...]) -> None:
    get_kernel(layers_specialisation(type_name(scales.dtype)), name)((scales.size,), (256,), arguments)


def _norm_forward(x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    import cupy

    rows, width = x.shape
    x, weight = contiguous_aligned(x), contiguous_aligned(weight)
    sums = sum_dtype(x.dtype)
    y, rstd = cupy.empty(x.shape, dtype=x.dtype), cupy.empty((rows, 1), dtype=sums)
    mean = None if bias is None else cupy.empty((rows, 1), dtype=sums)
    if rows:
        kernel = get_kernel(layers_specialisation(type_name(x.dtype), bias is not None), "norm_forward")
        arguments = (
            x, weight, NULL if bias is None else contiguous_aligned(bias), np.int64(rows), np.int32(width),
            sums.type(eps), y, null_or(mean), rstd,
        )  # fmt: skip
        kernel((-(-rows // 8),), (256,), arguments)
    return y, mean, rstd


def _norm_backward(dy: Any, x: Any, weight: Any, mean: Any, rstd: Any) -> tuple[Any, Any]:
    """dx, and the sums over tokens: dweight (D,), with a mean followed by dbias."""
    import cupy

    rows, width = x.shape
    dy, x = contiguous_aligned(dy), contiguous_aligned(x)
    columns = width if mean is None else 2 * width
    if not rows:
        return cupy.empty(x.shape, dtype=x.dtype), cupy.zeros(columns, dtype=x.dtype)
    blocks, warps = _split(rows, columns, x.dtype)
    dx = cupy.empty(x.shape, dtype=x.dtype)
    parts = cupy.empty((blocks, columns), dtype=rstd.dtype)
    kernel = get_kernel(layers_specialisation(type_name(x.dtype), mean is not None), "norm_backward")
    arguments = (
        dy, x, contiguous_aligned(weight), null_or(mean), rstd, np.int64(rows), np.int32(width), dx, parts,
    )  # fmt: skip
    kernel((blocks,), (32 * warps,), arguments, shared_mem=warps * columns * parts.itemsize)
    return dx, add_parts(parts, x.dtype)


def add_parts(parts: Any, dtype: Any) -> Any:
    """The sum of parts (count, columns) over the first axis, in a fixed order, as an array (columns,) of ``dtype``."""
    import cupy

    count, columns = parts.shape
    sums = cupy.empty(columns, dtype=dtype)
    kernel = get_kernel(layers_specialisation(type_name(dtype)), "add_parts")
    kernel((-(-columns // 32),), (256,), (parts, np.int32(count), np.int32(columns), sums))
    return sums


def _launch_gate(name: str, size: int, arguments: tuple[Any, ...]) -> None:
    if size:
        kernel = get_kernel(layers_specialisation(type_name(arguments[0].dtype)), name)
        kernel((-(-size // 1024),), (256,), arguments)


@cache
def _split(rows: int, columns: int, dtype: Any) -> tuple[int, int]:
    """Blocks that share the rows, and warps of each: eight, fewer where that many rows of sums do not fit."""
    warps = min(8, GATHERED_BYTES // (columns * sum_dtype(dtype).itemsize))
    if not warps:
        raise ValueError(f"a sum over tokens of {columns} columns does not fit the GPU's shared memory")
    return min(PARTS, -(-rows // warps)), warps
