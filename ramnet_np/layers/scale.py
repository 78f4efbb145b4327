"""A linear map whose rows are scaled in groups: exp(a) of its weight and bias, over a temperature."""

from __future__ import annotations

import math
from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_like


@readable
class ScaleContext(NamedTuple):
    """What ``scale_backward`` needs."""

    weight: Array  # (R, D) as returned: the slope by its group's a is itself
    bias: Array  # (R,) as returned, or None
    scale: Array  # (...) a, of G groups
    tau: float


class ScaleGrads(NamedTuple):
    """One gradient per input; ``bias`` is None where there was none."""

    weight: Array
    bias: Array
    scale: Array


@accelerated
def scale_forward(weight: Array, bias: Array, scale: Array, tau: float) -> tuple[Array, Array, ScaleContext]:
    """Scale the rows of a linear map, all rows of a group alike.

        W = exp(a) W' / tau        b = exp(a) b' / tau

    ``weight``: (R, D); ``bias``: (R,) or None; ``scale``: a, of any shape, one number for each of G groups of R / G
    rows. Returns W, b and ctx. Source: the authors' package ramnet.
    ValueError or TypeError where shapes or dtypes do not fit, or unless ``tau`` is above 0 and finite.

    >>> import numpy as np
    >>> weight, bias, ctx = scale_forward(np.ones((4, 1)), None, np.log([1.0, 3.0]), tau=2.0)
    >>> weight.ravel().round(3).tolist()
    [0.5, 0.5, 1.5, 1.5]
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"tau must be above 0 and finite, got {tau}")
    for name, array in (("weight", weight), ("bias", bias), ("scale", scale)):
        if array is not None:
            require_floats(name, array)
    R = weight.shape[0] if weight.ndim == 2 else 0
    if R == 0 or scale.size == 0 or R % scale.size:
        raise ValueError(f"weight must have shape (R, D), R a multiple of {scale.size} groups, got {weight.shape}")
    if bias is not None:
        require_like("bias", bias, ArraySpec.of(weight)._replace(shape=(R,)))
    # 1. exp(a) / tau, once per group
    factor = _factor(scale, tau)
    # 2. scale the rows
    weight, bias = _times_factor(weight, factor), None if bias is None else _times_factor(bias, factor)
    return weight, bias, ScaleContext(weight, bias, scale, tau)


@accelerated
def scale_backward(dweight: Array, dbias: Array, ctx: ScaleContext) -> ScaleGrads:
    """Gradients of W', b' and a.

        dW' = exp(a) dW / tau        db' = exp(a) db / tau        da = sum over the group's rows of dW . W + db b

    ``dbias``: (R,), or None without a bias.

    >>> import numpy as np
    >>> weight, bias, ctx = scale_forward(np.ones((2, 1)), None, np.log([1.0, 3.0]), tau=1.0)
    >>> [d.ravel().round(3).tolist() for d in scale_backward(np.ones((2, 1)), None, ctx) if d is not None]
    [[1.0, 3.0], [1.0, 3.0]]
    """
    require_context(ctx, ScaleContext, "scale_forward")
    # 2. W = exp(a) W' / tau, so dW / da = W; likewise b
    drows = (dweight * ctx.weight).sum(axis=-1)
    if dbias is not None:
        drows += dbias * ctx.bias
    dscale = drows.reshape(*ctx.scale.shape, -1).sum(axis=-1)
    # 1. dW' = factor * dW
    factor = _factor(ctx.scale, ctx.tau)
    return ScaleGrads(_times_factor(dweight, factor), None if dbias is None else _times_factor(dbias, factor), dscale)


def _factor(scale: Array, tau: float) -> Array:
    """(G, 1), exp(a) / tau."""
    return namespace_of(scale).exp(scale).reshape(-1, 1) / tau


def _times_factor(rows: Array, factor: Array) -> Array:
    """Rows (R, ...) times the factor of their group."""
    return (rows.reshape(len(factor), -1) * factor).reshape(rows.shape)
