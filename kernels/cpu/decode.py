"""The address decoder: softmax of every digit, top-K, weights, CAPE; and its backward.

Tokens are independent and are shared out in tiles of ``LANES``. Same mathematics as ``ramnet_np/core/decoder.py``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from .arrays import plain
from .beam import beam_search
from .network import LANES, plan, top_slots


class DecodeContext(NamedTuple):
    """What ``decode_backward`` needs; N = B*T*H."""

    p: np.ndarray  # (N, U*P) digit probabilities: kept, exponentials cost more than memory
    content: np.ndarray  # (N, K) int32, the content slots before CAPE moved them
    weight: np.ndarray  # (B, T, H, K) as returned
    order: int
    renorm: bool


def decode_forward(
    logits: Any, top_k: int, renorm: bool, cape_heads: int, positions: Any
) -> tuple[np.ndarray, np.ndarray, DecodeContext]:
    """Decode address logits (B, T, H, U, P): index (B, T, H, K) int32, weight (B, T, H, K), ctx."""
    B, T, H, U, P = logits.shape
    n = B * T * H
    index = np.empty((B, T, H, top_k), dtype=np.int32)
    weight = np.empty((B, T, H, top_k), dtype=logits.dtype)
    p = np.empty((n, U * P), dtype=logits.dtype)
    content = np.empty((n, top_k), dtype=np.int32)
    _decode_tiles(
        plain(logits).reshape(n, U, P), plain(positions).reshape(B * T), H, cape_heads, renorm, plan(U, P, top_k),
        index.reshape(n, top_k), weight.reshape(n, top_k), p, content,
    )  # fmt: skip
    return index, weight, DecodeContext(p, content, weight, U, renorm)


def decode_backward(dweight: Any, ctx: DecodeContext) -> np.ndarray:
    """Gradient of the logits, (B, T, H, U, P), given that of the weights, (B, T, H, K)."""
    (n, top_k), radix = ctx.content.shape, ctx.p.shape[1] // ctx.order
    dlogits = np.empty((*dweight.shape[:3], ctx.order, radix), dtype=dweight.dtype)
    _decode_tiles_backward(
        plain(dweight).reshape(n, top_k), ctx.weight.reshape(n, top_k), ctx.p, ctx.content, ctx.order, ctx.renorm,
        dlogits.reshape(n, ctx.order * radix),
    )  # fmt: skip
    return dlogits


@njit(cache=True, parallel=True)
def _decode_tiles(logits, positions, heads, cape_heads, renorm, plan, index, weight, p, content):
    n = logits.shape[0]
    for i in prange((n + LANES - 1) // LANES):
        start = np.int64(i) * LANES  # prange counts in uint64, which would compile everything below a second time
        stop = min(start + LANES, n)
        if plan.most > 0 and stop - start > LANES // 4:
            _decode_lanes(start, stop, logits, positions, heads, cape_heads, renorm, plan, index, weight, p, content)
        else:
            _decode_singly(start, stop, logits, positions, heads, cape_heads, renorm, index, weight, p, content)


@njit(cache=True)
def _decode_singly(start, stop, logits, positions, heads, cape_heads, renorm, index, weight, p, content):
    """Tokens start ... stop - 1, one after the other."""
    _, U, P = logits.shape
    K = index.shape[1]
    dtype = logits.dtype
    scores = np.empty((U, P), dtype)
    best, next_best, ranked = np.empty(K, dtype), np.empty(K, dtype), np.empty(P, dtype)
    slot, next_slot, value = np.empty(K, np.int64), np.empty(K, np.int64), np.empty(P, np.int64)
    for i in range(start, stop):
        # 1. softmax of every digit
        for u in range(U):
            softmax(logits[i, u], scores[u], p[i, u * P : (u + 1) * P])
        # 2. the K best content slots
        found = beam_search(scores, K, best, slot, next_best, next_slot, ranked, value)
        for k in range(K):
            content[i, k] = found[k]
        # 3. their weights, 4. optionally divided by their sum, 5. where they are at this position
        shift = cape_shift(i, positions, heads, cape_heads, P**U)
        weigh(content[i], p[i], P, P**U, renorm, shift, index[i], weight[i])


@njit(cache=True)
def _decode_lanes(start, stop, logits, positions, heads, cape_heads, renorm, plan, index, weight, p, content):
    """Tokens start ... stop - 1, at most LANES, side by side; lanes to spare repeat the last one."""
    _, U, P = logits.shape
    K = index.shape[1]
    dtype = logits.dtype
    scores = np.empty((U * P, LANES), dtype)
    top, total = np.empty(LANES, dtype), np.empty(LANES, dtype)
    ranked, value = np.empty((P, LANES), dtype), np.empty((P, LANES), np.int32)
    score, next_score = np.empty((plan.most, LANES), dtype), np.empty((plan.most, LANES), dtype)
    slot, next_slot = np.empty((plan.most, LANES), np.int32), np.empty((plan.most, LANES), np.int32)
    # 1. softmax of every digit
    for u in range(U):
        for lane in range(LANES):
            top[lane] = logits[min(start + lane, stop - 1), u, 0]
        for j in range(P):
            for lane in range(LANES):
                x = logits[min(start + lane, stop - 1), u, j]
                scores[u * P + j, lane] = x
                top[lane] = x if x > top[lane] else top[lane]
        for lane in range(LANES):
            total[lane] = 0
        for j in range(P):
            for lane in range(LANES):
                scores[u * P + j, lane] -= top[lane]
                e = math.exp(scores[u * P + j, lane])
                total[lane] += e
                ranked[j, lane] = e
        for j in range(P):
            for lane in range(stop - start):
                p[start + lane, u * P + j] = ranked[j, lane] / total[lane]
    # 2. the K best content slots
    found = top_slots(scores, P, plan, ranked, value, score, slot, next_score, next_slot)
    for k in range(K):
        for lane in range(stop - start):
            content[start + lane, k] = found[k, lane]
    # 3., 4., 5. weights and CAPE
    for i in range(start, stop):
        shift = cape_shift(i, positions, heads, cape_heads, P**U)
        weigh(content[i], p[i], P, P**U, renorm, shift, index[i], weight[i])


@njit(cache=True)
def softmax(logits, scores, p):
    """Of one digit, (P,): ``scores`` = logits - max, ``p`` = softmax."""
    top = logits[0]
    for j in range(1, logits.size):
        top = max(top, logits[j])
    total = top - top
    for j in range(logits.size):
        scores[j] = logits[j] - top
        p[j] = math.exp(scores[j])
        total += p[j]
    for j in range(logits.size):
        p[j] /= total


@njit(cache=True)
def cape_shift(i, positions, heads, cape_heads, slots):
    """How far the slots of token and head ``i`` of (B, T, H), flat, have drifted."""
    return positions[i // heads] % slots if i % heads < cape_heads else 0


@njit(cache=True)
def weigh(content, p, radix, slots, renorm, shift, index, weight):
    """Of one token: where its slots (K,) are, and their weights, the products of their digits' probabilities (U*P,)."""
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
def _decode_tiles_backward(dweight, weight, p, content, order, renorm, dlogits):
    n = content.shape[0]
    for i in prange((n + LANES - 1) // LANES):
        start = np.int64(i) * LANES
        _decode_tile_backward(start, min(start + LANES, n), dweight, weight, p, content, order, renorm, dlogits)


@njit(cache=True)
def _decode_tile_backward(start, stop, dweight, weight, p, content, order, renorm, dlogits):
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
