"""The layers that RAM-Net is compared with: what a layer remembers with, in place of slots.

q, k, v = x Q^T, x K^T, x V^T                   of every head
softmax, window   y = softmax_attention(rotary(q), rotary(k), v)
linear            y = linear_attention(q, k, v)
delta             q, k = SiLU(q), SiLU(k);   b = sigmoid(x B^T);   a of decay.py, or 1
                  y = delta_rule(q / |q|, k / |k|, v, b, a)
out = the same way out as of a RAM layer        output.py
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.core.arrays import namespace_of
from ramnet_np.layers.activation import (
    SigmoidContext,
    SiLUContext,
    sigmoid_backward,
    sigmoid_forward,
    silu_backward,
    silu_forward,
)
from ramnet_np.layers.delta_rule import DeltaRuleContext, delta_rule_backward, delta_rule_forward
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.layers.linear_attention import (
    LinearAttentionContext,
    linear_attention_backward,
    linear_attention_forward,
)
from ramnet_np.layers.norm import RMSNormContext, l2norm_backward, l2norm_forward
from ramnet_np.layers.rotary import RotaryContext, rotary_backward, rotary_forward
from ramnet_np.layers.softmax_attention import (
    SoftmaxAttentionContext,
    softmax_attention_backward,
    softmax_attention_forward,
)
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.decay import DecayContext, decay_backward, decay_forward
from ramnet_np.model.layer import CallOptions
from ramnet_np.model.output import OutputContext, output_backward, output_forward
from ramnet_np.model.parameters import Params


class KeyValueState(NamedTuple):
    """What softmax attention remembers: the tokens themselves, with a window the last W - 1 of them."""

    keys: Any  # (B, S, H, d_k), turned by their positions
    values: Any  # (B, S, H, d_v)


class _SoftmaxContext(NamedTuple):
    rotary: RotaryContext | None  # of q, and of k
    attention: SoftmaxAttentionContext


class _DeltaContext(NamedTuple):
    q: tuple[SiLUContext, RMSNormContext]
    k: tuple[SiLUContext, RMSNormContext]
    beta_map: LinearContext
    beta: SigmoidContext
    decay: DecayContext | None
    rule: DeltaRuleContext


class MixerContext(NamedTuple):
    """What ``mixer_backward`` needs."""

    projections: tuple[LinearContext, LinearContext, LinearContext]  # of q, k, v
    memory: _SoftmaxContext | LinearAttentionContext | _DeltaContext
    out: OutputContext


def mixer_forward(
    x: Any, params: Params, config: RAMNetConfig, *, state: Any = None, options: CallOptions | None = None
) -> tuple[Any, Any, MixerContext | None]:
    """What the tokens of ``x`` recall from the tokens before and from themselves.

    ``x``: (B, T, D); ``params``: the layer's own, named as in ``mixer_shapes``. ``state``: what the tokens before left,
    taken as constant, None for nothing: a KeyValueState (softmax, window), (B, H, d_k, d_v + 1) (linear),
    (B, H, d_k, d_v) (delta).
    Returns out (B, T, D), the state after the last token (None unless asked for) and ctx (None if in place).
    ValueError or TypeError as of the mechanism and of the linear maps, and for the state of another mixer.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters, mixer_shapes
    >>> config = RAMNetConfig(width=8, heads=2, mixer="delta")
    >>> params = init_parameters(mixer_shapes(config), config, seed=0, dtype=np.float64)
    >>> out, state, ctx = mixer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    heads = (*x.shape[:2], config.heads, -1)
    # 1. projections
    q, q_ctx = linear_forward(x, params["q_proj.weight"])
    k, k_ctx = linear_forward(x, params["k_proj.weight"])
    v, v_ctx = linear_forward(x, params["v_proj.weight"], params.get("v_proj.bias"))
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    # 2. memory
    memory_ctx: _SoftmaxContext | LinearAttentionContext | _DeltaContext
    if config.mixer == "linear":
        y, state, memory_ctx = linear_attention_forward(q, k, v, state)
    elif config.mixer == "delta":
        y, state, memory_ctx = _delta_forward(q, k, v, x, params, config, state)
    else:
        y, state, memory_ctx = _softmax_forward(q, k, v, config, state, options)
    # 3. out
    out, out_ctx = output_forward(y, x, params, config)
    ctx = None if options.in_place else MixerContext((q_ctx, k_ctx, v_ctx), memory_ctx, out_ctx)
    return out, state if options.return_state or options.in_place else None, ctx


def mixer_backward(dout: Any, ctx: MixerContext) -> tuple[Any, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters, mixer_shapes
    >>> config = RAMNetConfig(width=8, heads=2, mixer="softmax")
    >>> params = init_parameters(mixer_shapes(config), config, seed=0, dtype=np.float64)
    >>> out, _, ctx = mixer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = mixer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 3. out
    dy, dx, grads = output_backward(dout, ctx.out)
    # 2. memory
    if isinstance(ctx.memory, LinearAttentionContext):
        dq, dk, dv = linear_attention_backward(dy, ctx.memory)
    elif isinstance(ctx.memory, _DeltaContext):
        dq, dk, dv, dx, dmaps = _delta_backward(dy, ctx.memory, dx)
        grads |= dmaps
    else:
        dq, dk, dv = _softmax_backward(dy, ctx.memory)
    # 1. projections: each adds its gradient of x
    for name, d, linear_ctx in zip("qkv", (dq, dk, dv), ctx.projections, strict=True):
        rows = d.reshape(*d.shape[:2], -1)
        dx, grads[f"{name}_proj.weight"], dbias = linear_backward(rows, linear_ctx, accumulate_into=dx)
        if dbias is not None:
            grads[f"{name}_proj.bias"] = dbias
    return dx, grads


def _softmax_forward(
    q: Any, k: Any, v: Any, config: RAMNetConfig, state: KeyValueState | None, options: CallOptions
) -> tuple[Any, KeyValueState | None, _SoftmaxContext]:
    if not isinstance(state, KeyValueState | None):
        raise TypeError(f"state of mixer {config.mixer!r} must be a KeyValueState, got {type(state).__name__}")
    rotary_ctx = None
    if config.rotary:
        q, rotary_ctx = rotary_forward(q, options.positions)
        k, _ = rotary_forward(k, angles=rotary_ctx)
    window = config.window if config.mixer == "window" else None
    y, ctx = softmax_attention_forward(q, k, v, window, past=state)
    after = None
    if options.return_state or options.in_place:
        after = _remembered(state, KeyValueState(k, v), window)
    return y, after, _SoftmaxContext(rotary_ctx, ctx)


def _softmax_backward(dy: Any, ctx: _SoftmaxContext) -> tuple[Any, Any, Any]:
    dq, dk, dv = softmax_attention_backward(dy, ctx.attention)
    if ctx.rotary is not None:
        dq, dk = rotary_backward(dq, ctx.rotary), rotary_backward(dk, ctx.rotary)
    return dq, dk, dv


def _remembered(before: KeyValueState | None, now: KeyValueState, window: int | None) -> KeyValueState:
    """The keys and values that a later token can see."""
    if before is not None:
        xp = namespace_of(now.keys)
        now = KeyValueState(*(xp.concatenate(pair, axis=1) for pair in zip(before, now, strict=True)))
    if window is None:
        return now
    first = max(0, now.keys.shape[1] - window + 1)
    return KeyValueState(*(x[:, first:].copy() for x in now))


def _delta_forward(
    q: Any, k: Any, v: Any, x: Any, params: Params, config: RAMNetConfig, state: Any
) -> tuple[Any, Any, _DeltaContext]:
    q, q_ctx = _direction_forward(q)
    k, k_ctx = _direction_forward(k)
    logit, beta_map_ctx = linear_forward(x, params["b_proj.weight"])
    beta, beta_ctx = sigmoid_forward(logit)
    log_decay = decay_ctx = None
    if config.delta_gate:
        log_decay, decay_ctx = decay_forward(x, params)
    y, state, rule_ctx = delta_rule_forward(q, k, v, beta, log_decay, state)
    return y, state, _DeltaContext(q_ctx, k_ctx, beta_map_ctx, beta_ctx, decay_ctx, rule_ctx)


def _delta_backward(dy: Any, ctx: _DeltaContext, dx: Any) -> tuple[Any, Any, Any, Any, Params]:
    """Gradients of q, k, v, of x (onto ``dx``), and of the maps that make beta and the decay."""
    d = delta_rule_backward(dy, ctx.rule)
    grads: Params = {}
    if ctx.decay is not None:
        dx, grads = decay_backward(d.log_decay, ctx.decay, accumulate_into=dx)
    dbeta = sigmoid_backward(d.beta, ctx.beta)
    dx, grads["b_proj.weight"], _ = linear_backward(dbeta, ctx.beta_map, accumulate_into=dx)
    return _direction_backward(d.q, ctx.q), _direction_backward(d.k, ctx.k), d.v, dx, grads


def _direction_forward(x: Any) -> tuple[Any, tuple[SiLUContext, RMSNormContext]]:
    """SiLU(x) / |SiLU(x)|: more channels than the model is wide then span more directions, too."""
    y, silu_ctx = silu_forward(x)
    y, norm_ctx = l2norm_forward(y)
    return y, (silu_ctx, norm_ctx)


def _direction_backward(dy: Any, ctx: tuple[SiLUContext, RMSNormContext]) -> Any:
    silu_ctx, norm_ctx = ctx
    return silu_backward(l2norm_backward(dy, norm_ctx), silu_ctx)
