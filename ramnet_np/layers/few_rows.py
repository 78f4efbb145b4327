"""Products of a few rows with matrices, with the steps that stand around them in a block: for one token at a time.

A model of one token reads every weight and computes little, so on a GPU each launch costs as much as what it computes.
These functions are what a block computes between its input and its memory, its memory and its output, in the pieces
that one launch can take. They keep nothing for a backward.
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated_everywhere
from ramnet_np.core.require import ArraySpec, require_like
from ramnet_np.layers.gate import gate_forward
from ramnet_np.layers.linear import add_in_place, linear_forward
from ramnet_np.layers.norm import rmsnorm_forward


@accelerated_everywhere
def normed_products(
    x: Array, norm: Array, eps: float, weights: tuple[Array, ...], biases: tuple[Array | None, ...]
) -> tuple[Array, ...]:
    """Linear maps of one normed input.

        y_i = n W_i^T + b_i,    n = rmsnorm(x)

    ``x``: (N, D); ``norm``: (D,), the norm's weight; ``weights``: (E_i, D) each; ``biases``: (E_i,) or None each.
    Returns every y_i (N, E_i).
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> x, ones = np.array([[3.0, 4.0]]), np.ones(2)
    >>> y, z = normed_products(x, ones, 0.0, (np.ones((1, 2)), np.eye(2)), (np.ones(1), None))
    >>> y.round(3).tolist(), z.round(3).tolist()
    ([[2.98]], [[0.849, 1.131]])
    """
    n, _ = rmsnorm_forward(x, norm, eps)
    return tuple(linear_forward(n, weight, bias)[0] for weight, bias in zip(weights, biases, strict=True))


@accelerated_everywhere
def normed_gated_product(x: Array, norm: Array, eps: float, gate: Array, up: Array) -> Array:
    """The inner layer of SwiGLU, of a normed input.

        y = silu(n G^T) * (n U^T),    n = rmsnorm(x)

    ``x``: (N, D); ``norm``: (D,), the norm's weight; ``gate`` G, ``up`` U: (F, D). Returns y (N, F).
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> normed_gated_product(np.array([[3.0, 4.0]]), np.ones(2), 0.0, np.ones((1, 2)), np.eye(2)[:1]).round(3).tolist()
    [[1.476]]
    """
    require_like("up", up, ArraySpec.of(gate))
    n, _ = rmsnorm_forward(x, norm, eps)
    return gate_forward(linear_forward(n, gate)[0], linear_forward(n, up)[0], silu=True)[0]


@accelerated_everywhere
def product_added(x: Array, weight: Array, bias: Array | None, add: Array) -> Array:
    """A linear map, added to the stream.

        y = x W^T + b + add

    ``x``: (N, D); ``weight``: (E, D); ``bias``: (E,) or None; ``add``: (N, E), which stays as it is. Returns y (N, E).
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> product_added(np.array([[3.0, 4.0]]), np.ones((1, 2)), None, np.array([[10.0]])).tolist()
    [[17.0]]
    """
    require_like("add", add, ArraySpec((len(x), len(weight)), x.dtype))
    return add_in_place(linear_forward(x, weight, bias)[0], add)
