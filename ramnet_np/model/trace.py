"""Which slots every layer writes and reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramnet_np.contract import Address, Array
from ramnet_np.model.block import block_forward, layer_input_forward
from ramnet_np.model.call_checks import check_one_per_layer, check_options, mixers_with_slots
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.layout import layer_prefix
from ramnet_np.model.mixers import MIXERS, CallOptions, mixers_of
from ramnet_np.model.parameters import Params, subset


def check_traced(config: RAMNetConfig, state: Any, options: CallOptions) -> None:
    """ValueError unless a model has slots that can be traced, from a state that fits.

    >>> check_traced(RAMNetConfig(mixer="delta"), None, CallOptions())
    Traceback (most recent call last):
        ...
    ValueError: trace needs mixer 'ram', which alone has slots, got mixer 'delta'
    """
    if not any(mixer.addresses for mixer in mixers_of(config)):
        raise ValueError(f"trace needs mixer {mixers_with_slots()}, which alone has slots, got mixer {config.mixer!r}")
    check_options(config, options)
    if state is not None:
        check_one_per_layer(state, config.layers)


def traced_blocks(
    x: Array, params: Params, config: RAMNetConfig, state: Sequence[Any] | None, options: CallOptions
) -> list[dict[str, Address]]:
    """The addresses of every block for embedded tokens ``x`` (B, T, D); {} for a layer without slots.

    ``params``: of the model; ``state``: of every layer, None for empty memories.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNet
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=2, order=2, hybrid="window", hybrid_every=2), seed=0)
    >>> x = np.ones((1, 3, 8), np.float32)
    >>> [sorted(layer) for layer in traced_blocks(x, model.params, model.config, None, CallOptions())]
    [['read', 'write'], []]
    """
    accesses = []
    for i in range(config.layers):
        own, before = of_layer(config, i), None if state is None else state[i]
        layer = subset(params, layer_prefix(i))
        n, _, _ = layer_input_forward(x, layer, own, before)
        addresses = MIXERS[own.mixer].addresses
        accesses.append(addresses(n, subset(layer, "attn."), own, i, options) if addresses else {})
        x, _, _ = block_forward(x, layer, own, i, state=before, options=options)
    return accesses
