"""Long sequences of few heads in segments that run at the same time: see ``segments.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .layout import MASS_BYTES, Layout, access_defines
from .module import Specialisation, get_kernel

THREADS = 256
LEAST = 4  # segments: much is worked through twice then, so fewer gain nothing
LEAST_CHUNKS = 8  # of a segment


@functools.cache
def segment_specialisation(layout: Layout) -> Specialisation:
    """``segments.cu`` for a layout."""
    return Specialisation("segments.cu", ("mass_carry", "mass_combine", "content_combine"), access_defines(layout))


@functools.cache
def choose_segments(layout: Layout, units: int, tokens: int, rows: int, processors: int) -> int:
    """Into how many segments of whole chunks to cut: as many as keep the GPU's blocks at work, or 1."""
    masses_fit = 3 * rows * layout.sum_bytes <= MASS_BYTES  # the most that a block keeps of a row, while it carries
    if layout.chunk == 1 or not layout.in_shared or not masses_fit or tokens % layout.chunk:
        return 1
    free = processors * layout.blocks // (units * layout.slices) if units else 0
    chunks = tokens // layout.chunk
    segments = 1
    while 2 * segments <= free and chunks % (2 * segments) == 0 and chunks // (2 * segments) >= LEAST_CHUNKS:
        segments *= 2
    return segments if segments >= LEAST else 1


def carry_masses(call: tuple[Any, ...], segments: int, chunks: int, writes: Any, earlier: Any, layout: Layout) -> Any:
    """What each segment makes of a row's mass: (B*H, segments, rows, 2). ``call``: ``CALL_PARAMETERS`` of chunk.cuh."""
    import cupy

    units, rows = len(writes), int(call[2])
    carried = cupy.empty((units, segments, rows, 2), dtype=writes.dtype)
    get_kernel(segment_specialisation(layout), "mass_carry")(
        (units * segments,),
        (THREADS,),
        (*call, np.int32(segments), np.int32(chunks // segments), writes, earlier, carried),
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
    """Turn what segments carry, (B*H, segments, rows, C), into what each starts from; in reverse, the last is first."""
    units, segments, rows, channels = carried.shape
    count = units * rows * channels
    sizes = np.int64(rows * channels), np.int32(segments), np.int32(channels), np.int32(reverse), np.int64(count)
    get_kernel(segment_specialisation(layout), "content_combine")(
        (-(-count // THREADS),), (THREADS,), (kept, *sizes, carried)
    )
