"""A model whose parameters stay, made ready for many short calls: less work for each token.

Everything that depends on parameters alone is computed once, to the same bits. On a CPU the matrices may also be held
in 16 bits: reading them takes most of a token's time there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.core.bfloat16 import to_bfloat16
from ramnet_np.model.checks import check_choice
from ramnet_np.model.layout import EMBEDDINGS, HEAD, layer_prefix
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.parameters import Grouped, add_prefix, subset

Weights = Literal["bfloat16"]


def settled(model: Any, weights: Weights | None = None) -> Any:
    """``model``, a RAMNet, with everything computed that depends on its parameters alone; for inference.

    It shares the other parameters. A later change of the model's does not reach it.
    ``weights``: "bfloat16" rounds the matrices of linear maps, the head among them, and holds them in 16 bits. The rest
    is computed in float32: the embeddings, biases, norms, memories and the sums of the products.
    ValueError for that where the model is not in float32 on a CPU.

    >>> import numpy as np
    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model, ids = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0), np.array([[1, 2, 3]])
    >>> bool((settled(model).forward(ids)[0] == model.forward(ids)[0]).all())
    True
    >>> float(abs(settled(model, "bfloat16").forward(ids)[0] - model.forward(ids)[0]).max()) < 1e-3
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
    if weights is None:
        return type(model)(config, params=Grouped(params))
    _check_weights(weights, params[EMBEDDINGS])
    # a tied head becomes a matrix of its own, as embeddings stay what they are
    made = type(model)(replace(config, tie_embeddings=False), params={HEAD: params[EMBEDDINGS]} | params)
    made.params = Grouped({name: to_bfloat16(p) if _is_multiplied(name, p) else p for name, p in made.params.items()})
    return made


def _is_multiplied(name: str, parameter: np.ndarray) -> bool:
    """Whether a parameter is the matrix of a linear map."""
    return parameter.ndim == 2 and name != EMBEDDINGS and name.endswith("weight") and "conv" not in name


def _check_weights(weights: Weights, like: Any) -> None:
    check_choice("weights", weights, Weights)
    if array_kind(like) != "numpy" or like.dtype != np.float32:
        model = f"one in {like.dtype} on a {'CPU' if array_kind(like) == 'numpy' else 'GPU'}"
        raise ValueError(f"weights must be None but for a model in float32 on a CPU, got {weights!r} for {model}")
