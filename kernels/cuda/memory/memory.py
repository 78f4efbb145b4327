"""The memory on the GPU: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py``, a chunk of tokens at a time (``chunk.cuh``): ``link.cu`` finds the
accesses that meet in a slot, ``mass.cu``, ``mass_reverse.cu`` and ``weigh.cu`` do what does not depend on channels,
``content.cu`` what does; there stands who computes what. Cost: O((K_w + K_r) C) operations per token and head. Nothing
of the size of the accesses times C is kept for the backward.
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, MemoryGrads, MemoryOptions, RAMState

from ..runtime.arrays import allocate_together, contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, sum_dtype
from .layout import (
    Layout,
    choose_layout,
    content_specialisation,
    link_specialisation,
    mass_specialisation,
    processors,
    reverse_specialisation,
    rows_that_fit,
    shared_memory,
    weigh_specialisation,
)
from .renumber import clear_rows, renumber
from .segments import Segments, carry_masses, choose_segments, combine_contents, combine_masses, meet

NULL = np.uint64(0)
THREADS = 256  # of a block, as in chunk.cuh
GRID = 65535  # blocks along y, or z
MOST_ROWS = 2**26 - 1  # PLACE in chunk.cuh
CHAIN = np.dtype(np.float64)  # as large as Chain
PLACE = np.dtype(np.uint16)
WHOLE, CARRY = np.int32(0), np.int32(1)  # of segments: all results, or what the next one starts from


class Accesses(NamedTuple):
    """What ``link.cu`` and ``mass.cu`` leave for the passes that follow: see ``chunk.cuh``."""

    write_events: Any  # (B*H, chunks, CHUNK, W, 2): where to find the slot, eta
    read_events: Any  # (B*H, chunks, CHUNK, R, 2): where to find the slot, weight
    chains: Any  # (B*H, chunks, CHAINS)
    entries: Any  # (B*H, chunks, ENTRIES, 2)
    spare: Any  # (B*H * slices, versions of a chunk, CHANNELS): of versions that find no room in shared memory

    @property
    def lists(self) -> tuple[Any, Any]:
        """As kernels take them."""
        return self.chains, self.entries


class Links(NamedTuple):
    """What ``link.cu`` leaves for ``mass.cu`` and ``weigh.cu`` alone: see ``mass.cuh``."""

    writes: Any  # (B*H, chunks, CHUNK, W, 4)
    read_places: Any  # (B*H, chunks, CHUNK, R), or null
    reads: Any  # (B*H, chunks, CHUNK, R, 4), or null if reads are not mass-aware


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    write: Address  # index: rows of the working state
    read: Address
    accesses: Accesses
    links: Links
    values: Any  # (B, T, H, C)
    gamma: Any  # a number, or (B, T, H)
    mask: Any  # (B, T), or None
    state: RAMState | None  # as given
    old_mass: Any  # (B*H, chunks, CHUNK, W)
    read_mass: Any  # (B*H, chunks, CHUNK, R), or None
    rows: int
    renumbered: bool
    layout: Layout
    segments: Segments
    starts: Any  # (B*H, segments, rows, C): contents at each segment's start, or None if there is one segment
    kept: Any  # (B*H, segments of the masses, rows), or None
    dtype: Any  # of values as they came
    options: MemoryOptions
    call: tuple[Any, ...] = ()  # ``CALL_PARAMETERS`` of chunk.cuh, with which most kernels start


def memory_forward(
    write: Address,
    read: Address,
    values: Any,
    gamma: Any,
    mask: Any,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
) -> tuple[Any, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    import cupy

    B, T, H, C = values.shape
    Kw, Kr = write.index.shape[3], read.index.shape[3]
    dtype, rows = values.dtype, options.slots
    shared = shared_memory(values.device.id)
    mask = None if mask is None else contiguous_aligned(mask)
    renumbered = rows > rows_that_fit(dtype, shared) and rows > T * Kw and state is None and not return_state
    if renumbered:
        rows = T * Kw
        write, read = renumber(write, read, mask, options.slots)
    if rows >= MOST_ROWS:
        raise ValueError(f"the state must have fewer than {MOST_ROWS} slots on the GPU, got {rows}")
    values, sums = contiguous_aligned(values), sum_dtype(dtype)
    layout = choose_layout(values.dtype, rows, C, Kw, Kr, shared)
    chunks, (W, _) = -(-T // layout.chunk), layout.accesses
    segments = Segments(1, chunks, 1)
    if state is None and not return_state and not renumbered:
        segments = choose_segments(layout, B * H, T, rows, processors(values.device.id))
    gamma = gamma if isinstance(gamma, float) else contiguous_aligned(gamma.astype(values.dtype, copy=False))
    given = None if state is None else RAMState(*map(contiguous_aligned, state))

    accesses, links, old_mass, read_mass = _empty(B * H, chunks, segments.contents, layout, options.mass_aware)
    ctx = MemoryContext(
        Address(*map(contiguous_aligned, write)), Address(*map(contiguous_aligned, read)), accesses, links, values,
        gamma, mask, given,
        old_mass=old_mass, read_mass=read_mass, rows=rows, renumbered=renumbered, layout=layout, segments=segments,
        starts=None, kept=None, dtype=dtype, options=options,
    )  # fmt: skip
    ctx = ctx._replace(call=_call(ctx))
    earlier = cupy.empty((B * H, chunks, layout.chunk, W, 2), dtype=sums) if layout.chunk > 1 else NULL
    y = cupy.empty((B, T, H, C), dtype=dtype)
    content, mass = (_working(part, on_chip, return_state, ctx) for part, on_chip in _parts(ctx))
    if B:
        # 1. what meets what
        places = np.int32(rows * layout.in_shared), np.int32(layout.room)  # of content.cu
        link = get_kernel(link_specialisation(layout), "link_accesses")
        for batch, chunk in product(range(0, B, GRID), range(0, chunks, GRID)):
            link((H, min(chunks - chunk, GRID), min(B - batch, GRID)), (THREADS,), (
                *ctx.call, links.writes, earlier, accesses.read_events, links.read_places, links.reads, *places,
                np.int32(batch), np.int32(chunk),
            ))  # fmt: skip
        # 2. masses: eta of every write, weight of every read
        mass_start = _part(given, "mass")
        count, length = segments.contents * segments.masses, segments.chunks // segments.masses
        if segments.cut:
            carried = carry_masses(ctx.call, count, length, links.writes, earlier, layout)
            mass_start = combine_masses(carried, 1 / options.slots, layout, reverse=False)
        if segments.contents > 1:
            ctx = ctx._replace(kept=cupy.empty((B * H, count, rows), dtype=sums))
        _launch_mass("mass_forward", count, ctx, (
            mass_start, mass, mass, _or_null(ctx.kept), np.int32(count), np.int32(length), links.writes, earlier,
            links.reads, accesses.write_events, ctx.old_mass, _or_null(ctx.read_mass), *places,
        ))  # fmt: skip
        if options.mass_aware:
            _launch_chunks(weigh_specialisation(layout), "weigh_forward", ctx, (
                links.reads, ctx.read_mass, accesses.read_events,
            ))  # fmt: skip
        # 3. contents
        start, first = _part(given, "slots"), 0
        if segments.contents > 1:
            start, first = cupy.empty((B * H, segments.contents, rows, C), dtype=sums), 1
            _launch_content("content_forward", ctx, (values,), (NULL, NULL, start, y, CARRY), last=-1)
            combine_contents(start, ctx.kept, layout, reverse=False)
            ctx = ctx._replace(starts=start)
        _launch_content("content_forward", ctx, (values,), (start, content, content, y, WHOLE), first=first)
    final = None
    if return_state:
        final = RAMState(content.reshape(B, H, rows, C), mass.reshape(B, H, rows))
    return y, final, ctx


def memory_backward(dy: Any, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    import cupy

    B, T, H, C = dy.shape
    rows, layout, given = ctx.rows, ctx.layout, ctx.state
    dy = contiguous_aligned(dy.astype(ctx.values.dtype, copy=False))
    dlast = None if dstate is None else RAMState(*map(contiguous_aligned, dstate))
    sums, slices, chunks, (W, R) = ctx.old_mass.dtype, layout.slices, ctx.old_mass.shape[1], layout.accesses

    def empty(*shape: int, dtype: Any = sums) -> Any:
        return cupy.empty(shape, dtype=dtype)

    of_slices = (slices, B * H, chunks, layout.chunk)
    dread, dwritten, dfound, found = allocate_together(
        ((*of_slices, R), sums), ((*of_slices, W), sums), (of_slices, sums), ((B, T, H, C), sums)
    )
    dw, dr = allocate_together((ctx.write.weight.shape, sums), (ctx.read.weight.shape, sums))
    last = None if dstate is None else empty(slices, B * H, rows)
    dv = empty(B, T, H, C, dtype=ctx.values.dtype)
    dgamma = empty(B, T, H, dtype=ctx.dtype)
    dgiven = None
    if given is not None:
        dgiven = RAMState(empty(B, H, rows, C), empty(B, H, rows))
    if B:
        # 3. contents: once more forward, for the gradients of the reads; then back
        (working, on_chip), _ = _parts(ctx)
        start, end = _part(given, "slots") if ctx.starts is None else ctx.starts, _part(dlast, "slots")
        _launch_content("content_replay", ctx, (ctx.values, dy), (
            start, _working(working, on_chip, False, ctx), end, dread, found, _or_null(last),
        ))  # fmt: skip
        left = 0  # segments at the end that are done
        if ctx.segments.contents > 1:
            end, left = cupy.empty_like(ctx.starts), -1
            _launch_content(
                "content_reverse", ctx, (ctx.values, dy, found), (NULL, NULL, end, dv, dwritten, dfound, CARRY), first=1
            )
            combine_contents(end, ctx.kept, layout, reverse=True)
            last = meet(ctx.starts, end, layout)
        dslots = NULL
        if ctx.renumbered and not layout.in_shared:
            dslots = empty(B * H, rows, C)
            clear_rows(ctx.write, dslots)
        elif not layout.in_shared:
            dslots = cupy.zeros((B * H, rows, C), dtype=sums) if dlast is None else dlast.slots.copy()
        _launch_content("content_reverse", ctx, (ctx.values, dy, found), (
            end, dslots, _part(dgiven, "slots"), dv, dwritten, dfound, WHOLE,
        ), last=left)  # fmt: skip
        if dgiven is not None and not layout.in_shared:
            dgiven = RAMState(dslots.reshape(B, H, rows, C), dgiven.mass)
        # 2. masses
        read_events = ctx.accesses.read_events
        gains = NULL
        if ctx.options.mass_aware:
            gains = empty(B * H, chunks, layout.chunk, R, 2)
            _launch_chunks(weigh_specialisation(layout), "weigh_backward", ctx, (
                np.int32(slices), dread, read_events, ctx.read_mass, gains, dr,
            ))  # fmt: skip
        of_rows = NULL if layout.masses_in_shared(rows) else cupy.zeros((B * H, rows, 2), dtype=sums)
        mass_end = _part(dlast, "mass")

        def mass_backward(mass_end: Any, carried: Any) -> None:
            count, length, _ = ctx.segments
            parts = 1 if count > 1 else slices
            _launch_mass("mass_backward", count, ctx, (
                dwritten, dfound, dread, ctx.links.writes, ctx.old_mass, read_events, ctx.links.read_places, gains,
                _or_null(last), np.int32(parts), mass_end, of_rows, np.int32(count), np.int32(length), dw, dr, dgamma,
                _part(dgiven, "mass"), _or_null(carried),
            ), carry=carried is not None)  # fmt: skip

        if ctx.segments.contents > 1:
            carried = empty(B * H, ctx.segments.contents, rows, 2)
            mass_backward(NULL, carried)
            mass_end = combine_masses(carried, 0, layout, reverse=True)
        mass_backward(mass_end, None)
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


def _empty(
    units: int, chunks: int, segments: int, layout: Layout, mass_aware: bool
) -> tuple[Accesses, Links, Any, Any]:
    """What a forward keeps of its accesses, not set: the two, the masses that writes found, and reads (or None)."""
    sums, (W, R) = np.dtype(f"f{layout.sum_bytes}"), layout.accesses
    all_chunks, tokens, linked = (units, chunks), (units, chunks, layout.chunk), layout.chunk > 1
    wanted = [((*tokens, W, 2), sums), ((*tokens, R, 2), sums), ((*tokens, W, 4), sums), ((*tokens, W), sums)]
    if linked:
        versions = (units * segments * layout.slices, layout.chunk * max(W, R), layout.channels)
        wanted += [
            ((*all_chunks, layout.chains), CHAIN), ((*all_chunks, layout.entries, 2), sums), (versions, sums),
            ((*tokens, R), PLACE),
        ]  # fmt: skip
    if mass_aware:
        wanted += [((*tokens, R, 4), sums), ((*tokens, R), sums)]
    write_events, read_events, writes, old_mass, *others = allocate_together(*wanted)
    chains, entries, spare, read_places = others[:4] if linked else [NULL] * 4
    reads, read_mass = others[-2:] if mass_aware else (NULL, None)
    accesses = Accesses(write_events, read_events, chains, entries, spare)
    return accesses, Links(writes, read_places, reads), old_mass, read_mass


def _launch_content(
    name: str, ctx: MemoryContext, inputs: tuple[Any, ...], outputs: tuple[Any, ...], *, first: int = 0, last: int = 0
) -> None:
    """The kernel of ``content.cu`` over all segments but the ``first`` (0 or 1) and ``last`` (0 or -1)."""
    B, T, H, C = ctx.values.shape
    layout, accesses, segments = ctx.layout, ctx.accesses, ctx.segments
    launched = segments.contents - first + last
    sizes = map(np.int32, (T, H, C, ctx.rows, segments.contents, segments.chunks, first, launched))
    kernel = get_kernel(content_specialisation(layout, ctx.renumbered), name)
    common = accesses.write_events, accesses.read_events, *accesses.lists
    shared = layout.content_bytes(ctx.rows)
    arguments = *common, *inputs, *sizes, accesses.spare, *outputs
    kernel((B * H * launched * layout.slices,), (THREADS,), arguments, shared_mem=shared)


def _launch_mass(
    name: str, segments: int, ctx: MemoryContext, arguments: tuple[Any, ...], *, carry: bool = False
) -> None:
    """The kernel of ``mass.cu`` or ``mass_reverse.cu``: a block for each segment of a (batch, head)."""
    layout, aware, segmented = ctx.layout, ctx.options.mass_aware, segments > 1
    in_shared = layout.masses_in_shared(ctx.rows)
    if name == "mass_forward":  # keeps a number of a row, and one more of segments; in reverse two, and one to carry
        specialisation = mass_specialisation(layout, aware, in_shared, ctx.renumbered, segmented)
        numbers, threads = 1 + segmented, THREADS
    else:
        specialisation = reverse_specialisation(layout, aware, in_shared, segmented, carry)
        numbers, threads = 2 + carry, 2 * THREADS
    shared = numbers * ctx.rows * layout.sum_bytes if in_shared else 0
    blocks = ctx.values.shape[0] * ctx.values.shape[2] * segments
    get_kernel(specialisation, name)((blocks,), (threads,), (*ctx.call, *arguments), shared_mem=shared)


def _launch_chunks(specialisation: Specialisation, name: str, ctx: MemoryContext, arguments: tuple[Any, ...]) -> None:
    units, chunks = ctx.old_mass.shape[:2]
    get_kernel(specialisation, name)((units * chunks,), (THREADS,), (*ctx.call, *arguments))


def _call(ctx: MemoryContext) -> tuple[Any, ...]:
    """``CALL_PARAMETERS`` of chunk.cuh."""
    _, T, H, _ = ctx.values.shape
    sums, o = ctx.old_mass.dtype, ctx.options
    constant = isinstance(ctx.gamma, float)
    return (
        np.int32(T), np.int32(H), np.int32(ctx.rows), ctx.write.index, ctx.read.index, ctx.write.weight,
        ctx.read.weight, NULL if constant else ctx.gamma, sums.type(ctx.gamma if constant else 0), _or_null(ctx.mask),
        sums.type(o.eps), sums.type(1 / o.slots), np.int32(o.update == "gsu"),
        sums.type(o.proxy_eps), sums.type(np.finfo(sums).epsneg), *ctx.accesses.lists,
    )  # fmt: skip


def _parts(ctx: MemoryContext) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """The state's parts, and whether each is worked on in shared memory."""
    return ("slots", ctx.layout.in_shared), ("mass", ctx.layout.masses_in_shared(ctx.rows))


def _working(part: str, on_chip: bool, returned: bool, ctx: MemoryContext) -> Any:
    """Where a part of the state is worked on or returned: fresh memory, or a null pointer where neither needs it."""
    import cupy

    B, _, H, C = ctx.values.shape
    shape = (B * H, ctx.rows, C) if part == "slots" else (B * H, ctx.rows)
    if on_chip:
        return cupy.empty(shape, dtype=ctx.old_mass.dtype) if returned else NULL
    if ctx.renumbered:  # a row is set before it is read
        return cupy.empty(shape, dtype=ctx.old_mass.dtype)
    if ctx.state is not None:
        return getattr(ctx.state, part).reshape(shape).copy()
    initial = 0 if part == "slots" else 1 / ctx.options.slots
    return cupy.full(shape, initial, dtype=ctx.old_mass.dtype)


def _or_null(array: Any) -> Any:
    return NULL if array is None else array


def _part(state: RAMState | None, part: str) -> Any:
    return NULL if state is None else getattr(state, part)
