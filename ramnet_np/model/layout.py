"""Which parameters a model has: every name in order, from the embeddings to the head.

The names are those of the authors' checkpoints, so that files need no translation. The order is the one in which
initial values are drawn. Source: the authors' package ramnet.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import require_array
from ramnet_np.model.block import block_parameters
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.norm import norm_parameters
from ramnet_np.model.parameters import Parameter, Params, Shape, add_prefix, normal, shapes_of

EMBEDDINGS, HEAD, NORM = "model.embeddings.weight", "lm_head.weight", "model.norm."
LAYERS = "model.layers."


def layer_prefix(layer: int) -> str:
    """What the names of a block's parameters start with.

    >>> layer_prefix(3)
    'model.layers.3.'
    """
    return f"{LAYERS}{layer}."


def model_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """Every parameter of a model, by name.

    Source: the authors' package ramnet.

    >>> parameters = model_parameters(RAMNetConfig(vocab=10, width=8, layers=1, heads=2, order=3, radix=4))
    >>> parameters["model.layers.0.attn.w_proj.weight"].kind
    'addresses'
    """
    table = (config.vocab, config.width)
    parameters = {EMBEDDINGS: Parameter(table, "embeddings", normal(config.init_std))}
    for i in range(config.layers):
        parameters |= add_prefix(layer_prefix(i), block_parameters(of_layer(config, i), i))
    parameters |= add_prefix(NORM, norm_parameters(config))
    if not config.tie_embeddings:
        parameters[HEAD] = Parameter(table, "head", normal(config.init_std))
    return parameters


def parameter_shapes(config: RAMNetConfig) -> dict[str, Shape]:
    """Name and shape of every parameter.

    >>> shapes = parameter_shapes(RAMNetConfig(vocab=10, width=8, layers=1, heads=2, order=3, radix=4))
    >>> shapes["model.layers.0.attn.w_proj.weight"]  # 2 heads of 3 digits of 4 values
    (24, 8)
    """
    return shapes_of(model_parameters(config))


def require_parameters(params: Params, config: RAMNetConfig) -> None:
    """ValueError or TypeError unless ``params`` are those of ``config``: names, shapes, one dtype, one device.

    >>> import numpy as np
    >>> require_parameters({"lm_head.weight": np.zeros(3)}, RAMNetConfig())
    Traceback (most recent call last):
        ...
    ValueError: params must hold the parameters of config, got 'lm_head.weight', which it does not have
    """
    shapes = parameter_shapes(config)
    for name in params.keys() - shapes.keys():
        raise ValueError(f"params must hold the parameters of config, got {name!r}, which it does not have")
    dtypes = set()
    for name, shape in shapes.items():
        if name not in params:
            raise ValueError(f"params must hold the parameters of config, {name!r} of shape {shape} is missing")
        found = require_array(f"params[{name!r}]", params[name])
        if found.shape != shape:
            raise ValueError(f"params[{name!r}] must have shape {shape}, got {found.shape}")
        dtypes.add(str(found.dtype))
    on_gpu = namespace_of(*params.values()) is not np  # and all on one device
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64", *(("bfloat16", "float16") if on_gpu else ())}:
        also = ", on a GPU also all bfloat16 or all float16" if not on_gpu else ", all bfloat16 or all float16"
        raise TypeError(f"params must all be float32 or all float64{also}, got {' and '.join(sorted(dtypes))}")


def float_dtype(dtype: Any, on_gpu: bool) -> np.dtype:
    """The dtype that ``dtype`` names, one that a model can compute in: TypeError for others.

    >>> float_dtype("float32", on_gpu=False)
    dtype('float32')
    >>> float_dtype("bfloat16", on_gpu=False)
    Traceback (most recent call last):
        ...
    TypeError: dtype must be float32 or float64 on the CPU, got bfloat16
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name in ("float32", "float64") or (on_gpu and name == "float16"):
        return np.dtype(name)
    if on_gpu and name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    served = "float32, float64, bfloat16 or float16 on a GPU" if on_gpu else "float32 or float64 on the CPU"
    raise TypeError(f"dtype must be {served}, got {name}")
