"""A block: a layer and a feed-forward network, each behind a norm and added to the stream it reads.

h   = x + layer(conv(norm(x)))       conv with ``short_conv`` alone; layer: that of the configuration's mixer
out = h + ffn(norm(h))               left out with ``ffn="none"``

A backward needs what the forward kept. With ``recompute`` the block keeps less and computes it again: of the
feed-forward network only its input, or of the whole block only x. The same operations on the same numbers give the same
bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import ArraySpec, readable, require_like
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.layers.few_rows import normed_swiglu_added
from ramnet_np.layers.linear import add_in_place
from ramnet_np.layers.short_conv import ShortConvContext, short_conv_backward, short_conv_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.feed_forward import FFNContext, ffn_backward, ffn_forward, ffn_parameters
from ramnet_np.model.mixers import MIXERS, CallOptions, Mixer
from ramnet_np.model.norm import NormContext, norm_backward, norm_forward, norm_parameters
from ramnet_np.model.parameters import Parameter, Params, Shape, add_prefix, subset


class RecomputedFFN(NamedTuple):
    """In place of a FFNContext: what the feed-forward network, with its norm, is computed from again."""

    h: Array  # (B, T, D)
    params: Params  # of the block
    config: RAMNetConfig


class RecomputedBlock(NamedTuple):
    """In place of a BlockContext: what the block is computed from again."""

    x: Array  # (B, T, D)
    params: Params
    config: RAMNetConfig
    layer: int
    state: Any  # before these tokens, which must still be what it was
    options: CallOptions


class ConvState(NamedTuple):
    """The state of a block with a short convolution: what that still needs, and what the layer remembers."""

    inputs: Array  # (B, S, D): the last S <= width - 1 tokens that the convolution was given
    memory: Any  # of the layer


@readable
class BlockContext(NamedTuple):
    """What ``block_backward`` needs."""

    attn_norm: NormContext | None  # None after a call in place that kept nothing
    attn_conv: ShortConvContext | None  # None without one
    mixer: Mixer
    attn: Any  # the mixer's, None after a call in place
    options: CallOptions
    mlp_norm: NormContext | None  # None if the block has no feed-forward network, or computes it again
    mlp: FFNContext | RecomputedFFN | None


def block_parameters(config: RAMNetConfig, layer: int = 0) -> dict[str, Parameter]:
    """The parameters of block number ``layer``.

    A short convolution lets the token itself through, weight 1, and adds those before it by weights drawn evenly from
    +-1 / sqrt(its tokens), so that channels differ from the start in what they see of the past. Source: paper fig. 2.

    >>> block_parameters(RAMNetConfig(width=8, heads=2, ffn="none"))["attn.o_proj.weight"].shape
    (8, 8)
    """
    parameters = add_prefix("attn_norm.", norm_parameters(config))
    if config.short_conv:
        parameters["attn_conv.weight"] = Parameter((config.width, config.short_conv), "convolution", _initial_conv)
    parameters |= add_prefix("attn.", MIXERS[config.mixer].parameters(config, layer))
    if config.ffn != "none":
        parameters |= add_prefix("mlp_norm.", norm_parameters(config)) | add_prefix("mlp.", ffn_parameters(config))
    return parameters


def block_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: Any = None,
    options: CallOptions | None = None,
) -> tuple[Array, Any, BlockContext | RecomputedBlock]:
    """``x``: (B, T, D); ``params``: named as in ``block_parameters``. Returns out (B, T, D), the layer's state, ctx.

    ``layer``, ``state`` and ``options`` are those of the mixer's :class:`~ramnet_np.model.mixers.interface.Forward`,
    with ``short_conv`` the state is a ConvState; errors likewise.
    Source: the authors' package ramnet.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(block_parameters(config), seed=0, dtype=np.float64)
    >>> out, state, ctx = block_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    if options.recompute == "block":
        kept = RecomputedBlock(x, params, config, layer, state, options._replace(recompute="none"))
        once = kept.options._replace(gradients=False)
        return *block_forward(x, params, config, layer, state=state, options=once)[:2], kept
    mixer = MIXERS[config.mixer]
    if options.in_place and mixer.step is not None and config.norm == "rmsnorm" and not config.short_conv:
        out, state = _step(x, params, config, layer, state, options)
        return out, state, BlockContext(None, None, mixer, None, options, None, None)
    # 1. layer
    n, norm_ctx, conv_ctx = layer_input_forward(x, params, config, state, options)
    memory = state.memory if conv_ctx is not None and state is not None else state
    h, memory, attn_ctx = mixer.forward(n, subset(params, "attn."), config, layer, state=memory, options=options)
    if conv_ctx is not None and memory is not None:
        reach = min(conv_ctx.x.shape[1], config.short_conv - 1)
        memory = ConvState(conv_ctx.x[:, conv_ctx.x.shape[1] - reach :].copy(), memory)
    if options.layer_rows is not None:
        h = options.layer_rows.together(h)
    h = add_in_place(h, x)
    if config.ffn == "none":
        return h, memory, BlockContext(norm_ctx, conv_ctx, mixer, attn_ctx, options, None, None)
    # 2. feed-forward network
    out, mlp_norm_ctx, mlp_ctx = _ffn_forward(h, params, config)
    out = add_in_place(out, h)
    if options.recompute == "ffn":
        again = RecomputedFFN(h, params, config)
        return out, memory, BlockContext(norm_ctx, conv_ctx, mixer, attn_ctx, options, None, again)
    return out, memory, BlockContext(norm_ctx, conv_ctx, mixer, attn_ctx, options, mlp_norm_ctx, mlp_ctx)


def block_backward(dout: Array, ctx: BlockContext | RecomputedBlock) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the block by its name.

    ``dout``: (B, T, D). ValueError after a call in place, which kept nothing.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(block_parameters(config), seed=0, dtype=np.float64)
    >>> out, _, ctx = block_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = block_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    if isinstance(ctx, RecomputedBlock):
        _require_kept(ctx)
        options = ctx.options._replace(return_state=False)
        _, _, ctx = block_forward(ctx.x, ctx.params, ctx.config, ctx.layer, state=ctx.state, options=options)
        assert isinstance(ctx, BlockContext)  # these options keep everything
    if ctx.attn is None or ctx.attn_norm is None:
        raise ValueError("ctx must be of a forward; a call in place keeps nothing for a backward")
    grads: Params = {}
    # 2. out = h + ffn(norm(h))
    dh = dout
    mlp_norm, mlp = ctx.mlp_norm, ctx.mlp
    if isinstance(mlp, RecomputedFFN):
        _, mlp_norm, mlp = _ffn_forward(*mlp)
    if mlp_norm is not None and mlp is not None:
        dn, dmlp = ffn_backward(dout, mlp)
        dh, dnorm = norm_backward(dn, mlp_norm, add=dout)
        grads |= add_prefix("mlp.", dmlp) | add_prefix("mlp_norm.", dnorm)
    # 1. h = x + layer(conv(norm(x)))
    layer_rows, conv_rows = ctx.options.layer_rows, ctx.options.conv_rows
    dn, dattn = ctx.mixer.backward(dh if layer_rows is None else layer_rows.apart(dh), ctx.attn)
    if ctx.attn_conv is not None:
        dn = dn if conv_rows is None else conv_rows.apart(dn)
        dn, grads["attn_conv.weight"] = short_conv_backward(dn, ctx.attn_conv)
        dn = dn if conv_rows is None else conv_rows.together(dn)
    dn = dn if layer_rows is None else layer_rows.together(dn)
    dx, dnorm = norm_backward(dn, ctx.attn_norm, add=dh)
    return dx, grads | add_prefix("attn.", dattn) | add_prefix("attn_norm.", dnorm)


def layer_input_forward(
    x: Array, params: Params, config: RAMNetConfig, state: ConvState | None, options: CallOptions
) -> tuple[Array, NormContext, ShortConvContext | None]:
    """What a block hands to its layer: conv(norm(x)), with what both keep for their backwards.

    ``x``: (B, T, D); ``params``: of the block; ``state``: as left by the tokens before, looked at with ``short_conv``;
    ``options``: say whether tokens of masked or packed rows are moved, see :mod:`ramnet_np.model.live_tokens`.

    >>> import numpy as np
    >>> config = RAMNetConfig(width=2, short_conv=2)
    >>> params = {"attn_norm.weight": np.ones(2), "attn_conv.weight": np.array([[1.0, 1.0], [0.0, 1.0]])}
    >>> x = np.array([[[1.0, 1.0], [-1.0, 1.0]]])
    >>> layer_input_forward(x, params, config, None, CallOptions())[0].round(3).tolist()
    [[[1.0, 1.0], [0.0, 1.0]]]
    """
    n, norm_ctx = norm_forward(x, subset(params, "attn_norm."), config)
    if options.layer_rows is not None:
        n = options.layer_rows.apart(n)
    if not config.short_conv:
        return n, norm_ctx, None
    if not isinstance(state, ConvState | None):
        raise TypeError(f"state of a block with a short convolution must be a ConvState, got {_type(state)}")
    if options.conv_rows is not None:
        n = options.conv_rows.apart(n)
    n, conv_ctx = short_conv_forward(n, params["attn_conv.weight"], None if state is None else state.inputs)
    return n if options.conv_rows is None else options.conv_rows.together(n), norm_ctx, conv_ctx


def initial_block_state(config: RAMNetConfig, x: Array) -> Any:
    """The state of a block before the first token of sequences like ``x`` (B, T, D); every later one has its shapes.

    ValueError for a mixer whose state takes shape with its tokens.

    >>> import numpy as np
    >>> initial_block_state(RAMNetConfig(width=8, heads=2, order=2), np.zeros((1, 5, 8))).slots.shape
    (1, 2, 16, 4)
    """
    make = MIXERS[config.mixer].initial_state
    if make is None:
        fixed = ", ".join(repr(name) for name, mixer in MIXERS.items() if mixer.initial_state)
        raise ValueError(f"mixer must be one of {fixed} for a state of fixed shapes, got {config.mixer!r}")
    if not config.short_conv:
        return make(config, x)
    inputs = namespace_of(x).zeros((x.shape[0], config.short_conv - 1, x.shape[2]), dtype=x.dtype)
    return ConvState(inputs, make(config, x))


def check_block_state(name: str, state: Any, config: RAMNetConfig, batch: int, like: Array) -> None:
    """TypeError or ValueError unless ``state`` is one that a block can step from, in place.

    ``batch``: B; ``like``: an array of the model's dtype and device. Slots are looked at, as they change where they
    are, and what a short convolution needs; other memories are replaced, and looked at by their layer.

    >>> import numpy as np
    >>> check_block_state("state[1]", None, RAMNetConfig(), 1, np.zeros(1, np.float32))
    Traceback (most recent call last):
        ...
    TypeError: state[1] must be a RAMState (slots, mass), got NoneType
    """
    if config.short_conv:
        if not isinstance(state, ConvState):
            raise TypeError(f"{name} of a block with a short convolution must be a ConvState, got {_type(state)}")
        S, D = config.short_conv - 1, config.width
        shape = getattr(state.inputs, "shape", None)
        if shape is None or len(shape) != 3 or shape[0] != batch or shape[1] > S or shape[2] != D:
            raise ValueError(f"{name}.inputs must have shape ({batch}, at most {S}, {D}), got {shape}")
        require_like(f"{name}.inputs", state.inputs, ArraySpec(shape, like.dtype))
        name, state = f"{name}.memory", state.memory
    check = MIXERS[config.mixer].check_state
    if check is not None:
        check(name, state, config, batch, like)


def _require_kept(ctx: RecomputedBlock) -> None:
    memory = ctx.state.memory if isinstance(ctx.state, ConvState) else ctx.state
    if ctx.options.return_state and isinstance(memory, SparseRAMState):
        raise ValueError(
            "recompute must not be 'block' with a SparseRAMState, which the forward changes and the backward would need"
        )


def _ffn_forward(h: Array, params: Params, config: RAMNetConfig) -> tuple[Array, NormContext, FFNContext]:
    n, norm_ctx = norm_forward(h, subset(params, "mlp_norm."), config)
    out, ffn_ctx = ffn_forward(n, subset(params, "mlp."), config)
    return out, norm_ctx, ffn_ctx


def _step(
    x: Array, params: Params, config: RAMNetConfig, layer: int, state: Any, options: CallOptions
) -> tuple[Array, Any]:
    """One token of each sequence, (B, 1, D): norms and additions are parts of what stands beside them."""
    rows, step = x[:, 0], MIXERS[config.mixer].step
    assert step is not None
    # 1. layer
    h, state = step(rows, params["attn_norm.weight"], subset(params, "attn."), config, layer, state, options)
    if config.ffn == "none":
        return h[:, None], state
    # 2. feed-forward network
    if config.ffn != "swiglu":
        out, _, _ = _ffn_forward(h, params, config)
        return add_in_place(out, h)[:, None], state
    gate, up, down = (params[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return normed_swiglu_added(h, params["mlp_norm.weight"], config.norm_eps, gate, up, down)[:, None], state


def _type(value: Any) -> str:
    return type(value).__name__


def _initial_conv(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    weight = (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(shape[1] ** -0.5)
    weight[:, -1] = 1
    return weight
