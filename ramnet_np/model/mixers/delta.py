"""The delta rule as a mixer: DeltaNet, with ``delta_gate`` Gated DeltaNet.

    q, k, v = x Q^T, x K^T, x V^T                 key_value.py
    q, k    = phi(q) / |phi(q)|, likewise k       phi: SiLU, or ``feature_map``
    b       = sigmoid(x B^T)
    a       = 1, or learned                       decay.py, with ``delta_gate``
    y       = delta_rule(q, k, v, b, a)           layers/delta_rule.py
    out     = the way out                         output.py

State: one matrix, d_k C elements a head, all touched by every token.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32
from ramnet_np.layers.activation import SigmoidContext, sigmoid_backward, sigmoid_forward
from ramnet_np.layers.delta_rule import DeltaRuleContext, delta_rule_backward, delta_rule_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.layers.norm import RMSNormContext, l2norm_backward, l2norm_forward
from ramnet_np.model.checks import check_flag
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
from ramnet_np.model.parameters import Parameter, Params, normal


class DeltaLayerContext(NamedTuple):
    """What ``delta_layer_backward`` needs."""

    projections: ProjectionContext
    features: FeaturesContext
    q: RMSNormContext
    k: RMSNormContext
    beta_map: LinearContext
    beta: SigmoidContext
    decay: DecayContext | None  # None without ``delta_gate``
    rule: DeltaRuleContext
    out: OutputContext


def delta_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: Array | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, Array | None, DeltaLayerContext | None]:
    """Takes and returns what :class:`~ramnet_np.model.mixers.interface.Forward` says; state: (B, H, d_k, C).

    ValueError or TypeError as of the delta rule and of the linear maps.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="delta")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, state, ctx = delta_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    # 1. projections
    q, k, v, projections = project_forward(x, params, config)
    # 2. directions of q and k: with SiLU, more channels than the model is wide span more directions, too
    q, k, features_ctx = features_forward(q, k, config, own="silu")
    q, q_ctx = l2norm_forward(q)
    k, k_ctx = l2norm_forward(k)
    # 3. how much to write, how much to keep
    logit, beta_map_ctx = linear_forward(x, params["b_proj.weight"])
    beta, beta_ctx = sigmoid_forward(at_least_float32(logit))
    log_decay = decay_ctx = None
    if config.delta_gate:
        log_decay, _, decay_ctx = decay_forward(x, params)
    # 4. memory
    y, state, rule_ctx = delta_rule_forward(q, k, v, beta, log_decay, state)
    # 5. out
    out, out_ctx = output_forward(y, x, params, config)
    if options.in_place:
        return out, state, None
    ctx = DeltaLayerContext(
        projections, features_ctx, q_ctx, k_ctx, beta_map_ctx, beta_ctx, decay_ctx, rule_ctx, out_ctx
    )
    return out, state if options.return_state else None, ctx


def delta_layer_backward(dout: Array, ctx: DeltaLayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="delta")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, _, ctx = delta_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = delta_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 5. out
    dy, dx, grads = output_backward(dout, ctx.out)
    # 4. memory
    d = delta_rule_backward(dy, ctx.rule)
    # 3. decay and beta add their gradient of x
    if ctx.decay is not None:
        dx, ddecay = decay_backward(d.log_decay, ctx.decay, accumulate_into=dx)
        grads |= ddecay
    dlogit = sigmoid_backward(d.beta, ctx.beta).astype(ctx.beta_map.y.dtype, copy=False)
    dx, grads["b_proj.weight"], _ = linear_backward(dlogit, ctx.beta_map, accumulate_into=dx)
    # 2. directions
    dq, dk = features_backward(l2norm_backward(d.q, ctx.q), l2norm_backward(d.k, ctx.k), ctx.features)
    # 1. projections
    dx, dprojections = project_backward(dq, dk, d.v, ctx.projections, accumulate_into=dx)
    return dx, grads | dprojections


def _parameters(config: RAMNetConfig, layer: int) -> dict[str, Parameter]:
    parameters = key_value_parameters(config)
    parameters["b_proj.weight"] = Parameter((config.heads, config.width), "gates", normal(config.init_std))
    if config.delta_gate:
        parameters |= decay_parameters(config)
    return parameters | output_parameters(config)


def _check(config: RAMNetConfig) -> None:
    check_flag("delta_gate", config.delta_gate)


MIXER = Mixer(
    name="delta",
    variants=(Variant("delta", "DeltaNet"), Variant("gated delta", "Gated DeltaNet", {"delta_gate": True})),
    parameters=_parameters,
    forward=delta_layer_forward,
    backward=delta_layer_backward,
    state_size=matrices_size,
    initial_state=empty_matrices,
    check=_check,
)
