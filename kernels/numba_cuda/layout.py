"""What a block works on at once: slices of channels, tiles of tokens, in shared or in device memory."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from . import content_kernels, mass_kernels
from .launch import SIMULATED

THIRD = 75 * 1024  # of a multiprocessor's shared memory, so that three blocks run on it
LANES = (16, 8, 4)  # channels of a slice
MOST_TOKENS = 2 if SIMULATED else 16  # of a tile of contents; in the simulator a few tokens are several tiles
FEWEST_TOKENS = 1 if SIMULATED else 4  # with fewer, fetching takes longer than following
MASS_TOKENS = 2 if SIMULATED else 32
MASS_BYTES = 100 * 1024
MOST_ROWS = 2**26


class ContentLayout(NamedTuple):
    """Of one pass over the contents."""

    lanes: int
    tile: int
    in_shared: bool
    shared: int  # bytes


class MassLayout(NamedTuple):
    """Of one pass over the masses."""

    tile: int
    in_shared: bool
    shared: int  # bytes


@cache
def content_layout(
    rows: int, channels: int, events: int, values: int, sums: int, itemsize: int, limit: int
) -> ContentLayout:
    """For a pass that stages ``values`` arrays and leaves ``sums`` sums a token.

    Three blocks a multiprocessor if that leaves a tile of some tokens, else one; device memory if a slice of the state
    does not fit at all. ValueError where not even one token fits.

    >>> content_layout(1024, 64, events=16, values=1, sums=0, itemsize=4, limit=227 * 1024)
    ContentLayout(lanes=16, tile=16, in_shared=True, shared=71936)
    """
    choices = [n for n in LANES if n < 2 * channels] or [LANES[-1]]
    for in_shared in (True, False):
        for budget, fewest in ((min(THIRD, limit), FEWEST_TOKENS), (limit, 1)):
            for n in choices:
                state = (rows + 2) * n * itemsize * in_shared
                fitting = [
                    tile
                    for tile in range(fewest, MOST_TOKENS + 1)
                    if state + content_kernels.tile_bytes(tile, events, values, sums, n, itemsize) <= budget
                ]
                if fitting:
                    tile = fitting[-1]
                    shared = state + content_kernels.tile_bytes(tile, events, values, sums, n, itemsize)
                    return ContentLayout(n, tile, in_shared, shared)
    raise ValueError(f"top_k must be smaller: {events} accesses of a token do not fit into {limit:,} bytes")


@cache
def mass_layout(backward: bool, rows: int, W: int, R: int, aware: bool, itemsize: int, limit: int) -> MassLayout:
    """Of ``mass_forward`` or ``mass_backward``. ValueError where not even one token fits.

    >>> mass_layout(False, 1024, 8, 8, False, 4, limit=227 * 1024)
    MassLayout(tile=32, in_shared=True, shared=16392)
    """
    token = (mass_kernels.backward_bytes if backward else mass_kernels.forward_bytes)(W, R, aware, itemsize)
    masses = (1 + backward) * (rows + 2) * itemsize
    for in_shared in (True, False):
        room = min(MASS_BYTES, limit) - in_shared * masses
        if room >= token:
            tile = min(MASS_TOKENS, room // token)
            return MassLayout(tile, in_shared, in_shared * masses + tile * token)
    if limit >= token:
        return MassLayout(1, False, token)
    raise ValueError(f"top_k must be smaller: {W} writes and {R} reads of a token do not fit into {limit:,} bytes")
