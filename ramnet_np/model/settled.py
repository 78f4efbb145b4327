"""A model whose parameters stay, made ready for many short calls: the same bits with less work for each token."""

from __future__ import annotations

from typing import Any

from ramnet_np.model.layout import layer_prefix
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.parameters import Grouped, add_prefix, subset


def settled(model: Any) -> Any:
    """``model``, a RAMNet, with everything computed that depends on its parameters alone; for inference.

    It shares the other parameters. A later change of the model's does not reach it.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model, ids = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0), np.array([[1, 2, 3]])
    >>> bool((settled(model).forward(ids)[0] == model.forward(ids)[0]).all())
    True
    """
    config, params = model.config, dict(model.params)
    for i, mixer in enumerate(mixers_of(model.config)):
        if mixer.settle is None:
            continue
        prefix = layer_prefix(i) + "attn."
        layer = subset(params, prefix)
        own, config = mixer.settle(layer, model.config)
        for name in layer:
            del params[prefix + name]
        params |= add_prefix(prefix, own)
    return type(model)(config, params=Grouped(params))
