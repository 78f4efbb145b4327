"""One token, for inference: decode, write and read, updating the state in place.

A step is short, so few heads are done by one thread: starting the others would cost more than they save. Heads are
independent, so that choice changes no bits. Over a sparse state that is all in memory, the same kernel finds rows in
the state's table, and numbers of rows take the place of slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState

from .arrays import contiguous, flat_gamma, flat_positions, mask_array
from .beam import beam_arrays, beam_search
from .compiling import inner, kernel, parallel_kernel
from .decode import cape_shift, slots_and_weights, softmax
from .mass_aware import mass_aware_forward
from .retention import kernel_options, retention
from .share import share_out
from .sparse import enter_row, find_row, shift_of

HEADS_PER_PIECE = 16  # a head takes about a microsecond, starting the threads about ten
SPARSE_HEADS = 128  # that one thread does over a sparse state, whose table it changes


class Table(NamedTuple):
    """What finds rows of a sparse state; of a dense one ``entries`` has size 0."""

    key_of_row: np.ndarray  # (R,) int64
    entries: np.ndarray  # (E,) int32
    shift: int
    initial_mass: float  # of a slot that was never written
    spare: int  # a row for slots that are read and were never written
    in_use: np.ndarray  # (1,) int64: how many rows


_NO_TABLE = Table(np.empty(0, np.int64), np.empty(0, np.int32), 0, 0.0, 0, np.zeros(1, np.int64))


def step(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: Array | float,
    positions: Array,
    mask: Array | None,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> np.ndarray:
    """Decode, write and read one token (T = 1), updating ``state`` in place; returns y (B, 1, H, C)."""
    rule = kernel_options(options, values.dtype)
    B, _, H, _ = values.shape
    token = _token(write_logits, read_logits, values, gamma, positions, mask, decode)
    updated = contiguous(state.slots), contiguous(state.mass)
    for name, array, new in zip(("slots", "mass"), state, updated, strict=True):
        if array is not new and not array.flags.writeable:
            raise ValueError(f"state.{name} must be writeable to be updated in place, got a read-only array")
    y = np.empty(values.shape, dtype=values.dtype)
    run = _step_serial if B * H <= HEADS_PER_PIECE else _step_parallel
    run(token, tuple(decode), rule, updated, tuple(_NO_TABLE), y)
    for array, new in zip(state, updated, strict=True):
        if array is not new:  # its layout is not the kernel's
            array[...] = new
    return y


def sparse_step(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: Array | float,
    positions: Array,
    mask: Array | None,
    state: Any,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Any:
    """As :func:`step`, over a SparseRAMState; NotImplemented for many heads, or where rows may be in a file."""
    B, _, H, C = values.shape
    held = state.rows.all_in_memory(B * H * decode.write_k + 1)
    if held is None or B * H > SPARSE_HEADS:
        return NotImplemented
    token = _token(write_logits, read_logits, values, gamma, positions, mask, decode)
    count, spare = np.array([held.count]), len(held.rows) - 1
    held.rows[spare, :C], held.rows[spare, C] = 0, state.initial_mass
    table = Table(held.key, held.entries, shift_of(held.entries), float(state.initial_mass), spare, count)
    memory = held.rows[None, None, :, :C], held.rows[None, None, :, C]
    y = np.empty(values.shape, dtype=values.dtype)
    _step_serial(token, tuple(decode), kernel_options(options, values.dtype), memory, tuple(table), y)
    held.count = int(count[0])
    return y


def _token(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: Array | float,
    positions: Array,
    mask: Array | None,
    decode: DecodeOptions,
) -> tuple[np.ndarray, ...]:
    return (  # a plain tuple: over a NamedTuple, Numba takes a microsecond longer
        contiguous(write_logits),  # (B, 1, H, U, P)
        contiguous(read_logits),
        contiguous(values),  # (B, 1, H, C)
        flat_gamma(gamma, values),
        flat_positions(positions, decode.cape_heads),
        mask_array(mask),  # (B, 1), or size 0
    )


@kernel
def _step_serial(token, decode, options, state, table, y):
    pieces = (y.shape[0] * y.shape[2] + HEADS_PER_PIECE - 1) // HEADS_PER_PIECE
    for piece in range(pieces):
        _step_heads(piece, token, DecodeOptions(*decode), options, RAMState(*state), Table(*table), y)


@parallel_kernel
def _step_parallel(token, decode, options, state, table, y):
    pieces = (y.shape[0] * y.shape[2] + HEADS_PER_PIECE - 1) // HEADS_PER_PIECE
    share_out(_step_heads, pieces, (token, DecodeOptions(*decode), options, RAMState(*state), Table(*table), y))


@inner
def _step_heads(piece, token, decode, options, state, table, y):
    """HEADS_PER_PIECE heads, from b*H + h = piece * HEADS_PER_PIECE on."""
    write_logits, read_logits, values, gammas, positions, mask = token
    _, _, H, U, P = write_logits.shape
    dtype, Kw, Kr = y.dtype, decode.write_k, decode.read_k
    K = max(Kw, Kr)
    scores, best, slot, next_best, next_slot, ranked, value = beam_arrays(U, P, K, dtype)
    p, index, weight, read_mass = np.empty(U * P, dtype), np.empty(K, np.int32), np.empty(K, dtype), np.empty(Kr, dtype)
    start = piece * HEADS_PER_PIECE
    for bh in range(start, min(start + HEADS_PER_PIECE, y.shape[0] * y.shape[2])):
        b, h = bh // H, bh % H
        out = y[b, 0, h]
        for c in range(out.size):
            out[c] = 0
        if mask.size > 0 and not mask[b, 0]:
            continue
        own, first_key = int(table.entries.size == 0), np.int64(bh) * P**U  # a head has slots of its own, or keys
        v, s, z = values[b, 0, h], state.slots[b * own, h * own], state.mass[b * own, h * own]
        shift = cape_shift(bh, positions, H, decode.cape_heads, P**U)
        # 1. write
        for u in range(U):
            softmax(write_logits[b, 0, h, u], scores[u], p[u * P : (u + 1) * P])
        found = beam_search(Kw, scores, best, slot, next_best, next_slot, ranked, value)
        slots_and_weights(found[:Kw], p, P, P**U, decode.write_renorm, shift, index, weight)
        if not own:
            _write_rows(index[:Kw], first_key, table, s, z)
        gamma = gammas[bh * (gammas.size > 1)]
        for k in range(Kw):
            a, w = index[k], weight[k]
            z[a] = retention(options, w, gamma) * z[a] + w
            eta = w / (z[a] + options.eps)
            row = s[a]
            for c in range(v.size):
                row[c] += eta * (v[c] - row[c])
        # 2. read
        for u in range(U):
            softmax(read_logits[b, 0, h, u], scores[u], p[u * P : (u + 1) * P])
        found = beam_search(Kr, scores, best, slot, next_best, next_slot, ranked, value)
        slots_and_weights(found[:Kr], p, P, P**U, decode.read_renorm, shift, index, weight)
        if not own:
            for k in range(Kr):
                row = find_row(first_key + index[k], table.key_of_row, table.entries, table.shift)
                index[k] = row if row >= 0 else table.spare
        if options.mass_aware:
            for k in range(Kr):
                read_mass[k] = z[index[k]]
            mass_aware_forward(weight[:Kr], read_mass, options.eps)
        for k in range(Kr):
            r, row = weight[k], s[index[k]]
            for c in range(v.size):
                out[c] += r * row[c]


@inner
def _write_rows(index, first_key, table, s, z):
    """Put the numbers of rows in place of slots; a slot that was never written gets a row as it was."""
    for k in range(index.size):
        key = first_key + index[k]
        row = find_row(key, table.key_of_row, table.entries, table.shift)
        if row < 0:
            row = table.in_use[0]
            table.in_use[0] += 1
            table.key_of_row[row] = key
            enter_row(row, table.key_of_row, table.entries, table.shift)
            for c in range(s.shape[1]):
                s[row, c] = 0
            z[row] = table.initial_mass
        index[k] = row
