"""The address decoder: logits in, K slots and their weights out.

    logits (B, T, H, U, P) -> product softmax -> top-K -> (renormalise) -> CAPE -> index, weight (B, T, H, K)

Gradients flow through the K kept weights; the selected set is treated as a constant.
Source: paper eq. 4 to 6.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.cape import cape_shift
from ramnet_np.core.product_softmax import (
    digit_scores,
    digit_softmax,
    digits_of,
    product_at_backward,
    product_at_forward,
)
from ramnet_np.core.require import readable
from ramnet_np.core.topk import beam_search


@readable
class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs."""

    p: Array  # (B, T, H, U, P) digit probabilities: kept, exponentials cost more than memory here
    digits: Array  # (B, T, H, U, K) digits of the content slots, before CAPE moved them
    weight: Array  # (B, T, H, K) as returned
    renorm: bool


def decode_forward(
    logits: Array, top_k: int, renorm: bool, cape_heads: int, positions: Array
) -> tuple[Array, Array, DecodeContext]:
    """Decode address logits into the K best slots and their weights.

    ``logits``: (B, T, H, U, P); ``positions``: (B, T). Returns ``index`` (B, T, H, K) int32, ``weight`` (B, T, H, K),
    ctx. O(U K log(K)**2 + U P log P) per token and head; nothing of size M.
    Arguments are taken as checked (``core/checks.py``). Source: paper eq. 4 to 6.

    >>> import numpy as np
    >>> logits = np.log([[[[[0.9, 0.1], [0.2, 0.8]]]]])  # two binary digits: slot = d0 + 2 * d1
    >>> index, weight, ctx = decode_forward(logits, 2, renorm=True, cape_heads=1, positions=np.array([[1]]))
    >>> index.ravel().tolist(), weight.ravel().round(2).tolist()  # content slots 2 and 0, one place back
    ([1, 3], [0.8, 0.2])
    """
    order, radix = logits.shape[-2:]
    # 1. softmax of every digit
    scores = digit_scores(logits)
    p = digit_softmax(scores)
    # 2. the K best content slots, and 3. their weights
    content = beam_search(scores, top_k)
    digits = digits_of(content, order, radix)
    weight = product_at_forward(p, digits)
    # 4. optionally divided by their sum
    if renorm:
        weight = weight / weight.sum(axis=-1, keepdims=True)
    # 5. to where these slots are at this position
    index = cape_shift(content, positions, cape_heads, radix**order)
    return index, weight, DecodeContext(p, digits, weight, renorm)


def decode_backward(dweight: Array, ctx: DecodeContext) -> Array:
    """Gradient of the logits, (B, T, H, U, P), given that of the weights, (B, T, H, K).

    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> logits = np.log([[[[[0.9, 0.1], [0.2, 0.8]]]]])
    >>> index, weight, ctx = decode_forward(logits, 1, renorm=False, cape_heads=0, positions=np.array([[0]]))
    >>> decode_backward(np.ones_like(weight), ctx).ravel().round(3).tolist()  # 0.72 * (onehot - p)
    [0.072, -0.072, -0.144, 0.144]
    """
    # 5. index = cape_shift(...): moves slots, not weights
    # 4. weight = rho / sum(rho): dL/dlog rho_j = g_j - weight_j * sum_i g_i, with g = dL/dlog weight
    g = dweight * ctx.weight
    if ctx.renorm:
        g = g - ctx.weight * g.sum(axis=-1, keepdims=True)
    # 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)]
    return product_at_backward(g, ctx.p, ctx.digits)
