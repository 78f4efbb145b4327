"""Linear attention as a mixer.

    q, k, v = x Q^T, x K^T, x V^T            key_value.py
    y       = linear_attention(q, k, v)      layers/linear_attention.py, with ``feature_map``, or else elu
    out     = the way out                    output.py

State: the sum of outer products and the normaliser, d_k (C + 1) elements a head, all touched by every token. Without
the normaliser, d_k C.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.layers.linear_attention import (
    LinearAttentionContext,
    linear_attention_backward,
    linear_attention_forward,
    require_normaliser,
)
from ramnet_np.model.checks import check_flag
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers.interface import CallOptions, Mixer, StateSize, Variant
from ramnet_np.model.mixers.key_value import ProjectionContext, key_value_parameters, project_backward, project_forward
from ramnet_np.model.output import OutputContext, output_backward, output_forward, output_parameters
from ramnet_np.model.parameters import Parameter, Params


class LinearLayerContext(NamedTuple):
    """What ``linear_layer_backward`` needs."""

    projections: ProjectionContext
    attention: LinearAttentionContext
    out: OutputContext


def linear_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: Array | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, Array | None, LinearLayerContext | None]:
    """Takes and returns what :class:`~ramnet_np.model.mixers.interface.Forward` says; state: (B, H, d_k, C + 1), or
    (B, H, d_k, C) without a normaliser.

    ValueError or TypeError as of linear attention and of the linear maps.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="linear")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, state, ctx = linear_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    # 1. projections
    q, k, v, projections = project_forward(x, params, config)
    # 2. memory
    y, state, attention = linear_attention_forward(
        q, k, v, state, feature_map=config.feature_map or "elu", normaliser=config.normaliser
    )
    # 3. out
    out, out_ctx = output_forward(y, x, params, config)
    if options.in_place:
        return out, state, None
    return out, state if options.return_state else None, LinearLayerContext(projections, attention, out_ctx)


def linear_layer_backward(dout: Array, ctx: LinearLayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="linear")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, _, ctx = linear_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = linear_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 3. out
    dy, dx, dout_params = output_backward(dout, ctx.out)
    # 2. memory
    dq, dk, dv = linear_attention_backward(dy, ctx.attention)
    # 1. projections add their gradient of x
    dx, dprojections = project_backward(dq, dk, dv, ctx.projections, accumulate_into=dx)
    return dx, dout_params | dprojections


def _parameters(config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    return key_value_parameters(config) | output_parameters(config)


def _initial_state(config: RAMNetConfig, x: Array) -> Array:
    shape = (x.shape[0], config.heads, config.head_key_channels, config.head_channels + config.normaliser)
    return namespace_of(x).zeros(shape, dtype=np.promote_types(x.dtype, np.float32))


def _state_size(config: RAMNetConfig, context: int) -> StateSize:
    size = config.heads * config.head_key_channels * (config.head_channels + config.normaliser)
    return StateSize(size, size)


def _check(config: RAMNetConfig) -> None:
    check_flag("normaliser", config.normaliser)
    if config.mixer == MIXER.name:
        require_normaliser(config.feature_map or "elu", config.normaliser)


MIXER = Mixer(
    name="linear",
    variants=(Variant("linear", "linear attention"),),
    parameters=_parameters,
    forward=linear_layer_forward,
    backward=linear_layer_backward,
    state_size=_state_size,
    check=_check,
    initial_state=_initial_state,
)
