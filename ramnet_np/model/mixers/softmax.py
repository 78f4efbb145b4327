"""Softmax attention over all tokens before, as a mixer.

    q, k, v = x Q^T, x K^T, x V^T                             key_value.py
    y       = softmax_attention(rotary(q), rotary(k), v)      layers/softmax_attention.py; rotary with ``rotary``
    out     = the way out                                     output.py

State: the tokens themselves, their keys and values: L (d_k + C) elements a head after L tokens, all touched by the
next one. window.py is the same layer with a shorter memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.layers.rotary import RotaryContext, rotary_backward, rotary_forward
from ramnet_np.layers.softmax_attention import (
    SoftmaxAttentionContext,
    softmax_attention_backward,
    softmax_attention_forward,
    softmax_attention_step,
)
from ramnet_np.model.checks import check_flag
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers.interface import CallOptions, Mixer, StateSize, Variant
from ramnet_np.model.mixers.key_value import ProjectionContext, key_value_parameters, project_backward, project_forward
from ramnet_np.model.output import OutputContext, output_backward, output_forward, output_parameters
from ramnet_np.model.parameters import Parameter, Params


class KeyValueState(NamedTuple):
    """What softmax attention remembers: the tokens themselves, with a window the last W - 1 of them."""

    keys: Array  # (B, S, H, d_k), turned by their positions
    values: Array  # (B, S, H, C)


class KeyValueCache(NamedTuple):
    """A KeyValueState with room for S tokens: a step in place puts its own behind those that are there."""

    keys: Array  # (B, S, H, d_k)
    values: Array  # (B, S, H, C)
    used: Array  # (1,) int64: tokens that are there, below S; whoever steps counts on


class SoftmaxLayerContext(NamedTuple):
    """What ``softmax_layer_backward`` needs."""

    projections: ProjectionContext
    rotary: RotaryContext | None  # of q, and of k
    attention: SoftmaxAttentionContext
    out: OutputContext


def softmax_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: KeyValueState | KeyValueCache | None = None,
    options: CallOptions | None = None,
    window: int | None = None,
) -> tuple[Array, Any, SoftmaxLayerContext | None]:
    """Takes and returns what :class:`~ramnet_np.model.mixers.interface.Forward` says; the state is a KeyValueState, or
    in place, without a window, a KeyValueCache.

    ``window``: tokens that a token sees, itself included; None for all. TypeError for another state, ValueError for a
    state without positions where keys turn by them, ValueError or TypeError as of softmax attention and of the linear
    maps.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="softmax")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, state, ctx = softmax_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    if not isinstance(state, KeyValueState | None) and not (isinstance(state, KeyValueCache) and options.in_place):
        raise TypeError(f"state of mixer {config.mixer!r} must be a KeyValueState, got {type(state).__name__}")
    # 1. projections
    q, k, v, projections = project_forward(x, params, config, widen=False)
    # 2. positions
    rotary_ctx = None
    if config.rotary:
        if state is not None and options.positions is None:
            raise ValueError("positions must say where these tokens are when keys turn and a state is given, got None")
        q, rotary_ctx = rotary_forward(q, options.positions)
        k, _ = rotary_forward(k, angles=rotary_ctx)
    # 3. memory
    if isinstance(state, KeyValueCache):
        y = softmax_attention_step(q, k, v, state[:2], state.used)
        return output_forward(y, x, params, config)[0], state, None
    y, attention = softmax_attention_forward(q, k, v, window, past=state)
    after = None
    if options.return_state or options.in_place:
        after = _remembered(state, KeyValueState(k, v), window)
    # 4. out
    out, out_ctx = output_forward(y, x, params, config)
    if options.in_place:
        return out, after, None
    return out, after, SoftmaxLayerContext(projections, rotary_ctx, attention, out_ctx)


def softmax_layer_backward(dout: Array, ctx: SoftmaxLayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="softmax")
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> out, _, ctx = softmax_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = softmax_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 4. out
    dy, dx, dout_params = output_backward(dout, ctx.out)
    # 3. memory
    dq, dk, dv = softmax_attention_backward(dy, ctx.attention)
    # 2. positions
    if ctx.rotary is not None:
        dq, dk = rotary_backward(dq, ctx.rotary), rotary_backward(dk, ctx.rotary)
    # 1. projections add their gradient of x
    dx, dprojections = project_backward(dq, dk, dv, ctx.projections, accumulate_into=dx)
    return dx, dout_params | dprojections


def softmax_parameters(config: RAMNetConfig, layer: int = 0) -> dict[str, Parameter]:
    """The parameters of a layer.

    >>> list(softmax_parameters(RAMNetConfig()))
    ['q_proj.weight', 'k_proj.weight', 'v_proj.weight', 'o_proj.weight']
    """
    return key_value_parameters(config) | output_parameters(config)


def key_value_state_size(config: RAMNetConfig, context: int) -> StateSize:
    """Elements of the keys and values of ``context`` tokens.

    >>> key_value_state_size(RAMNetConfig(width=8, heads=2), context=3).total
    48
    """
    size = config.heads * context * (config.head_key_channels + config.head_channels)
    return StateSize(size, size)


def check_rotary(config: RAMNetConfig, mixer: str) -> None:
    """ValueError where ``config`` names ``mixer`` and its keys cannot turn: channels turn in pairs.

    >>> check_rotary(RAMNetConfig(mixer="softmax", key_channels=5, rotary=False), "softmax")
    """
    if config.mixer == mixer and config.rotary and config.head_key_channels % 2:
        raise ValueError(
            f"key_channels must be even for mixer={mixer!r} with rotary positions, got {config.head_key_channels}"
        )


def _check(config: RAMNetConfig) -> None:
    check_flag("rotary", config.rotary)
    check_rotary(config, "softmax")


def _remembered(before: KeyValueState | None, now: KeyValueState, window: int | None) -> KeyValueState:
    """The keys and values that a later token can see."""
    if before is not None:
        xp = namespace_of(now.keys)
        now = KeyValueState(*(xp.concatenate(pair, axis=1) for pair in zip(before, now, strict=True)))
    if window is None:
        return now
    first = max(0, now.keys.shape[1] - window + 1)
    return KeyValueState(*(x[:, first:].copy() for x in now))


MIXER = Mixer(
    name="softmax",
    variants=(
        Variant("softmax", "softmax attention"),
        Variant("softmax without positions", "softmax, no positions", {"rotary": False}, ablation=True),
    ),
    parameters=softmax_parameters,
    forward=softmax_layer_forward,
    backward=softmax_layer_backward,
    state_size=key_value_state_size,
    check=_check,
    state_grows=True,
)
