"""Long sequences of few heads in segments that run at the same time: see ``segments.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .layout import Layout, access_defines
from .module import Specialisation, get_kernel

THREADS = 256
LEAST = 4  # segments: contents are worked through twice then, so fewer gain nothing
LEAST_CHUNKS = 8  # of a segment


@functools.cache
def segment_specialisation(layout: Layout) -> Specialisation:
    """``segments.cu`` for a layout."""
    return Specialisation("segments.cu", ("segment_kept", "segment_starts"), access_defines(layout))


@functools.cache
def choose_segments(layout: Layout, units: int, tokens: int, processors: int) -> int:
    """Into how many segments of whole chunks to cut: as many as keep the GPU's blocks at work, or 1."""
    free = processors * layout.blocks // (units * layout.slices) if units else 0
    if layout.chunk == 1 or not layout.in_shared or tokens % layout.chunk:
        return 1
    chunks = tokens // layout.chunk
    segments = 1
    while 2 * segments <= free and chunks % (2 * segments) == 0 and chunks // (2 * segments) >= LEAST_CHUNKS:
        segments *= 2
    return segments if segments >= LEAST else 1


def segment_kept(accesses: Any, segments: int, rows: int, layout: Layout) -> Any:
    """The part of each row that a segment leaves: (B*H, segments, rows)."""
    import cupy

    units, chunks = accesses.write_events.shape[:2]
    kept = cupy.empty((units, segments, rows), dtype=accesses.write_events.dtype)
    get_kernel(segment_specialisation(layout), "segment_kept")(
        (units * segments,),
        (THREADS,),
        (accesses.write_events, accesses.chains, accesses.entries, np.int32(chunks // segments), np.int32(rows), kept),
        shared_mem=rows * kept.itemsize,
    )
    return kept


def segment_starts(carried: Any, kept: Any, layout: Layout, *, reverse: bool) -> None:
    """Turn what segments carry, (B*H, segments, rows, C), into what each starts from; in reverse, the last is first."""
    units, segments, rows, channels = carried.shape
    count = units * rows * channels
    get_kernel(segment_specialisation(layout), "segment_starts")(
        (-(-count // THREADS),),
        (THREADS,),
        (
            kept, np.int64(rows * channels), np.int32(segments), np.int32(channels), np.int32(reverse), np.int64(count),
            carried,
        ),
    )  # fmt: skip
