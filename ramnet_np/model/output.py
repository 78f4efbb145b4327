"""The way out of a layer, whatever it remembers with.

    y   = RMSNorm of each head's y                          if ``output_norm``
    y   = act(x G^T + g) * y, heads side by side            if ``output_gate``; act: sigmoid or SiLU
    out = y O^T

Source: paper fig. 2; norm and sigmoid are of the authors' later package. With SiLU it is the way out of GLA
(arXiv 2312.06635, section 4.4) and of Gated DeltaNet (arXiv 2412.06464).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.bfloat16 import is_bfloat16
from ramnet_np.core.require import ArraySpec
from ramnet_np.layers.few_rows import product_added
from ramnet_np.layers.gate import GateContext, gate_backward, gate_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.layers.norm import RMSNormContext, rmsnorm_backward, rmsnorm_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant, normal

# The authors' norm of y uses the smallest number that changes 1 in float32; the same here in every dtype, so that
# float32 and float64 compute the same function.
OUTPUT_NORM_EPS = float(np.finfo(np.float32).eps)
GATE_BIAS = {"sigmoid": 3.0, "silu": 0.0}  # sigmoid(3) = 0.95: that gate starts open


class OutputContext(NamedTuple):
    """What ``output_backward`` needs. Parts that the layer does not have are None."""

    norm: RMSNormContext | None
    gate_map: LinearContext | None
    gate: GateContext | None
    out: LinearContext
    y: ArraySpec  # (B, T, H, C), as the memory gave it: of float32 in 16-bit models where it sums over tokens


def value_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the map into the values, which each mixer calls, and of the map out of the layer.

    >>> list(value_parameters(RAMNetConfig(value_bias=True)))
    ['v_proj.weight', 'o_proj.weight', 'v_proj.bias', 'o_proj.bias']
    """
    D, values, drawn = config.width, config.heads * config.head_channels, normal(config.init_std)
    parameters = {
        "v_proj.weight": Parameter((values, D), "values", drawn),
        "o_proj.weight": Parameter((D, values), "output", drawn),
    }
    if config.value_bias:
        parameters["v_proj.bias"] = Parameter((values,), "values", constant(0))
        parameters["o_proj.bias"] = Parameter((D,), "output", constant(0))
    return parameters


def output_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of the norm and of the gate, where the layer has them.

    >>> list(output_parameters(RAMNetConfig(output_gate=True)))
    ['o_gate.0.weight', 'o_gate.0.bias']
    """
    values = config.heads * config.head_channels
    parameters = {}
    if config.output_norm:
        parameters["o_norm.weight"] = Parameter((config.head_channels,), "output", constant(1))
    if config.output_gate:
        parameters["o_gate.0.weight"] = Parameter((values, config.width), "output", normal(config.init_std))
        parameters["o_gate.0.bias"] = Parameter((values,), "output", constant(GATE_BIAS[config.gate_activation]))
    return parameters


def output_forward(y: Array, x: Array | None, params: Params, config: RAMNetConfig) -> tuple[Array, OutputContext]:
    """From what each head recalled to what the layer adds to the stream.

    ``y``: (B, T, H, C); ``x``: (B, T, D), the layer's input, which opens the gate. Returns out (B, T, D) and ctx.

    >>> out, ctx = output_forward(np.ones((1, 3, 2, 4)), None, {"o_proj.weight": np.ones((8, 8))}, RAMNetConfig())
    >>> out.shape
    (1, 3, 8)
    """
    recalled = ArraySpec.of(y)
    weight = params["o_proj.weight"]
    y = y.astype(y.dtype if is_bfloat16(weight) else weight.dtype, copy=False)
    # 1. norm per head
    norm_ctx = gate_map_ctx = gate_ctx = None
    if config.output_norm:
        y, norm_ctx = rmsnorm_forward(y, params["o_norm.weight"], OUTPUT_NORM_EPS)
    # 2. gate
    y = y.reshape(*y.shape[:2], -1)
    if config.output_gate:
        logit, gate_map_ctx = linear_forward(x, params["o_gate.0.weight"], params["o_gate.0.bias"])
        y, gate_ctx = gate_forward(logit, y, silu=config.gate_activation == "silu")
    # 3. out
    out, out_ctx = linear_forward(y, weight, params.get("o_proj.bias"))
    return out, OutputContext(norm_ctx, gate_map_ctx, gate_ctx, out_ctx, recalled)


def output_step(y: Array, logit: Array | None, params: Params, config: RAMNetConfig, stream: Array) -> Array:
    """:func:`output_forward` of one token, added to the stream: out (B, D).

    ``y``: (B, 1, H, C); ``logit``: (B, H C), the gate's map of the layer's input, where there is a gate; ``stream``:
    (B, D).

    >>> params = {"o_proj.weight": np.ones((8, 8))}
    >>> output_step(np.ones((1, 1, 2, 4)), None, params, RAMNetConfig(), np.ones((1, 8))).tolist()
    [[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]]
    """
    y = y.astype(stream.dtype, copy=False)
    if config.output_norm:
        y, _ = rmsnorm_forward(y, params["o_norm.weight"], OUTPUT_NORM_EPS)
    y = y.reshape(len(y), -1)
    if logit is not None:
        y, _ = gate_forward(logit, y, silu=config.gate_activation == "silu")
    return product_added(y, params["o_proj.weight"], params.get("o_proj.bias"), stream)


def output_backward(dout: Array, ctx: OutputContext) -> tuple[Array, Array | None, Params]:
    """Gradient of y, (B, T, H, C), of x, (B, T, D) or None without a gate, and of the parameters by their names.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> out, ctx = output_forward(np.ones((1, 3, 2, 4)), None, {"o_proj.weight": np.ones((8, 8))}, RAMNetConfig())
    >>> dy, dx, grads = output_backward(np.ones_like(out), ctx)
    >>> dy.shape, dx, list(grads)
    ((1, 3, 2, 4), None, ['o_proj.weight'])
    """
    grads: Params = {}
    dx = None
    # 3. out = y O^T
    dy, grads["o_proj.weight"], dbias = linear_backward(dout, ctx.out)
    if dbias is not None:
        grads["o_proj.bias"] = dbias
    # 2. y = act(logit) * y
    if ctx.gate is not None and ctx.gate_map is not None:
        dlogit, dy = gate_backward(dy, ctx.gate)
        dx, grads["o_gate.0.weight"], grads["o_gate.0.bias"] = linear_backward(dlogit, ctx.gate_map)
    dy = dy.reshape(ctx.y.shape)
    # 1. norm per head
    if ctx.norm is not None:
        dy, grads["o_norm.weight"] = rmsnorm_backward(dy, ctx.norm)
    return dy.astype(ctx.y.dtype, copy=False), dx, grads
