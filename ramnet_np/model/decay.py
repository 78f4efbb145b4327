"""The decay of a head: how much of the state a token keeps, a number between 0 and 1. Gated DeltaNet and Mamba-2.

    step = softplus(x W^T + dt)        log a = -exp(A) step

Mamba-2 also scales what it writes by the step. At first x W^T is near 0 and a head forgets at a rate of its own,
exp(A) softplus(dt): A and dt are drawn per head so that heads keep from one token to a thousand.
Source: Gu and Dao, arXiv 2312.00752, section 3.6, and Dao and Gu, arXiv 2405.21060 (Mamba-2), as Gated DeltaNet (arXiv
2412.06464) takes it over.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.core.require import ArraySpec, require_like
from ramnet_np.layers.activation import sigmoid_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward, sum_over_tokens
from ramnet_np.model.checks import LARGEST
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, Shape, normal

RATES = (1.0, 16.0)  # between which exp(A) starts, drawn evenly,
STEPS = (1e-3, 1e-1)  # and softplus(dt), drawn evenly by its logarithm

_MOST = math.log(LARGEST)  # of A: above it exp(A) would become infinite, and infinity times a gradient of 0 is NaN


class DecayContext(NamedTuple):
    """What ``decay_backward`` needs."""

    linear: LinearContext
    step_slope: Array  # (B, T, H): d step / d logit
    slope: Array  # (B, T, H): d log a / d logit
    log_decay: Array  # (B, T, H)


def decay_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the decay.

    >>> [(name, parameter.shape) for name, parameter in decay_parameters(RAMNetConfig(width=8, heads=2)).items()]
    [('a_proj.weight', (2, 8)), ('dt_bias', (2,)), ('A_log', (2,))]
    """
    H, D = config.heads, config.width
    return {
        "a_proj.weight": Parameter((H, D), "gates", normal(config.init_std)),
        "dt_bias": Parameter((H,), "gates", _initial_step),
        "A_log": Parameter((H,), "gates", _initial_rate),
    }


def decay_forward(x: Array, params: Params) -> tuple[Array, Array, DecayContext]:
    """log a and the step of every token and head, (B, T, H) each, and ctx.

    ``x``: (B, T, D); ``params``: a_proj.weight (H, D), dt_bias (H,), A_log (H,). ValueError or TypeError as of the
    linear map.

    >>> import numpy as np
    >>> params = {"a_proj.weight": np.zeros((1, 2)), "dt_bias": np.zeros(1), "A_log": np.log(np.ones(1))}
    >>> log_decay, step, ctx = decay_forward(np.ones((1, 1, 2)), params)
    >>> np.exp(log_decay).item(), round(step.item(), 3)  # exp(-softplus(0)) = 1/2
    (0.5, 0.693)
    """
    xp = namespace_of(x)
    # 1. logit
    logit, linear_ctx = linear_forward(x, params["a_proj.weight"], params["dt_bias"])
    logit = at_least_float32(logit)
    # 2. step = softplus(logit), 3. log a = -exp(A) step
    step_slope, _ = sigmoid_forward(logit)
    step = xp.logaddexp(logit, logit.dtype.type(0))
    rate = -xp.exp(xp.minimum(at_least_float32(params["A_log"]), _MOST))
    log_decay = step * rate
    return log_decay, step, DecayContext(linear_ctx, step_slope, step_slope * rate, log_decay)


def decay_backward(
    dlog_decay: Array, ctx: DecayContext, accumulate_into: Array | None = None, dstep: Array | None = None
) -> tuple[Array, Params]:
    """Gradient of x, added to ``accumulate_into`` if given, and of the parameters by their names.

    ``dlog_decay``, ``dstep``: (B, T, H); None where the step was not used but for log a.

        dlogit = (dstep - dlog_a exp(A)) sigmoid(logit)        dA = sum over tokens of dlog_a log_a

    ValueError unless ``dlog_decay`` and ``dstep`` have the shape and dtype of log a.

    >>> import numpy as np
    >>> params = {"a_proj.weight": np.zeros((1, 2)), "dt_bias": np.zeros(1), "A_log": np.log(np.ones(1))}
    >>> log_decay, step, ctx = decay_forward(np.ones((1, 1, 2)), params)
    >>> dx, grads = decay_backward(np.ones_like(log_decay), ctx)
    >>> grads["dt_bias"].tolist(), grads["A_log"].round(3).tolist()
    ([-0.5], [-0.693])
    """
    require_like("dlog_decay", dlog_decay, ArraySpec.of(ctx.log_decay))
    # 3. log a = -exp(A) step
    rows = (dlog_decay * ctx.log_decay).reshape(-1, dlog_decay.shape[-1])
    dlogit = dlog_decay * ctx.slope
    # 2. step = softplus(logit)
    if dstep is not None:
        require_like("dstep", dstep, ArraySpec.of(ctx.log_decay))
        dlogit += dstep * ctx.step_slope
    # 1. logit
    dlogit = dlogit.astype(ctx.linear.y.dtype, copy=False)
    dx, dweight, dbias = linear_backward(dlogit, ctx.linear, accumulate_into=accumulate_into)
    return dx, {"a_proj.weight": dweight, "dt_bias": dbias, "A_log": sum_over_tokens(rows)}


def _initial_step(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    low, high = map(math.log, STEPS)
    step = np.exp(rng.uniform(low, high, size=shape))
    return np.log(np.expm1(step))  # softplus^-1


def _initial_rate(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return np.log(rng.uniform(*RATES, size=shape))
