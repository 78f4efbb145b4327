"""The decay of GLA: how much of each key channel's row of the state a token keeps, a number between 0 and 1.

    a = sigmoid(x W_0^T W_1^T + b)^(1/16),   so   log a = -softplus(-(x W_0^T W_1^T + b)) / 16

W_0 has 16 rows: a map of low rank needs few parameters. The root brings a near 1: from b = 0, where training starts, a
row keeps 0.96 of itself with every token. Source: Yang et al., arXiv 2312.06635, section 4.4.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.core.require import ArraySpec, require_like
from ramnet_np.layers.activation import sigmoid_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant, normal

RANK = 16
ROOT = 16


class ChannelDecayContext(NamedTuple):
    """What ``channel_decay_backward`` needs."""

    down: LinearContext
    up: LinearContext
    slope: Array  # (B, T, H d_k): d log a / d logit


def channel_decay_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the decay.

    >>> [(n, p.shape) for n, p in channel_decay_parameters(RAMNetConfig(width=8, heads=2, key_channels=3)).items()]
    [('a_proj.0.weight', (16, 8)), ('a_proj.1.weight', (6, 16)), ('a_proj.1.bias', (6,))]
    """
    keys, drawn = config.heads * config.head_key_channels, normal(config.init_std)
    return {
        "a_proj.0.weight": Parameter((RANK, config.width), "gates", drawn),
        "a_proj.1.weight": Parameter((keys, RANK), "gates", drawn),
        "a_proj.1.bias": Parameter((keys,), "gates", constant(0)),
    }


def channel_decay_forward(x: Array, params: Params) -> tuple[Array, ChannelDecayContext]:
    """log a (B, T, H d_k) of every token and key channel, and ctx.

    ``x``: (B, T, D); ``params``: a_proj.0.weight (16, D), a_proj.1.weight (H d_k, 16), a_proj.1.bias (H d_k,).
    ValueError or TypeError as of the linear maps.

    >>> import numpy as np
    >>> params = {"a_proj.0.weight": np.zeros((16, 2)), "a_proj.1.weight": np.zeros((3, 16))}
    >>> log_decay, ctx = channel_decay_forward(np.ones((1, 1, 2)), params | {"a_proj.1.bias": np.zeros(3)})
    >>> np.exp(log_decay).round(4).tolist()  # the 16th root of 1/2
    [[[0.9576, 0.9576, 0.9576]]]
    """
    xp = namespace_of(x)
    # 1. logit
    low, down_ctx = linear_forward(x, params["a_proj.0.weight"])
    logit, up_ctx = linear_forward(low, params["a_proj.1.weight"], params["a_proj.1.bias"])
    logit = at_least_float32(logit)
    # 2. log a = -softplus(-logit) / 16
    xp.negative(logit, out=logit)
    slope, _ = sigmoid_forward(logit)
    slope /= ROOT
    log_decay = xp.logaddexp(logit, logit.dtype.type(0))
    log_decay /= -ROOT
    return log_decay, ChannelDecayContext(down_ctx, up_ctx, slope)


def channel_decay_backward(
    dlog_decay: Array, ctx: ChannelDecayContext, accumulate_into: Array | None = None
) -> tuple[Array, Params]:
    """Gradient of x, added to ``accumulate_into`` if given, and of the parameters by their names.

    ``dlog_decay``: (B, T, H d_k).

        dlogit = dlog_a sigmoid(-logit) / 16

    ValueError unless ``dlog_decay`` has the shape and dtype of log a.

    >>> import numpy as np
    >>> params = {"a_proj.0.weight": np.zeros((16, 2)), "a_proj.1.weight": np.zeros((3, 16))}
    >>> log_decay, ctx = channel_decay_forward(np.ones((1, 1, 2)), params | {"a_proj.1.bias": np.zeros(3)})
    >>> dx, grads = channel_decay_backward(32 * np.ones_like(log_decay), ctx)
    >>> grads["a_proj.1.bias"].tolist()
    [1.0, 1.0, 1.0]
    """
    require_like("dlog_decay", dlog_decay, ArraySpec.of(ctx.slope))
    # 2. log a = -softplus(-logit) / 16
    dlogit = dlog_decay * ctx.slope
    # 1. logit
    dlogit = dlogit.astype(ctx.up.y.dtype, copy=False)
    dlow, dup, dbias = linear_backward(dlogit, ctx.up)
    dx, ddown, _ = linear_backward(dlow, ctx.down, accumulate_into=accumulate_into)
    return dx, {"a_proj.0.weight": ddown, "a_proj.1.weight": dup, "a_proj.1.bias": dbias}
