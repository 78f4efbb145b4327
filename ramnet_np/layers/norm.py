"""Normalisation over channels: RMSNorm and LayerNorm.

Kept for the backward are the inputs and one number per token (two for LayerNorm); the normalised x is one product and
is made again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated, accelerated_everywhere
from ramnet_np.core.arrays import namespace_of
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
from ramnet_np.layers.linear import FEW_ROWS

WORTH_A_KERNEL = 128  # channels


@readable
class RMSNormContext(NamedTuple):
    """What ``rmsnorm_backward`` needs."""

    x: Array  # (..., D)
    weight: Array  # (D,)
    rstd: Array  # (N, 1), one per token: keeping it costs less than another sum over channels


class RMSNormGrads(NamedTuple):
    """One gradient per input."""

    x: Array
    weight: Array


@readable
class LayerNormContext(NamedTuple):
    """What ``layernorm_backward`` needs."""

    x: Array  # (..., D)
    weight: Array  # (D,)
    mean: Array  # (N, 1), one per token
    rstd: Array  # (N, 1)


class LayerNormGrads(NamedTuple):
    """One gradient per input."""

    x: Array
    weight: Array
    bias: Array


@accelerated
def rmsnorm_forward(x: Array, weight: Array, eps: float = 1e-6) -> tuple[Array, RMSNormContext]:
    """Divide each token by the root of its mean square.

        y = weight * x * rstd,    rstd = 1 / sqrt(mean(x**2) + eps)

    ``x``: (..., D); ``weight``: (D,). Returns y (..., D) and ctx. Three passes over x.
    Source: Zhang and Sennrich, arXiv 1910.07467.

    >>> import numpy as np
    >>> y, ctx = rmsnorm_forward(np.array([[3.0, 4.0]]), np.ones(2), eps=0.0)
    >>> y.round(3).tolist()
    [[0.849, 1.131]]
    """
    namespace_of(x)  # refuses arrays that are neither NumPy's nor CuPy's
    _require_norm(x, weight)
    _require_eps(eps)
    rows = x.reshape(-1, x.shape[-1])
    few = len(rows) <= FEW_ROWS and len(weight) >= WORTH_A_KERNEL
    normalise = few_rows_rmsnorm if few else _rmsnorm
    y, rstd = normalise(rows, weight, eps)
    return y.reshape(x.shape), RMSNormContext(x, weight, rstd)


@accelerated_everywhere
def few_rows_rmsnorm(rows: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """The norm of so few rows that finding the functions takes the time. Returns y (N, D) and rstd (N, 1).

    >>> import numpy as np
    >>> y, rstd = few_rows_rmsnorm(np.array([[3.0, 4.0]]), np.ones(2), 0.0)
    >>> y.round(3).tolist(), rstd.round(3).tolist()
    ([[0.849, 1.131]], [[0.283]])
    """
    return _rmsnorm(rows, weight, eps)


def _rmsnorm(rows: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    # 1. rstd
    rstd = _rstd(namespace_of(rows), rows, eps)
    # 2. y
    y = rows * rstd
    y *= weight
    return y, rstd


@accelerated
def rmsnorm_backward(dy: Array, ctx: RMSNormContext, add: Array | None = None) -> RMSNormGrads:
    """Gradients of x and weight. With n = x * rstd, the normalised x, and dn = dy * weight:

    dx = rstd * (dn - n * mean(dn * n)) + add        dweight = sum over tokens of dy * n

    ``add``: the gradient of x from elsewhere, as of a residual connection; None adds nothing.
    ValueError unless ``dy`` and ``add`` have the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = rmsnorm_forward(np.array([[3.0, 4.0]]), np.ones(2), eps=0.0)
    >>> dx, dweight = rmsnorm_backward(np.array([[3.0, 4.0]]), ctx)  # along x, which changes nothing
    >>> dx.round(12).tolist(), dweight.round(3).tolist()
    ([[0.0, 0.0]], [2.546, 4.525])
    """
    require_context(ctx, RMSNormContext, "rmsnorm_forward")
    require_like("dy", dy, ArraySpec.of(ctx.x))
    if add is not None:
        require_like("add", add, ArraySpec.of(ctx.x))
    xp = namespace_of(dy)
    width = dy.shape[-1]
    rows = dy.reshape(-1, width)
    # 2. y = n * weight
    n = ctx.x.reshape(-1, width) * ctx.rstd
    dweight = xp.einsum("nd,nd->d", rows, n)
    dx = rows * ctx.weight
    # 1. n = x * rstd(x): scaling x along itself changes nothing, so that part of the gradient is taken out
    n *= xp.einsum("nd,nd->n", dx, n)[:, None] / width
    dx -= n
    dx *= ctx.rstd
    dx = dx.reshape(dy.shape)
    if add is not None:
        dx += add
    return RMSNormGrads(dx, dweight)


@on_gpu_of_arrays
def l2norm_forward(x: Array, eps: float = 1e-6) -> tuple[Array, RMSNormContext]:
    """Bring each row to length 1.

        y = x / sqrt(sum(x**2) + eps)

    which is RMSNorm with all weights 1 / sqrt(d). ``x``: (..., d), d at least 1; a row of zeros stays one. Returns y of
    that shape and ctx. Source: Yang et al., arXiv 2406.06484, who bring queries and keys to length 1.

    >>> import numpy as np
    >>> l2norm_forward(np.array([[3.0, 4.0]]))[0].round(6).tolist()
    [[0.6, 0.8]]
    """
    if not require_floats("x", x).shape or x.shape[-1] == 0:
        raise ValueError(f"x must have shape (..., d), d at least 1, got {x.shape}")
    width = x.shape[-1]
    return rmsnorm_forward(x, namespace_of(x).full(width, width**-0.5, dtype=x.dtype), eps / width)


@on_gpu_of_arrays
def l2norm_backward(dy: Array, ctx: RMSNormContext) -> Array:
    """Gradient of x: (dy - y (y . dy)) / sqrt(sum(x**2) + eps), the part of dy across y.

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = l2norm_forward(np.array([[3.0, 4.0]]))
    >>> l2norm_backward(np.array([[5.0, 0.0]]), ctx).round(6).tolist()
    [[0.64, -0.48]]
    """
    require_context(ctx, RMSNormContext, "l2norm_forward")
    return rmsnorm_backward(dy, ctx).x


@accelerated
def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float = 1e-6) -> tuple[Array, LayerNormContext]:
    """Shift each token to mean 0 and scale it to variance 1.

        y = weight * (x - mean(x)) * rstd + bias,    rstd = 1 / sqrt(var(x) + eps)

    ``x``: (..., D); ``weight``, ``bias``: (D,). Returns y (..., D) and ctx. Five passes over x.
    Source: Ba et al., arXiv 1607.06450.

    >>> import numpy as np
    >>> y, ctx = layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), eps=0.0)
    >>> y.tolist()
    [[-1.0, 1.0]]
    """
    _require_norm(x, weight, bias)
    _require_eps(eps)
    xp = namespace_of(x)
    rows = x.reshape(-1, x.shape[-1])
    # 1. mean, 2. rstd of what is left
    mean = rows.mean(axis=-1, keepdims=True)
    y = rows - mean
    rstd = _rstd(xp, y, eps)
    # 3. y
    y *= rstd
    y *= weight
    y += bias
    return y.reshape(x.shape), LayerNormContext(x, weight, mean, rstd)


@accelerated
def layernorm_backward(dy: Array, ctx: LayerNormContext, add: Array | None = None) -> LayerNormGrads:
    """Gradients of x, weight and bias. With n = (x - mean) * rstd and dn = dy * weight:

    dx = rstd * (dn - mean(dn) - n * mean(dn * n)) + add    dweight = sum of dy * n    dbias = sum of dy

    ``add``: the gradient of x from elsewhere, as of a residual connection; None adds nothing.
    ValueError unless ``dy`` and ``add`` have the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), eps=0.0)
    >>> [d.tolist() for d in layernorm_backward(np.array([[1.0, 1.0]]), ctx)]  # a shift changes nothing
    [[[0.0, 0.0]], [-1.0, 1.0], [1.0, 1.0]]
    """
    require_context(ctx, LayerNormContext, "layernorm_forward")
    require_like("dy", dy, ArraySpec.of(ctx.x))
    if add is not None:
        require_like("add", add, ArraySpec.of(ctx.x))
    xp = namespace_of(dy)
    width = dy.shape[-1]
    rows = dy.reshape(-1, width)
    # 3. y = n * weight + bias
    n = ctx.x.reshape(-1, width) - ctx.mean
    n *= ctx.rstd
    dweight = xp.einsum("nd,nd->d", rows, n)
    dx = rows * ctx.weight
    # 2. n does not change with the scale of x, and 1. nor with its mean
    n *= xp.einsum("nd,nd->n", dx, n)[:, None] / width
    dx -= dx.mean(axis=-1, keepdims=True)
    dx -= n
    dx *= ctx.rstd
    dx = dx.reshape(dy.shape)
    if add is not None:
        dx += add
    return LayerNormGrads(dx, dweight, rows.sum(axis=0))


@once_for_shapes
def _require_norm(x: Array, weight: Array, bias: Array | None) -> None:
    """ValueError or TypeError unless ``x`` (..., D), ``weight`` and ``bias`` (D,) or None fit."""
    spec = require_array("weight", weight)
    if len(spec.shape) != 1 or spec.shape[0] == 0:
        raise ValueError(f"weight must have shape (D,), D at least 1, got {spec.shape}")
    require_width("x", x, spec.shape[0], weight)
    if bias is not None:
        require_like("bias", bias, spec)


def _require_eps(eps: float) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or more and finite, got {eps}")


def _rstd(xp: Any, rows: Array, eps: float) -> Array:
    """1 / sqrt(mean square + eps) of every row, (N, 1), without an array of squares."""
    mean_square = xp.einsum("nd,nd->n", rows, rows)[:, None] / rows.shape[-1]
    rstd = 1 / xp.sqrt(mean_square + eps)
    if xp is np and not rstd.all():
        _relative_rstd(rows, eps, rstd)
    return rstd


def _relative_rstd(rows: np.ndarray, eps: float, rstd: np.ndarray) -> None:
    """Set ``rstd`` where it is 0 because a square overflowed: with squares relative to the row's largest number."""
    over = np.flatnonzero(rstd == 0)
    largest = np.abs(rows[over]).max(axis=-1, keepdims=True)
    scaled = rows[over] / largest
    mean_square = np.einsum("nd,nd->n", scaled, scaled)[:, None] / rows.shape[-1]
    rstd[over] = np.where(np.isfinite(largest), 1 / np.sqrt(mean_square + eps / largest / largest) / largest, 0)
