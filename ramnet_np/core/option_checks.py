"""What every argument of the operation that is no array must be, said in one sentence when it is not."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ramnet_np.contract import DecodeOptions, MemoryOptions
from ramnet_np.core.retention import rule_named

_INTEGER = (int, np.integer)  # tuples: a union would be made anew at every look
_BOOL = (bool, np.bool_)
NUMBER = (int, float, np.integer, np.floating)


def check_options(
    slots: int,
    heads: int,
    *,
    update: str,
    top_k: Any,
    renorm: Any,
    cape_heads: int,
    eps: float,
    proxy_eps: float,
    mass_aware: bool,
    batch_invariant: bool = False,
    gradients: bool = True,
) -> tuple[DecodeOptions, MemoryOptions]:
    """Every argument that is no array, in canonical form; TypeError or ValueError with one sentence.

    >>> rest = dict(update="pdma", renorm=False, cape_heads=0, eps=1e-12, proxy_eps=0.0, mass_aware=False)
    >>> check_options(16, 4, top_k=(8, 4), **rest)[0].read_k
    4
    """
    given = (
        slots, heads, update, *_pair("top_k", top_k), *_pair("renorm", renorm), cape_heads, eps, proxy_eps, mass_aware,
        batch_invariant, gradients,
    )  # fmt: skip
    try:
        return _check_options(*given)
    except TypeError:  # an argument that cannot be hashed, and so is no option: checked uncached, the error names it
        return _check_options.__wrapped__(*given)


@functools.lru_cache(maxsize=1024, typed=True)  # typed: True is not 1
def _check_options(
    slots: int,
    heads: int,
    update: str,
    k_names: tuple[str, str],
    write_k: Any,
    read_k: Any,
    renorm_names: tuple[str, str],
    write_renorm: Any,
    read_renorm: Any,
    cape_heads: Any,
    eps: Any,
    proxy_eps: Any,
    mass_aware: Any,
    batch_invariant: Any,
    gradients: Any,
) -> tuple[DecodeOptions, MemoryOptions]:
    """All arguments that are no arrays."""
    write_k, read_k = check_top_k(k_names[0], write_k, slots), check_top_k(k_names[1], read_k, slots)
    write_renorm, read_renorm = check_bool(renorm_names[0], write_renorm), check_bool(renorm_names[1], read_renorm)
    rule_named(update)
    decode = DecodeOptions(write_k, read_k, write_renorm, read_renorm, check_cape_heads(cape_heads, heads))
    options = MemoryOptions(
        slots,
        update,
        check_bool("mass_aware", mass_aware),
        _check_real("eps", eps, 0.0, np.inf),
        _check_real("proxy_eps", proxy_eps, 0.0, 1.0),
        check_bool("batch_invariant", batch_invariant),
        check_bool("gradients", gradients),
    )
    return decode, options


def check_top_k(name: str, k: Any, slots: int) -> int:
    """1 <= K <= M.

    TypeError or ValueError otherwise.

    >>> check_top_k("top_k", 8, slots=16)
    8
    >>> check_top_k("top_k", 17, slots=16)
    Traceback (most recent call last):
        ...
    ValueError: top_k must be between 1 and the number of slots M = 16, got 17
    """
    if not isinstance(k, _INTEGER) or isinstance(k, bool):
        raise TypeError(f"{name} must be an integer, got {k!r}")
    if not 1 <= k <= slots:
        raise ValueError(f"{name} must be between 1 and the number of slots M = {slots}, got {k}")
    return int(k)


def check_bool(name: str, value: Any) -> bool:
    """True or False.

    TypeError for anything else.

    >>> check_bool("renorm", np.True_)
    True
    >>> check_bool("renorm", 1)
    Traceback (most recent call last):
        ...
    TypeError: renorm must be True or False, got 1
    """
    if not isinstance(value, _BOOL):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def check_cape_heads(cape_heads: Any, heads: int) -> int:
    """0 <= cape_heads <= H.

    TypeError or ValueError otherwise.

    >>> check_cape_heads(2, heads=4)
    2
    >>> check_cape_heads(5, heads=4)
    Traceback (most recent call last):
        ...
    ValueError: cape_heads must be between 0 and the number of heads H = 4, got 5
    """
    if not isinstance(cape_heads, _INTEGER) or isinstance(cape_heads, bool):
        raise TypeError(f"cape_heads must be an integer, got {cape_heads!r}")
    if not 0 <= cape_heads <= heads:
        raise ValueError(f"cape_heads must be between 0 and the number of heads H = {heads}, got {cape_heads}")
    return int(cape_heads)


def _pair(name: str, value: Any) -> tuple[tuple[str, str], Any, Any]:
    """One value for writes and reads, or a (write, read) pair: what to call them, and both."""
    if not isinstance(value, (tuple, list)):
        return (name, name), value, value
    if len(value) != 2:
        raise ValueError(f"{name} must be one value or a (write, read) pair, got {len(value)} values")
    return (f"{name}[0]", f"{name}[1]"), *value


def _check_real(name: str, value: Any, low: float, high: float) -> float:
    if not isinstance(value, NUMBER):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = as_float(name, value)
    if not low <= number <= high or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number between {low:g} and {high:g}, got {value!r}")
    return number


def as_float(name: str, value: Any) -> float:
    """A number, or an array of no axes that holds one, as a float. TypeError or ValueError for another.

    >>> as_float("gamma", np.array(0.5))
    0.5
    """
    if hasattr(value, "dtype") and value.dtype.kind not in "fiu" and value.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be a real number, got {value.dtype}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a finite number, got an integer of {value.bit_length()} bits") from None
