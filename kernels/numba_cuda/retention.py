"""Retention for one write, and its slopes: ``ramnet_np/core/retention.py``, which explains them, for one thread.

``RULES`` maps an update rule's name to the function that makes its two device functions for a type of numbers. A kernel
that needs them is made for one rule: no kernel asks which one it is.

Numba makes float64 of a float32 and a Python number: ``one`` keeps every sum in the type of the inputs.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from .compiler import cuda

LARGE_GAMMA = 16  # above, a power of the rounded 1 - w errs by more than rounding: core/retention.py


class Retention(NamedTuple):
    """The device functions of an update rule, for one type of numbers."""

    alpha: Any  # (w, gamma) -> alpha
    slopes: Any  # (w, gamma, alpha, proxy_eps, smallest) -> (d alpha / dw, d alpha / dgamma)


def pdma(number) -> Retention:
    """alpha = (1 - w)**gamma."""
    one = number(1)

    @cuda.jit(device=True)
    def alpha_of(w, gamma):
        if gamma == one:  # what a power returns, without taking it
            return one - w
        if gamma > number(LARGE_GAMMA):  # log1p keeps the digits of a small w; w = 1 keeps nothing
            return one - one if w >= one else number(math.exp(gamma * number(math.log1p(-w))))
        return (one - w) ** gamma

    @cuda.jit(device=True)
    def slopes_of(w, gamma, alpha, proxy_eps, smallest):
        """``smallest``: the floor of 1 - w, ``finfo(dtype).epsneg``."""
        grown = (one - proxy_eps) * w
        base = one - grown  # = e + (1 - e)(1 - w)
        log_base = number(math.log1p(-min(grown, one - smallest)))
        if base < smallest:  # w = 1 without a proxy
            return -gamma * smallest ** (gamma - one), base**gamma * log_base
        power = number(math.exp(gamma * log_base)) if gamma > number(LARGE_GAMMA) else base**gamma
        return -gamma * (one - proxy_eps) * (power / base), power * log_base

    return Retention(alpha_of, slopes_of)


def gsu(number) -> Retention:
    """alpha = (1 - w) / ((1 - w) + exp(gamma) w)."""
    one = number(1)
    steepest = number(2.0 ** (105 if number.bitwidth == 32 else 972))  # leaves room for the adjoint, as in the core

    @cuda.jit(device=True)
    def parts(w, gamma):
        """Numerator and denominator of alpha, both times exp(-max(gamma, 0)): nothing overflows."""
        shrink = number(math.exp(-abs(gamma)))
        kept = (one - w) * (shrink if gamma > 0 else one)
        return kept, kept + w * (one if gamma > 0 else shrink)

    @cuda.jit(device=True)
    def alpha_of(w, gamma):
        kept, total = parts(w, gamma)
        if total == 0:
            return one if w == 0 else one - one
        return kept / total  # NaN stays NaN

    @cuda.jit(device=True)
    def slopes_of(w, gamma, alpha, proxy_eps, smallest):
        _, total = parts(w, gamma)
        if total == 0:
            total = one
        ratio = number(math.exp(-abs(gamma))) / total
        return -ratio / max(total, ratio / steepest), -alpha * (one - alpha)

    return Retention(alpha_of, slopes_of)


RULES: dict[str, Callable[[Any], Retention]] = {"pdma": pdma, "gsu": gsu}


@cache
def retention_of(update: str, number) -> Retention:
    """The device functions of the rule of this name; ValueError for a name that this backend does not know."""
    if update not in RULES:
        raise ValueError(f"the backend 'numba-cuda' knows the update rules {', '.join(RULES)}, got {update!r}")
    return RULES[update](number)
