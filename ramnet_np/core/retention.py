"""Retention: what is left of a slot's mass when a weight w is written to it.

    "pdma"   alpha = (1 - w)**gamma                          gamma >= 0; 0: cumulative mean, 1: moving average
    "gsu"    alpha = (1 - w) / ((1 - w) + exp(gamma) * w)    any gamma;  = sigmoid(-logit(w) - gamma)

They coincide at pdma gamma = 1 and gsu gamma = 0. Source: paper eq. 7 (PDMA, power-decay moving average), the authors'
later package (GSU, gated sparse update); spec section 4.

The slope of PDMA in w, -gamma * (1 - w)**(gamma - 1), runs to infinity at w = 1 when gamma < 1 and to 0 when
gamma > 1. The paper's proxy keeps the forward exact and takes the slopes of (e + (1 - e)(1 - w))**gamma, e = proxy_eps.
"""

from __future__ import annotations

from typing import Any

from ramnet_np.core.arrays import namespace_of


def retention_forward(w: Any, gamma: Any, update: str) -> Any:
    """alpha(w, gamma), elementwise. ``gamma``: a float or anything that broadcasts against ``w``.

    ``w``: any shape, values in [0, 1]; ``update``: "pdma" or "gsu". Source: paper eq. 7; spec section 4.

    >>> import numpy as np
    >>> w = np.array([0.0, 0.5, 1.0])
    >>> retention_forward(w, 2.0, "pdma").tolist(), retention_forward(w, 0.0, "gsu").tolist()
    ([1.0, 0.25, 0.0], [1.0, 0.5, 0.0])
    """
    xp = namespace_of(w, gamma)
    if update == "pdma":
        return xp.power(1 - w, gamma)
    kept, total = _gsu_parts(xp, w, gamma)
    # Both parts underflow only for |gamma| far beyond use; the limit is then 1 where nothing is written, else 0.
    return xp.where(total > 0, kept / xp.where(total > 0, total, 1), (w == 0).astype(w.dtype))


def retention_backward(w: Any, gamma: Any, alpha: Any, update: str, proxy_eps: float) -> tuple[Any, Any]:
    """The slopes (d alpha / dw, d alpha / dgamma), elementwise; finite for every w in [0, 1], w = 1 included.

    ``alpha``: what ``retention_forward`` returned. The caller multiplies by its adjoint.
    Source: paper section 4, for the proxy; spec section 4.

    >>> import numpy as np
    >>> w = np.array([0.5])
    >>> slopes = retention_backward(w, 2.0, retention_forward(w, 2.0, "pdma"), "pdma", proxy_eps=0.0)
    >>> [slope.round(4).tolist() for slope in slopes]  # -2 (1 - w) and (1 - w)**2 log(1 - w)
    [[-1.0], [-0.1733]]
    """
    xp = namespace_of(w, gamma)
    if update == "pdma":
        # 1 - w is at least epsneg for every w < 1 of this dtype: the floor acts at w = 1 alone (where, for e = 0 and
        # gamma < 1, the true slope is infinite), and everywhere else the slope is the true one.
        smallest = xp.finfo(w.dtype).epsneg
        base = 1 - (1 - proxy_eps) * w  # = e + (1 - e)(1 - w)
        floored = xp.maximum(base, smallest)
        dw = -gamma * (1 - proxy_eps) * xp.power(floored, gamma - 1)
        # log1p keeps the digits of a small w that 1 - w would round away
        log_base = xp.log1p(-xp.minimum((1 - proxy_eps) * w, 1 - smallest))
        return dw, xp.power(base, gamma) * log_base
    _, total = _gsu_parts(xp, w, gamma)
    total = xp.where(total > 0, total, 1)
    dw = -(xp.exp(-xp.abs(gamma)) / total) / total  # divided twice: the square of a small total would underflow
    return dw, -alpha * (1 - alpha)


def _gsu_parts(xp: Any, w: Any, gamma: Any) -> tuple[Any, Any]:
    """Numerator and denominator of alpha = kept / (kept + lost), both times exp(-max(gamma, 0)): nothing overflows."""
    kept = (1 - w) * xp.exp(-xp.maximum(gamma, 0))
    lost = w * xp.exp(xp.minimum(gamma, 0))
    return kept, kept + lost
