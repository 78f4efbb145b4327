"""Gated linear attention: the sum of outer products of keys and values, which decays at rates that each token sets.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T        y_t = S_t^T q_t

with a rate for each key channel (GLA), or one for all of them (the state space model of Mamba-2).

Tokens are taken in chunks of N. What came before a chunk is one matrix M. Within a chunk, runs of one token join in
pairs, then runs of two tokens, of four, and so on. In every pair, the later run reads what the earlier run wrote:

    y_t += sum_s ((e^into_t q_t) . (e^rest_s k_s)) v_s        into_t: log a summed from the later run's first token to t
                                                              rest_s: log a summed after s, to the earlier run's end

So any two tokens meet in one pair of runs, and e^(into_t + rest_s) is the decay between them: it comes from what lies
between the two tokens alone. With g_t = a_1 .. a_t, the quotient g_t / g_s would divide one tiny product by another,
and the difference log g_t - log g_s would lose digits where decays are strong. Here nothing overflows or cancels, and
a decay that is 0 in the arrays' dtype is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_heads, require_like
from ramnet_np.layers.heads import from_chunks, to_chunks
from ramnet_np.layers.matmul import matmul


@readable
class GatedLinearAttentionContext(NamedTuple):
    """What ``gated_linear_attention_backward`` needs, in chunks of N tokens. G = B*H; d is d_k or 1."""

    q: Array  # (G, chunks, N, d_k)
    k: Array
    v: Array  # (G, chunks, N, d_v)
    log_decay: Array  # (G, chunks, N, d): its sums are made again, which costs less than keeping them
    starts: Array  # (G, chunks, d_k, d_v): the state before each chunk
    y: ArraySpec


class GatedLinearAttentionGrads(NamedTuple):
    """One gradient per input."""

    q: Array
    k: Array
    v: Array
    log_decay: Array


class _Sums(NamedTuple):
    """Sums of log a within runs of one length: up to and with each token, and after it. (G, chunks, N, d) each."""

    into: Array
    rest: Array


@on_gpu_of_arrays
def gated_linear_attention_forward(
    q: Array, k: Array, v: Array, log_decay: Array, state: Array | None = None
) -> tuple[Array, Array, GatedLinearAttentionContext]:
    """Every token lets the state decay, adds its value under its key, and reads along its query.

        S_t = diag(a_t) S_{t-1} + k_t v_t^T        y_t = S_t^T q_t        a_t = exp(log_decay_t)

    ``q``, ``k``: (B, T, H, d_k); ``v``: (B, T, H, d_v); ``log_decay``: (B, T, H, d_k), or (B, T, H, 1) for one decay of
    all channels; 0 or less, and -inf forgets all. ``state``: (B, H, d_k, d_v), S before the first token; None is zero.
    It is taken as constant. Returns y (B, T, H, d_v), the state after the last token, and ctx.
    Cost: 4 T d_k d_v operations for each sequence and head for the state, T N (d_k + d_v) within chunks of N tokens.
    ValueError or TypeError where shapes or dtypes do not fit, and for a ``log_decay`` above 0 or NaN (looked for in
    NumPy arrays alone: on a GPU it would wait for the device).
    Source: Yang et al., arXiv 2312.06635, section 4; with one decay Dao and Gu, arXiv 2405.21060. Both cut a chunk into
    pieces of one size; runs that double are ours.

    >>> import numpy as np
    >>> k = np.ones((1, 3, 1, 2))
    >>> v = np.array([4.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    >>> log_decay = np.tile(np.log([1.0, 0.5]), (1, 3, 1, 1))  # the second channel forgets half with every token
    >>> y, state, ctx = gated_linear_attention_forward(k, k, v, log_decay)
    >>> y.ravel().tolist(), state.ravel().tolist()
    ([8.0, 6.0, 7.0], [5.0, 2.0])
    """
    B, T, H, d_v = require_heads(q, k, v)
    d_k = q.shape[-1]
    xp = namespace_of(q, k, v, log_decay)
    one_rate = getattr(log_decay, "shape", None) == (B, T, H, 1)
    require_like("log_decay", log_decay, ArraySpec((B, T, H, 1) if one_rate else q.shape, q.dtype))
    if array_kind(log_decay) == "numpy" and not log_decay.max() <= 0:  # NaN is neither
        raise ValueError(f"log_decay must be 0 or less, got a maximum of {log_decay.max()}")
    if state is not None:
        require_like("state", state, ArraySpec((B, H, d_k, d_v), q.dtype))
    # 1. chunks; sums of logarithms
    q, k, v, log_a = to_chunks(q), to_chunks(k), to_chunks(v), to_chunks(log_decay)
    *rounds, (into, rest) = _sums_within_runs(log_a)
    # 2. within chunks: what each token reads of itself, and later runs of earlier ones
    y = (q * k).sum(axis=-1, keepdims=True) * v
    for i, sums in enumerate(rounds):
        late, early = _decays(xp, sums, i)
        scores = matmul(late * _later(q, i), (early * _earlier(k, i)).swapaxes(-1, -2))
        matmul(scores, _earlier(v, i), accumulate_into=_later(y, i))
    # 3. the state before each chunk
    added = matmul((k * xp.exp(rest)).swapaxes(-1, -2), v)
    kept = _kept(xp, into)
    starts = xp.empty_like(added)
    starts[:, 0] = 0 if state is None else state.reshape(added[:, 0].shape)
    for chunk in range(1, added.shape[1]):
        start = xp.multiply(kept[:, chunk - 1], starts[:, chunk - 1], out=starts[:, chunk])
        start += added[:, chunk - 1]
    after = kept[:, -1] * starts[:, -1] + added[:, -1]
    # 4. what each token reads of that
    matmul(q * xp.exp(into), starts, accumulate_into=y)
    ctx = GatedLinearAttentionContext(q, k, v, log_a, starts, ArraySpec((B, T, H, d_v), q.dtype))
    return from_chunks(y, T, H), after.reshape(B, H, d_k, d_v), ctx


@on_gpu_of_arrays
def gated_linear_attention_backward(dy: Array, ctx: GatedLinearAttentionContext) -> GatedLinearAttentionGrads:
    """Gradients of q, k, v and log_decay. With R_t the gradient of S_t, in reverse time:

        R_t  = diag(a_{t+1}) R_{t+1} + q_t dy_t^T
        dq_t = S_t dy_t      dk_t = R_t v_t      dv_t = R_t^T k_t      dlog a_t = rows of a_t S_{t-1} * R_t, summed

    In chunks and runs as the forward; about three times its cost. Where the decay is 0, log_decay has gradient 0.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> k = np.ones((1, 2, 1, 1))
    >>> y, _, ctx = gated_linear_attention_forward(k, k, k, np.log([[[[0.5]], [[0.5]]]]))
    >>> grads = gated_linear_attention_backward(np.ones_like(y), ctx)
    >>> grads.v.ravel().tolist(), grads.log_decay.ravel().tolist()
    ([1.5, 1.0], [0.0, 0.5])
    """
    require_context(ctx, GatedLinearAttentionContext, "gated_linear_attention_forward")
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    T, H = ctx.y.shape[1:3]
    q, k, v, log_a, starts = ctx[:5]
    dy = to_chunks(dy)
    *rounds, (into, rest) = _sums_within_runs(log_a)
    # 4. y += e^into q starts; 3. next start = kept start + (e^rest k)^T v, last chunk first
    g, late, kept = xp.exp(into), xp.exp(rest), _kept(xp, into)
    dstarts = matmul((g * q).swapaxes(-1, -2), dy)
    for chunk in reversed(range(dstarts.shape[1] - 1)):
        dstart = dstarts[:, chunk]
        dstart += kept[:, chunk] * dstarts[:, chunk + 1]
    dafter = xp.zeros_like(dstarts)
    dafter[:, :-1] = dstarts[:, 1:]
    dq, dk, dv = matmul(dy, starts.swapaxes(-1, -2)), matmul(v, dafter.swapaxes(-1, -2)), matmul(late * k, dafter)
    dq *= g
    dk *= late
    dinto, drest = _of_rates(dq * q, log_a), _of_rates(dk * k, log_a)
    dkept = (dafter * starts).sum(axis=-1)[..., None, :]
    last = dinto[..., -1:, :]
    last += _of_rates(dkept * kept.swapaxes(-1, -2), log_a)
    # 2. runs, the longest first; then each token and itself
    grads = GatedLinearAttentionGrads(dq, dk, dv, dinto)
    for i, sums in reversed(list(enumerate(rounds))):
        _join_backward(dy, q, k, v, sums, grads, drest, i)
    own, down = (q * k).sum(axis=-1, keepdims=True), (dy * v).sum(axis=-1, keepdims=True)
    dq += down * k
    dk += down * q
    dv += own * dy
    # 1. of a run of one token, the sum up to and with it is its log a
    return GatedLinearAttentionGrads(*(from_chunks(d, T, H) for d in grads))


def _sums_within_runs(log_a: Array) -> list[_Sums]:
    """Sums within runs of 1, 2, 4, ... N tokens, of each length one _Sums; the last are those of whole chunks."""
    sums = [_Sums(log_a, namespace_of(log_a).zeros_like(log_a))]
    for i in range((log_a.shape[-2] - 1).bit_length()):
        into, rest = (x.copy() for x in sums[-1])
        later, earlier = _later(into, i), _earlier(rest, i)
        earlier += later[:, -1:]
        later += _earlier(into, i)[:, -1:]
        sums.append(_Sums(into, rest))
    return sums


def _join_backward(
    dy: Array, q: Array, k: Array, v: Array, sums: _Sums, grads: GatedLinearAttentionGrads, drest: Array, i: int
) -> None:
    """Add the gradients of round ``i``, and take those of the sums, ``grads.log_decay`` and ``drest``, to its runs."""
    xp = namespace_of(dy)
    late_q, late_dy, early_k, early_v = _later(q, i), _later(dy, i), _earlier(k, i), _earlier(v, i)
    late_into, early_into, early_rest = _later(grads.log_decay, i), _earlier(grads.log_decay, i), _earlier(drest, i)
    # the sums of joined runs, from those of the two
    early_end, late_end = early_into[:, -1], late_into[:, -1]
    early_end += late_into.sum(axis=-2)
    late_end += early_rest.sum(axis=-2)
    # y += scores v
    late, early = _decays(xp, sums, i)
    decayed_q, decayed_k = late * late_q, early * early_k
    scores = matmul(decayed_q, decayed_k.swapaxes(-1, -2))
    matmul(scores.swapaxes(-1, -2), late_dy, accumulate_into=_earlier(grads.v, i))
    dscores = matmul(late_dy, early_v.swapaxes(-1, -2))
    # scores = (late q) (early k)^T
    dq, dk = matmul(dscores, decayed_k), matmul(dscores.swapaxes(-1, -2), decayed_q)
    dq *= late
    dk *= early
    for sum_of, d in ((_later(grads.q, i), dq), (_earlier(grads.k, i), dk)):
        sum_of += d
    # late = e^into, early = e^rest
    late_into += _of_rates(dq * late_q, late_into)
    early_rest += _of_rates(dk * early_k, early_rest)


def _decays(xp: Any, sums: _Sums, i: int) -> tuple[Array, Array]:
    """What is left of later runs' queries, and of earlier runs' keys, where the two meet."""
    return xp.exp(_later(sums.into, i)), xp.exp(_earlier(sums.rest, i))


def _kept(xp: Any, into: Array) -> Array:
    """What the tokens of a chunk together keep of the state before it, (G, chunks, d, 1)."""
    return xp.exp(into[..., -1:, :]).swapaxes(-1, -2)


def _of_rates(x: Array, rates: Array) -> Array:
    """(..., d_k) as it is, or its sum where ``rates`` has one for all channels."""
    return x if x.shape[-1] == rates.shape[-1] else x.sum(axis=-1, keepdims=True)


def _earlier(x: Array, i: int) -> Array:
    """The first of every two runs of 2**i tokens of (G, chunks, N, d), (pairs, 2**i, d): a view."""
    return x.reshape(-1, 2, 1 << i, x.shape[-1])[:, 0]


def _later(x: Array, i: int) -> Array:
    """The second of every two."""
    return x.reshape(-1, 2, 1 << i, x.shape[-1])[:, 1]
