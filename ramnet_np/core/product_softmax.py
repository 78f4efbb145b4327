"""Product softmax: U small softmaxes of radix P stand for one distribution over M = P**U slots.

    p_u    = softmax(k_u)                               one softmax per digit
    rho[a] = prod_u p_u[digit_u(a)],  a = sum_u digit_u(a) * P**u        (digit 0 is the least significant)

The M-vector rho is never built here: only its entries at chosen slots are.
Source: paper eq. 4.
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of


def digit_scores(logits: Array) -> Array:
    """Logits relative to the best value of their digit: ``logits - max``, so the best value scores exactly 0.

    ``logits``: (..., U, P). Slots are ranked by the sum of their digits' scores, taken in the order of the digits.
    The ranking uses nothing but this subtraction and that sum, so every backend computes the same bits.
    Returns (..., U, P). Source: docs/mathematics.md.

    >>> import numpy as np
    >>> digit_scores(np.array([[1.0, 3.0], [0.0, -2.0]])).tolist()
    [[-2.0, 0.0], [0.0, -2.0]]
    """
    return logits - logits.max(axis=-1, keepdims=True)


def digit_softmax(scores: Array) -> Array:
    """p_u = softmax of each digit's scores. ``scores``: (..., U, P), with maximum 0 in each digit.

    Returns (..., U, P), of sum 1 along the last axis. Source: paper eq. 4.

    >>> import numpy as np
    >>> digit_softmax(np.log([[0.5, 1.0]])).round(3).tolist()
    [[0.333, 0.667]]
    """
    xp = namespace_of(scores)
    p = xp.exp(scores)
    p /= p.sum(axis=-1, keepdims=True)
    return p


def digits_of(index: Array, order: int, radix: int) -> Array:
    """The digits of slot indices: (..., K) -> (..., U, K), digit 0 (the least significant) first.

    >>> import numpy as np
    >>> digits_of(np.array([6]), order=3, radix=2)[:, 0].tolist()  # 6 = 0*1 + 1*2 + 1*4
    [0, 1, 1]
    """
    xp = namespace_of(index)
    place = radix ** xp.arange(order, dtype=xp.int64)[:, None]
    return index[..., None, :].astype(xp.int64) // place % radix


def product_at_forward(p: Array, digits: Array) -> Array:
    """rho at chosen slots: the product of their digits' probabilities.

    ``p``: (..., U, P); ``digits``: (..., U, K); returns (..., K).
    Source: paper eq. 4.

    >>> import numpy as np
    >>> p = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> product_at_forward(p, digits_of(np.array([2, 0]), order=2, radix=2)).round(2).tolist()
    [0.72, 0.18]
    """
    xp = namespace_of(p)
    return xp.take_along_axis(p, digits, axis=-1).prod(axis=-2)


def product_at_backward(g: Array, p: Array, digits: Array) -> Array:
    """Gradient of the logits, given ``g = dL/dlog rho`` of the chosen slots.

        dL/dk_u = sum_j g_j * (onehot(digit_u(a_j)) - p_u)

    ``g``: (..., K); ``p``: (..., U, P); ``digits``: (..., U, K); returns (..., U, P).
    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> p = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> product_at_backward(np.array([1.0]), p, digits_of(np.array([2]), order=2, radix=2)).round(2).tolist()
    [[0.1, -0.1], [-0.2, 0.2]]
    """
    xp = namespace_of(p)
    radix = p.shape[-1]
    hit = digits[..., None, :] == xp.arange(radix)[:, None]  # (..., U, P, K)
    received = xp.where(hit, g[..., None, None, :], 0).sum(axis=-1)
    return received - p * g.sum(axis=-1)[..., None, None]
