"""Causal softmax attention, over all earlier tokens or over the last few (a sliding window).

Queries are taken in blocks. A block looks at the keys that its first and last query can see and at no others, so that a
window costs T W and not T**2. The weights are made again in the backward from one number per query, the logarithm of
the softmax's sum: memory that grows with T**2 is never kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import ArraySpec, readable, require_array, require_context, require_heads, require_like
from ramnet_np.layers.heads import heads_first, heads_last
from ramnet_np.layers.matmul import matmul

QUERIES = 128  # of a block
FEWEST_QUERIES = 64  # with a window shorter than this, a block of its length would leave little work to one product


@readable
class SoftmaxAttentionContext(NamedTuple):
    """What ``softmax_attention_backward`` needs. G = B*H."""

    q: Array  # (G, T, d_k)
    k: Array  # (G, S + T, d_k): S earlier keys first
    v: Array  # (G, S + T, d_v)
    log_sums: tuple[Array, ...]  # (G, Q, 1) of each block
    window: int | None
    heads: int
    y: ArraySpec


class SoftmaxAttentionGrads(NamedTuple):
    """One gradient per input."""

    q: Array
    k: Array
    v: Array


class _Block(NamedTuple):
    queries: slice
    keys: slice
    diagonal: int  # query i of the block stands at key i + diagonal of its keys


@accelerated
def softmax_attention_forward(
    q: Array, k: Array, v: Array, window: int | None = None, past: tuple[Array, Array] | None = None
) -> tuple[Array, SoftmaxAttentionContext]:
    """Every token takes the mean of what it sees, weighted by how well its query meets their keys.

        y_t = sum_s p_ts v_s,    p_ts = exp(q_t . k_s / sqrt(d_k) - c_t) for s <= t,    c_t such that sum_s p_ts = 1

    ``q``, ``k``: (B, T, H, d_k); ``v``: (B, T, H, d_v). ``window``: W, token t sees t-W+1 .. t; None: all up to t.
    ``past``: keys (B, S, H, d_k) and values (B, S, H, d_v) of S tokens before these, taken as constant. Returns y
    (B, T, H, d_v) and ctx.
    Cost: 2 T J (d_k + d_v) operations for each sequence and head, J the keys that a block of queries looks at: T / 2 on
    average, with a window W and the block's length. Memory for the scores of one block at a time.
    ValueError or TypeError where shapes or dtypes do not fit, or for a window below 1.
    Source: Vaswani et al., arXiv 1706.03762, eq. 1; the window: Beltagy et al., arXiv 2004.05150; the blocks: Dao et
    al., arXiv 2205.14135.

    >>> import numpy as np
    >>> q = k = np.zeros((1, 3, 1, 2))  # all keys alike: a mean
    >>> v = np.array([3.0, 5.0, 10.0]).reshape(1, 3, 1, 1)
    >>> softmax_attention_forward(q, k, v)[0].ravel().tolist()
    [3.0, 4.0, 6.0]
    >>> softmax_attention_forward(q, k, v, window=2)[0].ravel().tolist()
    [3.0, 4.0, 7.5]
    """
    require_attention(q, k, v, window, past)
    (B, T, H, _), d_v = q.shape, v.shape[-1]
    xp = namespace_of(q, k, v)
    if past is not None:
        k, v = (xp.concatenate([before, now], axis=1) for before, now in zip(past, (k, v), strict=True))
    q, k, v = heads_first(q), heads_first(k), heads_first(v)
    y = xp.zeros((B * H, T, d_v), dtype=q.dtype)
    log_sums = []
    for block in _blocks(T, k.shape[1], window):
        weights = _scores(q, k, block)
        log_sums.append(softmax_rows(weights, block.diagonal, window, q.shape[-1] ** -0.5))
        matmul(weights, v[:, block.keys], accumulate_into=y[:, block.queries])
    y = heads_last(y, H)
    return y, SoftmaxAttentionContext(q, k, v, tuple(log_sums), window, H, ArraySpec.of(y))


@accelerated
def softmax_attention_backward(dy: Array, ctx: SoftmaxAttentionContext) -> SoftmaxAttentionGrads:
    """Gradients of q, k and v, for the tokens that were given as such.

        dp_ts = dy_t . v_s        ds_ts = p_ts (dp_ts - sum_r p_tr dp_tr)
        dv_s = sum_t p_ts dy_t    dq_t = sum_s ds_ts k_s / sqrt(d_k)    dk_s = sum_t ds_ts q_t / sqrt(d_k)

    Cost: two and a half times the forward's, of which half a time makes the weights again.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> q = k = np.zeros((1, 2, 1, 2))
    >>> y, ctx = softmax_attention_forward(q, k, np.ones((1, 2, 1, 1)))
    >>> softmax_attention_backward(np.ones_like(y), ctx).v.ravel().tolist()
    [1.5, 0.5]
    """
    require_context(ctx, SoftmaxAttentionContext, "softmax_attention_forward")
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    dy = heads_first(dy)
    scale = ctx.q.shape[-1] ** -0.5
    dq = xp.zeros(ctx.q.shape, dtype=dy.dtype)
    # sums over blocks, so not in 16 bits
    dk, dv = (xp.zeros(x.shape, dtype=np.promote_types(x.dtype, np.float32)) for x in (ctx.k, ctx.v))
    T, keys = ctx.q.shape[1], ctx.k.shape[1]
    for block, log_sum in zip(_blocks(T, keys, ctx.window), ctx.log_sums, strict=True):
        # 1. the weights again, and their gradient
        weights = _scores(ctx.q, ctx.k, block)
        dscores = matmul(dy[:, block.queries], ctx.v[:, block.keys].swapaxes(1, 2))
        # 2. through the softmax: ``weights`` gets p, ``dscores`` ds / sqrt(d_k)
        softmax_rows_backward(weights, dscores, log_sum, block.diagonal, ctx.window, scale)
        # 3. the three products
        matmul(weights.swapaxes(1, 2), dy[:, block.queries], accumulate_into=dv[:, block.keys])
        matmul(dscores, ctx.k[:, block.keys], accumulate_into=dq[:, block.queries])
        matmul(dscores.swapaxes(1, 2), ctx.q[:, block.queries], accumulate_into=dk[:, block.keys])
    past = keys - T
    grads = (dq, dk[:, past:], dv[:, past:])
    return SoftmaxAttentionGrads(*(heads_last(d, ctx.heads).astype(dy.dtype, copy=False) for d in grads))


@accelerated
def softmax_attention_step(q: Array, k: Array, v: Array, cache: tuple[Array, Array], used: Array) -> Array:
    """One token of :func:`softmax_attention_forward`, for inference: UPDATES ``cache`` IN PLACE.

    ``q``, ``k``: (B, 1, H, d_k); ``v``: (B, 1, H, d_v). ``cache``: keys (B, S, H, d_k) and values (B, S, H, d_v) with
    room for S tokens, C-contiguous, of which the first ``used``, (1,) int64 and below S, are there; the token's own are
    put behind them. Returns y (B, 1, H, d_v). On a GPU ``used`` is not looked at by the host.
    ValueError or TypeError where shapes or dtypes do not fit.

    >>> import numpy as np
    >>> cache = np.zeros((1, 4, 1, 2)), np.array([3.0, 5.0, 0.0, 0.0]).reshape(1, 4, 1, 1)
    >>> q = k = np.zeros((1, 1, 1, 2))  # all keys alike: a mean
    >>> y = softmax_attention_step(q, k, np.full((1, 1, 1, 1), 10.0), cache, np.array([2]))
    >>> y.item(), cache[1].ravel().tolist()
    (6.0, [3.0, 5.0, 10.0, 0.0])
    """
    require_attention_step(q, k, v, cache, used)
    S = int(used[0])
    keys, values = cache
    y, _ = softmax_attention_forward(q, k, v, past=(keys[:, :S], values[:, :S]))
    keys[:, S : S + 1], values[:, S : S + 1] = k, v
    return y


def _blocks(tokens: int, keys: int, window: int | None) -> Iterator[_Block]:
    """Queries in blocks, each with the keys that it can see; the last query stands at the last key."""
    size = QUERIES if window is None else min(QUERIES, max(FEWEST_QUERIES, window))
    past = keys - tokens
    for first in range(0, tokens, size):
        end = min(first + size, tokens)
        first_key = 0 if window is None else max(0, past + first - window + 1)
        yield _Block(slice(first, end), slice(first_key, past + end), past + first - first_key)


def _scores(q: Array, k: Array, block: _Block) -> Array:
    """q_t . k_s of a block, (G, Q, J), also of the pairs that are not seen."""
    return matmul(q[:, block.queries], k[:, block.keys].swapaxes(1, 2))


@accelerated
def softmax_rows(scores: Array, diagonal: int, window: int | None, scale: float) -> Array:
    """Turn a block's scores into weights, IN PLACE: exp(scale s_ij) over its sum over the keys that a query sees.

    ``scores``: (G, Q, J), C-contiguous; query i stands at key i + ``diagonal`` and sees ``window`` keys up to it (None:
    all up to it); a weight is 0 where it does not see. Returns the logarithm of every row's sum, (G, Q, 1).

    >>> import numpy as np
    >>> scores = np.zeros((1, 2, 2))
    >>> softmax_rows(scores, 0, None, 1.0).ravel().round(3).tolist(), scores.tolist()
    ([0.0, 0.693], [[[1.0, 0.0], [0.5, 0.5]]])
    """
    xp = namespace_of(scores)
    scores *= scale
    scores += _hidden(xp, scores, diagonal, window)
    largest = scores.max(axis=-1, keepdims=True)
    scores -= largest
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= total
    return largest + xp.log(total)


@accelerated
def softmax_rows_backward(
    scores: Array, dweights: Array, log_sums: Array, diagonal: int, window: int | None, scale: float
) -> None:
    """Turn a block's scores into weights again, and ``dweights`` into the gradient of the scores, both IN PLACE.

        ds_ij = p_ij (dp_ij - sum_r p_ir dp_ir) scale

    ``scores``, ``dweights``: (G, Q, J), C-contiguous; ``log_sums``: (G, Q, 1), as :func:`softmax_rows` returned them.

    >>> import numpy as np
    >>> scores, dweights = np.zeros((1, 1, 2)), np.array([[[1.0, 3.0]]])
    >>> softmax_rows_backward(scores, dweights, np.log([[[2.0]]]), 1, None, 1.0)
    >>> scores.ravel().tolist(), dweights.ravel().tolist()
    ([0.5, 0.5], [-0.5, 0.5])
    """
    xp = namespace_of(scores)
    scores *= scale
    scores += _hidden(xp, scores, diagonal, window)
    scores -= log_sums
    xp.exp(scores, out=scores)
    dweights -= (scores * dweights).sum(axis=-1, keepdims=True)
    dweights *= scores
    dweights *= scale


def _hidden(xp: Any, scores: Array, diagonal: int, window: int | None) -> Array:
    """(Q, J): 0 where query i sees key j, that is i + diagonal - W < j <= i + diagonal; elsewhere minus infinity."""
    queries, keys = scores.shape[-2:]
    ago = xp.arange(queries)[:, None] + diagonal - xp.arange(keys)
    seen = (ago >= 0) if window is None else (ago >= 0) & (ago < window)
    return xp.where(seen, 0.0, -xp.inf).astype(scores.dtype)


def require_attention(q: Array, k: Array, v: Array, window: int | None, past: tuple[Array, Array] | None) -> None:
    """ValueError or TypeError unless these arguments of :func:`softmax_attention_forward` fit.

    >>> import numpy as np
    >>> require_attention(*[np.zeros((1, 3, 1, 2))] * 3, window=0, past=None)
    Traceback (most recent call last):
        ...
    ValueError: window must be at least 1, got 0
    """
    require_heads(q, k, v, any_floats=True)
    if window is not None and (not isinstance(window, int | np.integer) or isinstance(window, bool)):
        raise TypeError(f"window must be an integer or None, got {window!r}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    namespace_of(q, k, v)
    if past is not None:
        _require_past(past, k, v)


def require_attention_step(q: Array, k: Array, v: Array, cache: tuple[Array, Array], used: Array) -> None:
    """ValueError or TypeError unless these arguments of :func:`softmax_attention_step` fit.

    >>> import numpy as np
    >>> require_attention_step(*[np.zeros((1, 2, 1, 2))] * 3, (np.zeros((1, 4, 1, 2)),) * 2, np.array([0]))
    Traceback (most recent call last):
        ...
    ValueError: q must hold one token in a step, got 2
    """
    require_attention(q, k, v, None, cache)
    if q.shape[1] != 1:
        raise ValueError(f"q must hold one token in a step, got {q.shape[1]}")
    if not all(part.flags.c_contiguous for part in cache):
        raise ValueError("cache must be C-contiguous, got a view")
    require_like("used", used, ArraySpec((1,), np.dtype(np.int64)))


def _require_past(past: tuple[Array, Array], k: Array, v: Array) -> None:
    if not isinstance(past, tuple) or len(past) != 2:
        raise TypeError(f"past must be a pair of keys and values, got {type(past).__name__}")
    S = require_array("past keys", past[0]).shape[1:2]
    for name, before, now in zip(("keys", "values"), past, (k, v), strict=True):
        require_like(f"past {name}", before, ArraySpec((now.shape[0], *S, *now.shape[2:]), now.dtype))
