"""What a size or a share of a data set must be, said in one sentence when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST = 2**31 - 1  # what the int32 of ids and labels holds


def check_count(name: str, value: Any, low: int = 1, high: int | None = MOST) -> None:
    """TypeError or ValueError unless ``value`` is an integer from ``low`` to ``high``; None: of any size.

    >>> check_count("examples", -5)
    Traceback (most recent call last):
        ...
    ValueError: examples must be at least 1, got -5
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")


def check_seed(seed: Any) -> None:
    """TypeError or ValueError unless ``seed`` is an integer from 0 on, or a ``SeedSequence``.

    >>> check_seed(-1)
    Traceback (most recent call last):
        ...
    ValueError: seed must be at least 0, got -1
    """
    if not isinstance(seed, np.random.SeedSequence):
        check_count("seed", seed, low=0, high=None)


def check_real(name: str, value: Any) -> None:
    """TypeError unless ``value`` is a number.

    >>> check_real("power", "0.1")
    Traceback (most recent call last):
        ...
    TypeError: power must be a number, got '0.1'
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
