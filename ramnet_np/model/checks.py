"""What a setting of a configuration must be, said in one sentence when it is not."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

# float32 holds every number of this size, its reciprocal, and either times a hundred million
LARGEST, SMALLEST = 1e30, 1e-30
MOST = 2**31 - 1  # of anything that is counted: what an int32 holds


def check_number(name: str, value: Any, low: float = -LARGEST, high: float = LARGEST) -> None:
    """TypeError or ValueError unless ``value`` is a number from ``low`` to ``high``, so neither infinite nor NaN.

    >>> check_number("eps", 0.0, low=SMALLEST)
    Traceback (most recent call last):
        ...
    ValueError: eps must be between 1e-30 and 1e+30, got 0.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {_short(value)}")


def check_integer(name: str, value: Any, low: int, high: int | None = MOST) -> None:
    """TypeError or ValueError unless ``value`` is an integer from ``low`` to ``high``; None: of any size.

    >>> check_integer("window", 0, 1)
    Traceback (most recent call last):
        ...
    ValueError: window must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if value < low and high in (None, MOST) else f"between {low} and {high}"
        raise ValueError(f"{name} must be {expected}, got {_short(value)}")


def check_flag(name: str, value: Any) -> None:
    """TypeError unless ``value`` is True or False.

    >>> check_flag("rotary", 1)
    Traceback (most recent call last):
        ...
    TypeError: rotary must be True or False, got 1
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: Any) -> None:
    """ValueError unless ``value`` is one of ``choices``, a Literal or a list of names.

    >>> check_choice("norm", "batch", ["rmsnorm", "layernorm"])
    Traceback (most recent call last):
        ...
    ValueError: norm must be one of 'rmsnorm', 'layernorm', got 'batch'
    """
    names = get_args(choices) or tuple(choices)
    if value not in names:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}")


def pair(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a setting that is one value or a (write, read) pair. ValueError for a longer tuple.

    >>> pair("top_k", 8), pair("top_k", (4, 8))
    ((8,), (4, 8))
    """
    if not isinstance(value, tuple):
        return (value,)
    if len(value) != 2:
        raise ValueError(f"{name} must be one value or a (write, read) pair, got {len(value)} values")
    return value


def plain(value: Any) -> Any:
    """A setting as JSON has it and a set can hold it: NumPy's numbers as Python's, lists as tuples.

    >>> plain([np.int64(4), 8]), plain(np.float64(0.5))
    ((4, 8), 0.5)
    """
    if isinstance(value, list | tuple):
        return tuple(plain(one) for one in value)
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    """Without digits by the thousand, which Python refuses to write."""
    is_long = isinstance(value, int) and value.bit_length() > 128
    return f"an integer of {value.bit_length()} bits" if is_long else f"{value}"
