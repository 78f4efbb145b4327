"""The normalisation that a model is configured with: RMSNorm or LayerNorm, before every layer and at the end."""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.layers.norm import (
    LayerNormContext,
    RMSNormContext,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant

NormContext = RMSNormContext | LayerNormContext


def norm_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of one norm.

    >>> list(norm_parameters(RAMNetConfig(norm="layernorm")))
    ['weight', 'bias']
    """
    parameters = {"weight": Parameter((config.width,), "norms", constant(1))}
    if config.norm == "layernorm":
        parameters["bias"] = Parameter((config.width,), "norms", constant(0))
    return parameters


def norm_forward(x: Array, params: Params, config: RAMNetConfig) -> tuple[Array, NormContext]:
    """The normalisation that the model is configured with.

    ``x``: (..., D). Returns y of that shape and ctx.

    >>> import numpy as np
    >>> y, ctx = norm_forward(np.array([[3.0, 4.0]]), {"weight": np.ones(2)}, RAMNetConfig())
    >>> y.round(3).tolist()
    [[0.849, 1.131]]
    """
    if config.norm == "layernorm":
        return layernorm_forward(x, params["weight"], params["bias"], config.norm_eps)
    return rmsnorm_forward(x, params["weight"], config.norm_eps)


def norm_backward(dy: Array, ctx: NormContext, add: Array | None = None) -> tuple[Array, Params]:
    """Gradient of x and of the norm's parameters by their names.

    ``dy``: (..., D); ``add``: the gradient of x from elsewhere, which is added.

    >>> import numpy as np
    >>> y, ctx = norm_forward(np.array([[3.0, 4.0]]), {"weight": np.ones(2)}, RAMNetConfig())
    >>> dx, grads = norm_backward(np.ones_like(y), ctx)
    >>> dx.shape, list(grads)
    ((1, 2), ['weight'])
    """
    if isinstance(ctx, LayerNormContext):
        dx, dweight, dbias = layernorm_backward(dy, ctx, add)
        return dx, {"weight": dweight, "bias": dbias}
    dx, dweight = rmsnorm_backward(dy, ctx, add)
    return dx, {"weight": dweight}
