"""The linear map, y = x W^T + b."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import fused_for
from ramnet_np.core.require import Like, require_like, require_width


class LinearContext(NamedTuple):
    """What ``linear_backward`` needs."""

    x: Any  # (..., D): dW is a product with it
    weight: Any  # (E, D): dx is a product with it
    has_bias: bool
    y: Like


class LinearGrads(NamedTuple):
    """One gradient per input; ``bias`` is None where there was none."""

    x: Any
    weight: Any
    bias: Any


def linear_forward(x: Any, weight: Any, bias: Any = None) -> tuple[Any, LinearContext]:
    """Map the last axis of ``x`` linearly.

        y = x W^T + b

    ``x``: (..., D); ``weight``: (E, D), one row per output; ``bias``: (E,) or None. Returns y (..., E) and ctx.
    Cost: one matrix product of 2 N D E operations for N tokens.

    >>> import numpy as np
    >>> y, ctx = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> y.tolist()
    [[11.0, 2.0, 1.0]]
    """
    outputs, width = weight.shape
    require_width("x", x, width, weight)
    # one product of two matrices, whatever the leading axes are
    y = _product(x.reshape(-1, width), weight.T)
    if bias is not None:
        y += bias
    y = y.reshape(*x.shape[:-1], outputs)
    return y, LinearContext(x, weight, bias is not None, Like.of(y))


def linear_backward(dy: Any, ctx: LinearContext, onto: Any = None) -> LinearGrads:
    """Gradients of x, W and b.

        dx = dy W        dW = dy^T x        db = sum over tokens of dy

    ``onto``: a gradient of x from elsewhere, C-contiguous; dx is added to it in place.
    Cost: two matrix products of the forward's size.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), bias=np.array([5.0]))
    >>> [d.tolist() for d in linear_backward(np.ones((1, 1)), ctx)]
    [[[3.0, 4.0]], [[1.0, 2.0]], [1.0]]
    """
    require_like("dy", dy, ctx.y)
    outputs, width = ctx.weight.shape
    rows = dy.reshape(-1, outputs)
    return LinearGrads(
        x=_product(rows, ctx.weight, None if onto is None else onto.reshape(-1, width)).reshape(ctx.x.shape),
        weight=_product(rows.T, ctx.x.reshape(-1, width)),
        bias=sum_over_tokens(rows) if ctx.has_bias else None,
    )


def sum_over_tokens(rows: Any) -> Any:
    """The sum of (N, D) over its rows, (D,).

    >>> import numpy as np
    >>> sum_over_tokens(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [4.0, 6.0]
    """
    fused = fused_for("column_sum", rows)
    return rows.sum(axis=0) if fused is None else fused(rows)


def _product(a: Any, b: Any, onto: Any = None) -> Any:
    """a b, added to ``onto`` in place where that is given."""
    if fused := fused_for("matmul", a):
        return fused(a, b, onto)
    if onto is None:
        return a @ b
    onto += a @ b
    return onto
