"""Queries, keys and values, the first step of every mixer but ram, and features of queries and keys, the second.

q, k, v = x Q^T, x K^T, x V^T        of every head
q, k    = phi(q), phi(k)             phi: ``feature_map``, or else the mixer's own
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.layers.activation import Activation
from ramnet_np.layers.feature_map import FEATURE_MAPS, FeatureMap
from ramnet_np.layers.linear import LinearContext, linear_backward, linear_forward
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers.interface import StateSize
from ramnet_np.model.output import value_parameters
from ramnet_np.model.parameters import Parameter, Params, normal


class ProjectionContext(NamedTuple):
    """What ``project_backward`` needs."""

    q: LinearContext
    k: LinearContext
    v: LinearContext


class FeaturesContext(NamedTuple):
    """What ``features_backward`` needs."""

    phi: Activation
    q: Any  # what phi kept of it
    k: Any


def key_value_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters of these maps and of the map out of the layer.

    >>> list(key_value_parameters(RAMNetConfig()))
    ['q_proj.weight', 'k_proj.weight', 'v_proj.weight', 'o_proj.weight']
    """
    weight = Parameter((config.heads * config.head_key_channels, config.width), "keys", normal(config.init_std))
    return {"q_proj.weight": weight, "k_proj.weight": weight} | value_parameters(config)


def project_forward(
    x: Array, params: Params, config: RAMNetConfig, widen: bool = True
) -> tuple[Array, Array, Array, ProjectionContext]:
    """q, k (B, T, H, d_k), v (B, T, H, C), and ctx. ``x``: (B, T, D).

    ``widen``: those of 16-bit models become float32, for a memory that sums over all tokens before.
    ValueError or TypeError as of the linear maps.

    >>> import numpy as np
    >>> params = {f"{name}_proj.weight": np.ones((8, 8)) for name in "qkv"}
    >>> q, k, v, ctx = project_forward(np.ones((1, 5, 8)), params, RAMNetConfig(width=8, heads=2))
    >>> q.shape
    (1, 5, 2, 4)
    """
    heads = (*x.shape[:2], config.heads, -1)
    q, q_ctx = linear_forward(x, params["q_proj.weight"])
    k, k_ctx = linear_forward(x, params["k_proj.weight"])
    v, v_ctx = linear_forward(x, params["v_proj.weight"], params.get("v_proj.bias"))
    if widen:
        q, k, v = at_least_float32(q), at_least_float32(k), at_least_float32(v)
    return q.reshape(heads), k.reshape(heads), v.reshape(heads), ProjectionContext(q_ctx, k_ctx, v_ctx)


def project_backward(
    dq: Array, dk: Array, dv: Array, ctx: ProjectionContext, accumulate_into: Array | None = None
) -> tuple[Array, Params]:
    """Gradient of x, (B, T, D), added to ``accumulate_into`` if given, and of the maps' parameters by their names.

    ``dq``, ``dk``: (B, T, H, d_k); ``dv``: (B, T, H, C).

    >>> import numpy as np
    >>> params = {f"{name}_proj.weight": np.ones((8, 8)) for name in "qkv"}
    >>> q, k, v, ctx = project_forward(np.ones((1, 5, 8)), params, RAMNetConfig(width=8, heads=2))
    >>> dx, grads = project_backward(q, k, v, ctx)
    >>> dx.shape, list(grads)
    ((1, 5, 8), ['q_proj.weight', 'k_proj.weight', 'v_proj.weight'])
    """
    dx, grads = accumulate_into, {}
    for name, d, linear_ctx in zip("qkv", (dq, dk, dv), ctx, strict=True):
        d = d.reshape(*d.shape[:2], -1).astype(linear_ctx.y.dtype, copy=False)
        dx, grads[f"{name}_proj.weight"], dbias = linear_backward(d, linear_ctx, accumulate_into=dx)
        if dbias is not None:
            grads[f"{name}_proj.bias"] = dbias
    return dx, grads


def features_forward(q: Array, k: Array, config: RAMNetConfig, own: FeatureMap) -> tuple[Array, Array, FeaturesContext]:
    """phi(q), phi(k), and ctx. ``own``: the mixer's feature map, where the configuration names none.

    >>> import numpy as np
    >>> x = np.array([-1.0, 2.0])
    >>> q, k, ctx = features_forward(x, x, RAMNetConfig(feature_map="relu"), own="identity")
    >>> q.tolist()
    [0.0, 2.0]
    """
    phi = FEATURE_MAPS[config.feature_map or own]
    (q, q_ctx), (k, k_ctx) = phi.forward(q), phi.forward(k)
    return q, k, FeaturesContext(phi, q_ctx, k_ctx)


def features_backward(dq: Array, dk: Array, ctx: FeaturesContext) -> tuple[Array, Array]:
    """Gradients of q and of k.

    >>> import numpy as np
    >>> x = np.array([-1.0, 2.0])
    >>> q, k, ctx = features_forward(x, x, RAMNetConfig(feature_map="relu"), own="identity")
    >>> features_backward(np.ones(2), np.ones(2), ctx)[0].tolist()
    [0.0, 1.0]
    """
    return ctx.phi.backward(dq, ctx.q), ctx.phi.backward(dk, ctx.k)


def empty_matrices(config: RAMNetConfig, x: Array) -> Array:
    """The state before the first token of a mixer that has a matrix for each head: zeros (B, H, d_k, C).

    ``x``: (B, T, D), whose B and device they have, and its dtype, or float32 where that has 16 bits.

    >>> import numpy as np
    >>> empty_matrices(RAMNetConfig(width=8, heads=2, key_channels=3), np.zeros((1, 5, 8))).shape
    (1, 2, 3, 4)
    """
    shape = (x.shape[0], config.heads, config.head_key_channels, config.head_channels)
    return namespace_of(x).zeros(shape, dtype=np.promote_types(x.dtype, np.float32))


def matrices_size(config: RAMNetConfig, context: int) -> StateSize:
    """Elements of that state for one sequence: every token reads and writes all of them.

    >>> matrices_size(RAMNetConfig(width=8, heads=2, key_channels=3), context=1024).total
    24
    """
    size = config.heads * config.head_key_channels * config.head_channels
    return StateSize(size, size)
