"""Long sequences of few heads in segments that run at the same time: see ``segments.cu``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ..runtime.module import Specialisation, get_kernel
from .layout import MASS_BYTES, Layout, access_defines

THREADS = 256
LEAST = 4  # segments: much is worked through twice then, so fewer gain nothing
LEAST_CHUNKS = 8  # of a segment
MASS_BLOCKS = 3  # on a multiprocessor: masses wait more than they compute


class Segments(NamedTuple):
    """How a sequence is cut: ``contents`` segments of ``chunks`` chunks, each in ``masses`` segments of the masses."""

    contents: int
    chunks: int
    masses: int

    @property
    def cut(self) -> bool:
        """Whether the masses are carried from segment to segment."""
        return self.contents * self.masses > 1


@functools.cache
def segment_specialisation(layout: Layout) -> Specialisation:
    """``segments.cu`` for a layout."""
    kernels = ("mass_carry", "mass_combine", "content_combine", "content_meet")
    return Specialisation("memory/segments.cu", kernels, access_defines(layout))


@functools.cache
def choose_segments(layout: Layout, units: int, tokens: int, rows: int, processors: int) -> Segments:
    """Into how many segments of whole chunks to cut: as many as keep the GPU's blocks at work, or one."""
    chunks = -(-tokens // layout.chunk)
    masses_fit = 3 * rows * layout.sum_bytes <= MASS_BYTES  # the most that a block keeps of a row, while it carries
    if layout.chunk == 1 or not layout.in_shared or not masses_fit or not units:
        return Segments(1, chunks, 1)
    most = chunks // LEAST_CHUNKS
    contents = min(processors * layout.blocks // (units * layout.slices), most)
    if contents < LEAST:
        contents = 1
    masses = 1
    while 2 * masses * contents <= min(MASS_BLOCKS * processors // units, most):
        masses *= 2
    if contents * masses < LEAST:
        masses = 1
    of_mass = -(-chunks // (contents * masses))
    return Segments(-(-chunks // (of_mass * masses)), of_mass * masses, masses)


def carry_masses(call: tuple[Any, ...], count: int, chunks: int, writes: Any, earlier: Any, layout: Layout) -> Any:
    """What each of ``count`` segments of ``chunks`` chunks makes of a row's mass: (B*H, count, rows, 2).

    ``call``: ``CALL_PARAMETERS`` of chunk.cuh.
    """
    import cupy

    units, rows = len(writes), int(call[2])
    carried = cupy.empty((units, count, rows, 2), dtype=writes.dtype)
    get_kernel(segment_specialisation(layout), "mass_carry")(
        (units * count,),
        (THREADS,),
        (*call, np.int32(count), np.int32(chunks), writes, earlier, carried),
        shared_mem=2 * rows * layout.sum_bytes,
    )
    return carried


def combine_masses(carried: Any, initial: Any, layout: Layout, *, reverse: bool) -> Any:
    """What each segment starts from, (B*H, segments, rows); the first, or in reverse the last, from ``initial``."""
    import cupy

    units, segments, rows, _ = carried.shape
    starts = cupy.empty((units, segments, rows), dtype=carried.dtype)
    sizes = np.int64(units * rows), np.int32(rows), np.int32(segments), np.int32(reverse)
    get_kernel(segment_specialisation(layout), "mass_combine")(
        (-(-units * rows // THREADS),), (THREADS,), (*sizes, carried, starts.dtype.type(initial), starts)
    )
    return starts


def combine_contents(carried: Any, kept: Any, layout: Layout, *, reverse: bool) -> None:
    """Turn what segments carry, (B*H, segments, rows, C), into what each starts from; in reverse, the last is first.

    ``kept``: (B*H, segments of the masses, rows).
    """
    units, segments, rows, channels = carried.shape
    count = units * rows * channels
    sizes = *map(np.int32, (kept.shape[1] // segments, rows, segments, channels, reverse)), np.int64(count)
    get_kernel(segment_specialisation(layout), "content_combine")(
        (-(-count // THREADS),), (THREADS,), (kept, *sizes, carried)
    )


def meet(starts: Any, ends: Any, layout: Layout) -> Any:
    """<d, s> of every row at the end of every segment: (B*H, segments, rows); ``starts`` of s, ``ends`` of d."""
    import cupy

    units, segments, rows, channels = starts.shape
    met = cupy.empty((units, segments, rows), dtype=starts.dtype)
    sizes = *map(np.int32, (segments, rows, channels)), np.int64(met.size)
    get_kernel(segment_specialisation(layout), "content_meet")(
        (-(-met.size * 32 // THREADS),), (THREADS,), (starts, ends, *sizes, met)
    )
    return met
