"""The feed-forward network that a model is configured with: SwiGLU, or two linear maps and an activation between."""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.layers.mlp import MLPContext, SwiGLUContext, mlp_backward, mlp_forward, swiglu_backward, swiglu_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, Shape, constant, normal

FFNContext = SwiGLUContext | MLPContext


def ffn_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the feed-forward network.

    >>> list(ffn_parameters(RAMNetConfig(ffn="gelu")))
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    D, F = config.width, config.inner_width
    shapes: dict[str, Shape]
    if config.ffn == "swiglu":
        shapes = {"gate_proj.weight": (F, D), "up_proj.weight": (F, D), "down_proj.weight": (D, F)}
    else:
        shapes = {"0.weight": (F, D), "0.bias": (F,), "2.weight": (D, F), "2.bias": (D,)}
    weight, bias = normal(config.init_std), constant(0)
    return {n: Parameter(shape, "feed-forward", bias if len(shape) == 1 else weight) for n, shape in shapes.items()}


def ffn_forward(x: Array, params: Params, config: RAMNetConfig) -> tuple[Array, FFNContext]:
    """The feed-forward network that the model is configured with.

    ``x``: (..., D). Returns y of that shape and ctx.

    >>> import numpy as np
    >>> config = RAMNetConfig(width=2, ffn="gelu", ffn_width=3)
    >>> params = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3), "2.weight": np.ones((2, 3))}
    >>> params["2.bias"] = np.zeros(2)
    >>> y, ctx = ffn_forward(np.ones((1, 2)), params, config)
    >>> y.round(3).tolist()
    [[5.863, 5.863]]
    """
    if config.ffn == "swiglu":
        return swiglu_forward(x, *(params[f"{name}_proj.weight"] for name in ("gate", "up", "down")))
    return mlp_forward(
        x, params["0.weight"], params["2.weight"], config.ffn, up_bias=params["0.bias"], down_bias=params["2.bias"]
    )


def ffn_backward(dy: Array, ctx: FFNContext) -> tuple[Array, Params]:
    """Gradient of x and of the network's parameters by their names.

    ``dy``: (..., D).

    >>> import numpy as np
    >>> config = RAMNetConfig(width=2, ffn="gelu", ffn_width=3)
    >>> params = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3), "2.weight": np.ones((2, 3))}
    >>> params["2.bias"] = np.zeros(2)
    >>> y, ctx = ffn_forward(np.ones((1, 2)), params, config)
    >>> dx, grads = ffn_backward(np.ones_like(y), ctx)
    >>> dx.shape, list(grads)
    ((1, 2), ['0.weight', '0.bias', '2.weight', '2.bias'])
    """
    if isinstance(ctx, SwiGLUContext):
        dx, dgate, dup, ddown = swiglu_backward(dy, ctx)
        return dx, {"gate_proj.weight": dgate, "up_proj.weight": dup, "down_proj.weight": ddown}
    dx, dup, ddown, dup_bias, ddown_bias = mlp_backward(dy, ctx)
    return dx, {"0.weight": dup, "0.bias": dup_bias, "2.weight": ddown, "2.bias": ddown_bias}
