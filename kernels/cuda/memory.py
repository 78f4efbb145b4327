"""The memory on the GPU: every token writes K_w slots, then reads K_r slots; forward and backward of a whole sequence.

Same mathematics as ``ramnet_np/core/memory.py`` in two kinds of passes: ``mass.cu`` for what does not depend on
channels, ``content.cu`` for what does; there stands who computes what. Cost: O((K_w + K_r) C) operations per token and
head; a pass is one scan over the tokens, so its time is T times the latency of a token once the GPU is filled.
Nothing of the size of the accesses times C is kept for the backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.backend import MemoryOptions
from ramnet_np.core.memory import MemoryGrads
from ramnet_np.core.state import Address, RAMState

from .arrays import ALIGNMENT, plain
from .layout import (
    Layout,
    choose_layout,
    content_specialisation,
    mass_specialisation,
    rows_that_fit,
    shared_memory,
)
from .module import get_kernel, sum_dtype
from .renumber import renumber

NULL = np.uint64(0)


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    write: Address  # index: rows of the working state
    read: Address
    values: Any  # (B, T, H, C)
    gamma: Any  # a number, or (B, T, H)
    mask: Any  # (B, T), or None
    state: RAMState | None  # as given
    events: Any  # (B*H, T, W + R, 2) row and coefficient of every access
    old_mass: Any  # (B*H, T, K_w)
    read_mass: Any  # (B*H, T, K_r), or None
    rows: int
    layout: Layout
    dtype: Any  # of values as they came
    options: MemoryOptions


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
    if rows > rows_that_fit(dtype, shared) and rows > T * Kw and state is None and not return_state:
        rows = T * Kw
        write, read = renumber(write, read)
    values = _copied_whole(plain(values))
    layout = choose_layout(values.dtype, _copy_bytes(values), rows, C, Kw, Kr, shared)
    sums = sum_dtype(dtype)
    gamma = gamma if isinstance(gamma, float) else plain(gamma.astype(values.dtype, copy=False))
    mask = None if mask is None else plain(mask)
    given = None if state is None else RAMState(*map(plain, state))
    ctx = MemoryContext(
        Address(*map(plain, write)),
        Address(*map(plain, read)),
        values, gamma, mask, given,
        events=cupy.empty((B * H, T, layout.events, 2), dtype=sums),
        old_mass=cupy.empty((B * H, T, Kw), dtype=sums),
        read_mass=cupy.empty((B * H, T, Kr), dtype=sums) if options.mass_aware else None,
        rows=rows, layout=layout, dtype=dtype, options=options,
    )  # fmt: skip
    y = cupy.empty((B, T, H, C), dtype=values.dtype)
    content, mass = (_working(part, on_chip, return_state, ctx) for part, on_chip in _parts(ctx))
    if B:
        # 1. masses: eta of every write, weight of every read
        _launch_mass("mass_forward", ctx, (
            _part(given, "mass"), mass, mass, ctx.events, ctx.old_mass, _or_null(ctx.read_mass),
        ))  # fmt: skip
        # 2. contents
        _launch_content("content_forward", ctx, (
            ctx.events, values, *_sizes(ctx), _part(given, "slots"), content, content, y,
        ))  # fmt: skip
    final = None
    if return_state:
        final = RAMState(content.reshape(B, H, rows, C), mass.reshape(B, H, rows))
    return y.astype(dtype, copy=False), final, ctx


def memory_backward(dy: Any, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse. ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None."""
    import cupy

    B, T, H, C = dy.shape
    rows, layout, given = ctx.rows, ctx.layout, ctx.state
    dy = plain(dy.astype(ctx.values.dtype, copy=False))
    dlast = None if dstate is None else RAMState(*map(plain, dstate))
    sums, slices = ctx.events.dtype, layout.slices

    def empty(*shape: int, dtype: Any = sums) -> Any:
        return cupy.empty(shape, dtype=dtype)

    dread, dwritten = empty(slices, B * H, T, layout.reads), empty(slices, B * H, T, layout.writes)
    dfound, found = empty(slices, B * H, T), empty(B, T, H, C)
    last = None if dstate is None else empty(slices, B * H, rows)
    dv = empty(B, T, H, C, dtype=ctx.values.dtype)
    dw, dr, dgamma = empty(*ctx.write.weight.shape), empty(*ctx.read.weight.shape), empty(B, T, H)
    dgiven = None
    if given is not None:
        dgiven = RAMState(empty(B, H, rows, C), empty(B, H, rows))
    if B:
        # 2. contents: once more forward, for the gradients of the reads; then back
        (working, on_chip), _ = _parts(ctx)
        _launch_content("content_replay", ctx, (
            ctx.events, ctx.values, dy, *_sizes(ctx), _part(given, "slots"), _working(working, on_chip, False, ctx),
            _part(dlast, "slots"), dread, found, _or_null(last),
        ))  # fmt: skip
        dslots = NULL
        if not layout.in_shared:
            dslots = cupy.zeros((B * H, rows, C), dtype=sums) if dlast is None else dlast.slots.copy()
        _launch_content("content_reverse", ctx, (
            ctx.events, ctx.values, dy, found, *_sizes(ctx), _part(dlast, "slots"), dslots, _part(dgiven, "slots"),
            dv, dwritten, dfound,
        ))  # fmt: skip
        if dgiven is not None and not layout.in_shared:
            dgiven = RAMState(dslots.reshape(B, H, rows, C), dgiven.mass)
        # 1. masses
        adjoints = NULL if _masses_on_chip("mass_backward", ctx) else cupy.zeros((B * H, 2, rows), dtype=sums)
        _launch_mass("mass_backward", ctx, (
            np.int32(slices), ctx.old_mass, _or_null(ctx.read_mass), dwritten, dfound, dread, _or_null(last),
            _part(dlast, "mass"), adjoints, dw, dr, dgamma, _part(dgiven, "mass"),
        ))  # fmt: skip
    return MemoryGrads(dw, dr, dv.astype(ctx.dtype, copy=False), dgamma.astype(ctx.dtype, copy=False), dgiven)


def _launch_content(name: str, ctx: MemoryContext, arguments: tuple[Any, ...]) -> None:
    B, _, H, _ = ctx.values.shape
    grid, shared = (B * H, ctx.layout.slices), ctx.layout.content_bytes(name, ctx.rows)
    _launch(content_specialisation(ctx.layout), name, grid, 128, arguments, shared)


def _launch_mass(name: str, ctx: MemoryContext, arguments: tuple[Any, ...]) -> None:
    B, T, H, _ = ctx.values.shape
    sums, o = ctx.events.dtype, ctx.options
    constant = isinstance(ctx.gamma, float)
    call = (
        np.int32(T), np.int32(H), np.int32(ctx.rows), ctx.write.index, ctx.read.index, ctx.write.weight,
        ctx.read.weight, NULL if constant else ctx.gamma, sums.type(ctx.gamma if constant else 0), _or_null(ctx.mask),
        sums.type(o.eps), sums.type(1 / o.slots), np.int32(o.update == "gsu"), sums.type(o.proxy_eps),
        sums.type(np.finfo(sums).epsneg),
    )  # fmt: skip
    specialisation = mass_specialisation(ctx.layout, o.mass_aware, _masses_on_chip(name, ctx))
    shared = ctx.layout.mass_bytes(name, o.mass_aware, ctx.rows)
    _launch(specialisation, name, (B * H,), 544, call + arguments, shared)


def _masses_on_chip(kernel: str, ctx: MemoryContext) -> bool:
    return ctx.layout.masses_in_shared(kernel, ctx.options.mass_aware, ctx.rows)


def _launch(
    specialisation: Any, name: str, grid: tuple[int, ...], threads: int, arguments: tuple[Any, ...], shared: int
) -> None:
    get_kernel(specialisation, name)(grid, (threads,), arguments, shared_mem=shared)


def _sizes(ctx: MemoryContext) -> tuple[Any, ...]:
    _, T, H, C = ctx.values.shape
    return np.int32(T), np.int32(H), np.int32(C), np.int32(ctx.rows)


def _parts(ctx: MemoryContext) -> tuple[tuple[str, bool], tuple[str, bool]]:
    """The state's parts, and whether each is worked on in shared memory."""
    return ("slots", ctx.layout.in_shared), ("mass", _masses_on_chip("mass_forward", ctx))


def _working(part: str, on_chip: bool, returned: bool, ctx: MemoryContext) -> Any:
    """Where a part of the state is worked on or returned: fresh memory, or a null pointer where neither needs it."""
    import cupy

    B, _, H, C = ctx.values.shape
    shape = (B * H, ctx.rows, C) if part == "slots" else (B * H, ctx.rows)
    if on_chip:
        return cupy.empty(shape, dtype=ctx.events.dtype) if returned else NULL
    if ctx.state is not None:
        return getattr(ctx.state, part).reshape(shape).copy()
    initial = 0 if part == "slots" else 1 / ctx.options.slots
    return cupy.full(shape, initial, dtype=ctx.events.dtype)


def _copied_whole(values: Any) -> Any:
    """16-bit values whose rows cannot be copied 16 bytes at a time become float32."""
    return values.astype(np.float32) if values.itemsize == 2 and values.shape[3] % 8 else values


def _copy_bytes(values: Any) -> int:
    """Bytes of one asynchronous copy of values: 16, or one element's where rows are not that long or aligned."""
    return ALIGNMENT if values.shape[3] * values.itemsize % ALIGNMENT == 0 else values.itemsize


def _or_null(array: Any) -> Any:
    return NULL if array is None else array


def _part(state: RAMState | None, part: str) -> Any:
    return NULL if state is None else getattr(state, part)
