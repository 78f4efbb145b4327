"""The memory on the GPU: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py``. Up to K = 64 a chunk of tokens is worked through at a time: here are
its steps, from top to bottom, and ``chunk.cuh`` has the words. Beyond, ``plain.cu`` goes token after token. The
sequences of a packed row are to them what the rows of a batch are (``span.cuh``). Cost:
O((K_w + K_r) C) operations per token and head. Nothing of the size of the accesses times C is kept for the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState

from ..runtime.arrays import allocate_together, contiguous_aligned
from .call import Call, Kept, Segments, allocate_kept, fill_memory_params
from .conflicts import find_conflicts
from .content import content_pass
from .couplings import couple_backward, couple_forward
from .dense import Dense, choose_dense, dense_content_pass, dense_couple_backward, dense_couple_forward
from .layout import (
    MAX_CHUNKED_K,
    MAX_ROWS,
    Layout,
    choose_layout,
    chunk_tokens,
    processors,
    require_top_k,
    rows_that_fit,
    shared_memory,
)
from .mass_aware import mass_aware_backward, mass_aware_forward
from .mass_backward import Dots, MassGrads, mass_backward
from .mass_forward import mass_forward
from .packed import packed_row
from .plain import plain_backward, plain_forward
from .renumber import clear_rows, renumber
from .retention import require_rule
from .segments import (
    choose_segments,
    combine_adjoints,
    combine_contents,
    combine_masses,
    mass_local_ends,
    segments_of_adjoints,
)


class Chunked(NamedTuple):
    """What the backward of the chunked kernels needs beside the call."""

    layout: Layout
    segments: Segments
    params: Any  # MemoryParams
    kept: Kept
    starts: Array | None  # (B*H, segments, rows, C): contents at each segment's start; None for one segment
    decay_products: Array | None  # (B*H, segments of the masses, rows), likewise
    dense: Dense | None  # few slots: couplings and contents are products of dense matrices


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    call: Call
    chunked: Chunked | None  # None: the plain kernels, which compute all else again


def memory_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any = None,
) -> tuple[Array, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx."""
    call = _prepare(write, read, values, gamma, mask, state, options, return_state, cu_seqlens)
    return _forward(call, return_state, None)


def memory_forward_of_coming_rows(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState,
    options: MemoryOptions,
    return_state: bool,
    arriving: Any,
) -> tuple[Array, RAMState | None, MemoryContext]:
    """The same where ``arriving`` says when the contents of ``state`` are there, part by part (sparse/arriving.py)."""
    call = _prepare(write, read, values, gamma, mask, state, options, return_state, None)
    return _forward(call, return_state, arriving)


def _forward(call: Call, return_state: bool, arriving: Any) -> tuple[Array, RAMState | None, MemoryContext]:
    H, C = call.values.shape[2:]
    if max(call.top_k) > MAX_CHUNKED_K:
        if arriving is not None:
            arriving.wait()
        content, mass = (_working(call, part) for part in ("slots", "mass"))
        y, chunked = plain_forward(call, content, mass), None
    else:
        y, content, mass, chunked = _chunked_forward(call, return_state, arriving)
    final = None
    if return_state:
        final = RAMState(content.reshape(call.batch, H, call.rows, C), mass.reshape(call.batch, H, call.rows))
    return y, final, MemoryContext(call, chunked)


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    call = ctx.call
    dy = contiguous_aligned(dy.astype(call.values.dtype, copy=False))
    dstate = None if dstate is None else RAMState(*map(contiguous_aligned, dstate))
    if ctx.chunked is None:
        content, mass = (_working(call, part) for part in ("slots", "mass"))
        return plain_backward(dy, dstate, content, mass, call)
    return _chunked_backward(dy, dstate, call, ctx.chunked)


def _prepare(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any,
) -> Call:
    """The inputs as kernels take them: contiguous arrays, and rows where M is too large for an array of that size."""
    require_rule(options.update)
    T, Kw, Kr = values.shape[1], write.index.shape[3], read.index.shape[3]
    require_top_k(Kw, Kr)
    rows = options.slots
    mask = None if mask is None else contiguous_aligned(mask)
    fit = rows_that_fit(values.dtype, shared_memory(values.device.id))
    packed = None
    if cu_seqlens is not None:
        packed = packed_row(cu_seqlens, chunk_tokens(Kw, Kr) if max(Kw, Kr) <= MAX_CHUNKED_K else T)
    longest, states = (T, 1) if packed is None else (packed.longest, packed.sequences)
    renumbered = rows > fit and states * rows > T * Kw and state is None and not return_state
    if renumbered:
        rows = longest * Kw
        write, read = renumber(write, read, mask, options.slots, packed)
    if rows >= MAX_ROWS:
        raise ValueError(f"the state must have fewer than {MAX_ROWS} slots on the GPU, got {rows}")
    return Call(
        Address(*map(contiguous_aligned, write)),
        Address(*map(contiguous_aligned, read)),
        contiguous_aligned(values),
        gamma if isinstance(gamma, float) else contiguous_aligned(gamma.astype(values.dtype, copy=False)),
        mask,
        None if state is None else RAMState(*map(contiguous_aligned, state)),
        options,
        rows,
        renumbered,
        packed,
    )


def _chunked_forward(call: Call, return_state: bool, arriving: Any) -> tuple[Array, Any, Any, Chunked]:
    """y; content and mass after the last token, where they are wanted; what the backward needs."""
    import cupy

    (B, T, H, C), device, rows = call.values.shape, call.values.device.id, call.rows
    # Sums over channels are made slice by slice, and segments go by products. So the slices of a sequence that is to be
    # alone follow from M, however long the longest sequence is, and it is never cut into segments.
    layout_rows = call.options.slots if call.alone else rows
    layout = choose_layout(call.values.dtype, layout_rows, C, *call.top_k, shared_memory(device))
    segments = Segments(1, -(-T // layout.chunk), 1)
    if call.state is None and not return_state and not call.renumbered and not call.alone:
        segments = choose_segments(layout, B * H, T, rows, C, processors(device), shared_memory(device))
    dense = None
    if call.state is None and not return_state and segments.contents == 1:
        dense = choose_dense(layout, call.options.slots, C, shared_memory(device))
    kept = allocate_kept(call, layout, layout.record_bytes if dense is None else dense.record_bytes)
    memory = fill_memory_params(call, kept)
    y = cupy.empty(call.values.shape, dtype=call.values.dtype)
    content = _final(call, "slots", layout.in_shared, return_state, is_set=arriving is None)
    mass = _final(call, "mass", layout.masses_in_shared(rows), return_state)
    starts = decay_products = None
    if B:
        # 1. which accesses share a slot
        change_before = find_conflicts(call, layout, memory, kept)
        # 2. masses: eta of every write, weight of every read
        given = None if call.state is None else call.state.mass
        count = segments.contents * segments.masses, segments.chunks // segments.masses
        if segments.is_split:
            local = mass_local_ends(call, layout, memory, kept, change_before, count)
            given = combine_masses(local, 1 / call.options.slots, layout)
        if segments.contents > 1:
            decay_products = cupy.empty((B * H, count[0], rows), dtype=call.acc)
        mass_forward(
            call, layout, memory, kept, change_before, count, given=given, final=mass, decay_products=decay_products
        )
        if call.options.mass_aware:
            mass_aware_forward(call, layout, memory, kept)
        # 3. couplings within chunks; 4. contents
        if dense is None:
            couple_forward(call, layout, memory, kept)
            if arriving is None or layout.in_shared:
                if arriving is not None:
                    arriving.wait()
                starts = _contents_forward(call, layout, segments, kept, y, content, decay_products)
            else:
                _contents_as_they_come(call, layout, kept, y, content, arriving)
        else:
            dense_couple_forward(call, dense, memory, kept)
            dense_content_pass("dense_content_forward", call, dense, memory, kept, y=y)
    return y, content, mass, Chunked(layout, segments, memory, kept, starts, decay_products, dense)


def _contents_forward(
    call: Call,
    layout: Layout,
    segments: Segments,
    kept: Kept,
    y: Array,
    content: Array | None,
    decay_products: Array | None,
) -> Array | None:
    """y and the contents, by chains. Returns the contents at each segment's start."""
    import cupy

    starts = None
    start, run = None if call.state is None else call.state.slots, (call, layout, kept, segments)
    if segments.contents > 1:
        start = starts = cupy.empty(
            (call.sequences, segments.contents, call.rows, call.values.shape[3]), dtype=call.acc
        )
        content_pass("content_forward", *run, y=y, final_state=start, local_only=True, skip_last=1)
        combine_contents(start, decay_products, layout, backward=False)
    content_pass(
        "content_forward",
        *run,
        y=y,
        given=start,
        working=content,
        final_state=content,
        skip_first=int(starts is not None),
    )
    return starts


def _contents_as_they_come(call: Call, layout: Layout, kept: Kept, y: Array, content: Array, arriving: Any) -> None:
    """The same for contents in device memory, part by part, each as soon as the rows are there that it uses first."""
    parts = Segments(arriving.parts, arriving.tokens // layout.chunk, 1)
    for part in range(arriving.parts):
        arriving.take(part, content)
        content_pass(
            "content_forward", call, layout, kept, parts, skip_first=part, skip_last=arriving.parts - 1 - part,
            one_state=True, y=y, working=content,
        )  # fmt: skip


def _chunked_backward(dy: Array, dstate: RAMState | None, call: Call, chunked: Chunked) -> MemoryGrads:
    """Every gradient."""
    import cupy

    layout, segments, memory, kept, _, _, dense = chunked
    (B, T, H, C), rows, acc, (W, R) = call.values.shape, call.rows, call.acc, layout.accesses
    N = call.batch
    tokens = (layout.slices if dense is None else 1, *kept.chunks, layout.chunk)
    channels = call.values.shape, acc
    dots = Dots(*allocate_together(((*tokens, R), acc), ((*tokens, W), acc), (tokens[1:], acc), channels, channels))
    dw, dr = allocate_together((call.write.weight.shape, acc), (call.read.weight.shape, acc))
    dv, dgamma = cupy.empty_like(call.values), cupy.empty(call.values.shape[:3], dtype=call.values.dtype)
    dgiven = final_q = None
    if call.state is not None:
        dgiven = RAMState(cupy.empty((N, H, rows, C), dtype=acc), cupy.empty((N, H, rows), dtype=acc))
    if B:
        # 4. contents: once more forward, for the gradients of the reads; then back
        if dense is None:
            final_q, dgiven = _contents_backward(dy, dstate, call, chunked, dots, dv, dgiven)
        else:
            dense_content_pass(
                "dense_content_backward_recompute", call, dense, memory, kept, dy=dy, before_heavy=dots.before_heavy,
                dy_dot_s=dots.dy_dot_s,
            )  # fmt: skip
            dense_content_pass(
                "dense_content_backward", call, dense, memory, kept, dy=dy, dv=dv, d_dot_v=dots.d_dot_v,
                after_heavy=dots.after_heavy,
            )  # fmt: skip
        # 3. couplings
        if dense is None:
            couple_backward(call, layout, memory, kept, dots, dy)
        else:
            dense_couple_backward(call, dense, memory, kept, dots, dy)
        # 2. masses
        gains = None
        if call.options.mass_aware:
            gains = mass_aware_backward(call, layout, memory, kept, dots.dy_dot_s[0], dr)
        dmass = None if dstate is None else dstate.mass
        grads = MassGrads(dw, dr, dgamma, dgiven and dgiven.mass)
        count, length = 1, segments.contents * segments.chunks
        if segments.is_split:
            count, length = segments_of_adjoints(layout, B * H, T, processors(call.values.device.id))
        arguments, ends = (call, layout, memory, kept, dots, grads, (count, length)), None
        if count > 1:
            maps = cupy.empty((B * H, count, rows, 4), dtype=acc)
            mass_backward(*arguments, gains=gains, final_q=None, dfinal_mass=None, maps=maps)
            ends = combine_adjoints(maps, layout)
        mass_backward(*arguments, gains=gains, final_q=final_q, dfinal_mass=dmass, ends=ends)
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


def _contents_backward(
    dy: Array, dstate: RAMState | None, call: Call, chunked: Chunked, dots: Dots, dv: Array, dgiven: RAMState | None
) -> tuple[Array | None, RAMState | None]:
    """The contents by chains: dv and ``dots``. Returns <d, s> after the last token, or None, and ``dgiven``."""
    import cupy

    layout, segments, _, kept, starts, decay_products, _ = chunked
    run = call, layout, kept, segments
    start = starts if starts is not None else None if call.state is None else call.state.slots
    end = final_q = None
    if dstate is not None:
        end, final_q = dstate.slots, cupy.empty((layout.slices, call.sequences, call.rows), dtype=call.acc)
    outputs = {"dy": dy, "dv": dv, "d_dot_v": dots.d_dot_v, "after_heavy": dots.after_heavy}
    if layout.in_shared and segments.contents == 1:
        content_pass(
            "content_backward_both", *run, given=start, dstate=end, before_heavy=dots.before_heavy,
            dy_dot_s=dots.dy_dot_s, final_q=final_q, final_state=dgiven and dgiven.slots, **outputs,
        )  # fmt: skip
        return final_q, dgiven
    content_pass(
        "content_backward_recompute", *run, dy=dy, before_heavy=dots.before_heavy, given=start, dstate=end,
        working=None if layout.in_shared else _working(call, "slots"), dy_dot_s=dots.dy_dot_s, final_q=final_q,
    )  # fmt: skip
    if starts is not None and decay_products is not None:
        end = cupy.empty_like(starts)
        content_pass("content_backward", *run, final_state=end, local_only=True, skip_first=1, **outputs)
        combine_contents(end, decay_products, layout, backward=True)
    dcontent = None if layout.in_shared else _working_adjoint(call, end)
    content_pass(
        "content_backward", *run, given=end, working=dcontent, final_state=dgiven and dgiven.slots,
        skip_last=int(segments.contents > 1), **outputs,
    )  # fmt: skip
    if dgiven is not None and dcontent is not None:
        dgiven = RAMState(dcontent.reshape(dgiven.slots.shape), dgiven.mass)
    return final_q, dgiven


def _final(call: Call, part: str, in_shared: bool, wanted: bool, is_set: bool = True) -> Array | None:
    """Where a part of the state, "slots" or "mass", is worked on or returned; None where neither needs memory.

    ``is_set``: whether what is worked on begins as the state before the first token; else someone sets it later.
    """
    import cupy

    if not in_shared and is_set:
        return _working(call, part)
    return cupy.empty(_shape(call, part), dtype=call.acc) if wanted or not in_shared else None


def _working(call: Call, part: str) -> Array:
    """A part of the state before the first token, to be changed."""
    import cupy

    plain = max(call.top_k) > MAX_CHUNKED_K
    if call.renumbered and not plain:  # the chunked kernels set a row before they read it
        return cupy.empty(_shape(call, part), dtype=call.acc)
    if call.state is not None:
        return getattr(call.state, part).reshape(_shape(call, part)).copy()
    return cupy.full(_shape(call, part), 0 if part == "slots" else 1 / call.options.slots, dtype=call.acc)


def _working_adjoint(call: Call, end: Array | None) -> Array:
    """The adjoint of the contents after the last token, to be changed: ``end``, or zeros."""
    import cupy

    if end is not None:
        return end.reshape(_shape(call, "slots")).copy()
    if not call.renumbered:
        return cupy.zeros(_shape(call, "slots"), dtype=call.acc)
    adjoint = cupy.empty(_shape(call, "slots"), dtype=call.acc)
    clear_rows(call.write, adjoint, call.packed)  # the other rows have no writes
    return adjoint


def _shape(call: Call, part: str) -> tuple[int, ...]:
    """(B*H, rows, C) or (B*H, rows)."""
    return (*call.state_shape, call.values.shape[3])[: 3 if part == "slots" else 2]
