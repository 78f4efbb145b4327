"""Retention for one write, and its slopes: the scalar form of ``ramnet_np/core/retention.py``, which explains them.

Numba turns ``1 - w`` into float64 for a float32 ``w``; ``one`` keeps every sum in the dtype of the inputs.
"""

from __future__ import annotations

import math

from numba import njit


@njit(cache=True)
def retention(w, gamma, gsu):
    """alpha(w, gamma)."""
    one = type(w)(1)
    if not gsu:
        if gamma == one:  # what pow returns, without calling it
            return one - w
        return (one - w) ** gamma
    kept, total = _gsu_parts(w, gamma)
    if total > 0:
        return kept / total
    return one if w == 0 else one - one


@njit(cache=True)
def retention_slopes(w, gamma, alpha, gsu, proxy_eps, smallest):
    """(d alpha / dw, d alpha / dgamma); ``smallest``: the floor of 1 - w, ``finfo(dtype).epsneg``."""
    one = type(w)(1)
    if gsu:
        _, total = _gsu_parts(w, gamma)
        if not total > 0:
            total = one
        return -(math.exp(-abs(gamma)) / total) / total, -alpha * (one - alpha)
    grown = (one - proxy_eps) * w
    base = one - grown  # = e + (1 - e)(1 - w)
    log_base = math.log1p(-min(grown, one - smallest))
    if base < smallest:  # w = 1 without a proxy
        return -gamma * smallest ** (gamma - one), base**gamma * log_base
    # base**(gamma - 1) = base**gamma / base, and base**gamma is alpha itself where there is no proxy
    power = alpha if proxy_eps == 0 else base**gamma
    return -gamma * (one - proxy_eps) * (power / base), power * log_base


@njit(cache=True)
def _gsu_parts(w, gamma):
    """Numerator and denominator of alpha, both times exp(-max(gamma, 0)): nothing overflows."""
    one = type(w)(1)
    shrink = math.exp(-abs(gamma))
    kept = (one - w) * (shrink if gamma > 0 else one)
    lost = w * (shrink if gamma < 0 else one)
    return kept, kept + lost
