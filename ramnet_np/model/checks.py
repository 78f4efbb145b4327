"""What a setting of a configuration must be, said in one sentence when it is not."""

from __future__ import annotations

import math
from typing import Any, get_args


def check_number(name: str, value: Any, above: float = -math.inf) -> None:
    """TypeError or ValueError unless ``value`` is a finite number above ``above``.

    >>> check_number("eps", 0.0, above=0)
    Traceback (most recent call last):
        ...
    ValueError: eps must be finite and above 0, got 0.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value > above and math.isfinite(value)):
        expected = "finite" if above == -math.inf else f"finite and above {above:g}"
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """TypeError or ValueError unless ``value`` is an integer from ``low`` to ``high``.

    >>> check_integer("window", 0, 1)
    Traceback (most recent call last):
        ...
    ValueError: window must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {expected}, got {value}")


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
