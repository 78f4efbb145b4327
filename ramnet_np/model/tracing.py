"""Which slots the tokens of a model access, layer by layer."""

from __future__ import annotations

from ramnet_np.contract import Address, Array
from ramnet_np.layers.embedding import embedding_forward
from ramnet_np.model.block import block_forward, layer_input_forward
from ramnet_np.model.call_checks import check_options, mixers_with_slots, with_live_tokens
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.layout import EMBEDDINGS, layer_prefix
from ramnet_np.model.mixers import MIXERS, CallOptions
from ramnet_np.model.parameters import Params, subset


def trace(params: Params, config: RAMNetConfig, ids: Array, options: CallOptions) -> list[dict[str, Address]]:
    """Per layer {"write": Address, "read": Address}, (B, T, H, K), of checked ids (B, T).

    ValueError for a mixer without slots.

    >>> import numpy as np
    >>> from ramnet_np.model.network import RAMNet
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> trace(model.params, model.config, np.array([[1, 2, 3]]), CallOptions())[0]["read"].index.shape
    (1, 3, 2, 8)
    """
    addresses = MIXERS[config.mixer].addresses
    if addresses is None:
        raise ValueError(f"trace needs mixer {mixers_with_slots()}, which alone has slots, got mixer {config.mixer!r}")
    check_options(config, options)
    options = with_live_tokens(config, options, ids, params[EMBEDDINGS])
    x, _ = embedding_forward(ids, params[EMBEDDINGS])
    accesses = []
    for i in range(config.layers):
        own = subset(params, layer_prefix(i))
        n, _, _ = layer_input_forward(x, own, config, None, options)
        accesses.append(addresses(n, subset(own, "attn."), config, i, options))
        x, _, _ = block_forward(x, own, config, i, options=options)
    return accesses
