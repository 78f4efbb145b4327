"""How the passes of the memory are laid out on the chip: slices of channels, tiles of tokens, and what they compile to.

A block holds a slice of the state in shared memory, rows x CHANNELS sums. Wide slices use shared memory best; narrow
ones leave room for more blocks on a multiprocessor, and for more rows. What fits in neither lives in device memory.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from .module import Specialisation, sum_dtype, type_name

TOKENS = (16, 14, 12, 10, 8, 7, 6, 5, 4, 3, 2, 1)  # of a tile
NO_ROOM = 2**31  # rows that fit nowhere
PASSES = ("content_forward", "content_replay", "content_reverse")
ENOUGH = 6  # tokens of a tile: with fewer, meeting at the end of each costs more than a third block gains

# channels of a slice and of a lane, widest first
_SLICES = {4: ((16, 2), (8, 1), (4, 1)), 8: ((8, 1), (4, 1))}


class SharedMemory(NamedTuple):
    """Bytes of shared memory that a block can be given, and that a multiprocessor has."""

    block: int
    processor: int

    def shared_by(self, blocks: int) -> int:
        """What a block may use so that so many share a multiprocessor; each block costs 1 KiB more."""
        return min(self.block, self.processor // blocks - 1024)


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
    tokens: tuple[int, int, int]  # of a tile, in each of PASSES
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

    @functools.cache  # noqa: B019 - layouts are few, and live as long as the process
    def content_bytes(self, kernel: str, rows: int) -> int:
        """Shared memory of a block of ``content.cu``: three tiles, parts of sums of two, the slice of the state."""
        own_writes, own_reads = self.writes // self.groups, self.reads // self.groups
        # rows of values, of sums; groups that leave vectors, and numbers that a lane leaves, for each token
        values, sums, shares, numbers = {
            "content_forward": (1, 0, self.groups, 0),
            "content_replay": (2, 0, 1, own_reads),
            "content_reverse": (2, 1, self.groups, own_writes + 1),
        }[kernel]
        tokens = self.tokens[PASSES.index(kernel)]
        size = {"float": 4, "double": 8}.get(self.element, 2)
        tile = tokens * (2 * self.events * self.sum_bytes + values * self.channels * size)
        tile += max(1, sums * tokens) * self.channels * self.sum_bytes
        parts = (tokens * shares + max(1, self.groups - shares)) * self.channels
        parts += tokens * numbers * (32 + self.groups) if numbers else 1
        state = (rows + 2 * self.groups) * self.channels * self.sum_bytes if self.in_shared else 0
        return 3 * _whole(tile) + 2 * _whole(parts * self.sum_bytes) + state

    @functools.cache  # noqa: B019
    def mass_bytes(self, kernel: str, mass_aware: bool, rows: int) -> int:
        """Shared memory of a block of ``mass.cu``: three tiles and, if they fit beside, the numbers of the rows."""
        more = max(self.writes, self.reads)
        tokens = min(64, max(1, 512 // (1 << (more - 1).bit_length())))
        aware = self.reads if mass_aware else 1
        rows_of_numbers, numbers = {
            "mass_forward": (1, 3 * self.writes + self.reads + aware),
            "mass_backward": (2, 10 * self.writes + self.reads + aware),
        }[kernel]
        tile = tokens * (4 * self.events + self.sum_bytes * numbers)
        tile = -(-tile // self.sum_bytes) * self.sum_bytes
        state = rows_of_numbers * rows * self.sum_bytes
        return 3 * tile + (state if 3 * tile + state <= self.limit else 0)

    def masses_in_shared(self, kernel: str, mass_aware: bool, rows: int) -> bool:
        """Whether they do."""
        return self.mass_bytes(kernel, mass_aware, rows) > self.mass_bytes(kernel, mass_aware, NO_ROOM)


def rows_that_fit(dtype: Any, shared: SharedMemory) -> int:
    """Rows of the state that shared memory holds in the narrowest slice, beside the tiles."""
    return (shared.block - 16 * 1024) // (4 * sum_dtype(dtype).itemsize)


def _whole(size: int) -> int:
    """Up to a multiple of 16 bytes."""
    return -(-size // 16) * 16


@functools.cache
def choose_layout(
    dtype: Any, copy: int, rows: int, channels: int, writes: int, reads: int, shared: SharedMemory
) -> Layout:
    """The widest slice that leaves room for several blocks on a multiprocessor, else the one that fits most blocks."""
    element, size = type_name(dtype), sum_dtype(dtype).itemsize
    layouts = [
        Layout(
            element, size, (writes, reads), width, vector, (1, 1, 1), True, copy, -(-channels // width), shared.block
        )
        for width, vector in _SLICES[size]
        if copy < 16 or np.dtype(dtype).itemsize * width >= 16  # 16-bit values are copied 8 at a time
    ]
    narrowest = layouts[-1]._replace(in_shared=False)
    needed = max(narrowest.content_bytes("content_reverse", 0), narrowest.mass_bytes("mass_backward", True, NO_ROOM))
    if needed > shared.block:
        raise ValueError(
            f"top_k must leave the events of a token within {shared.block} bytes of shared memory on this GPU, "
            f"got {(writes, reads)}, which needs {needed}"
        )
    several = ((layout, blocks, ENOUGH) for layout in layouts for blocks in (3, 2))
    few = ((layout, blocks, 1) for blocks in (2, 1) for layout in layouts)
    for layout, blocks, least in (*several, *few):
        if (tokens := _tokens_of_passes(layout, rows, shared, blocks, least)) is not None:
            return layout._replace(tokens=tokens)
    layout = layouts[0]._replace(in_shared=False)
    tokens = _tokens_of_passes(layout, rows, shared, 3, 1) or (1, 1, 1)
    return layout._replace(tokens=tokens)


def _tokens_of_passes(
    layout: Layout, rows: int, shared: SharedMemory, blocks: int, least: int
) -> tuple[int, int, int] | None:
    """Tokens of a tile for each pass, if its forward has ``least`` or more with so many blocks on a multiprocessor.

    The other passes keep more, and may take one block less to have enough.
    """
    forward = _most_tokens(layout, "content_forward", rows, shared.shared_by(blocks))
    if forward < least:
        return None
    others = []
    for name in PASSES[1:]:
        tokens = _most_tokens(layout, name, rows, shared.shared_by(blocks))
        if tokens < ENOUGH and blocks > 1:
            tokens = _most_tokens(layout, name, rows, shared.shared_by(blocks - 1))
        others.append(tokens)
    return (forward, others[0], others[1]) if all(others) else None


def _most_tokens(layout: Layout, name: str, rows: int, limit: int) -> int:
    """The longest tile with which a pass keeps to ``limit`` bytes of shared memory; 0 if none does."""
    return next((n for n in TOKENS if layout._replace(tokens=(n, n, n)).content_bytes(name, rows) <= limit), 0)


@functools.cache
def content_specialisation(layout: Layout) -> Specialisation:
    """``content.cu`` for a layout."""
    defines = (
        ("ELEMENT", layout.element), ("WRITES", layout.top_k[0]), ("READS", layout.top_k[1]),
        ("CHANNELS", layout.channels), ("VECTOR", layout.vector), ("IN_SHARED", int(layout.in_shared)),
        ("COPY", layout.copy), ("FORWARD_TOKENS", layout.tokens[0]), ("REPLAY_TOKENS", layout.tokens[1]),
        ("REVERSE_TOKENS", layout.tokens[2]),
    )  # fmt: skip
    return Specialisation("content.cu", PASSES, defines)


@functools.cache
def mass_specialisation(layout: Layout, mass_aware: bool, in_shared: bool) -> Specialisation:
    """``mass.cu`` for a layout; ``in_shared``: whether the masses are in shared memory."""
    defines = (
        ("ELEMENT", layout.element), ("WRITES", layout.top_k[0]), ("READS", layout.top_k[1]),
        ("GROUPS", layout.groups), ("MASS_AWARE", int(mass_aware)), ("IN_SHARED", int(in_shared)),
    )  # fmt: skip
    return Specialisation("mass.cu", ("mass_forward", "mass_backward"), defines)
