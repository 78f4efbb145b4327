"""The two feed-forward networks: gated (SwiGLU) and plain (two matrices around an activation)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import readable, require_context
from ramnet_np.layers.activation import ACTIVATIONS, Activation
from ramnet_np.layers.gate import GateContext, gate_backward, gate_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward


@readable
class SwiGLUContext(NamedTuple):
    """What ``swiglu_backward`` needs."""

    gate: LinearContext
    up: LinearContext
    down: LinearContext
    product: GateContext  # of gate(x) and up(x), (..., F)


class SwiGLUGrads(NamedTuple):
    """One gradient per input."""

    x: Array
    gate: Array
    up: Array
    down: Array


@readable
class MLPContext(NamedTuple):
    """What ``mlp_backward`` needs."""

    up: LinearContext
    down: LinearContext
    activation: Activation
    activated: Any  # what the activation kept


class MLPGrads(NamedTuple):
    """One gradient per input; a bias that was None has None."""

    x: Array
    up: Array
    down: Array
    up_bias: Array
    down_bias: Array


@on_gpu_of_arrays
def swiglu_forward(x: Array, gate: Array, up: Array, down: Array) -> tuple[Array, SwiGLUContext]:
    """The gated network, without biases.

        y = (silu(x G^T) * x U^T) D^T

    ``x``: (..., W); ``gate`` G, ``up`` U: (F, W); ``down`` D: (W, F). Returns y (..., W) and ctx.
    Cost: three matrix products, 6 N W F operations; keeps four arrays (N, F).
    Source: Shazeer, arXiv 2002.05202.

    >>> import numpy as np
    >>> y, ctx = swiglu_forward(np.ones((1, 2)), np.ones((3, 2)), np.ones((3, 2)), np.ones((2, 3)))
    >>> y.round(3).tolist()
    [[10.57, 10.57]]
    """
    g, gate_ctx = linear_forward(x, gate)
    raised, up_ctx = linear_forward(x, up)
    h, product_ctx = gate_forward(g, raised, silu=True)
    y, down_ctx = linear_forward(h, down)
    return y, SwiGLUContext(gate_ctx, up_ctx, down_ctx, product_ctx)


@on_gpu_of_arrays
def swiglu_backward(dy: Array, ctx: SwiGLUContext) -> SwiGLUGrads:
    """Gradients of x and the three matrices; twice the forward's cost.

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = swiglu_forward(np.ones((1, 2)), np.ones((3, 2)), np.ones((3, 2)), np.ones((2, 3)))
    >>> [d.shape for d in swiglu_backward(np.ones((1, 2)), ctx)]
    [(1, 2), (3, 2), (3, 2), (2, 3)]
    """
    require_context(ctx, SwiGLUContext, "swiglu_forward")
    dh, ddown, _ = linear_backward(dy, ctx.down)
    dg, draised = gate_backward(dh, ctx.product)
    dx, dup, _ = linear_backward(draised, ctx.up)
    dx, dgate, _ = linear_backward(dg, ctx.gate, accumulate_into=dx)
    return SwiGLUGrads(dx, dgate, dup, ddown)


@on_gpu_of_arrays
def mlp_forward(
    x: Array,
    up: Array,
    down: Array,
    activation: str = "gelu",
    up_bias: Array | None = None,
    down_bias: Array | None = None,
) -> tuple[Array, MLPContext]:
    """The plain network.

        y = act(x U^T + b) D^T + c

    ``x``: (..., W); ``up`` U: (F, W); ``down`` D: (W, F); ``up_bias`` b: (F,), ``down_bias`` c: (W,), or None;
    ``activation``: a name in ``ACTIVATIONS``. Returns y (..., W) and ctx. Two matrix products, 4 N W F operations.

    >>> import numpy as np
    >>> y, ctx = mlp_forward(np.ones((1, 2)), np.ones((3, 2)), np.ones((2, 3)), "relu")
    >>> y.tolist()
    [[6.0, 6.0]]
    """
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}")
    act = ACTIVATIONS[activation]
    h, up_ctx = linear_forward(x, up, up_bias)
    h, act_ctx = act.forward(at_least_float32(h))
    y, down_ctx = linear_forward(h.astype(x.dtype, copy=False), down, down_bias)
    return y, MLPContext(up_ctx, down_ctx, act, act_ctx)


@on_gpu_of_arrays
def mlp_backward(dy: Array, ctx: MLPContext) -> MLPGrads:
    """Gradients of x, the matrices and the biases; twice the forward's cost.

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = mlp_forward(np.ones((1, 2)), np.ones((3, 2)), np.ones((2, 3)), "relu")
    >>> [None if d is None else d.shape for d in mlp_backward(np.ones((1, 2)), ctx)]
    [(1, 2), (3, 2), (2, 3), None, None]
    """
    require_context(ctx, MLPContext, "mlp_forward")
    dh, ddown, ddown_bias = linear_backward(dy, ctx.down)
    dh = ctx.activation.backward(at_least_float32(dh), ctx.activated).astype(dy.dtype, copy=False)
    dx, dup, dup_bias = linear_backward(dh, ctx.up)
    return MLPGrads(dx, dup, ddown, dup_bias, ddown_bias)
