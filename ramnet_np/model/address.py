"""Address projections: from the residual stream to the address logits of every head and digit.

    W = exp(a) W',  b = exp(a) b'        a: one scale per head and digit
    logits = (x W^T + b) / tau

The scale lets training sharpen or flatten a digit's choice by moving one number, where without it a whole matrix would
have to grow. It and tau multiply the weights, not the logits: there are far fewer of them.
Source: paper section 4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.layers.scale import ScaleContext, scale_backward, scale_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant, normal

PRIOR = 1.5  # range of the initial bias of the last digit


class AddressContext(NamedTuple):
    """What ``address_backward`` needs."""

    linear: LinearContext  # its weight is exp(a) W' / tau
    scale: ScaleContext | None  # None without scales
    tau: float


def address_parameters(side: str, config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    """The parameters of one side, "w" or "r", of layer number ``layer``.

    The biases of the heads that ``config.address_prior`` names start at :func:`address_prior`, all others at 0.
    Source: the authors' package ramnet.

    >>> parameters = address_parameters("w", RAMNetConfig(width=8, heads=2, order=3, radix=4), layer=0)
    >>> [(name, parameter.shape) for name, parameter in parameters.items()]
    [('w_proj.weight', (24, 8)), ('w_proj.bias', (24,)), ('w_scale', (2, 3))]
    """
    H, U, P = config.heads, config.order, config.radix
    parameters = {f"{side}_proj.weight": Parameter((H * U * P, config.width), "addresses", normal(config.init_std))}
    if config.address_bias:
        parameters[f"{side}_proj.bias"] = Parameter((H * U * P,), "addresses", lambda *_: _priors(config, layer))
    if config.address_scale:
        parameters[f"{side}_scale"] = Parameter((H, U), "addresses", constant(0))
    return parameters


def address_prior(config: RAMNetConfig) -> np.ndarray:
    """The initial address bias (U, P): digit u prefers large values, the more so the more significant it is.

    linspace(0, 1.5, U)[:, None] * linspace(-1, 1, P)
    Source: the authors' package ramnet.

    >>> address_prior(RAMNetConfig(order=3, radix=3)).tolist()
    [[-0.0, 0.0, 0.0], [-0.75, 0.0, 0.75], [-1.5, 0.0, 1.5]]
    """
    strength = np.linspace(0, PRIOR, config.order, dtype=np.float32)
    return strength[:, None] * np.linspace(-1, 1, config.radix, dtype=np.float32)


def _priors(config: RAMNetConfig, layer: int) -> np.ndarray:
    """Those of all heads, (H * U * P,)."""
    prior = np.zeros((config.heads, config.order, config.radix), dtype=np.float32)
    prior[: config.heads if config.address_prior == "all" else config.cape_heads(layer)] = address_prior(config)
    return prior.ravel()


def settled_addresses(params: Params, config: RAMNetConfig) -> tuple[Params, RAMNetConfig]:
    """The same layer with exp(a) / tau inside its address projections: for many calls with the same parameters.

    ``params``: of the RAM layer. Returns parameters and a configuration without scales, of temperature 1, whose
    :func:`address_forward` gives the same bits.

    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=4, radix=4)
    >>> params = init_parameters(address_parameters("w", config, 0) | address_parameters("r", config, 0), 0, np.float64)
    >>> settled, without = settled_addresses(params, config)
    >>> x = np.ones((1, 5, 8))
    >>> bool((address_forward(x, settled, "w", without)[0] == address_forward(x, params, "w", config)[0]).all())
    True
    """
    settled = {name: p for name, p in params.items() if name not in ("r_scale", "w_scale")}
    for side in "rw":
        weight, bias, _ = address_map(params, side, config)
        settled[f"{side}_proj.weight"] = weight
        if bias is not None:
            settled[f"{side}_proj.bias"] = bias
    return settled, replace(config, address_scale=False, temperature=1.0)


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
    digits = (config.heads, config.order, config.radix)
    # 1. exp(a) / tau, times the weights
    weight, bias, scale_ctx = address_map(params, side, config)
    # 2. one linear map
    logits, ctx = linear_forward(x, weight, bias)
    return logits.reshape(*x.shape[:-1], *digits), AddressContext(ctx, scale_ctx, config.tau)


def address_map(params: Params, side: str, config: RAMNetConfig) -> tuple[Array, Array | None, ScaleContext | None]:
    """Weight and bias of one side's projection, times exp(a) / tau; and ctx of the scales, None without any.

    >>> weight = np.ones((8, 2))
    >>> scaled, bias, ctx = address_map({"w_proj.weight": weight}, "w", RAMNetConfig(temperature=0.5))
    >>> float(scaled[0, 0]), bias, ctx
    (2.0, None, None)
    """
    weight, bias, scale = params[f"{side}_proj.weight"], params.get(f"{side}_proj.bias"), params.get(f"{side}_scale")
    if scale is not None:
        return scale_forward(weight, bias, scale, config.tau)
    if config.tau != 1:
        weight = (weight * (1 / config.tau)).astype(weight.dtype, copy=False)
        bias = None if bias is None else (bias * (1 / config.tau)).astype(bias.dtype, copy=False)
    return weight, bias, None


def address_backward(
    dlogits: Array, ctx: AddressContext, side: str, accumulate_into: Array | None = None
) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), added to ``accumulate_into`` if given, and of that side's parameters by their names.

    ``dlogits``: (B, T, H, U, P). Source: the authors' package ramnet.

    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(address_parameters("w", config, 0), seed=0, dtype=np.float64)
    >>> logits, ctx = address_forward(np.ones((1, 5, 8)), params, "w", config)
    >>> dx, grads = address_backward(np.ones_like(logits), ctx, "w")
    >>> dx.shape, sorted(grads)
    ((1, 5, 8), ['w_proj.bias', 'w_proj.weight', 'w_scale'])
    """
    # 2. logits = x W^T + b
    rows = dlogits.reshape(*dlogits.shape[:-3], -1)
    dx, dweight, dbias = linear_backward(rows, ctx.linear, accumulate_into=accumulate_into)
    # 1. the weights, times exp(a) / tau
    grads = {}
    if ctx.scale is None:
        dweight, dbias = dweight * (1 / ctx.tau), None if dbias is None else dbias * (1 / ctx.tau)
    else:
        dweight, dbias, grads[f"{side}_scale"] = scale_backward(dweight, dbias, ctx.scale)
    grads[f"{side}_proj.weight"] = dweight
    if dbias is not None:
        grads[f"{side}_proj.bias"] = dbias
    return dx, grads
