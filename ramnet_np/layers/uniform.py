"""Random numbers by seed and position: each is a function of the two, so nothing has to be remembered between draws.

    start  = mix(seed)
    number = mix(start + (position + 1) * 0x9E3779B97F4A7C15) / 2**64        all modulo 2**64

``mix`` is the finaliser of SplitMix64. Sequences that are taken up again, or drawn beside others, so get the numbers
that they would have got alone. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays

_STEP = np.uint64(0x9E3779B97F4A7C15)
_BITS = 52  # so few that a product with a number of float64 stays below that number


@accelerated
def uniform(seeds: Array, positions: Array) -> Array:
    """One number in [0, 1) for each row, (B,) float64. ``seeds``: (B,) uint64; ``positions``: (B,) integers from 0.

    >>> uniform(np.array([0, 1], np.uint64), np.array([5, 5])).round(3).tolist()
    [0.327, 0.596]
    """
    counted = _mix(seeds) + (positions.astype(np.uint64) + np.uint64(1)) * _STEP
    return (_mix(counted) >> np.uint64(64 - _BITS)).astype(np.float64) * 2.0**-_BITS


@on_gpu_of_arrays
def row_seeds(seed: int, rows: int, like: Array) -> Array:
    """``seed`` + b for row b, (B,) uint64, on the device of ``like``: a row alone draws the same with that seed.

    >>> row_seeds(2**64 - 1, 2, np.zeros(1)).tolist()
    [18446744073709551615, 0]
    """
    seeds = np.arange(rows, dtype=np.uint64) + np.uint64(seed)
    return namespace_of(like).asarray(seeds)


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
