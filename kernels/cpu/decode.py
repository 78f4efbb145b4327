"""The address decoder: softmax of every digit, top-K, weights, CAPE; and its backward.

Tokens are independent and are shared out in tiles of ``LANES``. Same mathematics as ``ramnet_np/core/decoder.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array

from .arrays import contiguous, flat_positions
from .beam import beam_arrays, beam_search
from .compiling import inner, parallel_kernel
from .network import LANES, plan, top_slots
from .share import share_out

AT_ONCE = 16  # tokens that a thread decodes one by one; so few do not fill the lanes


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
    tokens = (contiguous(logits).reshape(n, U, P), flat_positions(positions, cape_heads), H, cape_heads, renorm)
    decoded = Decoded(
        index=np.empty((n, top_k), dtype=np.int32),
        weight=np.empty((n, top_k), dtype=dtype),
        p=np.empty((n, U * P), dtype=dtype),
        content=np.empty((n, top_k), dtype=np.int32),
    )
    networks = plan(U, P, top_k)
    if networks.candidates > 0 and n > AT_ONCE:
        _decode_by_lanes(tokens, networks, tuple(decoded))  # over a NamedTuple, Numba takes a microsecond longer
    else:
        _decode_singly(tokens, tuple(decoded))
    shape = (B, T, H, top_k)
    return decoded.index.reshape(shape), decoded.weight.reshape(shape), DecodeContext(decoded, U, renorm)


def decode_backward(dweight: Array, ctx: DecodeContext) -> np.ndarray:
    """Gradient of the logits, (B, T, H, U, P), given that of the weights, (B, T, H, K)."""
    (n, top_k), digits = ctx.decoded.content.shape, ctx.decoded.p.shape[1]
    dlogits = np.empty((n, digits), dtype=dweight.dtype)
    _decode_tiles_backward(
        contiguous(dweight).reshape(n, top_k),
        ctx.decoded.weight,
        ctx.decoded.p,
        ctx.decoded.content,
        ctx.order,
        ctx.renorm,
        dlogits,
    )
    return dlogits.reshape(*dweight.shape[:3], ctx.order, digits // ctx.order)


@parallel_kernel
def _decode_singly(tokens, decoded):
    """All tokens, one after the other.

    ``tokens``: logits (N, U, P), positions (B*T,) or size 0, H, cape_heads, renorm; ``decoded``: the arrays of Decoded.
    """
    share_out(_decode_few, (tokens[0].shape[0] + AT_ONCE - 1) // AT_ONCE, (tokens, decoded))


@inner
def _decode_few(piece, tokens, decoded):
    """AT_ONCE tokens, or what is left of them."""
    logits, positions, heads, cape_heads, renorm = tokens
    index, weight, p, content = decoded
    n, U, P = logits.shape
    K = index.shape[1]
    start = piece * AT_ONCE
    scores, best, slot, next_best, next_slot, ranked, value = beam_arrays(U, P, K, logits.dtype)
    for i in range(start, min(start + AT_ONCE, n)):
        # 1. softmax of every digit
        for u in range(U):
            softmax(logits[i, u], scores[u], p[i, u * P : (u + 1) * P])
        # 2. the K best content slots
        found = beam_search(K, scores, best, slot, next_best, next_slot, ranked, value)
        for k in range(K):
            content[i, k] = found[k]
        # 3. their weights, 4. optionally divided by their sum, 5. where they are at this position
        shift = cape_shift(i, positions, heads, cape_heads, P**U)
        slots_and_weights(content[i], p[i], P, P**U, renorm, shift, index[i], weight[i])


@parallel_kernel
def _decode_by_lanes(tokens, plan, decoded):
    """All tokens, LANES of them side by side; see ``_decode_singly``."""
    share_out(_decode_lanes, (tokens[0].shape[0] + LANES - 1) // LANES, (tokens, plan, decoded))


@inner
def _decode_lanes(piece, tokens, plan, decoded):
    """LANES tokens, or what is left of them; unused lanes repeat the last one."""
    logits, positions, heads, cape_heads, renorm = tokens
    index, weight, p, content = decoded
    n, U, P = logits.shape
    start = piece * LANES
    stop = min(start + LANES, n)
    dtype = logits.dtype
    scores = np.empty((U * P, LANES), dtype)
    largest, total = np.empty(LANES, dtype), np.empty(LANES, dtype)
    ranked, value = np.empty((P, LANES), dtype), np.empty((P, LANES), np.int32)
    score, next_score = np.empty((plan.candidates, LANES), dtype), np.empty((plan.candidates, LANES), dtype)
    slot, next_slot = np.empty((plan.candidates, LANES), np.int32), np.empty((plan.candidates, LANES), np.int32)
    # 1. softmax of every digit
    for u in range(U):
        _softmax_lanes(start, stop, u, logits, scores, ranked, largest, total, p)
    # 2. the K best content slots
    found = top_slots(scores, plan, ranked, value, score, slot, next_score, next_slot)
    for k in range(content.shape[1]):
        for lane in range(stop - start):
            content[start + lane, k] = found[k, lane]
    # 3., 4., 5. weights and CAPE
    for i in range(start, stop):
        shift = cape_shift(i, positions, heads, cape_heads, P**U)
        slots_and_weights(content[i], p[i], P, P**U, renorm, shift, index[i], weight[i])


@inner
def _softmax_lanes(start, stop, u, logits, scores, exponential, largest, total, p):
    """One digit of every lane: ``scores`` = logits - max (U*P, LANES), ``p`` = softmax (N, U*P)."""
    P = logits.shape[2]
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


@inner
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


@inner
def cape_shift(i, positions, heads, cape_heads, slots):
    """How far the slots of token and head ``i`` of (B, T, H), flat, have drifted."""
    return positions[i // heads] % slots if i % heads < cape_heads else 0


@inner
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


@inner
def digit_bits(radix):
    """log2(P) where P is a power of two, else -1."""
    bits = 0
    while 1 << bits < radix:
        bits += 1
    return bits if 1 << bits == radix else -1


@inner
def pop_digit(slot, radix, bits, inverse):
    """(slot // radix, slot % radix) without an integer division, which costs as much as all else here.

    ``bits``: ``digit_bits(radix)``; ``inverse``: 1 / radix. Exact: (slot + 1/2) / radix is at least 1/(2 radix) away
    from a whole number, and float64 errs by less for slot < 2**31.
    """
    if bits >= 0:
        return slot >> bits, slot & (radix - 1)
    rest = np.int64((slot + 0.5) * inverse)
    return rest, slot - rest * radix


@parallel_kernel
def _decode_tiles_backward(dweight, weight, p, content, order, renorm, dlogits):
    pieces = (dlogits.shape[0] + LANES - 1) // LANES
    share_out(_decode_tile_backward, pieces, (dweight, weight, p, content, order, renorm, dlogits))


@inner
def _decode_tile_backward(piece, dweight, weight, p, content, order, renorm, dlogits):
    K = content.shape[1]
    radix = p.shape[1] // order
    bits, inverse = digit_bits(radix), 1.0 / radix
    zero = p.dtype.type(0)
    g = np.empty(K, p.dtype)
    start = piece * LANES
    for i in range(start, min(start + LANES, dlogits.shape[0])):
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
