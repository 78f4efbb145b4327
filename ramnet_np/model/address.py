"""Address projections: from the residual stream to the address logits of every head and digit.

    W = exp(a) W',  b = exp(a) b'        a: one scale per head and digit
    logits = (x W^T + b) / tau

The scale lets training sharpen or flatten a digit's choice by moving one number, where without it a whole matrix would
have to grow. It and tau multiply the weights, not the logits: there are far fewer of them.
Source: paper section 4; spec section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.backend import fused_for
from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant, normal

PRIOR = 1.5  # range of the initial bias of the last digit


class AddressContext(NamedTuple):
    """What ``address_backward`` needs."""

    linear: LinearContext  # its weight is exp(a) W' / tau
    bias: Array | None  # exp(a) b' / tau
    scale: Array | None  # (H, U) a
    factor: (
        Array | float | None
    )  # (H*U, 1) exp(a) / tau of every digit, or the number 1 / tau; None where fused functions scale
    tau: float
    digits: tuple[int, int, int]  # H, U, P


def address_parameters(side: str, config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    """The parameters of one side, "w" or "r", of layer number ``layer``.

    The biases of the heads that ``config.address_prior`` names start at :func:`address_prior`, all others at 0.
    Source: spec section 5.

    >>> parameters = address_parameters("w", RAMNetConfig(width=8, heads=2, order=3, radix=4), layer=0)
    >>> [(name, parameter.shape) for name, parameter in parameters.items()]
    [('w_proj.weight', (24, 8)), ('w_proj.bias', (24,)), ('w_scale', (2, 3))]
    """
    H, U, P = config.heads, config.order, config.radix
    prior = np.zeros((H, U, P), dtype=np.float32)
    prior[: H if config.address_prior == "all" else config.cape_heads(layer)] = address_prior(config)
    parameters = {f"{side}_proj.weight": Parameter((H * U * P, config.width), "addresses", normal(config.init_std))}
    if config.address_bias:
        parameters[f"{side}_proj.bias"] = Parameter((H * U * P,), "addresses", lambda *_: prior.ravel())
    if config.address_scale:
        parameters[f"{side}_scale"] = Parameter((H, U), "addresses", constant(0))
    return parameters


def address_prior(config: RAMNetConfig) -> np.ndarray:
    """The initial address bias (U, P): digit u prefers large values, the more so the more significant it is.

    linspace(0, 1.5, U)[:, None] * linspace(-1, 1, P)
    Source: spec section 5.

    >>> address_prior(RAMNetConfig(order=3, radix=3)).tolist()
    [[-0.0, 0.0, 0.0], [-0.75, 0.0, 0.75], [-1.5, 0.0, 1.5]]
    """
    strength = np.linspace(0, PRIOR, config.order, dtype=np.float32)
    return strength[:, None] * np.linspace(-1, 1, config.radix, dtype=np.float32)


def address_forward(x: Array, params: Params, side: str, config: RAMNetConfig) -> tuple[Array, AddressContext]:
    """Address logits, divided by the temperature.

    ``x``: (B, T, D); ``side``: "w" for writes, "r" for reads; ``params``: of the RAM layer, where ``{side}_proj.bias``
    and ``{side}_scale`` may be missing. Returns logits (B, T, H, U, P) and ctx.
    ValueError or TypeError where x has another width or dtype than the parameters. Source: paper section 4.

    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(address_parameters("w", config, 0), seed=0, dtype=np.float64)
    >>> logits, ctx = address_forward(np.ones((1, 5, 8)), params, "w", config)
    >>> logits.shape
    (1, 5, 2, 3, 4)
    """
    xp = namespace_of(x)
    digits = (config.heads, config.order, config.radix)
    weight, bias, scale = (params.get(f"{side}_{name}") for name in ("proj.weight", "proj.bias", "scale"))
    factor = None
    if scale is not None and (fused := fused_for("scale_forward", x)):
        weight, bias = fused(weight, bias, scale, config.tau)
    else:
        # 1. exp(a) / tau, once per digit
        factor = 1 / config.tau if scale is None else xp.exp(scale).reshape(-1, 1) / config.tau
        # 2. scale the weights
        weight = _times_factor(weight, factor)
        bias = None if bias is None else _times_factor(bias, factor)
    # 3. one linear map
    logits, ctx = linear_forward(x, weight, bias)
    return logits.reshape(*x.shape[:-1], *digits), AddressContext(ctx, bias, scale, factor, config.tau, digits)


def address_backward(dlogits: Array, ctx: AddressContext, side: str, onto: Array | None = None) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), added to ``onto`` if given, and of that side's parameters by their names.

    ``dlogits``: (B, T, H, U, P). Source: spec section 5.

    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(address_parameters("w", config, 0), seed=0, dtype=np.float64)
    >>> logits, ctx = address_forward(np.ones((1, 5, 8)), params, "w", config)
    >>> dx, grads = address_backward(np.ones_like(logits), ctx, "w")
    >>> dx.shape, sorted(grads)
    ((1, 5, 8), ['w_proj.bias', 'w_proj.weight', 'w_scale'])
    """
    # 3. logits = x W^T + b
    dx, dweight, dbias = linear_backward(dlogits.reshape(*dlogits.shape[:-3], -1), ctx.linear, onto=onto)
    grads = {}
    if ctx.factor is None:
        fused = fused_for("scale_backward", dx)
        assert fused is not None  # the forward had its other half
        dweight, dbias, grads[f"{side}_scale"] = fused(dweight, dbias, ctx.linear.weight, ctx.bias, ctx.scale, ctx.tau)
        grads[f"{side}_proj.weight"] = dweight
        if dbias is not None:
            grads[f"{side}_proj.bias"] = dbias
        return dx, grads
    # 1. W = exp(a) W' / tau, so dW / da = W; likewise b
    if ctx.scale is not None:
        drows = (dweight * ctx.linear.weight).sum(axis=-1)
        if dbias is not None:
            drows += dbias * ctx.bias
        grads[f"{side}_scale"] = drows.reshape(ctx.digits).sum(axis=-1)
    # 2. dW = factor * dW'
    grads[f"{side}_proj.weight"] = _times_factor(dweight, ctx.factor)
    if dbias is not None:
        grads[f"{side}_proj.bias"] = _times_factor(dbias, ctx.factor)
    return dx, grads


def _times_factor(rows: Array, factor: Array | float) -> Array:
    """Rows (H*U*P, ...) times the factor of their digit."""
    if isinstance(factor, float):
        return rows * factor
    return (rows.reshape(len(factor), -1) * factor).reshape(rows.shape)
