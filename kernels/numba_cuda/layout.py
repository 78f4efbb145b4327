"""What a block works on at once: slices of channels, tiles of tokens, in shared or in device memory."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from .compiler import SIMULATED
from .groups_of_8 import GROUP_OF_8
from .tiles import shared_layout

MAX_FAST_K = 256  # accesses of a token: with more threads than that, those of the scans have too few registers
MAX_ROWS = 2**26
THIRD = 75 * 1024  # of a multiprocessor's shared memory, so that three blocks run on it
LANES = (2, 1) if SIMULATED else (16, 8, 4)  # channels of a slice
PLAIN_LANES = LANES[0]
TOKENS = 2 if SIMULATED else 16  # of a tile at K 8, at most; in the simulator a few tokens are several tiles
GROUPS = {1: 2, 2: 2, 4: 8, 8: 4, 16: 4}  # that share a token's accesses; the simulator pays for every thread
FEWEST_TOKENS = 1 if SIMULATED else 4  # with fewer, the work after a tile takes longer than the tile


class ContentLayout(NamedTuple):
    """How one pass over the contents is cut."""

    lanes: int
    groups: int
    tile: int
    in_shared: bool
    shared: int  # bytes


@cache
def content_layout(name: str, rows: int, channels: int, W: int, R: int, itemsize: int, limit: int) -> ContentLayout:
    """For the pass "forward", "recompute" or "backward" over ``rows`` slots.

    Three blocks a multiprocessor if that leaves a tile of some tokens, else one; device memory if a slice of the state
    does not fit at all. One token of up to ``MAX_FAST_K`` accesses always fits.

    >>> content_layout("forward", 1024, 64, W=8, R=8, itemsize=4, limit=227 * 1024)
    ContentLayout(lanes=16, groups=4, tile=16, in_shared=True, shared=73856)
    """
    choices = [n for n in LANES if n < 2 * channels] or [LANES[-1]]
    most = max(1, min(TOKENS, TOKENS * 2 * GROUP_OF_8 // (W + R)))
    for in_shared in (True, False):
        for budget, fewest in ((min(THIRD, limit), min(FEWEST_TOKENS, most)), (limit, 1)):
            for lanes in choices:
                state = (rows + W + R) * lanes * itemsize * in_shared
                for tile in range(most, fewest - 1, -1):
                    layout = shared_layout(name, tile, W, R, lanes, GROUPS[lanes], itemsize)
                    shared = state + layout.state * itemsize
                    if shared <= budget:
                        return ContentLayout(lanes, GROUPS[lanes], tile, in_shared, shared)
    raise ValueError(f"{W + R} accesses of a token do not fit into {limit:,} bytes of shared memory")


class MassLayout(NamedTuple):
    """How one scan over the masses is cut."""

    threads: int
    in_shared: bool
    shared: int  # bytes


@cache
def mass_layout(numbers: int, rows: int, W: int, R: int, itemsize: int, limit: int) -> MassLayout:
    """For a scan that keeps ``numbers`` numbers of each of ``rows`` slots, and has a thread for each access of a token.

    >>> mass_layout(1, 1024, 8, 8, itemsize=4, limit=227 * 1024)
    MassLayout(threads=8, in_shared=True, shared=4160)
    """
    size = numbers * (rows + W + R) * itemsize
    return MassLayout(max(W, R), size <= limit, size if size <= limit else 0)
