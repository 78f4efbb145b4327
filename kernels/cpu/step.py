"""One token, for inference: decode, write and read, updating the state in place.

A step is short, so few heads are done by one thread: starting the others would cost more than they save. Heads are
independent, so that choice changes no bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState

from .arrays import contiguous, flat_gamma, mask_array
from .beam import new_beam
from .decode import cape_shift, decode_token
from .mass_aware import mass_aware_forward
from .retention import kernel_options, retention

HEADS_PER_PIECE = 16  # a head takes about a microsecond, starting the threads about ten


class Token(NamedTuple):
    """What one token is given."""

    write_logits: np.ndarray  # (B, 1, H, U, P)
    read_logits: np.ndarray  # (B, 1, H, U, P)
    values: np.ndarray  # (B, 1, H, C)
    gamma: np.ndarray  # flat, one number or one for each (b, h)
    positions: np.ndarray  # (B,) int64
    mask: np.ndarray  # (B, 1) bool, or size 0


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
    for name, array in zip(("slots", "mass"), state, strict=True):
        if not array.flags.writeable:
            raise ValueError(f"state.{name} must be writeable to be updated in place, got a read-only array")
    B, _, H, _ = values.shape
    token = Token(
        contiguous(write_logits),
        contiguous(read_logits),
        contiguous(values),
        flat_gamma(gamma, values),
        contiguous(positions).reshape(B),
        mask_array(mask),
    )
    updated = RAMState(contiguous(state.slots), contiguous(state.mass))
    y = np.empty(values.shape, dtype=values.dtype)
    kernel = _step_serial if B * H <= HEADS_PER_PIECE else _step_parallel
    kernel(token, decode, rule, updated, y)
    for array, new in zip(state, updated, strict=True):
        if array is not new:  # its layout is not the kernel's
            array[...] = new
    return y


@njit(cache=True)
def _step_serial(token, decode, options, state, y):
    _step_heads(0, y.shape[0] * y.shape[2], token, decode, options, state, y)


@njit(cache=True, parallel=True)
def _step_parallel(token, decode, options, state, y):
    heads = y.shape[0] * y.shape[2]
    for i in prange((heads + HEADS_PER_PIECE - 1) // HEADS_PER_PIECE):
        start = np.int64(i) * HEADS_PER_PIECE
        _step_heads(start, min(start + HEADS_PER_PIECE, heads), token, decode, options, state, y)


@njit(cache=True)
def _step_heads(start, stop, token, decode, options, state, y):
    """Heads b*H + h = start ... stop - 1."""
    _, _, H, U, P = token.write_logits.shape
    dtype, Kw, Kr = y.dtype, decode.write_k, decode.read_k
    K = max(Kw, Kr)
    beam, p = new_beam(U, P, K, dtype), np.empty(U * P, dtype)
    content, index = np.empty(K, np.int32), np.empty(K, np.int32)
    weight, read_mass = np.empty(K, dtype), np.empty(K, dtype)
    for bh in range(start, stop):
        b, h = bh // H, bh % H
        out = y[b, 0, h]
        for c in range(out.size):
            out[c] = 0
        if token.mask.size > 0 and not token.mask[b, 0]:
            continue
        v, s, z = token.values[b, 0, h], state.slots[b, h], state.mass[b, h]
        shift = cape_shift(bh, token.positions, H, decode.cape_heads, P**U)
        # 1. write
        logits = token.write_logits[b, 0, h]
        decode_token(logits, decode.write_renorm, shift, beam, p, content[:Kw], index[:Kw], weight[:Kw])
        gamma = token.gamma[bh * (token.gamma.size > 1)]
        for k in range(Kw):
            a, w = index[k], weight[k]
            z[a] = retention(options, w, gamma) * z[a] + w
            eta = w / (z[a] + options.eps)
            row = s[a]
            for c in range(v.size):
                row[c] += eta * (v[c] - row[c])
        # 2. read
        logits = token.read_logits[b, 0, h]
        decode_token(logits, decode.read_renorm, shift, beam, p, content[:Kr], index[:Kr], weight[:Kr])
        if options.mass_aware:
            for k in range(Kr):
                read_mass[k] = z[index[k]]
            mass_aware_forward(weight[:Kr], read_mass[:Kr], options.eps)
        for k in range(Kr):
            r, row = weight[k], s[index[k]]
            for c in range(v.size):
                out[c] += r * row[c]
