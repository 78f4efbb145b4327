"""One token, for inference: decode, write and read, updating the state in place.

A step is short, so few heads are done by one thread: starting the others would cost more than they save. Heads are
independent, so that choice changes no bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from ramnet_np.contract import DecodeOptions, MemoryOptions, RAMState

from .arrays import flags_of, per_token, plain
from .beam import beam_search
from .decode import cape_shift, softmax, weigh
from .retention import retention

HEADS_PER_PIECE = 16  # a head takes about a microsecond, starting the threads about ten


def step(
    write_logits: Any,
    read_logits: Any,
    values: Any,
    gamma: Any,
    positions: Any,
    mask: Any,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> np.ndarray:
    """Decode, write and read one token (T = 1), updating ``state`` in place; returns y (B, 1, H, C)."""
    for name, part in zip(("slots", "mass"), state, strict=True):
        if not part.flags.writeable:
            raise ValueError(f"state.{name} must be writeable to be updated in place, got a read-only array")
    B, _, H, _ = values.shape
    y = np.empty(values.shape, dtype=values.dtype)
    slots, mass = plain(state.slots), plain(state.mass)
    advance = _step_serial if B * H <= HEADS_PER_PIECE else _step_parallel
    advance(
        plain(write_logits), plain(read_logits), plain(values), per_token(gamma, values), plain(positions).reshape(B),
        flags_of(mask), slots, mass, decode.write_k, decode.read_k, decode.write_renorm, decode.read_renorm,
        decode.cape_heads, options.update == "gsu", options.mass_aware,
        values.dtype.type(options.eps), y,
    )  # fmt: skip
    for part, updated in ((state.slots, slots), (state.mass, mass)):
        if part is not updated:  # its layout is not the kernel's
            part[...] = updated
    return y


@njit(cache=True)
def _step_serial(
    write_logits, read_logits, values, gamma, positions, mask, slots, mass, write_k, read_k, write_renorm, read_renorm,
    cape_heads, gsu, mass_aware, eps, y,
):  # fmt: skip
    _step_piece(
        0, y.shape[0] * y.shape[2], write_logits, read_logits, values, gamma, positions, mask, slots, mass, write_k,
        read_k, write_renorm, read_renorm, cape_heads, gsu, mass_aware, eps, y,
    )  # fmt: skip


@njit(cache=True, parallel=True)
def _step_parallel(
    write_logits, read_logits, values, gamma, positions, mask, slots, mass, write_k, read_k, write_renorm, read_renorm,
    cape_heads, gsu, mass_aware, eps, y,
):  # fmt: skip
    units = y.shape[0] * y.shape[2]
    for i in prange((units + HEADS_PER_PIECE - 1) // HEADS_PER_PIECE):
        piece = np.int64(i)
        _step_piece(
            piece * HEADS_PER_PIECE, min((piece + 1) * HEADS_PER_PIECE, units), write_logits, read_logits, values,
            gamma, positions, mask, slots, mass, write_k, read_k, write_renorm, read_renorm, cape_heads, gsu,
            mass_aware, eps, y,
        )  # fmt: skip


@njit(cache=True)
def _step_piece(
    start, stop, write_logits, read_logits, values, gamma, positions, mask, slots, mass, write_k, read_k, write_renorm,
    read_renorm, cape_heads, gsu, mass_aware, eps, y,
):  # fmt: skip
    _, _, H, U, P = write_logits.shape
    dtype = values.dtype
    K = max(write_k, read_k)
    zero = eps - eps
    scores, p = np.empty((U, P), dtype), np.empty(U * P, dtype)
    best, next_best, ranked, weight = np.empty(K, dtype), np.empty(K, dtype), np.empty(P, dtype), np.empty(K, dtype)
    slot, next_slot, value = np.empty(K, np.int64), np.empty(K, np.int64), np.empty(P, np.int64)
    index = np.empty(K, np.int32)
    for unit in range(start, stop):
        b, h = unit // H, unit % H
        out = y[b, 0, h]
        for c in range(out.size):
            out[c] = zero
        if mask.size > 0 and not mask[b, 0]:
            continue
        v, s, z = values[b, 0, h], slots[b, h], mass[b, h]
        shift = cape_shift(unit, positions, H, cape_heads, P**U)
        # 1. write
        for u in range(U):
            softmax(write_logits[b, 0, h, u], scores[u], p[u * P : (u + 1) * P])
        found = beam_search(scores, write_k, best, slot, next_best, next_slot, ranked, value)
        weigh(found[:write_k], p, P, P**U, write_renorm, shift, index, weight)
        g = gamma[unit * (gamma.size > 1)]
        for k in range(write_k):
            a, w = index[k], weight[k]
            z[a] = retention(w, g, gsu) * z[a] + w
            eta = w / (z[a] + eps)
            row = s[a]
            for c in range(v.size):
                row[c] += eta * (v[c] - row[c])
        # 2. read
        for u in range(U):
            softmax(read_logits[b, 0, h, u], scores[u], p[u * P : (u + 1) * P])
        found = beam_search(scores, read_k, best, slot, next_best, next_slot, ranked, value)
        weigh(found[:read_k], p, P, P**U, read_renorm, shift, index, weight)
        if mass_aware:
            total_r, total_n = zero, zero
            for k in range(read_k):
                total_r += weight[k]
                weight[k] *= z[index[k]]
                total_n += weight[k]
            for k in range(read_k):
                weight[k] = total_r * weight[k] / (total_n + eps)
        for k in range(read_k):
            r, row = weight[k], s[index[k]]
            for c in range(v.size):
                out[c] += r * row[c]
