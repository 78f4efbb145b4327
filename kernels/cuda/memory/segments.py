"""Long sequences of few heads in segments that run at the same time: the launches of ``segments.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, LONG, POINTER, ParamStruct
from .call import Call, Kept, Segments, memory_params
from .layout import MASS_BYTES, THREADS, Layout, SharedMemory, in_wide_slices, places_of

MIN_SEGMENTS = 4  # splitting computes most of the work twice; fewer segments would cost more than they gain
MIN_CHUNKS = 8  # of a segment
MASS_BLOCKS = 3  # on a multiprocessor: masses wait more than they compute
ADJOINT_BLOCKS = 2  # likewise, of mass_backward


@functools.cache
def local_end_params(acc: np.dtype) -> ParamStruct:
    """``LocalEndParams`` of segments.cu."""
    return ParamStruct(
        "LocalEndParams",
        memory=memory_params(acc), writes=POINTER, change_before=POINTER, local_end=POINTER, segments=INT,
        chunks_of_segment=INT,
    )  # fmt: skip


@functools.cache
def combine_params(acc: np.dtype) -> ParamStruct:
    """``CombineParams`` of segments.cu."""
    return ParamStruct(
        "CombineParams",
        local_masses=POINTER, mass_starts=POINTER, adjoint_maps=POINTER, adjoint_ends=POINTER, decay_products=POINTER,
        contents=POINTER, count=LONG, initial=acc, rows=INT, segments=INT, parts=INT, channels=INT, backward=INT,
    )  # fmt: skip


@functools.cache
def segment_specialisation(layout: Layout) -> Specialisation:
    """``segments.cu`` for a layout."""
    kernels, acc = (
        ("mass_local_end", "mass_combine", "adjoint_combine", "content_combine"),
        np.dtype(f"f{layout.acc_bytes}"),
    )
    params = local_end_params(acc), combine_params(acc)
    return Specialisation("memory/segments.cu", kernels, layout.defines, params)


@functools.lru_cache(maxsize=1024)
def _launch(layout: Layout, name: str, blocks: int, shared: int = 0) -> Launch:
    return Launch(segment_specialisation(layout), name, (blocks,), THREADS, shared)


@functools.cache
def choose_segments(
    layout: Layout, sequences: int, tokens: int, rows: int, channels: int, processors: int, shared: SharedMemory
) -> Segments:
    """Into how many segments of whole chunks to split: as many as keep the GPU's blocks at work, or one."""
    chunks = -(-tokens // layout.chunk)
    masses_fit = 4 * rows * layout.acc_bytes <= MASS_BYTES  # the most that a block keeps of a row
    if not layout.in_shared or not masses_fit or not sequences:
        return Segments(1, chunks, 1)
    most = chunks // MIN_CHUNKS
    contents = min(_segments_of_contents(layout, sequences, rows, channels, processors, shared), most)
    if contents < MIN_SEGMENTS:
        contents = 1
    masses = 1
    while 2 * masses * contents <= min(MASS_BLOCKS * processors // sequences, most):
        masses *= 2
    if contents * masses < MIN_SEGMENTS:
        masses = 1
    of_mass = -(-chunks // (contents * masses))
    return Segments(-(-chunks // (of_mass * masses)), of_mass * masses, masses)


def _segments_of_contents(
    layout: Layout, sequences: int, rows: int, channels: int, processors: int, shared: SharedMemory
) -> int:
    """How many the multiprocessors have room for at once. In wide slices one more, because all passes but the recompute
    leave out the first or the last; the recompute then takes narrow slices."""
    wide = in_wide_slices(layout, channels, rows, shared)
    if wide is not None and processors // (sequences * wide.slices) + 1 >= MIN_SEGMENTS:
        return processors // (sequences * wide.slices) + 1
    return processors * layout.blocks // (sequences * layout.slices)


@functools.cache
def segments_of_adjoints(layout: Layout, sequences: int, tokens: int, processors: int) -> tuple[int, int]:
    """Segments of ``mass_backward`` where masses go by segments: how many, and chunks of each."""
    chunks = -(-tokens // layout.chunk)
    count = min(ADJOINT_BLOCKS * processors // sequences, chunks // MIN_CHUNKS)
    if count < MIN_SEGMENTS:
        return 1, chunks
    length = -(-chunks // count)
    return -(-chunks // length), length


def mass_local_ends(
    call: Call, layout: Layout, memory: Any, kept: Kept, change_before: Array, segments: tuple[int, int]
) -> Array:
    """What each segment makes of a row's mass, (B*H, segments, rows, 2). ``segments``: how many, and chunks of each."""
    import cupy

    count, length = segments
    local_end = cupy.empty((call.sequences, count, call.rows, 2), dtype=call.acc)
    _launch(layout, "mass_local_end", call.sequences * count, 2 * places_of(call.rows) * layout.acc_bytes)(
        local_end_params(call.acc)(
            memory=memory, writes=kept.writes, change_before=change_before, local_end=local_end, segments=count,
            chunks_of_segment=length,
        )
    )  # fmt: skip
    return local_end


def combine_masses(local: Array, initial: float, layout: Layout) -> Array:
    """What each segment starts from, (B*H, segments, rows); the first from ``initial``.

    ``local``: (B*H, segments, rows, 2), what each makes of a mass.
    """
    import cupy

    sequences, segments, rows, _ = local.shape
    starts = cupy.empty((sequences, segments, rows), dtype=local.dtype)
    _combine(
        "mass_combine", layout, sequences * rows, local_masses=local, mass_starts=starts, initial=initial, rows=rows,
        segments=segments,
    )  # fmt: skip
    return starts


def combine_adjoints(maps: Array, layout: Layout) -> Array:
    """q and dz at the end of each segment, (B*H, segments, rows, 2); at the end of the last both are 0.

    ``maps``: (B*H, segments, rows, 4), what each but the first makes of them.
    """
    import cupy

    sequences, segments, rows, _ = maps.shape
    ends = cupy.empty((sequences, segments, rows, 2), dtype=maps.dtype)
    _combine(
        "adjoint_combine", layout, sequences * rows, adjoint_maps=maps, adjoint_ends=ends, rows=rows, segments=segments
    )
    return ends


def combine_contents(contents: Array, decay_products: Array, layout: Layout, *, backward: bool) -> None:
    """Turn what segments make of zeros, (B*H, segments, rows, C), into what each starts from.

    ``decay_products``: (B*H, segments of the masses, rows). ``backward``: the last segment is the first.
    """
    sequences, segments, rows, channels = contents.shape
    _combine(
        "content_combine", layout, sequences * rows * channels, decay_products=decay_products, contents=contents,
        rows=rows, segments=segments, parts=decay_products.shape[1] // segments, channels=channels, backward=backward,
    )  # fmt: skip


_NOTHING: dict[str, Any] = {
    "local_masses": None, "mass_starts": None, "adjoint_maps": None, "adjoint_ends": None, "decay_products": None,
    "contents": None, "initial": 0.0, "parts": 0, "channels": 0, "backward": 0,
}  # fmt: skip


def _combine(name: str, layout: Layout, count: int, **values: Any) -> None:
    """Launch a kernel of ``CombineParams`` for ``count`` pieces of work, a thread for each."""
    params = combine_params(np.dtype(f"f{layout.acc_bytes}"))
    _launch(layout, name, -(-count // THREADS))(params(**_NOTHING | values | {"count": count}))
