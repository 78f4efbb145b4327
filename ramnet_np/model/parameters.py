"""The parameters of a model: names, shapes and initial values.

The names are those of the authors' checkpoints, so that files need no translation. Weights of linear maps are
(outputs, inputs); the rows of the address projections run over heads, then digits, then values.
Source: spec section 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ramnet_np.model.config import RAMNetConfig

Params = dict[str, Any]

ADDRESS_PRIOR = 1.5  # range of the initial address bias of the last digit
GATE_BIAS = 3.0  # sigmoid(3) = 0.95: the output gate starts open
DECAY_RATES = (1.0, 16.0)  # between which exp(A) of the delta rule's decay is drawn evenly,
DECAY_STEPS = (1e-3, 1e-1)  # and softplus(dt), evenly by its logarithm


def layer_prefix(layer: int) -> str:
    """What the names of a block's parameters start with.

    >>> layer_prefix(3)
    'model.layers.3.'
    """
    return f"model.layers.{layer}."


def part(params: Mapping[str, Any], prefix: str) -> Params:
    """The parameters under ``prefix``, by the rest of their names.

    >>> part({"attn.w": 1, "mlp.w": 2}, "attn.")
    {'w': 1}
    """
    return {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}


def with_prefix(prefix: str, params: Mapping[str, Any]) -> Params:
    """``params`` under longer names: the inverse of :func:`part`.

    >>> with_prefix("attn.", {"w": 1})
    {'attn.w': 1}
    """
    return {prefix + name: value for name, value in params.items()}


def parameter_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, from the embeddings to the head.

    >>> shapes = parameter_shapes(RAMNetConfig(vocab=10, width=8, layers=1, heads=2, order=3, radix=4))
    >>> shapes["model.layers.0.attn.w_proj.weight"]  # 2 heads of 3 digits of 4 values
    (24, 8)
    """
    shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (config.vocab, config.width)}
    for i in range(config.layers):
        shapes |= with_prefix(layer_prefix(i), block_shapes(config))
    shapes |= with_prefix("model.norm.", _norm_shapes(config))
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab, config.width)
    return shapes


def block_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the parameters of one block.

    Source: spec section 5.

    >>> block_shapes(RAMNetConfig(width=8, heads=2, ffn="none"))["attn.o_proj.weight"]
    (8, 8)
    """
    shapes = with_prefix("attn_norm.", _norm_shapes(config))
    if config.short_conv:
        shapes["attn_conv.weight"] = (config.width, config.short_conv)
    shapes |= with_prefix("attn.", layer_shapes(config) if config.mixer == "ram" else mixer_shapes(config))
    if config.ffn != "none":
        shapes |= with_prefix("mlp_norm.", _norm_shapes(config)) | with_prefix("mlp.", _ffn_shapes(config))
    return shapes


def layer_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the parameters of one RAM layer.

    Source: spec section 5.

    >>> layer_shapes(RAMNetConfig(width=8, heads=2, order=3, radix=4))["w_scale"]
    (2, 3)
    """
    D, H = config.width, config.heads
    digits = H * config.order * config.radix
    shapes: dict[str, tuple[int, ...]] = {}
    for side in ("r", "w"):
        shapes[f"{side}_proj.weight"] = (digits, D)
        if config.address_bias:
            shapes[f"{side}_proj.bias"] = (digits,)
        if config.address_scale:
            shapes[f"{side}_scale"] = (H, config.order)
    shapes |= _value_shapes(config)
    if config.gamma_mode == "learnable":
        shapes["gamma_modifier"] = (H,)
    if config.gamma_mode == "dynamic":
        shapes["gamma_modifier.weight"] = (H, D)
        shapes["gamma_modifier.bias"] = (H,)
    return shapes | _output_shapes(config)


def mixer_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of the parameters of one layer of a mixer other than ram.

    >>> list(mixer_shapes(RAMNetConfig(width=8, heads=2, mixer="delta", delta_gate=True)))[:4]
    ['q_proj.weight', 'k_proj.weight', 'v_proj.weight', 'o_proj.weight']
    """
    D, H, keys = config.width, config.heads, config.heads * config.head_key_channels
    shapes: dict[str, tuple[int, ...]] = {"q_proj.weight": (keys, D), "k_proj.weight": (keys, D)}
    shapes |= _value_shapes(config)
    if config.mixer == "delta":
        shapes["b_proj.weight"] = (H, D)
        if config.delta_gate:
            shapes |= {"a_proj.weight": (H, D), "dt_bias": (H,), "A_log": (H,)}
    return shapes | _output_shapes(config)


def init_parameters(shapes: Mapping[str, tuple[int, ...]], config: RAMNetConfig, seed: int, dtype: Any) -> Params:
    """Initial values for the parameters that ``shapes`` names.

    Matrices are drawn from N(0, ``init_std``); norms start at 1, the gate's bias at 3, the address biases of the heads
    that ``config.address_prior`` names at a prior (see :func:`address_prior`), the delta rule's decay at values drawn
    per head (see :mod:`~ramnet_np.model.decay`), every other bias, scale and modifier at 0. A short convolution lets
    the token itself through, weight 1, and adds those before it by weights drawn evenly from +-1 / sqrt(width), so that
    channels differ from the start in what they see of the past. Names without a layer's prefix count as layer 0's. The
    draws are float32 for either dtype, so a float64 model starts at the same values. Source: spec section 5.

    >>> config = RAMNetConfig(vocab=8, width=4, layers=1)
    >>> params = init_parameters(parameter_shapes(config), config, seed=0, dtype=np.float32)
    >>> params["model.norm.weight"].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    rng = np.random.default_rng(seed)
    return {name: _initial(name, shape, config, rng).astype(dtype, copy=False) for name, shape in shapes.items()}


def address_prior(config: RAMNetConfig) -> np.ndarray:
    """The initial address bias (U, P): digit u prefers large values, the more so the more significant it is.

    linspace(0, 1.5, U)[:, None] * linspace(-1, 1, P)
    Source: spec section 5.

    >>> address_prior(RAMNetConfig(order=3, radix=3)).tolist()
    [[-0.0, 0.0, 0.0], [-0.75, 0.0, 0.75], [-1.5, 0.0, 1.5]]
    """
    strength = np.linspace(0, ADDRESS_PRIOR, config.order, dtype=np.float32)
    return strength[:, None] * np.linspace(-1, 1, config.radix, dtype=np.float32)


def _initial(name: str, shape: tuple[int, ...], config: RAMNetConfig, rng: np.random.Generator) -> np.ndarray:
    if name.endswith("norm.weight"):
        return np.ones(shape, dtype=np.float32)
    if name.endswith("conv.weight"):
        weight = (rng.random(shape, dtype=np.float32) * 2 - 1) * np.float32(shape[1] ** -0.5)
        weight[:, -1] = 1
        return weight
    if name.endswith("A_log"):
        return np.log(rng.uniform(*DECAY_RATES, size=shape)).astype(np.float32)
    if name.endswith("dt_bias"):
        low, high = map(math.log, DECAY_STEPS)
        step = np.exp(rng.uniform(low, high, size=shape))
        return np.log(np.expm1(step)).astype(np.float32)  # softplus^-1
    if name.endswith(".weight"):
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(config.init_std)
    if name.endswith(("w_proj.bias", "r_proj.bias")):
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        heads = config.heads if config.address_prior == "all" else config.cape_heads(int(layer[1]) if layer else 0)
        bias = np.zeros((config.heads, config.order, config.radix), dtype=np.float32)
        bias[:heads] = address_prior(config)
        return bias.ravel()
    if name.endswith("o_gate.0.bias"):
        return np.full(shape, GATE_BIAS, dtype=np.float32)
    return np.zeros(shape, dtype=np.float32)


def _value_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    D, values = config.width, config.heads * config.head_channels
    shapes: dict[str, tuple[int, ...]] = {"v_proj.weight": (values, D), "o_proj.weight": (D, values)}
    if config.value_bias:
        shapes |= {"v_proj.bias": (values,), "o_proj.bias": (D,)}
    return shapes


def _output_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    values = config.heads * config.head_channels
    shapes: dict[str, tuple[int, ...]] = {"o_norm.weight": (config.head_channels,)} if config.output_norm else {}
    if config.output_gate:
        shapes |= {"o_gate.0.weight": (values, config.width), "o_gate.0.bias": (values,)}
    return shapes


def _norm_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    return {name: (config.width,) for name in names}


def _ffn_shapes(config: RAMNetConfig) -> dict[str, tuple[int, ...]]:
    D, F = config.width, config.inner_width
    if config.ffn == "swiglu":
        return {"gate_proj.weight": (F, D), "up_proj.weight": (F, D), "down_proj.weight": (D, F)}
    return {"0.weight": (F, D), "0.bias": (F,), "2.weight": (D, F), "2.bias": (D,)}
