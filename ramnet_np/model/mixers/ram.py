"""RAM-Net's own layer as a mixer: addresses, values, the memory, the way out.

    w, r  = address logits of x                      address.py
    v     = x V^T
    gamma = constant, or learned                     gamma.py
    y     = ram_attention(w, r, v, gamma)            core/attention.py
    out   = the way out                              output.py

State: the content and the mass of every slot, M (C + 1) elements a head. A token writes K_w of the slots and reads K_r:
(K_w + K_r) (C + 1) elements are active. Source: paper fig. 2 and table 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, DecodeOptions, MemoryOptions, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.attention import (
    RAMAttentionContext,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
)
from ramnet_np.core.option_checks import check_options
from ramnet_np.core.retention import RULES
from ramnet_np.core.state_checks import check_in_place, check_state
from ramnet_np.layers.few_rows import normed_products
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.layers.ram_step import ram_step
from ramnet_np.model.address import (
    AddressContext,
    address_backward,
    address_forward,
    address_map,
    address_parameters,
    settled_addresses,
)
from ramnet_np.model.checks import SMALLEST, check_choice, check_flag, check_integer, check_number, pair
from ramnet_np.model.config import AddressPrior, GammaMode, RAMNetConfig
from ramnet_np.model.gamma import GammaContext, gamma_backward, gamma_forward, gamma_of, gamma_parameters
from ramnet_np.model.initial_slots import (
    InitialSlotsContext,
    initial_slots_backward,
    initial_slots_forward,
    initial_slots_parameters,
)
from ramnet_np.model.mixers.interface import CallOptions, Mixer, StateSize, Variant
from ramnet_np.model.output import (
    OutputContext,
    output_backward,
    output_forward,
    output_parameters,
    output_step,
    value_parameters,
)
from ramnet_np.model.parameters import Parameter, Params

MOST_DIGITS = 31  # of an address of fewer than 2**31 slots


class RAMLayerContext(NamedTuple):
    """What ``ram_layer_backward`` needs."""

    write: AddressContext
    read: AddressContext
    values: LinearContext
    gamma: GammaContext
    attention: RAMAttentionContext
    out: OutputContext
    initial: InitialSlotsContext | None  # where the layer made the state that it starts from, of learned slots


def ram_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: RAMState | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, RAMState | None, RAMLayerContext | None]:
    """What the tokens of ``x`` recall from what was written before and by them.

    ``x``: (B, T, D); ``params``: the layer's own, named as in ``ram_parameters``; ``layer``: decides how many heads use
    CAPE; ``state``: where the memory starts, None for empty.
    Returns out (B, T, D), the state after the last token (None unless asked for) and ctx (None if in place).
    Cost: the projections, 2 N D (2 H U P + 2 H C) operations for N tokens, and O(N H K C) for the memory.
    ValueError or TypeError as of the operation and of the linear maps. Source: paper fig. 2.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(ram_parameters(config), seed=0, dtype=np.float64)
    >>> out, state, ctx = ram_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> out.shape, state
    ((1, 5, 8), None)
    """
    options = options or CallOptions()
    B, T, _ = x.shape
    H, C = config.heads, config.head_channels
    # 1. projections
    write_logits, write_ctx = address_forward(x, params, "w", config)
    read_logits, read_ctx = address_forward(x, params, "r", config)
    values, values_ctx = linear_forward(x, params["v_proj.weight"], params.get("v_proj.bias"))
    gamma, gamma_ctx = gamma_forward(x, params, config)
    # 2. memory
    initial_ctx = None
    if state is None and (config.learned_slots or config.init_mass is not None):
        sequences = B if options.cu_seqlens is None else len(options.cu_seqlens) - 1
        if config.learned_slots:
            state, initial_ctx = initial_slots_forward(sequences, params, config)
        else:
            state = initial_state(config, x, sequences)
        if options.positions is None:  # a memory that is still empty: these tokens are the first
            options = options._replace(positions=namespace_of(x).arange(T))
    y, state, attention_ctx = _attend(
        write_logits, read_logits, values.reshape(B, T, H, C), gamma, state, config, layer, options
    )
    # 3. out
    out, out_ctx = output_forward(y, x, params, config)
    if attention_ctx is None:
        return out, state, None
    return out, state, RAMLayerContext(write_ctx, read_ctx, values_ctx, gamma_ctx, attention_ctx, out_ctx, initial_ctx)


def ram_layer_step(
    x: Array,
    norm: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int,
    state: RAMState,
    options: CallOptions,
) -> tuple[Array, RAMState]:
    """One token of each sequence: x + layer(rmsnorm(x)) (B, D), and ``state``, UPDATED IN PLACE.

    On a GPU three launches, of the projections, the memory and the way out; learned gammas, gates and norms of y add
    theirs. Arguments as of a mixer's :class:`~ramnet_np.model.mixers.interface.Step`.

    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(ram_parameters(config), seed=0, dtype=np.float64)
    >>> state = initial_state(config, np.ones((1, 1, 8)))
    >>> out, state = ram_layer_step(np.ones((1, 8)), np.ones(8), params, config, 0, state, CallOptions(in_place=True))
    >>> out.shape
    (1, 8)
    """
    B, H, C = len(x), config.heads, config.head_channels
    # 1. projections
    maps = {side: address_map(params, side, config)[:2] for side in ("w", "r")}
    maps["v"] = params["v_proj.weight"], params.get("v_proj.bias")
    if _is_plain(config) and options.mask is None and options.backend is None:  # 1. to 3. in one piece
        weights, biases = zip(*maps.values(), strict=True)
        y = ram_step(
            x, norm, config.norm_eps, weights, biases, params["o_proj.weight"], params.get("o_proj.bias"), config.gamma,
            options.positions, state, (H, config.order, config.radix), *_settings(config, layer),
        )  # fmt: skip
        return y, state
    if config.output_gate:
        maps["gate"] = params["o_gate.0.weight"], params["o_gate.0.bias"]
    if config.gamma_mode == "dynamic":
        maps["gamma"] = params["gamma_modifier.weight"], params["gamma_modifier.bias"]
    weights, biases = zip(*maps.values(), strict=True)
    projected = dict(zip(maps, normed_products(x, norm, config.norm_eps, weights, biases), strict=True))
    if config.gamma_mode == "dynamic":
        gamma, _ = gamma_of(projected["gamma"].reshape(B, 1, H), config)
    else:
        gamma, _ = gamma_forward(x[:, None], params, config)
    # 2. memory
    digits = (B, 1, H, config.order, config.radix)
    write_logits, read_logits = projected["w"].reshape(digits), projected["r"].reshape(digits)
    y, updated, _ = _attend(
        write_logits, read_logits, projected["v"].reshape(B, 1, H, C), gamma, state, config, layer, options
    )
    assert updated is not None  # a step returns the state that it was given
    # 3. out
    return output_step(y, projected.get("gate"), params, config, x), updated


def _is_plain(config: RAMNetConfig) -> bool:
    """Whether nothing stands behind the memory but the way out, and gamma does not depend on the token."""
    return config.gamma_mode == "fixed" and not config.output_gate and not config.output_norm


def _settings(config: RAMNetConfig, layer: int) -> tuple[DecodeOptions, MemoryOptions]:
    return check_options(
        config.slots, config.heads, update=config.update, top_k=config.top_k, renorm=config.renorm,
        cape_heads=config.cape_heads(layer), eps=config.eps, proxy_eps=0.0, mass_aware=config.mass_aware,
    )  # fmt: skip


def ram_layer_backward(dout: Array, ctx: RAMLayerContext) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), and of every parameter of the layer by its name. A given state is taken as constant.

    ``dout``: (B, T, D); ValueError for another shape or dtype.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(ram_parameters(config), seed=0, dtype=np.float64)
    >>> out, _, ctx = ram_layer_forward(np.ones((1, 5, 8)), params, config)
    >>> dx, grads = ram_layer_backward(np.ones_like(out), ctx)
    >>> dx.shape, grads.keys() == params.keys()
    ((1, 5, 8), True)
    """
    # 3. out
    dy, dx, grads = output_backward(dout, ctx.out)
    # 2. memory
    d = ram_attention_backward(dy, ctx.attention)
    if ctx.initial is not None and d.state is not None:
        grads |= initial_slots_backward(d.state, ctx.initial)
    # 1. projections: each adds its gradient of x
    dx, dmodifier = gamma_backward(d.gamma, ctx.gamma, accumulate_into=dx)
    dvalues = d.values.reshape(*d.values.shape[:2], -1)
    dx, grads["v_proj.weight"], dbias = linear_backward(dvalues, ctx.values, accumulate_into=dx)
    if dbias is not None:
        grads["v_proj.bias"] = dbias
    dx, dread = address_backward(d.read_logits, ctx.read, "r", accumulate_into=dx)
    dx, dwrite = address_backward(d.write_logits, ctx.write, "w", accumulate_into=dx)
    return dx, grads | dmodifier | dread | dwrite


def ram_layer_addresses(
    x: Array, params: Params, config: RAMNetConfig, layer: int, options: CallOptions
) -> dict[str, Address]:
    """Where each token of ``x`` (B, T, D) writes and reads: {"write": Address, "read": Address}.

    Index and weight: (B, T, H, K).

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, order=3, radix=4)
    >>> params = init_parameters(ram_parameters(config), seed=0, dtype=np.float64)
    >>> addresses = ram_layer_addresses(np.ones((1, 5, 8)), params, config, 0, CallOptions())
    >>> addresses["write"].index.shape
    (1, 5, 2, 8)
    """
    renorms = config.renorm if isinstance(config.renorm, tuple) else (config.renorm,) * 2
    addresses = {}
    for name, k, renorm in zip(("write", "read"), _write_and_read_k(config), renorms, strict=True):
        logits, _ = address_forward(x, params, name[0], config)
        addresses[name] = decode_address(
            logits, k, renorm, config.cape_heads(layer), options.positions, backend=options.backend
        )
    return addresses


def ram_parameters(config: RAMNetConfig, layer: int = 0) -> dict[str, Parameter]:
    """The parameters of layer number ``layer``.

    Source: the authors' package ramnet.

    >>> ram_parameters(RAMNetConfig(width=8, heads=2, order=3, radix=4))["w_scale"].shape
    (2, 3)
    """
    return (
        address_parameters("r", config, layer)
        | address_parameters("w", config, layer)
        | value_parameters(config)
        | initial_slots_parameters(config)
        | gamma_parameters(config)
        | output_parameters(config)
    )


def initial_state(config: RAMNetConfig, x: Array, sequences: int | None = None) -> RAMState:
    """The empty memory of one layer for the sequences of ``x`` (B, T, D): s = 0, z = ``init_mass``.

    ``sequences``: how many, where they are packed; None is B. ValueError with ``learned_slots``, which are parameters.

    >>> import numpy as np
    >>> state = initial_state(RAMNetConfig(width=8, heads=2, order=2, init_mass=0.5), np.zeros((1, 5, 8)))
    >>> state.slots.shape, float(state.mass[0, 0, 0])
    ((1, 2, 16, 4), 0.5)
    """
    if config.learned_slots:
        raise ValueError("learned_slots must be False for a state without parameters: a layer makes it from None")
    dtype = x.dtype if x.dtype.itemsize > 4 else np.float32  # of 16-bit models too
    batch = x.shape[0] if sequences is None else sequences
    state = RAMState.initial(batch, config.heads, config.slots, config.head_channels, dtype, namespace_of(x))
    if config.init_mass is not None:
        state.mass[...] = config.init_mass
    return state


def _attend(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: Array | float,
    state: RAMState | None,
    config: RAMNetConfig,
    layer: int,
    options: CallOptions,
) -> tuple[Array, RAMState | None, RAMAttentionContext | None]:
    """The operation under the layer's settings; a step if the call is in place."""
    settings: dict[str, Any] = {
        "update": config.update,
        "top_k": config.top_k,
        "renorm": config.renorm,
        "cape_heads": config.cape_heads(layer),
        "positions": options.positions,
        "mask": options.mask,
        "mass_aware": config.mass_aware,
        "eps": config.eps,
        "backend": options.backend,
    }
    if options.in_place:
        assert state is not None  # the model only steps from a state
        y, state = ram_attention_step(write_logits, read_logits, values, gamma, state=state, **settings)
        return y, state, None
    return ram_attention_forward(
        write_logits, read_logits, values, gamma, state=state, proxy_eps=config.proxy_eps,
        return_state=options.return_state, cu_seqlens=options.cu_seqlens, gradients=options.gradients, **settings,
    )  # fmt: skip


def _write_and_read_k(config: RAMNetConfig) -> tuple[int, int]:
    return config.top_k if isinstance(config.top_k, tuple) else (config.top_k, config.top_k)


def _state_size(config: RAMNetConfig, context: int) -> StateSize:
    slot = config.head_channels + 1
    return StateSize(config.heads * config.slots * slot, config.heads * sum(_write_and_read_k(config)) * slot)


def _check_state(name: str, state: Any, config: RAMNetConfig, batch: int, like: Array) -> None:
    check_state(name, state, (batch, config.heads, config.slots, config.head_channels), like)
    check_in_place(name, state)


def _check(config: RAMNetConfig) -> None:
    check_integer("radix", config.radix, 1)
    check_integer("order", config.order, 1, MOST_DIGITS)  # before the power, which would take long
    if config.radix**config.order >= 2**31:
        raise ValueError(f"radix ** order must be below 2**31 slots, got {config.radix} ** {config.order}")
    for k in pair("top_k", config.top_k):
        check_integer("top_k", k, 1, config.slots)
    for flag in pair("renorm", config.renorm):
        check_flag("renorm", flag)
    for name in ("mass_aware", "address_bias", "address_scale", "learned_slots"):
        check_flag(name, getattr(config, name))
    _check_cape(config)
    check_choice("gamma_mode", config.gamma_mode, GammaMode)
    check_choice("address_prior", config.address_prior, AddressPrior)
    for name in ("temperature", "init_mass", "eps"):
        if getattr(config, name) is not None:
            check_number(name, getattr(config, name), low=SMALLEST)
    check_number("proxy_eps", config.proxy_eps, low=0, high=1)
    check_number("gamma", config.gamma)
    check_choice("update", config.update, RULES)
    least = RULES[config.update].least_gamma
    if config.gamma < least:
        raise ValueError(f"gamma must be {least:g} or more for update={config.update!r}, got {config.gamma}")
    if config.gamma == least and config.gamma_mode != "fixed":
        raise ValueError(
            f"gamma must be above {least:g} for update={config.update!r} with gamma_mode={config.gamma_mode!r}, "
            f"got {config.gamma:g}: the softplus that keeps gamma above {least:g} cannot start there"
        )


def _check_cape(config: RAMNetConfig) -> None:
    per_layer = config.cape if isinstance(config.cape, tuple) else (config.cape,)
    if len(per_layer) > config.layers:
        raise ValueError(f"cape must have at most one number per layer ({config.layers}), got {len(per_layer)}")
    for heads in per_layer:
        check_integer("cape", heads, 0, config.heads)


MIXER = Mixer(
    name="ram",
    variants=(Variant("ram", "RAM-Net"),),
    parameters=ram_parameters,
    forward=ram_layer_forward,
    backward=ram_layer_backward,
    state_size=_state_size,
    check=_check,
    check_state=_check_state,
    step=ram_layer_step,
    addresses=ram_layer_addresses,
    initial_state=initial_state,
    settle=settled_addresses,
)
