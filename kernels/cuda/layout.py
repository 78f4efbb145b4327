"""How the passes of the memory are laid out on the chip: slices of channels, tiles of tokens, and what they compile to.

A warp holds a slice of the state in shared memory, rows x CHANNELS sums. Wide slices use shared memory best; narrow
ones leave room for more warps on a multiprocessor, and for more rows. What fits in neither lives in device memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from .module import Specialisation, sum_dtype, type_name

TILE = 2048  # bytes of a tile's events, about
MOST_TOKENS = 16

# channels of a slice and of a lane, widest first
_SLICES = {4: ((16, 2), (8, 1), (4, 1)), 8: ((8, 1), (4, 1))}


class SharedMemory(NamedTuple):
    """Bytes of shared memory that a block can be given, and that a multiprocessor has."""

    block: int
    processor: int

    @property
    def of_three(self) -> int:
        """What a block may use so that three share a multiprocessor; each block costs 1 KiB more."""
        return self.processor // 3 - 1024


H100 = SharedMemory(block=227 * 1024, processor=228 * 1024)


@functools.cache
def shared_memory(device: int) -> SharedMemory:
    """Of a CUDA device."""
    import cupy

    attributes = cupy.cuda.Device(device).attributes
    return SharedMemory(attributes["MaxSharedMemoryPerBlockOptin"], attributes["MaxSharedMemoryPerMultiprocessor"])


class Layout(NamedTuple):
    """The constants that ``content.cu`` and ``mass.cu`` are compiled with."""

    element: str  # type of values
    sum_bytes: int
    top_k: tuple[int, int]  # writes, reads
    channels: int  # of a slice
    vector: int  # of a lane
    tokens: int  # of a tile
    in_shared: bool
    copy: int
    slices: int
    limit: int  # bytes of shared memory of a block

    @property
    def groups(self) -> int:
        """Groups of lanes that share the events of a token."""
        return 32 * self.vector // self.channels

    @property
    def writes(self) -> int:
        """Write events of a token, padded so that every group has as many."""
        return -(-self.top_k[0] // self.groups) * self.groups

    @property
    def reads(self) -> int:
        """Read events of a token, padded likewise."""
        return -(-self.top_k[1] // self.groups) * self.groups

    @property
    def events(self) -> int:
        """All events of a token."""
        return self.writes + self.reads

    def content_bytes(self, kernel: str, rows: int) -> int:
        """Shared memory of a block of ``content.cu``: two tiles, and the slice of the state."""
        values, sums = {"content_forward": (1, 0), "content_replay": (2, 0), "content_reverse": (2, 1)}[kernel]
        size = {"float": 4, "double": 8}.get(self.element, 2)
        tile = self.tokens * (2 * self.events * self.sum_bytes + values * self.channels * size)
        tile += max(1, sums * self.tokens) * self.channels * self.sum_bytes
        state = (rows + 2) * self.channels * self.sum_bytes if self.in_shared else 0
        return 2 * (-(-tile // 16) * 16) + state

    def masses_in_shared(self, rows: int, arrays: int) -> bool:
        """Whether so many arrays of a number a row fit into a block's shared memory."""
        return arrays * rows * self.sum_bytes <= self.limit


def rows_that_fit(dtype: Any, shared: SharedMemory) -> int:
    """Rows of the state that shared memory holds in the narrowest slice, beside the tiles."""
    return (shared.block - 16 * 1024) // (4 * sum_dtype(dtype).itemsize)


@functools.cache
def choose_layout(
    dtype: Any, copy: int, rows: int, channels: int, writes: int, reads: int, shared: SharedMemory
) -> Layout:
    """The widest slice that leaves room for several blocks on a multiprocessor, else the one that fits most blocks."""
    element, size = type_name(dtype), sum_dtype(dtype).itemsize
    candidates = []
    for width, vector in _SLICES[size]:
        if np.dtype(dtype).itemsize * width < 16 and copy == 16:
            continue  # 16-bit values are copied 8 at a time
        groups = 32 * vector // width
        events = sum(-(-k // groups) * groups for k in (writes, reads))
        tokens = max(1, min(MOST_TOKENS, TILE // (2 * size * events)))
        slices = -(-channels // width)
        layout = Layout(element, size, (writes, reads), width, vector, tokens, True, copy, slices, shared.block)
        candidates += [layout, layout._replace(in_shared=False)]
    on_chip = [c for c in candidates if c.in_shared]
    for limit in (shared.of_three, shared.block):
        for candidate in on_chip:
            # the reverse pass has the largest tiles
            if candidate.content_bytes("content_forward", rows) <= limit and (
                candidate.content_bytes("content_reverse", rows) <= shared.block
            ):
                return candidate
    return next(c for c in candidates if not c.in_shared)


def content_specialisation(layout: Layout) -> Specialisation:
    """``content.cu`` for a layout."""
    defines = (
        ("ELEMENT", layout.element), ("WRITES", layout.top_k[0]), ("READS", layout.top_k[1]),
        ("CHANNELS", layout.channels), ("VECTOR", layout.vector), ("TOKENS", layout.tokens),
        ("IN_SHARED", int(layout.in_shared)), ("COPY", layout.copy),
    )  # fmt: skip
    return Specialisation("content.cu", ("content_forward", "content_replay", "content_reverse"), defines)


def mass_specialisation(layout: Layout, in_shared: bool) -> Specialisation:
    """``mass.cu`` for a layout; ``in_shared``: whether the masses are in shared memory."""
    defines = (
        ("ELEMENT", layout.element), ("WRITES", layout.top_k[0]), ("READS", layout.top_k[1]),
        ("GROUPS", layout.groups), ("IN_SHARED", int(in_shared)),
    )  # fmt: skip
    return Specialisation("mass.cu", ("mass_forward", "mass_backward"), defines)
