"""Address projections: from the residual stream to the address logits of every head and digit.

    W = exp(a) W',  b = exp(a) b'        a: one scale per head and digit
    logits = (x W^T + b) / tau

The scale lets training sharpen or flatten a digit's choice by moving one number, where without it a whole matrix would
have to grow. It and tau multiply the weights, not the logits: there are far fewer of them.
Source: paper section 4; spec section 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Params


class AddressContext(NamedTuple):
    """What ``address_backward`` needs."""

    linear: LinearContext  # its weight is exp(a) W' / tau
    bias: Any  # exp(a) b' / tau, or None
    factor: Any  # (H*U*P,) exp(a) / tau of every row, or the number 1 / tau
    digits: tuple[int, int, int]  # H, U, P


def address_forward(x: Any, params: Params, side: str, config: RAMNetConfig) -> tuple[Any, AddressContext]:
    """Address logits, divided by the temperature.

    ``x``: (B, T, D); ``side``: "w" for writes, "r" for reads; ``params``: of the RAM layer, where ``{side}_proj.bias``
    and ``{side}_scale`` may be missing. Returns logits (B, T, H, U, P) and ctx.
    """
    xp = namespace_of(x)
    digits = (config.heads, config.order, config.radix)
    # 1. exp(a) / tau, once per row of the weight
    factor = 1 / config.tau
    if config.address_scale:
        factor = xp.repeat(xp.exp(params[f"{side}_scale"]).ravel() / config.tau, config.radix)
    # 2. scale the weights
    weight = params[f"{side}_proj.weight"] * _columns(factor)
    bias = params[f"{side}_proj.bias"] * factor if config.address_bias else None
    # 3. one linear map
    logits, ctx = linear_forward(x, weight, bias)
    return logits.reshape(*x.shape[:-1], *digits), AddressContext(ctx, bias, factor, digits)


def address_backward(dlogits: Any, ctx: AddressContext, side: str) -> tuple[Any, Params]:
    """Gradient of x, (B, T, D), and of the layer's parameters of that side by their names."""
    # 3. logits = x W^T + b
    dx, dweight, dbias = linear_backward(dlogits.reshape(*dlogits.shape[:-3], -1), ctx.linear)
    grads = {}
    # 1. W = exp(a) W' / tau, so dW / da = W; likewise b
    if not isinstance(ctx.factor, float):
        drows = namespace_of(dx).einsum("nd,nd->n", dweight, ctx.linear.weight)
        if dbias is not None:
            drows += dbias * ctx.bias
        grads[f"{side}_scale"] = drows.reshape(ctx.digits).sum(axis=-1)
    # 2. dW = factor * dW'
    grads[f"{side}_proj.weight"] = dweight * _columns(ctx.factor)
    if dbias is not None:
        grads[f"{side}_proj.bias"] = dbias * ctx.factor
    return dx, grads


def _columns(factor: Any) -> Any:
    return factor if isinstance(factor, float) else factor[:, None]
