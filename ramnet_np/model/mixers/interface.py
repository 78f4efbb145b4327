"""What a mixer is: the part of a block that takes something from earlier tokens to later ones.

A module of this package holds one :class:`Mixer`, called ``MIXER``. It is all that the rest of the library knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from ramnet_np.contract import Address, Array
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.live_tokens import Rows
from ramnet_np.model.parameters import Parameter, Params

Recompute = Literal["none", "ffn", "block"]


class CallOptions(NamedTuple):
    """What holds for every layer of one call of the model."""

    positions: Array | None = None  # (T,) or (B, T), for CAPE and rotary positions; None counts from 0
    mask: Array | None = None  # (B, T) bool; where False a token neither writes nor reads
    backend: str | None = None
    return_state: bool = False
    in_place: bool = False  # T = 1: update the given state; there is no backward
    recompute: Recompute = "none"  # what a block computes again in its backward in place of keeping it
    gradients: bool = True  # whether a backward of this very forward follows; without, a mixer's ctx may be None
    cu_seqlens: Any = None  # (N + 1,) int64 on the CPU: offsets of packed sequences
    layer_rows: Rows | None = None  # where a layer's tokens are moved to, if it takes no mask and no packed row itself
    conv_rows: Rows | None = None  # where those of the short convolution are, if only it has them moved


class StateSize(NamedTuple):
    """Elements of the state of one layer."""

    total: int
    active: int  # those that one token writes or reads


@dataclass(frozen=True)
class Variant:
    """A mixer under certain settings, as tables, figures and gradient checks name it."""

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # fields of RAMNetConfig that make the variant
    ablation: bool = False  # stands in tables after all other variants

    def describes(self, config: RAMNetConfig) -> bool:
        """Whether ``config`` has the settings of the variant.

        >>> gated = Variant("gated delta", "Gated DeltaNet", {"delta_gate": True})
        >>> gated.describes(RAMNetConfig(delta_gate=True)), gated.describes(RAMNetConfig())
        (True, False)
        """
        return all(getattr(config, name) == value for name, value in self.settings.items())


class Forward(Protocol):
    """The forward of a layer."""

    def __call__(
        self,
        x: Array,
        params: Params,
        config: RAMNetConfig,
        layer: int = 0,
        *,
        state: Any = None,
        options: CallOptions | None = None,
    ) -> tuple[Array, Any, Any]:
        """``x``: (B, T, D); ``params``: the layer's own; ``layer``: its number; ``state``: what the tokens before left,
        taken as constant, None for nothing. Returns out (B, T, D), the state after the last token (None unless
        ``options`` ask for it) and ctx (None if in place)."""


class Step(Protocol):
    """One token through a norm and a layer, added to the stream."""

    def __call__(
        self, x: Array, norm: Array, params: Params, config: RAMNetConfig, layer: int, state: Any, options: CallOptions
    ) -> tuple[Array, Any]:
        """``x``: (B, D), the stream; ``norm``: (D,), the weight of the RMSNorm; the others as of a forward.

        UPDATES ``state`` IN PLACE. Returns x + layer(norm(x)), (B, D), and the state."""


class Addresses(Protocol):
    """Where the tokens of a layer with slots write and read."""

    def __call__(
        self, x: Array, params: Params, config: RAMNetConfig, layer: int, options: CallOptions
    ) -> dict[str, Address]:
        """``x``: (B, T, D). Returns {"write": Address, "read": Address}."""


def _check_nothing(config: RAMNetConfig) -> None:
    pass


@dataclass(frozen=True)
class Mixer:
    """Everything that the library asks of a mixer."""

    name: str  # the value of ``RAMNetConfig.mixer``
    variants: tuple[Variant, ...]  # the first has no settings; of those that describe a configuration the last counts
    parameters: Callable[[RAMNetConfig, int], dict[str, Parameter]]  # of layer number i
    forward: Forward
    backward: Callable[[Array, Any], tuple[Array, Params]]  # (dout, ctx) -> gradients of x and of the parameters
    state_size: Callable[[RAMNetConfig, int], StateSize]  # of one layer, after a context of so many tokens
    # The check runs on every configuration, whichever mixer that names: ValueError or TypeError for a setting of this
    # mixer that is wrong in itself, and where the configuration names it, for settings that do not fit together.
    check: Callable[[RAMNetConfig], None] = _check_nothing
    # TypeError or ValueError, by the name given first, unless a state (second) can be stepped from, for B sequences
    # (fourth) and arrays like the last; of a mixer whose step changes the state's arrays where they are
    check_state: Callable[[str, Any, RAMNetConfig, int, Array], None] | None = None
    state_grows: bool = False  # with every token
    # The state before the first token, for sequences like the array (B, T, D), with the shapes of every later state;
    # None of a mixer whose state takes shape with its tokens.
    initial_state: Callable[[RAMNetConfig, Array], Any] | None = None
    # Parameters of a layer and a configuration that give the same bits with less work a token; None: there are none.
    settle: Callable[[Params, RAMNetConfig], tuple[Params, RAMNetConfig]] | None = None
    # One token in few launches, the numbers that ``forward`` gives in place; None: the forward serves it.
    step: Step | None = None
    addresses: Addresses | None = None  # of a mixer with slots, which takes masks, packed rows and a backend itself

    def variant(self, config: RAMNetConfig) -> Variant:
        """Which of the variants ``config`` is.

        >>> from ramnet_np.model.mixers import MIXERS
        >>> MIXERS["delta"].variant(RAMNetConfig(mixer="delta", delta_gate=True)).label
        'Gated DeltaNet'
        """
        return [variant for variant in self.variants if variant.describes(config)][-1]
