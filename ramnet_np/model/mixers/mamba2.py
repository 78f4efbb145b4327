"""The memory of Mamba-2 as a mixer: gated linear attention whose state decays at one rate a head, which the token sets.

    q, k, v = x Q^T, x K^T, x V^T                          key_value.py; Mamba-2 calls them C, B and x
    q, k    = phi(q), phi(k)                               phi: SiLU, or ``feature_map``
    a, step = exp(-exp(A) step), softplus(linear(x))       decay.py
    y       = gated_linear_attention(q, k, step v, a)      layers/gated_linear_attention.py
    out     = the way out                                  output.py; the source's has ``output_norm`` and a SiLU gate

State: one matrix, d_k C elements a head, all touched by every token.
Source: Dao and Gu, arXiv 2405.21060, section 7. A block of Mamba-2 differs in this: its heads share q and k; v passes
SiLU, too, and a learned share of it is added to y; the norm comes after the gate and spans the heads.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.layers.gated_linear_attention import (
    GatedLinearAttentionContext,
    gated_linear_attention_backward,
    gated_linear_attention_forward,
)
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.decay import DecayContext, decay_backward, decay_forward, decay_parameters
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


class Mamba2LayerContext(NamedTuple):
    """What ``mamba2_layer_backward`` needs."""

    projections: ProjectionContext
    features: FeaturesContext
    decay: DecayContext
    step: Array  # (B, T, H, 1), of which the written values are a product
    v: Array  # (B, T, H, C)
    attention: GatedLinearAttentionContext
    out: OutputContext


def mamba2_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: Array | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, Array | None, Mamba2LayerContext | None]:
    """Takes and returns what :class:`~ramnet_np.model.mixers.interface.Forward` says; state: (B, H, d_k, C).

    ValueError or TypeError as of gated linear attention and of the linear maps.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="mamba2")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, state, ctx = mamba2_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    # 1. projections
    q, k, v, projections = project_forward(x, params, config)
    # 2. features of q and k
    q, k, features_ctx = features_forward(q, k, config, own="silu")
    # 3. how much to keep, how much to write
    log_decay, step, decay_ctx = decay_forward(x, params)
    log_decay, step = log_decay[..., None], step[..., None]
    # 4. memory
    y, state, attention = gated_linear_attention_forward(q, k, step * v, log_decay, state)
    # 5. out
    out, out_ctx = output_forward(y, x, params, config)
    if options.in_place:
        return out, state, None
    ctx = Mamba2LayerContext(projections, features_ctx, decay_ctx, step, v, attention, out_ctx)
    return out, state if options.return_state else None, ctx


def mamba2_layer_backward(dout: Array, ctx: Mamba2LayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="mamba2")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, _, ctx = mamba2_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = mamba2_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 5. out
    dy, dx, grads = output_backward(dout, ctx.out)
    # 4. memory
    d = gated_linear_attention_backward(dy, ctx.attention)
    # 3. decay and step add their gradient of x
    dv, dstep = d.v * ctx.step, (d.v * ctx.v).sum(axis=-1)
    dx, ddecay = decay_backward(d.log_decay[..., 0], ctx.decay, accumulate_into=dx, dstep=dstep)
    # 2. features
    dq, dk = features_backward(d.q, d.k, ctx.features)
    # 1. projections add theirs
    dx, dprojections = project_backward(dq, dk, dv, ctx.projections, accumulate_into=dx)
    return dx, grads | ddecay | dprojections


def _parameters(config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    return key_value_parameters(config) | decay_parameters(config) | output_parameters(config)


MIXER = Mixer(
    name="mamba2",
    variants=(Variant("mamba2", "Mamba2"),),
    parameters=_parameters,
    forward=mamba2_layer_forward,
    backward=mamba2_layer_backward,
    state_size=matrices_size,
    initial_state=empty_matrices,
)
