"""What a RAM-Net is made of: :class:`RAMNetConfig`, and settings by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ramnet_np.core.retention import RULES, Update

GammaMode = Literal["fixed", "learnable", "dynamic"]
Norm = Literal["rmsnorm", "layernorm"]
FFN = Literal["swiglu", "gelu", "silu", "none"]
AddressPrior = Literal["all", "cape"]
Mixer = Literal["ram", "softmax", "window", "linear", "delta"]


@dataclass(frozen=True)
class RAMNetConfig:
    """The sizes and choices of a language model of RAM layers."""

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
    mass_aware: bool = False
    """Weigh what is read by the mass of its slot."""
    output_gate: bool = False
    """Multiply what was read by sigmoid(linear(x))."""
    output_norm: bool = False
    """RMSNorm of what each head read."""
    address_bias: bool = True
    """Biases on the address logits."""
    address_prior: AddressPrior = "all"
    """Which heads' address biases start as a prior over the slots, so that writes and reads meet before anything is
    learned: all, or only those that use CAPE (the others then start with addresses that tell tokens apart)."""
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
    mixer: Mixer = "ram"
    """What a layer remembers with. ram: the slot memory; the others are there to compare it with: softmax attention
    over all tokens, or over a sliding window, linear attention, delta: DeltaNet, with delta_gate Gated DeltaNet."""
    key_channels: int | None = None
    """Channels of a query and of a key of each head, for every mixer but ram; none: as many as of a value."""
    window: int = 64
    """mixer window: tokens that a token sees, itself included."""
    delta_gate: bool = False
    """mixer delta: a learned decay of the state, one number per token and head."""
    rotary: bool = True
    """mixers softmax and window: queries and keys turn with the token's position."""
    short_conv: int = 0
    """Tokens that a causal convolution mixes, channel by channel, before the mixer (any of them); 0: none."""

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "layers", "heads", "order", "radix"):
            _integer(name, getattr(self, name), 1)
        if self.radix**self.order >= 2**31:
            raise ValueError(f"radix ** order must be below 2**31 slots, got {self.radix} ** {self.order}")
        for name in ("channels", "ffn_width", "key_channels"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), 1)
        if self.channels is None and self.width < self.heads:
            raise ValueError(
                f"width must be at least heads ({self.heads}) when channels is not given, got {self.width}"
            )
        for name in ("top_k", "renorm", "cape"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for k in _pair("top_k", self.top_k):
            _integer("top_k", k, 1, self.slots)
        for flag in _pair("renorm", self.renorm):
            _flag("renorm", flag)
        for name in ("mass_aware", "output_gate", "output_norm", "address_bias", "value_bias", "address_scale"):
            _flag(name, getattr(self, name))
        for name in ("tie_embeddings", "delta_gate", "rotary"):
            _flag(name, getattr(self, name))
        self._check_cape()
        for name, choices in (
            ("update", tuple(RULES)),
            ("gamma_mode", get_args(GammaMode)),
            ("norm", get_args(Norm)),
            ("ffn", get_args(FFN)),
            ("address_prior", get_args(AddressPrior)),
            ("mixer", get_args(Mixer)),
        ):
            if getattr(self, name) not in choices:
                allowed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        self._check_mixer()
        for name in ("gamma", "proxy_eps", "init_std", "norm_eps", "eps"):
            _number(name, getattr(self, name))
        for name in ("temperature", "init_mass", "eps", "norm_eps"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), above=0)
        if self.init_std < 0:
            raise ValueError(f"init_std must be 0 or more, got {self.init_std}")
        if not 0 <= self.proxy_eps <= 1:
            raise ValueError(f"proxy_eps must lie between 0 and 1, got {self.proxy_eps}")
        least = RULES[self.update].least_gamma
        if self.gamma < least:
            raise ValueError(f"gamma must be {least:g} or more for update={self.update!r}, got {self.gamma}")
        if self.gamma == least and self.gamma_mode != "fixed":
            raise ValueError(
                f"gamma must be above {least:g} for update={self.update!r} with gamma_mode={self.gamma_mode!r}, "
                f"got {self.gamma:g}: the softplus that keeps gamma above {least:g} cannot start there"
            )

    def _check_cape(self) -> None:
        per_layer = self.cape if isinstance(self.cape, tuple) else (self.cape,)
        if len(per_layer) > self.layers:
            raise ValueError(f"cape must have at most one number per layer ({self.layers}), got {len(per_layer)}")
        for heads in per_layer:
            _integer("cape", heads, 0, self.heads)

    def _check_mixer(self) -> None:
        _integer("window", self.window, 1)
        _integer("short_conv", self.short_conv, 0)
        if self.rotary and self.mixer in ("softmax", "window") and self.head_key_channels % 2:
            raise ValueError(
                f"key_channels must be even for mixer={self.mixer!r} with rotary positions, "
                f"got {self.head_key_channels}"
            )

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


def _number(name: str, value: Any, above: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value > above and math.isfinite(value)):
        expected = "finite" if above == -math.inf else f"finite and above {above:g}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {expected}, got {value}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _pair(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        return (value,)
    if len(value) != 2:
        raise ValueError(f"{name} must be one value or a (write, read) pair, got {len(value)} values")
    return value


PRESETS: dict[str, RAMNetConfig] = {
    # Two layers suffice for recall: heads that use CAPE bring each key beside its value, content heads then look it up.
    # Learns fastest with sharp addresses (tau), many slots in reach of a token (K) and content heads without a prior.
    "mqar-demo": RAMNetConfig(
        vocab=256, order=3, top_k=16, temperature=0.25, cape=(2, 0), address_prior="cape", ffn="none"
    ),
    # In a large vocabulary CAPE takes long to find the token before: a convolution shows it, content heads do the rest.
    "mqar-small": RAMNetConfig(
        vocab=8192,
        heads=1,
        channels=32,
        top_k=16,
        temperature=0.25,
        update="gsu",
        gamma=0.0,
        gamma_mode="dynamic",
        short_conv=2,
        address_prior="cape",
        ffn="none",
    ),
    # Bytes as tokens: mqar-demo with more heads and digits, and a feed-forward network for what is not recall.
    "text-small": RAMNetConfig(
        vocab=256,
        heads=4,
        order=6,
        radix=2,
        top_k=16,
        temperature=0.25,
        cape=(4, 0),
        address_prior="cape",
        ffn="gelu",
        ffn_width=128,
    ),
    # Paper, section 5.2: 340.8M parameters.
    "paper-340m": RAMNetConfig(
        vocab=32000, width=1024, layers=27, heads=16, value_bias=True, cape=(16,) * 4 + (8,) * 4
    ),
    # The authors' package after the paper. They publish no configuration of this size: this is the one that their
    # package defaults to, with half the width and half the heads.
    "authors-340m": RAMNetConfig(
        vocab=32000,
        width=1024,
        layers=25,
        heads=16,
        update="gsu",
        gamma=0.0,
        gamma_mode="dynamic",
        cape=(16,) * 4 + (8,) * 4 + (4,) * 4 + (2,) * 4 + (1,) * 9,
        output_gate=True,
        output_norm=True,
    ),
}


def preset(name: str) -> RAMNetConfig:
    """The configuration of that name.

    >>> preset("paper-340m").slots
    1024
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {name!r}")
    return PRESETS[name]
