"""How the passes of the memory are laid out on the chip: chunks of tokens, slices of channels, what they compile to.

A block holds a slice of the state in shared memory, rows x CHANNELS sums. Wide slices use shared memory best; narrow
ones leave room for more blocks on a multiprocessor, and for more rows. What fits in neither lives in device memory.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..runtime.module import Specialisation, sum_dtype, type_name

LANES = 4  # of a group, as in content.cuh
MOST_TOP_K = 1024
MASS_BYTES = 64 * 1024  # of masses and their adjoints in shared memory; more live in device memory
HEADER_BYTES = 2048  # of chains, in content.cuh
ROOM = 32  # versions, at least, that should find room in shared memory
WEIGH_KERNELS = ("weigh_forward", "weigh_backward")
PASSES = ("content_forward", "content_replay", "content_reverse")

_CHANNELS = {4: (16, 8, 4), 8: (8, 4)}  # of a slice, widest first, by the bytes of a sum


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


@functools.cache
def processors(device: int) -> int:
    """Multiprocessors of a CUDA device."""
    import cupy

    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]


@dataclass(frozen=True)
class Layout:
    """The constants that the kernels of the memory are compiled with, and sizes that follow."""

    element: str  # type of values
    sum_bytes: int
    top_k: tuple[int, int]  # writes, reads
    slices: int
    channels: int  # of a slice
    aligned: bool
    in_shared: bool
    blocks: int  # on a multiprocessor
    room: int  # versions in shared memory

    @functools.cached_property
    def chunk(self) -> int:
        """Tokens of a chunk: with these a chunk has at most 256 writes and 256 reads, or it is one token."""
        k = max(self.top_k)
        return next((tokens for tokens in (32, 16, 8, 4) if k * tokens <= 256), 1)

    @functools.cached_property
    def spread(self) -> int:
        """Groups of lanes that share a token's accesses."""
        return 8 if self.chunk < 8 else 64 // self.chunk

    @functools.cached_property
    def each(self) -> int:
        """The most accesses of a group that registers hold; with more, they are loaded where they are used."""
        own = max(self.accesses) // self.spread
        return own if own <= 8 else 4

    @functools.cached_property
    def accesses(self) -> tuple[int, int]:
        """Writes and reads of a token, with those that do nothing: the same number for each lane that shares them."""
        unit = LANES * self.spread
        return _whole(self.top_k[0], unit), _whole(self.top_k[1], unit)

    @functools.cached_property
    def entries(self) -> int:
        """The most accesses that the chains of a chunk hold."""
        return self.chunk * sum(self.top_k)

    @functools.cached_property
    def chains(self) -> int:
        """Headers of chains of a chunk."""
        return _whole(self.entries // 2, 64)

    @functools.cached_property
    def versions(self) -> int:
        """The most versions that a chunk's accesses need."""
        return self.chunk * max(self.accesses) if self.chunk > 1 else 0

    @functools.cached_property
    def row_bytes(self) -> int:
        """Of a slice's row."""
        return self.channels * self.sum_bytes

    def content_bytes(self, rows: int) -> int:
        """Shared memory of a block of ``content.cu``: headers, zeros, the slice of the state, tokens, versions."""
        headers = HEADER_BYTES if self.chunk > 1 else 0
        return headers + (rows * self.in_shared + self.chunk + self.room + 1) * self.row_bytes

    def masses_in_shared(self, rows: int) -> bool:
        """Whether ``mass.cu`` has its numbers of the rows there."""
        return 2 * rows * self.sum_bytes <= MASS_BYTES


def rows_that_fit(dtype: Any, shared: SharedMemory) -> int:
    """Rows of the state that shared memory holds in the narrowest slice, beside the lists."""
    return (shared.block - 16 * 1024) // (4 * sum_dtype(dtype).itemsize)


def _whole(size: int, unit: int) -> int:
    """Up to a multiple of ``unit``."""
    return -(-size // unit) * unit


@functools.cache
def choose_layout(dtype: Any, rows: int, channels: int, writes: int, reads: int, shared: SharedMemory) -> Layout:
    """The widest slice that leaves room for several blocks on a multiprocessor, else the one that fits most blocks."""
    if max(writes, reads) > MOST_TOP_K:
        raise ValueError(f"top_k must be at most {MOST_TOP_K} on the GPU, got {(writes, reads)}")
    element, size = type_name(dtype), sum_dtype(dtype).itemsize
    layouts = [
        Layout(
            element, size, (writes, reads), -(-channels // width), width, channels % (width // LANES) == 0, True, 1, 0
        )
        for width in _CHANNELS[size]
    ]
    # with three blocks a thread has 80 registers: too few for numbers of 8 bytes, or for more than four accesses
    most = 3 if size == 4 and layouts[0].each <= 4 else 2
    several = ((layout, blocks, min(ROOM, layout.versions)) for layout in layouts for blocks in range(most, 1, -1))
    one = ((layout, 1, 0) for layout in layouts)
    for layout, blocks, least in (*several, *one):
        room = (shared.shared_by(blocks) - layout.content_bytes(rows)) // layout.row_bytes
        if room >= least:
            return replace(layout, blocks=blocks, room=min(room, layout.versions))
    layout = replace(layouts[0], in_shared=False, blocks=most)
    return replace(layout, room=layout.versions)


def access_defines(layout: Layout) -> tuple[tuple[str, str | int], ...]:
    """What ``chunk.cuh`` asks for."""
    return (
        ("ELEMENT", layout.element), ("CHUNK", layout.chunk), ("WRITES", layout.top_k[0]), ("READS", layout.top_k[1]),
    )  # fmt: skip


@functools.cache
def link_specialisation(layout: Layout) -> Specialisation:
    """``link.cu`` for a layout."""
    return Specialisation("memory/conflicts.cu", ("link_accesses",), access_defines(layout))


@functools.cache
def weigh_specialisation(layout: Layout) -> Specialisation:
    """``weigh.cu`` for a layout."""
    return Specialisation("memory/mass_aware.cu", WEIGH_KERNELS, access_defines(layout))


@functools.cache
def content_specialisation(layout: Layout, renumbered: bool) -> Specialisation:
    """``content.cu`` for a layout."""
    defines = (
        *access_defines(layout), ("CHANNELS", layout.channels), ("IN_SHARED", int(layout.in_shared)),
        ("FRESH", int(renumbered and not layout.in_shared)), ("ALIGNED", int(layout.aligned)),
        ("BLOCKS", layout.blocks),
    )  # fmt: skip
    return Specialisation("memory/content.cu", PASSES, defines)


@functools.cache
def mass_specialisation(
    layout: Layout, mass_aware: bool, in_shared: bool, renumbered: bool, segmented: bool = False
) -> Specialisation:
    """``mass.cu`` for a layout; ``in_shared``: whether the masses are in shared memory."""
    defines = (
        *access_defines(layout), ("MASS_AWARE", int(mass_aware)), ("IN_SHARED", int(in_shared)),
        ("FRESH", int(renumbered and not in_shared)), ("SEGMENTED", int(segmented)),
    )  # fmt: skip
    return Specialisation("memory/mass_forward.cu", ("mass_forward",), defines)


@functools.cache
def reverse_specialisation(
    layout: Layout, mass_aware: bool, in_shared: bool, segmented: bool = False, carry: bool = False
) -> Specialisation:
    """``mass_reverse.cu`` for a layout; ``in_shared``: whether the adjoints of the masses are in shared memory."""
    defines = (
        *access_defines(layout), ("MASS_AWARE", int(mass_aware)), ("IN_SHARED", int(in_shared)),
        ("SLICES", layout.slices), ("SEGMENTED", int(segmented)), ("CARRY", int(carry)),
    )  # fmt: skip
    return Specialisation("memory/mass_backward.cu", ("mass_backward",), defines)
