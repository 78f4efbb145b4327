"""The address decoder: softmax of every digit, top-K, weights, CAPE; and its backward.

Tokens are independent and are shared out in tiles of ``LANES``. Same mathematics as ``ramnet_np/core/decoder.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from ramnet_np.contract import Array

from .arrays import contiguous
from .beam import beam_search, new_beam
from .network import LANES, new_lanes, plan, top_slots


class Tokens(NamedTuple):
    """What N = B*T*H tokens and heads are given."""

    logits: np.ndarray  # (N, U, P)
    positions: np.ndarray  # (B*T,) int64
    heads: int
    cape_heads: int
    renorm: bool


class Decoded(NamedTuple):
    """What is found for them."""

    index: Array  # (N, K) int32
    weight: np.ndarray  # (N, K)
    p: np.ndarray  # (N, U*P) digit probabilities
    content: np.ndarray  # (N, K) int32, the content slots before CAPE moved them


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs."""

    decoded: Decoded  # ``p`` is kept: exponentials cost more than memory
    order: int
    renorm: bool


def decode_forward(
    logits: Array, top_k: int, renorm: bool, cape_heads: int, positions: Array
) -> tuple[np.ndarray, np.ndarray, DecodeContext]:
    """Decode address logits (B, T, H, U, P): index (B, T, H, K) int32, weight (B, T, H, K), ctx."""
    B, T, H, U, P = logits.shape
    n, dtype = B * T * H, logits.dtype
    tokens = Tokens(contiguous(logits).reshape(n, U, P), contiguous(positions).reshape(B * T), H, cape_heads, renorm)
    decoded = Decoded(
        index=np.empty((n, top_k), dtype=np.int32),
        weight=np.empty((n, top_k), dtype=dtype),
        p=np.empty((n, U * P), dtype=dtype),
        content=np.empty((n, top_k), dtype=np.int32),
    )
    _decode_tiles(tokens, plan(U, P, top_k), decoded)
    shape = (B, T, H, top_k)
    return decoded.index.reshape(shape), decoded.weight.reshape(shape), DecodeContext(decoded, U, renorm)


def decode_backward(dweight: Array, ctx: DecodeContext) -> np.ndarray:
    """Gradient of the logits, (B, T, H, U, P), given that of the weights, (B, T, H, K)."""
    (n, top_k), digits = ctx.decoded.content.shape, ctx.decoded.p.shape[1]
    dlogits = np.empty((n, digits), dtype=dweight.dtype)
    _decode_tiles_backward(contiguous(dweight).reshape(n, top_k), ctx.decoded, ctx.order, ctx.renorm, dlogits)
    return dlogits.reshape(*dweight.shape[:3], ctx.order, digits // ctx.order)


@njit(cache=True, parallel=True)
def _decode_tiles(tokens, plan, decoded):
    n = tokens.logits.shape[0]
    for i in prange((n + LANES - 1) // LANES):
        start = np.int64(i) * LANES  # prange counts in uint64, which would compile everything below a second time
        stop = min(start + LANES, n)
        if plan.candidates > 0 and stop - start > LANES // 4:
            _decode_lanes(start, stop, tokens, plan, decoded)
        else:
            _decode_one_by_one(start, stop, tokens, decoded)


@njit(cache=True)
def _decode_one_by_one(start, stop, tokens, decoded):
    """Tokens start ... stop - 1, one after the other."""
    _, U, P = tokens.logits.shape
    beam = new_beam(U, P, decoded.index.shape[1], tokens.logits.dtype)
    for i in range(start, stop):
        shift = cape_shift(i, tokens.positions, tokens.heads, tokens.cape_heads, P**U)
        p, content, index, weight = decoded.p[i], decoded.content[i], decoded.index[i], decoded.weight[i]
        decode_token(tokens.logits[i], tokens.renorm, shift, beam, p, content, index, weight)


@njit(cache=True)
def decode_token(logits, renorm, shift, beam, p, content, index, weight):
    """One token. ``logits``: (U, P); ``shift``: how far CAPE moves it; fills p (U*P,), content, index, weight (K,)."""
    U, P = logits.shape
    # 1. softmax of every digit
    for u in range(U):
        softmax(logits[u], beam.scores[u], p[u * P : (u + 1) * P])
    # 2. the K best content slots
    found = beam_search(beam, content.size)
    for k in range(content.size):
        content[k] = found[k]
    # 3. their weights, 4. optionally divided by their sum, 5. where they are at this position
    slots_and_weights(content, p, P, P**U, renorm, shift, index, weight)


@njit(cache=True)
def _decode_lanes(start, stop, tokens, plan, decoded):
    """Tokens start ... stop - 1, at most LANES, side by side; unused lanes repeat the last one."""
    _, U, P = tokens.logits.shape
    lanes = new_lanes(U, P, plan.candidates, tokens.logits.dtype)
    # 1. softmax of every digit
    for u in range(U):
        _softmax_lanes(start, stop, u, tokens.logits, lanes.scores, lanes.ranked, decoded.p)
    # 2. the K best content slots
    found = top_slots(lanes, plan)
    content = decoded.content
    for k in range(content.shape[1]):
        for lane in range(stop - start):
            content[start + lane, k] = found[k, lane]
    # 3., 4., 5. weights and CAPE
    for i in range(start, stop):
        shift = cape_shift(i, tokens.positions, tokens.heads, tokens.cape_heads, P**U)
        slots_and_weights(content[i], decoded.p[i], P, P**U, tokens.renorm, shift, decoded.index[i], decoded.weight[i])


@njit(cache=True)
def _softmax_lanes(start, stop, u, logits, scores, exponential, p):
    """One digit of every lane: ``scores`` = logits - max (U*P, LANES), ``p`` = softmax (N, U*P)."""
    P = logits.shape[2]
    largest, total = np.empty(LANES, logits.dtype), np.empty(LANES, logits.dtype)
    for lane in range(LANES):
        largest[lane] = logits[min(start + lane, stop - 1), u, 0]
    for j in range(P):
        for lane in range(LANES):
            x = logits[min(start + lane, stop - 1), u, j]
            scores[u * P + j, lane] = x
            largest[lane] = x if x > largest[lane] else largest[lane]
    for lane in range(LANES):
        total[lane] = 0
    for j in range(P):
        for lane in range(LANES):
            scores[u * P + j, lane] -= largest[lane]
            e = math.exp(scores[u * P + j, lane])
            total[lane] += e
            exponential[j, lane] = e
    for j in range(P):
        for lane in range(stop - start):
            p[start + lane, u * P + j] = exponential[j, lane] / total[lane]


@njit(cache=True)
def softmax(logits, scores, p):
    """One digit, (P,): ``scores`` = logits - max, ``p`` = softmax."""
    largest = logits[0]
    for j in range(1, logits.size):
        largest = max(largest, logits[j])
    total = largest - largest
    for j in range(logits.size):
        scores[j] = logits[j] - largest
        p[j] = math.exp(scores[j])
        total += p[j]
    for j in range(logits.size):
        p[j] /= total


@njit(cache=True)
def cape_shift(i, positions, heads, cape_heads, slots):
    """How far the slots of token and head ``i`` of (B, T, H), flat, have drifted."""
    return positions[i // heads] % slots if i % heads < cape_heads else 0


@njit(cache=True)
def slots_and_weights(content, p, radix, slots, renorm, shift, index, weight):
    """Where one token's slots are, and their weights: the products of their digits' probabilities.

    ``content``, ``index``, ``weight``: (K,); ``p``: (U*P,); ``shift``: how far CAPE moves them.
    """
    bits, inverse = digit_bits(radix), 1.0 / radix
    total = p[0] - p[0]
    for k in range(content.size):
        rest, digit = pop_digit(np.int64(content[k]), radix, bits, inverse)
        product = p[digit]
        for first in range(radix, p.size, radix):
            rest, digit = pop_digit(rest, radix, bits, inverse)
            product *= p[first + digit]
        moved = content[k] - shift
        index[k] = moved + slots if moved < 0 else moved
        weight[k] = product
        total += product
    if renorm:
        for k in range(content.size):
            weight[k] /= total


@njit(cache=True)
def digit_bits(radix):
    """log2(P) where P is a power of two, else -1."""
    bits = 0
    while 1 << bits < radix:
        bits += 1
    return bits if 1 << bits == radix else -1


@njit(cache=True)
def pop_digit(slot, radix, bits, inverse):
    """(slot // radix, slot % radix) without an integer division, which costs as much as all else here.

    ``bits``: ``digit_bits(radix)``; ``inverse``: 1 / radix. Exact: (slot + 1/2) / radix is at least 1/(2 radix) away
    from a whole number, and float64 errs by less for slot < 2**31.
    """
    if bits >= 0:
        return slot >> bits, slot & (radix - 1)
    rest = np.int64((slot + 0.5) * inverse)
    return rest, slot - rest * radix


@njit(cache=True, parallel=True)
def _decode_tiles_backward(dweight, decoded, order, renorm, dlogits):
    n = dlogits.shape[0]
    for i in prange((n + LANES - 1) // LANES):
        start = np.int64(i) * LANES
        _decode_tile_backward(start, min(start + LANES, n), dweight, decoded, order, renorm, dlogits)


@njit(cache=True)
def _decode_tile_backward(start, stop, dweight, decoded, order, renorm, dlogits):
    p, content, weight = decoded.p, decoded.content, decoded.weight
    K = content.shape[1]
    radix = p.shape[1] // order
    bits, inverse = digit_bits(radix), 1.0 / radix
    zero = p.dtype.type(0)
    g = np.empty(K, p.dtype)
    for i in range(start, stop):
        # 5. CAPE moved slots, not weights
        # 4. weight = rho / sum(rho): dL/dlog rho_j = g_j - weight_j * sum_i g_i, with g = dL/dlog weight
        total = zero
        for k in range(K):
            g[k] = dweight[i, k] * weight[i, k]
            total += g[k]
        if renorm:
            given, total = total, zero
            for k in range(K):
                g[k] -= weight[i, k] * given
                total += g[k]
        # 3., 2., 1. rho_j = prod_u p_u[digit_u(a_j)]: dL/dlogits_u = sum_j g_j * (onehot(digit_u(a_j)) - p_u)
        for j in range(p.shape[1]):
            dlogits[i, j] = -p[i, j] * total
        for k in range(K):
            rest = np.int64(content[i, k])
            for u in range(order):
                rest, digit = pop_digit(rest, radix, bits, inverse)
                dlogits[i, u * radix + digit] += g[k]
