"""Which slots the tokens of a model access, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramnet_np.contract import Address, Array
from ramnet_np.layers.embedding import embedding_forward
from ramnet_np.model.block import block_forward, layer_input_forward
from ramnet_np.model.call_checks import (
    check_ids,
    check_one_per_layer,
    check_options,
    mixers_with_slots,
    with_live_tokens,
)
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.layout import EMBEDDINGS, layer_prefix
from ramnet_np.model.mixers import MIXERS, CallOptions, mixers_of
from ramnet_np.model.parameters import Params, subset


def trace(
    params: Params, config: RAMNetConfig, ids: Array, options: CallOptions, state: Sequence[Any] | None = None
) -> list[dict[str, Address]]:
    """Per layer {"write": Address, "read": Address}, (B, T, H, K), of ids (B, T).

    A layer of a hybrid that has no slots has {}. ``state``: what the tokens before left in every layer, None for
    nothing. ValueError for a model without slots.

    >>> import numpy as np
    >>> from ramnet_np.model.network import RAMNet
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> trace(model.params, model.config, np.array([[1, 2, 3]]), CallOptions())[0]["read"].index.shape
    (1, 3, 2, 8)
    """
    check_ids(ids, config.vocab, params[EMBEDDINGS])
    if not any(mixer.addresses for mixer in mixers_of(config)):
        raise ValueError(f"trace needs mixer {mixers_with_slots()}, which alone has slots, got mixer {config.mixer!r}")
    check_options(config, options, state is not None)
    if state is not None:
        check_one_per_layer(state, config.layers)
    options = with_live_tokens(config, options, ids, params[EMBEDDINGS])
    x, _ = embedding_forward(ids, params[EMBEDDINGS])
    accesses = []
    for i in range(config.layers):
        own, of_own = subset(params, layer_prefix(i)), of_layer(config, i)
        before, addresses = None if state is None else state[i], MIXERS[of_own.mixer].addresses
        n, _, _ = layer_input_forward(x, own, of_own, before, options)
        accesses.append(addresses(n, subset(own, "attn."), of_own, i, options) if addresses else {})
        x, _, _ = block_forward(x, own, of_own, i, state=before, options=options)
    return accesses
