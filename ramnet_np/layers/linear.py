"""The linear map, y = x W^T + b.

On a CPU a weight may be in 16 bits beside x in float32: bfloat16 numbers as uint16, see ``core/bfloat16.py``. For few
rows of x, where reading the weight takes the time, that halves it. Such a map has no backward.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated, accelerated_everywhere
from ramnet_np.core.bfloat16 import in_floats, is_bfloat16
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import (
    ArraySpec,
    once_for_shapes,
    readable,
    require_array,
    require_context,
    require_floats,
    require_like,
    require_width,
)

FEW_ROWS = 8  # up to which a product takes the time of reading its matrix
FEW_ROWS_ON_GPU = 16  # the same on a GPU
WORTH_A_KERNEL = 2**14  # elements of a matrix; smaller ones are multiplied before a kernel would have been found
_FLOAT32 = np.empty(0, np.float32)


@readable
class LinearContext(NamedTuple):
    """What ``linear_backward`` needs."""

    x: Array  # (..., D): dW is a product with it
    weight: Array  # (E, D): dx is a product with it
    has_bias: bool
    y: ArraySpec


class LinearGrads(NamedTuple):
    """One gradient per input; ``bias`` is None where there was none."""

    x: Array
    weight: Array
    bias: Array


@on_gpu_of_arrays
def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearContext]:
    """Map the last axis of ``x`` linearly.

        y = x W^T + b

    ``x``: (..., D); ``weight``: (E, D), one row per output; ``bias``: (E,) or None. Returns y (..., E) and ctx.
    ``weight`` may be bfloat16 in uint16 on a CPU, with x and ``bias`` in float32.
    Cost: one matrix product of 2 N D E operations for N tokens.
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> y, ctx = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> y.tolist()
    [[11.0, 2.0, 1.0]]
    """
    _require_linear(x, weight, bias)
    outputs, width = weight.shape
    # one product of two matrices, whatever the leading axes are
    rows = x.reshape(-1, width)
    few = FEW_ROWS if type(x) is np.ndarray else FEW_ROWS_ON_GPU
    if len(rows) <= few and weight.size >= WORTH_A_KERNEL:
        y = few_rows_product(rows, weight)
    else:
        y = matrix_product(rows, in_floats(weight).T)
    if bias is not None:
        y = add_in_place(y, bias)
    y = y.reshape(*x.shape[:-1], outputs)
    return y, LinearContext(x, weight, bias is not None, ArraySpec.of(y))


@on_gpu_of_arrays
def linear_backward(dy: Array, ctx: LinearContext, accumulate_into: Array | None = None) -> LinearGrads:
    """Gradients of x, W and b.

        dx = dy W        dW = dy^T x        db = sum over tokens of dy

    ``accumulate_into``: a gradient of x from elsewhere, C-contiguous; dx is added to it in place.
    Cost: two matrix products of the forward's size.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), bias=np.array([5.0]))
    >>> [d.tolist() for d in linear_backward(np.ones((1, 1)), ctx)]
    [[[3.0, 4.0]], [[1.0, 2.0]], [1.0]]
    """
    require_context(ctx, LinearContext, "linear_forward")
    require_like("dy", dy, ctx.y)
    require_floats("weight", ctx.weight)  # one in 16 bits is for inference
    outputs, width = ctx.weight.shape
    rows = dy.reshape(-1, outputs)
    sums = None if accumulate_into is None else accumulate_into.reshape(-1, width)
    return LinearGrads(
        x=matrix_product(rows, ctx.weight, sums).reshape(ctx.x.shape),
        weight=weight_product(rows, ctx.x.reshape(-1, width)),
        bias=sum_over_tokens(rows) if ctx.has_bias else None,
    )


@once_for_shapes
def _require_linear(x: Array, weight: Array, bias: Array | None) -> None:
    spec = require_array("weight", weight)
    if len(spec.shape) != 2 or 0 in spec.shape:
        raise ValueError(f"weight must have shape (E, D), neither of them 0, got {spec.shape}")
    require_width("x", x, spec.shape[1], _FLOAT32 if is_bfloat16(weight) else weight)
    if bias is not None:
        require_like("bias", bias, spec._replace(shape=spec.shape[:1], dtype=x.dtype))


@accelerated
def weight_product(dy: Array, x: Array, accumulate_into: Array | None = None) -> Array:
    """The gradient of a weight: the sum over tokens of outer products, dy^T x.

    ``dy``: (N, E); ``x``: (N, D), of one dtype. Returns (E, D), of the dtype of its sums: float32 for 16-bit arrays; or
    ``accumulate_into``, such an array, to which it was added in place.

    >>> import numpy as np
    >>> weight_product(np.array([[1.0], [2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])).tolist()
    [[13.0, 16.0]]
    """
    if accumulate_into is None:
        return dy.T @ x
    accumulate_into += dy.T @ x
    return accumulate_into


@accelerated
def sum_over_tokens(rows: Array) -> Array:
    """The sum of (N, D) over its rows, (D,), of the dtype of its sums: float32 for 16-bit arrays.

    >>> import numpy as np
    >>> sum_over_tokens(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [4.0, 6.0]
    """
    return rows.sum(axis=0)


@accelerated
def matrix_product(a: Array, b: Array, accumulate_into: Array | None = None) -> Array:
    """One product: a b, added to ``accumulate_into`` in place where that is given.

    ``a``: (m, k); ``b``: (k, n); ``accumulate_into``: (m, n), C-contiguous. All of one dtype. Returns a b, or
    ``accumulate_into``. Of stacked matrices: :func:`ramnet_np.layers.matmul.matmul`.

    >>> import numpy as np
    >>> matrix_product(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), accumulate_into=np.ones((1, 1))).tolist()
    [[12.0]]
    """
    if accumulate_into is None:
        return a @ b
    accumulate_into += a @ b
    return accumulate_into


@accelerated_everywhere
def few_rows_product(x: Array, weight: Array) -> Array:
    """x W^T for so few rows that reading W takes the time: of one token, of a few sequences.

    ``x``: (N, D), N up to FEW_ROWS, on a GPU FEW_ROWS_ON_GPU; ``weight``: (E, D), of one dtype, or as of
    :func:`linear_forward`. Returns (N, E). A row of the result is the same bits whatever N is.

    >>> import numpy as np
    >>> few_rows_product(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])).tolist()
    [[11.0, 17.0]]
    """
    return matrix_product(x, in_floats(weight).T)


@accelerated
def add_in_place(y: Array, x: Array) -> Array:
    """y += x, IN PLACE: a residual, of the shape of y, or a bias (E,) added to every row. Returns y.

    ``y``: (..., E). ValueError or TypeError where ``x`` has another shape or dtype.

    >>> import numpy as np
    >>> add_in_place(np.ones((2, 2)), np.array([1.0, 2.0])).tolist()
    [[2.0, 3.0], [2.0, 3.0]]
    """
    require_addable(y, x)
    y += x
    return y


def require_addable(y: Array, x: Array) -> None:
    """ValueError or TypeError unless ``x`` has the dtype of ``y`` and its shape, or that of its last axis.

    >>> import numpy as np
    >>> require_addable(np.ones((2, 3)), np.ones(2))
    Traceback (most recent call last):
        ...
    ValueError: x must be float64 of shape (2, 3) or (3,), got float64 of shape (2,)
    """
    require_array("y", y)
    require_array("x", x)
    if x.dtype != y.dtype or x.shape not in (y.shape, y.shape[-1:]):
        wanted = f"{y.dtype} of shape {y.shape} or {y.shape[-1:]}"
        raise ValueError(f"x must be {wanted}, got {x.dtype} of shape {x.shape}")
