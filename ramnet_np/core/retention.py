"""Update rules: what is left of a slot's mass when a weight w is written to it (its retention alpha), and the slopes.

    "pdma"   alpha = (1 - w)**gamma                          gamma >= 0; 0: cumulative mean, 1: moving average
    "gsu"    alpha = (1 - w) / ((1 - w) + exp(gamma) * w)    any gamma;  = sigmoid(-logit(w) - gamma)

They coincide at pdma gamma = 1 and gsu gamma = 0. ``RULES`` holds them by name, and everything that depends on the rule
reads it there: a rule put into ``RULES`` can be used with the NumPy backend at once. Every other backend has a table of
its own kernels and raises an error for a rule that it does not know.

A rule is elementwise in w and gamma and changes the mass alone: z_t = alpha * z_{t-1} + w, and the content follows from
the mass (``memory.py``). A rule that changes the content by more than one factor for all channels does not fit here.
Source: paper eq. 7 (PDMA, power-decay moving average), the authors' later package (GSU, gated sparse update).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of

Update = Literal["pdma", "gsu"]
"""The names of the rules that every backend has."""


LARGE_GAMMA = 16.0
"""Above, PDMA's power goes through the logarithm: 1 - w rounds, and the power makes gamma times as much of that."""


class UpdateRule(NamedTuple):
    """One update rule.

    ``forward(w, gamma) -> alpha``: in [0, 1], and 1 where w = 0, so that what is not written stays as it is.
    ``backward(w, gamma, alpha, proxy_eps) -> (d alpha / dw, d alpha / dgamma)``: the slopes, which the caller
    multiplies by its adjoint. They are finite for every w in [0, 1]. ``proxy_eps`` is e of a proxy gradient, 0 for the
    true one; a rule whose slopes are finite anyway leaves it aside.
    ``w``: any shape, values in [0, 1]; ``gamma``: a float or an array that broadcasts against ``w``. Everything is
    elementwise, in the dtype of ``w``, for arrays of NumPy and CuPy.

    >>> import numpy as np
    >>> RULES["pdma"].forward(np.array([0.0, 0.5, 1.0]), 2.0).tolist()
    [1.0, 0.25, 0.0]
    """

    name: str
    forward: Callable[[Array, Any], Array]
    backward: Callable[[Array, Any, Array, float], tuple[Array, Array]]
    least_gamma: float  # gamma may not be smaller; -inf: any number
    description: str  # one line


def pdma_forward(w: Array, gamma: Any) -> Array:
    """alpha = (1 - w)**gamma, for a large gamma exp(gamma log(1 - w)). Source: paper eq. 7.

    >>> import numpy as np
    >>> pdma_forward(np.array([0.0, 0.5, 1.0]), 2.0).tolist()
    [1.0, 0.25, 0.0]
    >>> pdma_forward(np.array([1e-30]), 1e30).round(3).tolist()  # 1 - 1e-30 is 1 in float64
    [0.368]
    """
    xp, gamma = _in_dtype_of(w, gamma)
    return _power(xp, 1 - w, gamma, _log_kept(xp, w))


def pdma_backward(w: Array, gamma: Any, alpha: Array, proxy_eps: float) -> tuple[Array, Array]:
    """(-gamma * (1 - w)**(gamma - 1), (1 - w)**gamma * log(1 - w)), or the slopes of the proxy.

    The slope in w runs to infinity at w = 1 when gamma < 1 and to 0 when gamma > 1. The paper's proxy keeps the forward
    exact and takes the slopes of (e + (1 - e)(1 - w))**gamma, e = ``proxy_eps``. Source: paper section 4.

    >>> import numpy as np
    >>> w = np.array([0.5])
    >>> slopes = pdma_backward(w, 2.0, pdma_forward(w, 2.0), proxy_eps=0.0)
    >>> [slope.round(4).tolist() for slope in slopes]  # -2 (1 - w) and (1 - w)**2 log(1 - w)
    [[-1.0], [-0.1733]]
    """
    xp, gamma = _in_dtype_of(w, gamma)
    lost = (1 - proxy_eps) * w
    base = 1 - lost  # = e + (1 - e)(1 - w)
    log_base = _log_kept(xp, lost)
    floored = xp.maximum(base, xp.finfo(w.dtype).epsneg)  # as in ``_log_kept``
    dw = -gamma * (1 - proxy_eps) * _power(xp, floored, gamma - 1, log_base)
    return dw, _power(xp, base, gamma, log_base) * log_base


def _log_kept(xp: Any, lost: Array) -> Array:
    """log(1 - lost), with the digits of a small ``lost`` that 1 - lost would round away.

    1 - w is at least epsneg for every w < 1 of this dtype: the floor acts at w = 1 alone (where, for e = 0 and
    gamma < 1, the true slope is infinite), and everywhere else the logarithm is the true one.
    """
    return xp.log1p(-xp.minimum(lost, 1 - xp.finfo(lost.dtype).epsneg))


def _power(xp: Any, base: Array, exponent: Any, log_base: Array) -> Array:
    """base**exponent, from the logarithm where the exponent is large."""
    # a large exponent is kept from the power, which would be lost, and a small one from the product, which is not used
    return xp.where(
        exponent > LARGE_GAMMA,
        xp.exp(xp.maximum(exponent, LARGE_GAMMA) * log_base),
        xp.power(base, xp.minimum(exponent, LARGE_GAMMA)),
    )


def gsu_forward(w: Array, gamma: Any) -> Array:
    """alpha = (1 - w) / ((1 - w) + exp(gamma) * w). Source: the authors' package.

    >>> import numpy as np
    >>> gsu_forward(np.array([0.0, 0.5, 1.0]), 0.0).tolist()
    [1.0, 0.5, 0.0]
    """
    xp, gamma = _in_dtype_of(w, gamma)
    kept, total = _gsu_parts(xp, w, gamma)
    # Both parts underflow only for |gamma| far beyond use; the limit is then 1 where nothing is written, else 0. (Asked
    # for by == 0: NaN, which is neither, stays NaN.)
    return xp.where(total == 0, (w == 0).astype(w.dtype), kept / xp.where(total == 0, 1, total))


def gsu_backward(w: Array, gamma: Any, alpha: Array, proxy_eps: float) -> tuple[Array, Array]:
    """(-exp(gamma) / ((1 - w) + exp(gamma) * w)**2, -alpha * (1 - alpha)); finite, so there is no proxy.

    The first is at most ``steepest``: at w = 0 it is exp(gamma), at w = 1 exp(-gamma), which may be beyond the dtype.
    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> w = np.array([0.5])
    >>> slopes = gsu_backward(w, 0.0, gsu_forward(w, 0.0), proxy_eps=0.0)
    >>> [slope.tolist() for slope in slopes]
    [[-1.0], [-0.25]]
    """
    xp, gamma = _in_dtype_of(w, gamma)
    _, total = _gsu_parts(xp, w, gamma)
    total = xp.where(total == 0, 1, total)
    ratio = xp.exp(-xp.abs(gamma)) / total  # divided twice: the square of a small total would underflow
    return -ratio / xp.maximum(total, ratio / steepest(w.dtype)), -alpha * (1 - alpha)


def steepest(dtype: Any) -> float:
    """The largest slope of GSU: the caller multiplies it by an adjoint, and the product should not overflow either.

    >>> import numpy as np
    >>> f"{steepest(np.float32):.0e}, {steepest(np.float64):.0e}"  # about exp(72), exp(673)
    '4e+31, 4e+292'
    """
    limits = np.finfo(dtype)
    return float(limits.max) * float(limits.eps)


def _gsu_parts(xp: Any, w: Array, gamma: Any) -> tuple[Array, Array]:
    """Numerator and denominator of alpha = kept / (kept + lost), both times exp(-max(gamma, 0)): nothing overflows."""
    kept = (1 - w) * xp.exp(-xp.maximum(gamma, 0))
    lost = w * xp.exp(xp.minimum(gamma, 0))
    return kept, kept + lost


def _in_dtype_of(w: Array, gamma: Any) -> tuple[Any, Array]:
    """The arrays' module, and gamma as an array of it: a float would make float64 of what is computed with it alone."""
    xp = namespace_of(w, gamma)
    return xp, xp.asarray(gamma, dtype=w.dtype)


RULES: dict[str, UpdateRule] = {
    rule.name: rule
    for rule in (
        UpdateRule("pdma", pdma_forward, pdma_backward, 0.0, "alpha = (1 - w)**gamma (the paper)"),
        UpdateRule("gsu", gsu_forward, gsu_backward, -math.inf, "alpha = sigmoid(-logit(w) - gamma) (the package)"),
    )
}
"""The update rules by name.

>>> for rule in RULES.values():  # doctest: +ELLIPSIS
...     print(f"{rule.name}: {rule.description}")
pdma: alpha = (1 - w)**gamma (the paper)
gsu: alpha = sigmoid(-logit(w) - gamma) (the package)...
"""


def rule_named(update: Any) -> UpdateRule:
    """The rule of this name. ValueError if ``RULES`` has none.

    >>> rule_named("gsu").least_gamma
    -inf
    >>> rule_named("ema")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: update must be 'pdma' or 'gsu'..., got 'ema'
    """
    rule = RULES.get(update) if isinstance(update, str) else None
    if rule is None:
        raise ValueError(f"update must be {' or '.join(map(repr, RULES))}, got {update!r}")
    return rule


def retention_forward(w: Array, gamma: Any, update: str) -> Array:
    """alpha(w, gamma) by the rule named ``update``; shapes as in :class:`UpdateRule`.

    ValueError for a rule that ``RULES`` does not have. Source: paper eq. 7.

    >>> import numpy as np
    >>> w = np.array([0.0, 0.5, 1.0])
    >>> retention_forward(w, 2.0, "pdma").tolist(), retention_forward(w, 0.0, "gsu").tolist()
    ([1.0, 0.25, 0.0], [1.0, 0.5, 0.0])
    """
    return rule_named(update).forward(w, gamma)


def retention_backward(w: Array, gamma: Any, alpha: Array, update: str, proxy_eps: float) -> tuple[Array, Array]:
    """The slopes (d alpha / dw, d alpha / dgamma) by the rule named ``update``; shapes as in :class:`UpdateRule`.

    ``alpha``: what ``retention_forward`` returned. ValueError for a rule that ``RULES`` does not have.
    Source: paper section 4, for the proxy.

    >>> import numpy as np
    >>> w = np.array([0.5])
    >>> slopes = retention_backward(w, 2.0, retention_forward(w, 2.0, "pdma"), "pdma", proxy_eps=0.0)
    >>> [slope.round(4).tolist() for slope in slopes]
    [[-1.0], [-0.1733]]
    """
    return rule_named(update).backward(w, gamma, alpha, proxy_eps)
