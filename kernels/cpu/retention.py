"""Update rules: the retention of one write, and its slopes. ``ramnet_np/core/retention.py`` explains them.

Each rule is a type of options. Numba compiles a kernel for the types of its arguments, so a kernel that is given
``PDMA`` options is compiled with PDMA's functions in it, and no rule is chosen while it runs.

To add a rule: a subclass of ``Options`` with the two functions, and its name in ``RULES`` (docs/extending.md).

Numba turns ``1 - w`` into float64 for a float32 ``w``; ``one`` keeps every sum in the dtype of the inputs.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from ramnet_np.contract import MemoryOptions

from .compiling import inner

LARGE_GAMMA = 16.0  # above, a power of the rounded 1 - w errs by more than rounding: core/retention.py


class Options(NamedTuple):
    """How a kernel writes and reads, the numbers in the dtype of the inputs. A subclass is an update rule."""

    mass_aware: bool
    eps: np.floating
    proxy_eps: np.floating
    smallest: np.floating  # of all 1 - w above 0: finfo(dtype).epsneg


class PDMA(Options):
    """alpha = (1 - w)**gamma."""

    @staticmethod
    @inner
    def retention(w, gamma):
        """alpha(w, gamma)."""
        one = type(w)(1)
        if gamma == one:  # what pow returns, without calling it
            return one - w
        if gamma > LARGE_GAMMA:  # log1p keeps the digits of a small w; w = 1 keeps nothing
            return math.exp(gamma * math.log1p(-w)) if w < one else one - one
        return (one - w) ** gamma

    @staticmethod
    @inner
    def slopes(w, gamma, alpha, proxy_eps, smallest):
        """(d alpha / dw, d alpha / dgamma)."""
        one = type(w)(1)
        scaled = (one - proxy_eps) * w
        base = one - scaled  # = e + (1 - e)(1 - w)
        log_base = math.log1p(-min(scaled, one - smallest))
        if base < smallest:  # w = 1 without a proxy
            return -gamma * smallest ** (gamma - one), base**gamma * log_base
        # base**(gamma - 1) = base**gamma / base, and base**gamma is alpha itself where there is no proxy
        power = alpha
        if proxy_eps != 0:
            power = math.exp(gamma * log_base) if gamma > LARGE_GAMMA else base**gamma
        return -gamma * (one - proxy_eps) * (power / base), power * log_base


class GSU(Options):
    """alpha = (1 - w) / ((1 - w) + exp(gamma) * w)."""

    @staticmethod
    @inner
    def retention(w, gamma):
        """alpha(w, gamma)."""
        one = type(w)(1)
        kept, total = _gsu_parts(w, gamma)
        if total == 0:
            return one if w == 0 else one - one
        return kept / total  # NaN stays NaN

    @staticmethod
    @inner
    def slopes(w, gamma, alpha, proxy_eps, smallest):
        """(d alpha / dw, d alpha / dgamma)."""
        one = type(w)(1)
        _, total = _gsu_parts(w, gamma)
        if total == 0:
            total = one
        ratio = math.exp(-abs(gamma)) / total
        steepest = np.finfo(type(w)).max * np.finfo(type(w)).eps  # core/retention.py
        return -ratio / max(total, ratio / steepest), -alpha * (one - alpha)


@inner
def _gsu_parts(w, gamma):
    """Numerator and denominator of alpha, both times exp(-max(gamma, 0)): nothing overflows."""
    one = type(w)(1)
    shrink = math.exp(-abs(gamma))
    kept = (one - w) * (shrink if gamma > 0 else one)
    lost = w * (shrink if gamma < 0 else one)
    return kept, kept + lost


RULES = {"pdma": PDMA, "gsu": GSU}


@functools.lru_cache(maxsize=64)
def kernel_options(options: MemoryOptions, dtype: np.dtype) -> Options:
    """The options of a call as kernels take them. ValueError for an update rule without kernels here.

    >>> kernel_options(MemoryOptions(slots=4, update="gsu", eps=0.5), np.dtype(np.float32)).eps
    np.float32(0.5)
    >>> kernel_options(MemoryOptions(slots=4, update="ema"), np.dtype(np.float32))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: update must be one of 'pdma', 'gsu'... on backend 'numba', got 'ema'
    """
    if options.update not in RULES:
        names = ", ".join(map(repr, RULES))
        raise ValueError(f"update must be one of {names} on backend 'numba', got {options.update!r}")
    return RULES[options.update](
        options.mass_aware,
        dtype.type(options.eps),
        dtype.type(options.proxy_eps),
        dtype.type(np.finfo(dtype).epsneg),
    )


def retention(options, w, gamma):
    """alpha(w, gamma) by the rule that ``options`` are of."""
    return options.retention(w, gamma)


def retention_slopes(options, w, gamma, alpha):
    """(d alpha / dw, d alpha / dgamma) by the rule that ``options`` are of."""
    return options.slopes(w, gamma, alpha, options.proxy_eps, options.smallest)


# The same for Numba, which runs the outer function once for each type of options when it compiles a kernel.
@overload(retention)
def _compiled_retention(options, w, gamma):
    rule = options.instance_class.retention
    return lambda options, w, gamma: rule(w, gamma)


@overload(retention_slopes)
def _compiled_slopes(options, w, gamma, alpha):
    rule = options.instance_class.slopes
    return lambda options, w, gamma, alpha: rule(w, gamma, alpha, options.proxy_eps, options.smallest)
