"""What a RAM-Net is made of: :class:`RAMNetConfig`.

Each mixer checks its own settings. :func:`~ramnet_np.model.mixers.add_mixer` enters its check here, so that this module
need not import the mixers, which all import it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

from ramnet_np.core.retention import Update
from ramnet_np.layers.feature_map import FeatureMap
from ramnet_np.model.checks import SMALLEST, check_choice, check_flag, check_integer, check_number, plain

GammaMode = Literal["fixed", "learnable", "dynamic"]
Norm = Literal["rmsnorm", "layernorm"]
FFN = Literal["swiglu", "gelu", "silu", "none"]
GateActivation = Literal["sigmoid", "silu"]
AddressPrior = Literal["all", "cape"]
MixerName = Literal["ram", "softmax", "window", "linear", "delta", "gla", "mamba2"]  # model/mixers: what --help offers

MOST_LAYERS = 4096  # more are a slip of the pen, and would take minutes to be refused by the memory

# mixer -> its check, run on every configuration, whichever mixer that names
MIXER_CHECKS: dict[str, Callable[[RAMNetConfig], None]] = {}


@dataclass(frozen=True)
class RAMNetConfig:
    """The sizes and choices of a language model of RAM layers.

    >>> RAMNetConfig(vocab=256, width=64, order=3).slots
    64
    """

    vocab: int = 8192
    """Number of tokens."""
    width: int = 64
    """Channels of the residual stream."""
    layers: int = 2
    """Number of blocks: a RAM layer or another mixer, then a feed-forward network."""
    heads: int = 2
    """Memories per layer, each with addresses of its own."""
    order: int = 5
    """U, digits of an address."""
    radix: int = 4
    """P, values of a digit. A memory has M = radix ** order slots."""
    channels: int | None = None
    """C, channels of a slot, or of a value of another mixer; none: width // heads."""
    top_k: int | tuple[int, int] = 8
    """K, slots that a token writes and reads; two numbers set writes and reads apart."""
    renorm: bool | tuple[bool, bool] = False
    """Divide the K kept weights by their sum; two values set writes and reads apart."""
    update: Update = "pdma"
    """How an old value gives way: pdma, alpha = (1 - w) ** gamma (the paper); gsu, alpha = sigmoid(-logit(w) - gamma)
    (the authors' later package)."""
    gamma: float = 1.0
    """Forgetting. pdma: 0 averages everything written, 1 is a moving average, more forgets faster. gsu: 0 is that
    moving average, less keeps longer."""
    gamma_mode: GammaMode = "fixed"
    """fixed: the constant above; learnable: plus one number per head; dynamic: plus a linear map of each token."""
    proxy_eps: float = 0.0
    """pdma: e of the proxy gradient, which keeps the slope of the retention finite; 0 is the true gradient."""
    cape: int | tuple[int, ...] = 0
    """Heads that address relative to the token's position: one number for every layer, or one per layer from the first
    (layers not named have none)."""
    temperature: float | None = None
    """tau, by which address logits are divided; none: sqrt(order)."""
    init_mass: float | None = None
    """Mass of a slot before the first write: how strongly its zero content is held on to; none: 1 / M."""
    learned_slots: bool = False
    """Learn what every slot holds before the first token, content and mass; it starts as the empty memory."""
    mass_aware: bool = False
    """Weigh what is read by the mass of its slot."""
    output_gate: bool = False
    """Multiply what was read, after its norm, by act(linear(x))."""
    gate_activation: GateActivation = "sigmoid"
    """act of that gate. sigmoid starts open, with biases of 3 (the authors' package); silu with biases of 0 (GLA, Gated
    DeltaNet, Mamba-2)."""
    output_norm: bool = False
    """RMSNorm of what each head read."""
    address_bias: bool = True
    """Biases on the address logits."""
    address_prior: AddressPrior = "all"
    """Which heads' address biases start as a prior over the slots, so that writes and reads share slots before
    anything is learned: all, or only those that use CAPE (the others' addresses then tell tokens apart at once)."""
    value_bias: bool = False
    """Biases on the value and the output projections."""
    address_scale: bool = True
    """A learned scale exp(a) per head and digit on the address projections."""
    eps: float = 1e-12
    """Keeps the division by a slot's mass defined."""
    norm: Norm = "rmsnorm"
    """Normalisation before each half of a block and before the head."""
    norm_eps: float = 1e-6
    """Added to the mean square in these."""
    ffn: FFN = "swiglu"
    """Feed-forward network: swiglu is gated; gelu and silu have two matrices with biases; none leaves it out."""
    ffn_width: int | None = None
    """Its inner width; none: for swiglu the multiple of 256 at or above 8/3 of the width, else 4 times the width."""
    tie_embeddings: bool = True
    """Use the embedding table as the output head as well."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    mixer: MixerName = "ram"
    """What a layer remembers with. ram: the slot memory; the others are there to compare it with: softmax attention
    over all tokens, or over a sliding window, linear attention, delta: DeltaNet, with delta_gate Gated DeltaNet; gla:
    gated linear attention, and mamba2: that of Mamba-2, whose states decay at rates that tokens set."""
    hybrid: MixerName | None = None
    """Another mixer for some of the layers; none: all have the one above."""
    hybrid_every: int = 4
    """With hybrid: the last of every so many layers has it."""
    key_channels: int | None = None
    """Channels of a query and of a key of each head, for every mixer but ram; none: as many as of a value."""
    window: int = 64
    """mixer window: tokens that a token sees, itself included."""
    feature_map: FeatureMap | None = None
    """mixers linear, delta, gla and mamba2: what queries and keys pass. elu: elu(x) + 1; relu; silu; identity: nothing;
    none: the mixer's own, linear elu, delta silu (it scales them to length 1 afterwards), gla identity, mamba2 silu."""
    normaliser: bool = True
    """mixer linear: divide by the sum of the features, which must not be negative (elu, relu)."""
    delta_gate: bool = False
    """mixer delta: a learned decay of the state, one number per token and head."""
    rotary: bool = True
    """mixers softmax and window: queries and keys turn with the token's position."""
    short_conv: int = 0
    """Tokens that a causal convolution mixes, channel by channel, before the mixer (any of them); 0: none."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name in ("vocab", "width", "heads"):
            check_integer(name, getattr(self, name), 1)
        check_integer("layers", self.layers, 1, MOST_LAYERS)
        for name in ("channels", "ffn_width", "key_channels"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.channels is None and self.width < self.heads:
            raise ValueError(
                f"width must be at least heads ({self.heads}) when channels is not given, got {self.width}"
            )
        for name in ("output_gate", "output_norm", "value_bias", "tie_embeddings"):
            check_flag(name, getattr(self, name))
        check_integer("short_conv", self.short_conv, 0)
        check_choice("norm", self.norm, Norm)
        check_choice("ffn", self.ffn, FFN)
        check_choice("gate_activation", self.gate_activation, GateActivation)
        if self.feature_map is not None:
            check_choice("feature_map", self.feature_map, FeatureMap)
        check_choice("mixer", self.mixer, MIXER_CHECKS)
        check_integer("hybrid_every", self.hybrid_every, 1)
        if self.hybrid is not None:
            check_choice("hybrid", self.hybrid, MIXER_CHECKS)
            of_layer(self, self.hybrid_every - 1)  # checks its settings, too
        for check in MIXER_CHECKS.values():
            check(self)
        check_number("init_std", self.init_std, low=0)
        check_number("norm_eps", self.norm_eps, low=SMALLEST)

    @property
    def slots(self) -> int:
        """M, slots of one head's memory.

        >>> RAMNetConfig(order=5, radix=4).slots
        1024
        """
        return self.radix**self.order

    @property
    def head_channels(self) -> int:
        """C, the channels of a slot.

        >>> RAMNetConfig(width=64, heads=2).head_channels
        32
        """
        return self.width // self.heads if self.channels is None else self.channels

    @property
    def head_key_channels(self) -> int:
        """d_k, the channels of a query and of a key of a mixer other than ram.

        >>> RAMNetConfig(width=64, heads=2, key_channels=16).head_key_channels
        16
        """
        return self.head_channels if self.key_channels is None else self.key_channels

    @property
    def tau(self) -> float:
        """The temperature."""
        return math.sqrt(self.order) if self.temperature is None else self.temperature

    @property
    def inner_width(self) -> int:
        """Inner width of the feed-forward network.

        >>> RAMNetConfig(width=1024).inner_width
        2816
        """
        if self.ffn_width is not None:
            return self.ffn_width
        if self.ffn == "swiglu":
            return 256 * math.ceil(int(4 * self.width * 2 / 3) / 256)
        return 4 * self.width

    def cape_heads(self, layer: int) -> int:
        """Heads of ``layer`` that use CAPE.

        >>> [RAMNetConfig(layers=3, cape=(2, 1)).cape_heads(i) for i in range(3)]
        [2, 1, 0]
        """
        if isinstance(self.cape, tuple):
            return self.cape[layer] if layer < len(self.cape) else 0
        return self.cape


def of_layer(config: RAMNetConfig, layer: int) -> RAMNetConfig:
    """The configuration that block number ``layer`` goes by: its mixer is that of the layer.

    >>> config = RAMNetConfig(layers=4, hybrid="window", hybrid_every=2)
    >>> [of_layer(config, i).mixer for i in range(4)]
    ['ram', 'window', 'ram', 'window']
    """
    return config if config.hybrid is None else _of_hybrid(config, layer)


@lru_cache(maxsize=256)
def _of_hybrid(config: RAMNetConfig, layer: int) -> RAMNetConfig:
    assert config.hybrid is not None
    other = (layer + 1) % config.hybrid_every == 0
    return replace(config, mixer=config.hybrid if other else config.mixer, hybrid=None)
