"""Gated linear attention as a mixer: GLA. Every key channel decays at a rate that the token sets.

    q, k, v = x Q^T, x K^T, x V^T                     key_value.py
    q, k    = phi(q), phi(k)                          phi: nothing, or ``feature_map``
    a       = sigmoid(low-rank linear(x))^(1/16)      channel_decay.py
    y       = gated_linear_attention(q, k, v, a)      layers/gated_linear_attention.py
    out     = the way out                             output.py; the source's has ``output_norm`` and a SiLU gate

State: one matrix, d_k C elements a head, all touched by every token.
Source: Yang et al., arXiv 2312.06635, section 4.4, which also divides y by sqrt(d_k).
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.layers.gated_linear_attention import (
    GatedLinearAttentionContext,
    gated_linear_attention_backward,
    gated_linear_attention_forward,
)
from ramnet_np.model.channel_decay import (
    ChannelDecayContext,
    channel_decay_backward,
    channel_decay_forward,
    channel_decay_parameters,
)
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers.interface import CallOptions, Mixer, Variant
from ramnet_np.model.mixers.key_value import (
    FeaturesContext,
    ProjectionContext,
    empty_matrices,
    features_backward,
    features_forward,
    key_value_parameters,
    matrices_size,
    project_backward,
    project_forward,
)
from ramnet_np.model.output import OutputContext, output_backward, output_forward, output_parameters
from ramnet_np.model.parameters import Parameter, Params


class GLALayerContext(NamedTuple):
    """What ``gla_layer_backward`` needs."""

    projections: ProjectionContext
    features: FeaturesContext
    decay: ChannelDecayContext
    attention: GatedLinearAttentionContext
    out: OutputContext


def gla_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: Array | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, Array | None, GLALayerContext | None]:
    """Takes and returns what :class:`~ramnet_np.model.mixers.interface.Forward` says; state: (B, H, d_k, C).

    ValueError or TypeError as of gated linear attention and of the linear maps.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="gla")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, state, ctx = gla_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    # 1. projections
    q, k, v, projections = project_forward(x, params, config)
    # 2. features of q and k
    q, k, features_ctx = features_forward(q, k, config, own="identity")
    # 3. how much to keep
    log_decay, decay_ctx = channel_decay_forward(x, params)
    # 4. memory
    y, state, attention = gated_linear_attention_forward(q, k, v, log_decay.reshape(k.shape), state)
    # 5. out
    out, out_ctx = output_forward(y, x, params, config)
    if options.in_place:
        return out, state, None
    ctx = GLALayerContext(projections, features_ctx, decay_ctx, attention, out_ctx)
    return out, state if options.return_state else None, ctx


def gla_layer_backward(dout: Array, ctx: GLALayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="gla")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, _, ctx = gla_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = gla_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 5. out
    dy, dx, grads = output_backward(dout, ctx.out)
    # 4. memory
    d = gated_linear_attention_backward(dy, ctx.attention)
    # 3. the decay adds its gradient of x
    dx, ddecay = channel_decay_backward(d.log_decay.reshape(ctx.decay.slope.shape), ctx.decay, accumulate_into=dx)
    # 2. features
    dq, dk = features_backward(d.q, d.k, ctx.features)
    # 1. projections add theirs
    dx, dprojections = project_backward(dq, dk, d.v, ctx.projections, accumulate_into=dx)
    return dx, grads | ddecay | dprojections


def _parameters(config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    return key_value_parameters(config) | channel_decay_parameters(config) | output_parameters(config)


MIXER = Mixer(
    name="gla",
    variants=(Variant("gla", "GLA"),),
    parameters=_parameters,
    forward=gla_layer_forward,
    backward=gla_layer_backward,
    state_size=matrices_size,
    initial_state=empty_matrices,
)
