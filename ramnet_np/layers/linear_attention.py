"""Causal linear attention: a sum of outer products of features and values is all that a token leaves behind.

Tokens are taken in chunks. Within one, every query meets every earlier key, as in softmax attention without the
exponential; what came before a chunk is one matrix. All chunks go through the same few products; only the sum of the
matrices runs from chunk to chunk. A last channel of ones on the values makes the normaliser, where there is one, one
more column.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_heads, require_like
from ramnet_np.layers.activation import Activation
from ramnet_np.layers.feature_map import FEATURE_MAPS, NEVER_NEGATIVE, FeatureMap
from ramnet_np.layers.heads import from_chunks, to_chunks
from ramnet_np.layers.matmul import matmul

EPS = 1e-6  # added to the normaliser, which may underflow


@readable
class LinearAttentionContext(NamedTuple):
    """What ``linear_attention_backward`` needs, in chunks of N tokens. G = B*H."""

    q: Array  # (G, chunks, N, d_k): phi(q)
    k: Array  # phi(k)
    v: Array  # (G, chunks, N, d_v + 1): the last channel is 1; without a normaliser (G, chunks, N, d_v)
    scores: Array  # (G, chunks, N, N)
    starts: Array  # (G, chunks, d_k, d_v + 1 or d_v): the state before each chunk
    y: Array | None  # (G, chunks, N, d_v); None without a normaliser, as is the next
    normaliser: Array | None  # (G, chunks, N, 1)
    features: tuple[Activation, Any, Any]  # phi, and what it kept of q and of k
    like: ArraySpec


class LinearAttentionGrads(NamedTuple):
    """One gradient per input."""

    q: Array
    k: Array
    v: Array


@on_gpu_of_arrays
def linear_attention_forward(
    q: Array,
    k: Array,
    v: Array,
    state: Array | None = None,
    *,
    feature_map: FeatureMap = "elu",
    normaliser: bool = True,
) -> tuple[Array, Array, LinearAttentionContext]:
    """Every token adds its value under its features, and reads what was added under features like its own.

        S_t = S_{t-1} + phi(k_t) v_t^T    z_t = z_{t-1} + phi(k_t)
        y_t = S_t^T phi(q_t) / (z_t . phi(q_t) + 1e-6)

    ``q``, ``k``: (B, T, H, d_k); ``v``: (B, T, H, d_v); ``state``: (B, H, d_k, d_v + 1), S with z as its last column,
    before the first token; None is zero. It is taken as constant. ``feature_map``: phi, "elu" is elu(x) + 1.
    ``normaliser``: False leaves out z and the division; the state is then S, (B, H, d_k, d_v). Features that may be
    negative have none, as their sum may be 0. Returns y (B, T, H, d_v), the state after the last token, and ctx.
    Cost: 4 T d_k d_v operations for each sequence and head for the state, 2 T N (d_k + d_v) within chunks of N tokens.
    ValueError or TypeError where shapes or dtypes do not fit, for a feature map that is unknown or has no normaliser,
    and for a ``normaliser`` that is neither True nor False.
    Source: Katharopoulos et al., arXiv 2006.16236, eq. 7 and 18 to 20; other maps: feature_map.py.

    >>> import numpy as np
    >>> q = k = np.zeros((1, 3, 1, 2))  # all features alike: a mean
    >>> y, state, ctx = linear_attention_forward(q, k, np.array([3.0, 5.0, 10.0]).reshape(1, 3, 1, 1))
    >>> y.ravel().round(5).tolist(), state.tolist()
    ([3.0, 4.0, 6.0], [[[[18.0, 3.0], [18.0, 3.0]]]])
    """
    B, T, H, d_v = require_heads(q, k, v)
    d_k = q.shape[-1]
    xp = namespace_of(q, k, v)
    columns = d_v + 1 if normaliser else d_v
    require_normaliser(feature_map, normaliser)
    if state is not None:
        require_like("state", state, ArraySpec((B, H, d_k, columns), q.dtype))
    # 1. features; values with a channel of ones
    phi = FEATURE_MAPS[feature_map]
    (q, q_ctx), (k, k_ctx) = phi.forward(q), phi.forward(k)
    if normaliser:
        ones = xp.ones((B, T, H, columns), dtype=v.dtype)
        ones[..., :d_v] = v
        v = ones
    q, k, v = to_chunks(q), to_chunks(k), to_chunks(v)
    # 2. within chunks
    scores = matmul(q, k.swapaxes(-1, -2))
    scores *= xp.tri(scores.shape[-1], dtype=scores.dtype)
    sums = matmul(scores, v)
    # 3. the state before each chunk
    added = matmul(k.swapaxes(-1, -2), v)
    starts = xp.empty_like(added)
    running = xp.zeros_like(added[:, 0]) if state is None else state.reshape(added[:, 0].shape)
    for chunk in range(added.shape[1]):
        starts[:, chunk] = running
        running = running + added[:, chunk]
    matmul(q, starts, accumulate_into=sums)
    # 4. divide
    y = divisor = None
    if normaliser:
        divisor = sums[..., d_v:] + EPS
        y = sums[..., :d_v] / divisor
    like = ArraySpec((B, T, H, d_v), q.dtype)
    ctx = LinearAttentionContext(q, k, v, scores, starts, y, divisor, (phi, q_ctx, k_ctx), like)
    return from_chunks(sums if y is None else y, T, H), running.reshape(B, H, d_k, columns), ctx


@on_gpu_of_arrays
def linear_attention_backward(dy: Array, ctx: LinearAttentionContext) -> LinearAttentionGrads:
    """Gradients of q, k and v. With n_t the normaliser, and [v, 1] the value with its channel of ones:

        dm_t = [dy_t, -dy_t . y_t] / n_t              of the sums m_t = [S_t, z_t]^T phi(q_t)
        dphi(q_t) = [S_t, z_t] dm_t        R_t = R_{t+1} + phi(q_t) dm_t^T, in reverse time
        dphi(k_t) = R_t [v_t, 1]           dv_t = R_t^T phi(k_t), without its last channel

    Without a normaliser dm_t = dy_t. In chunks as the forward; twice its cost.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> q = k = np.zeros((1, 2, 1, 2))
    >>> y, _, ctx = linear_attention_forward(q, k, np.ones((1, 2, 1, 1)))
    >>> linear_attention_backward(np.ones_like(y), ctx).v.ravel().round(5).tolist()
    [1.5, 0.5]
    """
    require_context(ctx, LinearAttentionContext, "linear_attention_forward")
    require_like("dy", dy, ctx.like)
    xp = namespace_of(dy)
    (_, T, H, d_v), (q, k, v) = ctx.like.shape, ctx[:3]
    dy = to_chunks(dy)
    # 4. y = sums / normaliser
    dsums = dy
    if ctx.normaliser is not None:
        dsums = xp.empty_like(v)
        xp.divide(dy, ctx.normaliser, out=dsums[..., :d_v])
        dsums[..., d_v:] = -(dsums[..., :d_v] * ctx.y).sum(axis=-1, keepdims=True)
    # 3. sums += q starts, starts_c = added_0 + .. + added_{c-1}
    dstarts = matmul(q.swapaxes(-1, -2), dsums)
    dadded = xp.empty_like(dstarts)
    running = xp.zeros_like(dstarts[:, 0])
    for chunk in reversed(range(dstarts.shape[1])):
        dadded[:, chunk] = running
        running = running + dstarts[:, chunk]
    dq = matmul(dsums, ctx.starts.swapaxes(-1, -2))
    dk = matmul(v, dadded.swapaxes(-1, -2))
    dv = matmul(k, dadded)
    # 2. sums = tril(q k^T) v
    dscores = matmul(dsums, v.swapaxes(-1, -2))
    dscores *= xp.tri(dscores.shape[-1], dtype=dscores.dtype)
    matmul(dscores, k, accumulate_into=dq)
    matmul(dscores.swapaxes(-1, -2), q, accumulate_into=dk)
    matmul(ctx.scores.swapaxes(-1, -2), dsums, accumulate_into=dv)
    # 1. features
    dq, dk, dv = (from_chunks(d, T, H) for d in (dq, dk, dv[..., :d_v]))
    phi, q_ctx, k_ctx = ctx.features
    return LinearAttentionGrads(phi.backward(dq, q_ctx), phi.backward(dk, k_ctx), dv)


def require_normaliser(feature_map: str, normaliser: bool) -> None:
    """ValueError or TypeError unless ``feature_map`` is one of feature_map.py, never negative with a normaliser.

    >>> require_normaliser("silu", True)
    Traceback (most recent call last):
        ...
    ValueError: normaliser must be False for feature_map 'silu', as a sum of features with both signs may be 0, got True
    """
    if not isinstance(feature_map, str) or feature_map not in FEATURE_MAPS:
        raise ValueError(f"feature_map must be one of {', '.join(map(repr, FEATURE_MAPS))}, got {feature_map!r}")
    if not isinstance(normaliser, bool):
        raise TypeError(f"normaliser must be True or False, got {normaliser!r}")
    if normaliser and feature_map not in NEVER_NEGATIVE:
        raise ValueError(
            f"normaliser must be False for feature_map {feature_map!r}, as a sum of features with both signs may be 0, "
            "got True"
        )
