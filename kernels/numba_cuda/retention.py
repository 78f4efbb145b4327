"""Retention for one write, and its slopes: ``ramnet_np/core/retention.py``, which explains them, for one thread.

Numba makes float64 of a float32 and a Python number: ``one`` keeps every sum in the type of the inputs.
"""

import math

from numba import cuda


@cuda.jit(device=True)
def retention(w, gamma, gsu):
    """alpha(w, gamma)."""
    one = type(w)(1)
    if gsu == 0:
        if gamma == one:  # what a power returns, without taking it
            return one - w
        return (one - w) ** gamma
    kept, total = gsu_parts(w, gamma)
    if total > 0:
        return kept / total
    if w == 0:
        return one
    return one - one


@cuda.jit(device=True)
def retention_slopes(w, gamma, alpha, gsu, proxy_eps, smallest):
    """(d alpha / dw, d alpha / dgamma); ``smallest``: the floor of 1 - w, ``finfo(dtype).epsneg``."""
    one = type(w)(1)
    if gsu != 0:
        _, total = gsu_parts(w, gamma)
        if not total > 0:
            total = one
        return -(type(w)(math.exp(-abs(gamma))) / total) / total, -alpha * (one - alpha)
    grown = (one - proxy_eps) * w
    base = one - grown  # = e + (1 - e)(1 - w)
    log_base = type(w)(math.log1p(-min(grown, one - smallest)))
    if base < smallest:  # w = 1 without a proxy
        return -gamma * smallest ** (gamma - one), base**gamma * log_base
    power = base**gamma
    return -gamma * (one - proxy_eps) * (power / base), power * log_base


@cuda.jit(device=True)
def gsu_parts(w, gamma):
    """Numerator and denominator of alpha, both times exp(-max(gamma, 0)): nothing overflows."""
    one = type(w)(1)
    shrink = type(w)(math.exp(-abs(gamma)))
    kept, lost = one - w, w
    if gamma > 0:
        kept = kept * shrink
    else:
        lost = lost * shrink
    return kept, kept + lost
