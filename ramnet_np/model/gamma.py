"""The forgetting control gamma of a layer: a constant, one number per head, or a map of each token.

    modifier = 0 | m (H,) | x G^T + g            ``gamma_mode`` fixed | learnable | dynamic
    any gamma (gsu):             gamma = constant + modifier
    gamma >= least (pdma: 0):    gamma = least + softplus(softplus^-1(constant - least) + modifier)

Where an update rule has a least gamma, the softplus keeps to it; either way a modifier of 0 gives the constant, where
training starts. A fixed gamma is the constant itself and may be the least one.
Source: the authors' package ramnet; the softplus is ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.core.retention import RULES
from ramnet_np.layers.activation import sigmoid_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward, sum_over_tokens
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant, normal


class GammaContext(NamedTuple):
    """What ``gamma_backward`` needs; of a fixed gamma, nothing."""

    linear: LinearContext | None  # of the dynamic map
    slope: Array | None  # softplus' at the modifier, or None where gamma may be any number
    fixed: bool


def gamma_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the modifier.

    >>> list(gamma_parameters(RAMNetConfig(gamma_mode="dynamic"))), gamma_parameters(RAMNetConfig())
    (['gamma_modifier.weight', 'gamma_modifier.bias'], {})
    """
    H, D = config.heads, config.width
    if config.gamma_mode == "learnable":
        return {"gamma_modifier": Parameter((H,), "forgetting", constant(0))}
    if config.gamma_mode == "dynamic":
        return {
            "gamma_modifier.weight": Parameter((H, D), "forgetting", normal(config.init_std)),
            "gamma_modifier.bias": Parameter((H,), "forgetting", constant(0)),
        }
    return {}


def gamma_forward(x: Array, params: Params, config: RAMNetConfig) -> tuple[Array | float, GammaContext]:
    """gamma as the operation takes it: a float, or (B, T, H). ``x``: (B, T, D).

    Source: the authors' package ramnet.

    >>> import numpy as np
    >>> config = RAMNetConfig(heads=2, gamma=0.5, gamma_mode="learnable")
    >>> gamma, ctx = gamma_forward(np.ones((1, 3, 64)), {"gamma_modifier": np.zeros(2)}, config)
    >>> gamma.shape, gamma[0, 0].round(6).tolist()
    ((1, 3, 2), [0.5, 0.5])
    """
    if config.gamma_mode == "fixed":
        return config.gamma, GammaContext(None, None, fixed=True)
    # 1. the modifier
    if config.gamma_mode == "dynamic":
        modifier, linear_ctx = linear_forward(x, params["gamma_modifier.weight"], params["gamma_modifier.bias"])
    else:
        modifier, linear_ctx = namespace_of(x).tile(params["gamma_modifier"], (*x.shape[:2], 1)), None
    # 2. gamma
    gamma, slope = gamma_of(modifier, config)
    return gamma, GammaContext(linear_ctx, slope, fixed=False)


def gamma_of(modifier: Array, config: RAMNetConfig) -> tuple[Array, Array | None]:
    """gamma (B, T, H) from a modifier of that shape, and softplus' at it, None where gamma may be any number.

    >>> import numpy as np
    >>> gamma_of(np.zeros((1, 1, 2)), RAMNetConfig(heads=2, gamma=0.5))[0].round(6).tolist()
    [[[0.5, 0.5]]]
    """
    dtype, modifier = modifier.dtype, at_least_float32(modifier)
    least = RULES[config.update].least_gamma
    if least == -math.inf:
        return (modifier + config.gamma).astype(dtype, copy=False), None
    above = config.gamma - least
    shifted = modifier + (above + math.log(-math.expm1(-above)))  # softplus^-1(c) = log(exp(c) - 1)
    slope, _ = sigmoid_forward(shifted)
    gamma = namespace_of(shifted).logaddexp(shifted, shifted.dtype.type(0))
    gamma = gamma if least == 0 else gamma + least
    return gamma.astype(dtype, copy=False), slope


def gamma_backward(
    dgamma: Array, ctx: GammaContext, accumulate_into: Array | None = None
) -> tuple[Array | None, Params]:
    """Gradient of x, added to ``accumulate_into``, and of the modifier's parameters by their names.

    ``accumulate_into``: a gradient of x from elsewhere, or None; unless gamma is dynamic it is returned as it is.
    ``dgamma``: (B, T, H), or a number for a fixed gamma.

    >>> import numpy as np
    >>> config = RAMNetConfig(heads=2, gamma=0.5, gamma_mode="learnable")
    >>> gamma, ctx = gamma_forward(np.ones((1, 3, 64)), {"gamma_modifier": np.zeros(2)}, config)
    >>> dx, grads = gamma_backward(np.ones_like(gamma), ctx)
    >>> dx, grads["gamma_modifier"].shape
    (None, (2,))
    """
    if ctx.fixed:
        return accumulate_into, {}
    # 2. gamma = softplus(... + modifier), or constant + modifier
    dmodifier = at_least_float32(dgamma)
    if ctx.slope is not None:
        dmodifier = dmodifier * ctx.slope
    # 1. the modifier
    if ctx.linear is None:
        return accumulate_into, {"gamma_modifier": sum_over_tokens(dmodifier.reshape(-1, dmodifier.shape[-1]))}
    dmodifier = dmodifier.astype(ctx.linear.y.dtype, copy=False)
    dx, dweight, dbias = linear_backward(dmodifier, ctx.linear, accumulate_into=accumulate_into)
    return dx, {"gamma_modifier.weight": dweight, "gamma_modifier.bias": dbias}
