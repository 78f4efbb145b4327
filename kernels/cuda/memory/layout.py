"""How the chunked kernels of the memory lie on the chip: chunks of tokens, slices of channels, what they compile to.

A block of ``content.cu`` holds a slice of the state in shared memory, rows x CHANNELS accumulators. Wide slices use
shared memory best; narrow ones leave room for more blocks on a multiprocessor, and for more rows. What fits in neither
lives in device memory. Every size that a kernel needs is computed here and passed as a definition.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..runtime.module import sum_dtype, type_name

THREADS = 256  # of a block
LANES = 4  # of a group, which has a slice's channels of one token
GROUPS = THREADS // LANES  # a group follows a chain
MAX_TOP_K = 1024
MAX_CHUNKED_K = 64  # beyond, the plain kernels serve
MASS_BYTES = 64 * 1024  # of masses and their adjoints in shared memory; more live in device memory
CHAIN_BYTES = 8  # of a chain's header
LIST_BYTES = 16  # of a list's header
HEADER_BYTES = 2 * GROUPS * LIST_BYTES  # a round of lists of two chunks: see lists.cuh
PAIRS_AT_ONCE = 16  # couplings that are copied to shared memory
COUPLING_BYTES = 2816  # of a chunk's couplings in shared memory; further ones stay in device memory
WIDE_TIME = 17  # of a block with a wide slice, in tenths of a narrow one's
MAX_ROWS = 2**26 - 1

_SLICE_CHANNELS = {4: (16, 8, 4), 8: (8, 4)}  # widest first, by the bytes of an accumulator


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
    """The shared memory of a CUDA device."""
    import cupy

    attributes = cupy.cuda.Device(device).attributes
    return SharedMemory(attributes["MaxSharedMemoryPerBlockOptin"], attributes["MaxSharedMemoryPerMultiprocessor"])


@functools.cache
def processors(device: int) -> int:
    """The multiprocessors of a CUDA device."""
    import cupy

    return cupy.cuda.Device(device).attributes["MultiProcessorCount"]


@dataclass(frozen=True)
class Layout:
    """The constants that the chunked kernels are compiled with, and sizes that follow."""

    element: str  # type of values
    acc_bytes: int  # of an accumulator
    top_k: tuple[int, int]  # writes, reads
    slices: int
    channels: int  # of a slice
    whole: bool  # whether there are all channels of every slice
    aligned: bool  # whether the channels of a lane are all there and aligned, or none is
    in_shared: bool  # whether the slice of the state is in shared memory
    blocks: int  # on a multiprocessor

    @functools.cached_property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return chunk_tokens(*self.top_k)

    @functools.cached_property
    def groups_per_token(self) -> int:
        """Groups of lanes that share a token's accesses; they stand in one warp."""
        return min(8, GROUPS // self.chunk)

    @functools.cached_property
    def accesses(self) -> tuple[int, int]:
        """Writes and reads of a token, with those that do nothing: the same number for each lane that shares them."""
        unit = LANES * self.groups_per_token
        return whole(self.top_k[0], unit), whole(self.top_k[1], unit)

    @functools.cached_property
    def entries(self) -> int:
        """The most accesses that the chains of a chunk hold."""
        return self.chunk * sum(self.top_k)

    @functools.cached_property
    def chains(self) -> int:
        """The headers of chains of a chunk, in whole rounds."""
        return whole(self.entries // 2, GROUPS)

    @functools.cached_property
    def cells(self) -> int:
        """Cells of the table in ``conflicts.cu``: a power of 2, at least twice the accesses of a chunk."""
        return 2 * next(1 << power for power in range(16) if 1 << power >= self.entries)

    @functools.cached_property
    def record_bytes(self) -> int:
        """The size of ``ChunkRecord``: events, entries of lists, couplings, headers of lists."""
        entries = self.chunk * sum(self.accesses) + self.entries
        lists = max(GROUPS, self.chunk * self.top_k[0] // 2) + self.chains
        pairs = whole(self.chunk * (self.chunk + 1) // 2, PAIRS_AT_ONCE)
        couplings = 2 * whole(4 * self.chunk + 2 * pairs * self.acc_bytes, 16)
        return whole(2 * entries * self.acc_bytes, 16) + couplings + lists * LIST_BYTES

    @functools.cached_property
    def bytes_before_rows(self) -> int:
        """Shared memory that a block of ``content.cu`` needs for headers and entries of lists, and for couplings."""
        entries = self.chunk * max(self.top_k) * 2
        return whole(HEADER_BYTES + COUPLING_BYTES + entries * self.acc_bytes, 128)

    @functools.cached_property
    def row_bytes(self) -> int:
        """Bytes of a slice's row."""
        return self.channels * self.acc_bytes

    def widened(self) -> Layout:
        """The same with slices twice as wide, for blocks that have a multiprocessor for themselves. An access is then
        looked up once for twice the channels, and no two rows meet in a bank of shared memory.
        """
        return replace(self, channels=2 * self.channels, slices=self.slices // 2, blocks=1)

    def content_bytes(self, rows: int) -> int:
        """Shared memory of a block of ``content.cu``; the last rows are tokens of two chunks, zeros, the slice of the
        state."""
        return self.bytes_before_rows + (1 + rows * self.in_shared + 2 * self.chunk) * self.row_bytes

    def masses_in_shared(self, rows: int) -> bool:
        """Whether ``mass_forward.cu`` and ``mass_backward.cu`` have their numbers of the rows there."""
        return 2 * rows * self.acc_bytes <= MASS_BYTES

    @functools.cached_property
    def defines(self) -> tuple[tuple[str, str | int], ...]:
        """What ``chunk.cuh`` asks for."""
        return (
            ("ELEMENT", self.element), ("THREADS", THREADS), ("CHUNK", self.chunk), ("WRITES", self.top_k[0]),
            ("READS", self.top_k[1]), ("WRITES_PADDED", self.accesses[0]), ("READS_PADDED", self.accesses[1]),
            ("GROUPS_PER_TOKEN", self.groups_per_token), ("ENTRIES", self.entries), ("CHAINS", self.chains),
            ("RECORD_BYTES", self.record_bytes),
        )  # fmt: skip


def chunk_tokens(writes: int, reads: int) -> int:
    """Tokens of a chunk: with these it has at most 256 writes and 256 reads, one for each thread.

    >>> chunk_tokens(8, 8), chunk_tokens(64, 1)
    (32, 4)
    """
    return next(tokens for tokens in (32, 16, 8, 4) if max(writes, reads) * tokens <= THREADS)


def require_top_k(writes: int, reads: int) -> None:
    """ValueError for a K that no kernel of the memory serves.

    >>> require_top_k(1025, 8)
    Traceback (most recent call last):
        ...
    ValueError: top_k must be at most 1024 on the GPU, got (1025, 8)
    """
    if max(writes, reads) > MAX_TOP_K:
        raise ValueError(f"top_k must be at most {MAX_TOP_K} on the GPU, got {(writes, reads)}")


def rows_that_fit(dtype: Any, shared: SharedMemory) -> int:
    """Rows of the state that shared memory holds in the narrowest slice, beside the lists."""
    return (shared.block - 16 * 1024) // (4 * sum_dtype(dtype).itemsize)


def whole(size: int, unit: int) -> int:
    """``size`` up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def places_of(rows: int) -> int:
    """Places that rows have in shared memory, where their order is that of ``place_of_row`` (mass.cuh).

    >>> places_of(500), places_of(512)
    (512, 512)
    """
    return whole(rows, 32)


@functools.cache
def choose_layout(dtype: Any, rows: int, channels: int, writes: int, reads: int, shared: SharedMemory) -> Layout:
    """The widest slice that leaves room for several blocks on a multiprocessor, else the one that fits most blocks.

    ``writes`` and ``reads``: at most MAX_CHUNKED_K.
    """
    element, size = type_name(dtype), sum_dtype(dtype).itemsize
    layouts = [
        Layout(
            element, size, (writes, reads), -(-channels // width), width, channels % width == 0,
            channels % (width // LANES) == 0, True, 1,
        )
        for width in _SLICE_CHANNELS[size]
    ]  # fmt: skip
    # with three blocks a thread has 80 registers: too few for accumulators of 8 bytes, or for more than four accesses
    own = max(layouts[0].accesses) // layouts[0].groups_per_token
    most = 3 if size == 4 and own <= 4 else 2
    several = ((layout, blocks) for layout in layouts for blocks in range(most, 1, -1))
    for layout, blocks in (*several, *((layout, 1) for layout in layouts)):
        if layout.content_bytes(rows) <= shared.shared_by(blocks):
            return replace(layout, blocks=blocks)
    return replace(layouts[0], in_shared=False, blocks=most)


@functools.cache
def in_wide_slices(layout: Layout, channels: int, rows: int, shared: SharedMemory) -> Layout | None:
    """``layout`` with slices twice as wide for the contents, or None where they do not fit.

    They need all channels, float32 sums, and at most four accesses a group, whose rows registers hold (K up to 32).
    """
    if not layout.in_shared or layout.acc_bytes != 4 or layout.channels != 16 or max(layout.top_k) > 32:
        return None
    wide = layout.widened()
    return wide if channels % wide.channels == 0 and wide.content_bytes(rows) <= shared.block else None


@functools.cache
def layout_of_contents(
    layout: Layout, channels: int, rows: int, sequences: int, processors: int, shared: SharedMemory
) -> Layout:
    """``layout`` or the one with wide slices: which is done first with ``sequences``, segments of them counted singly.

    A multiprocessor takes one wide block after another, and each WIDE_TIME tenths of a narrow one's time. It has up to
    three narrow ones at once, which share its time.
    """
    wide = in_wide_slices(layout, channels, rows, shared)
    if wide is None:
        return layout
    of_wide, of_narrow = (-(-sequences * each.slices // processors) for each in (wide, layout))
    return wide if WIDE_TIME * of_wide <= 10 * of_narrow else layout
