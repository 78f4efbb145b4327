"""The gated delta rule: a matrix that maps keys to values; a write first takes off what its key recalled.

    S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T        y_t = S_t q_t

Tokens are taken in chunks of N. With M the transpose of the S that a chunk starts from and g_t = a_1 .. a_t within it,
S_t = g_t M^T + sum_s<=t (g_t / g_s) u_s k_s^T, where u_t = b_t (v_t - a_t S_{t-1} k_t) is what token t really adds. The
u of a chunk solve one triangular system, whose inverse R is the same for whatever M:

    A_ts = k_t . k_s g_t / g_s   (s < t)        R = (I + diag(b) A)^-1
    U    = R diag(b) V - R diag(b g) K M        P_ts = q_t . k_s g_t / g_s   (s <= t)
    Y    = diag(g) Q M + P U                    next M = g_N M + K^T diag(g_N / g) U

So all chunks go through the same few batched products; only U and M run from chunk to chunk, two products each.
Source: Yang et al., arXiv 2406.06484 (the delta rule in chunks, after the WY representation of products of reflections)
and arXiv 2412.06464, eq. 10 (with the gate a).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_heads, require_like
from ramnet_np.layers.heads import from_chunks, to_chunks
from ramnet_np.layers.matmul import matmul
from ramnet_np.layers.triangular import unit_lower_inverse

RESET = {4: -104.0, 8: -746.0}  # by bytes of a number: log a from which on exp(log a) is 0


@readable
class DeltaRuleContext(NamedTuple):
    """What ``delta_rule_backward`` needs, in chunks of N tokens. G = B*H."""

    q: Array  # (G, chunks, N, d_k)
    k: Array
    v: Array  # (G, chunks, N, d_v)
    beta: Array  # (G, chunks, N, 1)
    log_g: Array  # (G, chunks, N, 1): log(a_1 .. a_t)
    A: Array  # (G, chunks, N, N)
    P: Array
    R: Array
    Z: Array  # (G, chunks, N, d_v + d_k): R diag(b) [V, -diag(g) K]
    U: Array  # (G, chunks, N, d_v)
    starts: Array  # (G, chunks, d_k, d_v): M of each chunk
    above_reset: Array  # (B, T, H) bool: where log_decay is more than a reset, and has a gradient; None without one
    y: ArraySpec


class DeltaRuleGrads(NamedTuple):
    """One gradient per input; ``log_decay`` is None where there was none."""

    q: Array
    k: Array
    v: Array
    beta: Array
    log_decay: Array


@on_gpu_of_arrays
def delta_rule_forward(
    q: Array, k: Array, v: Array, beta: Array, log_decay: Array | None = None, state: Array | None = None
) -> tuple[Array, Array, DeltaRuleContext]:
    """Write each value under its key in place of what the key recalled, then read with the query.

        S_t = a_t S_{t-1} (I - b_t k_t k_t^T) + b_t v_t k_t^T        y_t = S_t q_t        a_t = exp(log_decay_t)

    ``q``, ``k``: (B, T, H, d_k), keys of length 1 (with longer ones and b near 1 the state may grow without bound);
    ``v``: (B, T, H, d_v); ``beta``: b, (B, T, H), between 0 and 1; ``log_decay``: (B, T, H), 0 or less; None is a = 1,
    DeltaNet. ``state``: (B, H, d_k, d_v), the transpose of S before the first token; None is zero. It is
    taken as constant. Returns y (B, T, H, d_v), the state after the last token, and ctx.
    Cost: 6 T d_k d_v operations for each sequence and head for the state, about 2 T N (3 d_k + 2 d_v + N / 3) within
    chunks of N tokens. Decays between tokens come from sums of ``log_decay`` within a chunk, in the arrays' dtype. A
    decay that is 0 in that dtype, a reset, counts as the first such number (log a = -104 in float32) however far below
    it lies. Behind n resets of a chunk, float32 then has the decays right to about n in 50,000.
    ValueError or TypeError where shapes or dtypes do not fit, and for a ``log_decay`` above 0 or NaN (looked for in
    NumPy arrays alone: on a GPU it would wait for the device).
    Source: Yang et al., arXiv 2412.06464, eq. 10; without the gate Schlag et al., arXiv 2102.11174, eq. 24.

    >>> import numpy as np
    >>> k = np.ones((1, 3, 1, 1))  # one key, three values: each replaces the last one, the third by half
    >>> v = np.array([3.0, 5.0, 9.0]).reshape(1, 3, 1, 1)
    >>> y, state, ctx = delta_rule_forward(k, k, v, beta=np.array([[[1.0], [1.0], [0.5]]]))
    >>> y.ravel().tolist(), state.ravel().tolist()
    ([3.0, 5.0, 7.0], [7.0])
    """
    B, T, H, d_v = require_heads(q, k, v)
    d_k = q.shape[-1]
    xp = namespace_of(q, k, v, beta)
    require_like("beta", beta, ArraySpec((B, T, H), q.dtype))
    if log_decay is not None:
        require_like("log_decay", log_decay, ArraySpec((B, T, H), q.dtype))
        if array_kind(log_decay) == "numpy" and not log_decay.max() <= 0:  # NaN is neither
            raise ValueError(f"log_decay must be 0 or less, got a maximum of {log_decay.max()}")
    if state is not None:
        require_like("state", state, ArraySpec((B, H, d_k, d_v), q.dtype))
    # 1. chunks; g as a running sum of logarithms
    q, k, v, beta = to_chunks(q), to_chunks(k), to_chunks(v), to_chunks(beta[..., None])
    G, chunks = q.shape[:2]
    log_g, above_reset = xp.zeros_like(beta), None
    if log_decay is not None:
        reset = log_decay.dtype.type(RESET[log_decay.dtype.itemsize])
        above_reset = log_decay > reset
        log_g = _running_sums(xp, to_chunks(xp.maximum(log_decay, reset)[..., None]))
    g = xp.exp(log_g)
    # 2. within chunks
    k_t = k.swapaxes(-1, -2)
    A, P, L = apply_decay(matmul(k, k_t), matmul(q, k_t), beta, log_g)
    R = unit_lower_inverse(L)
    X = xp.empty((*k.shape[:-1], d_v + d_k), dtype=k.dtype)
    xp.multiply(beta, v, out=X[..., :d_v])
    xp.multiply(-beta * g, k, out=X[..., d_v:])
    Z = matmul(R, X)
    # 3. from chunk to chunk
    U = Z[..., :d_v].copy()
    late_k, kept = _to_the_end(xp, k, log_g)
    starts = xp.empty((G, chunks, d_k, d_v), dtype=q.dtype)
    starts[:, 0] = 0 if state is None else state.reshape(G, d_k, d_v)
    for chunk in range(chunks):
        M = starts[:, chunk]
        matmul(Z[:, chunk, :, d_v:], M, accumulate_into=U[:, chunk])
        after = M * kept[:, chunk]
        matmul(late_k[:, chunk].swapaxes(-1, -2), U[:, chunk], accumulate_into=after)
        if chunk + 1 < chunks:
            starts[:, chunk + 1] = after
    # 4. reads
    y = matmul(g * q, starts)
    matmul(P, U, accumulate_into=y)
    like = ArraySpec((B, T, H, d_v), q.dtype)
    ctx = DeltaRuleContext(q, k, v, beta, log_g, A, P, R, Z, U, starts, above_reset, like)
    return from_chunks(y, T, H), after.reshape(B, H, d_k, d_v), ctx


@on_gpu_of_arrays
def delta_rule_backward(dy: Array, ctx: DeltaRuleContext) -> DeltaRuleGrads:
    """Gradients of q, k, v, beta and log_decay: the forward's steps, last one first.

    In reverse over the chunks, with dM' the gradient of the next chunk's M (0 for the last):

        dU = P^T dY + diag(g_N / g) K dM'        dM = g_N dM' + Q^T diag(g) dY - K^T diag(b g) R^T dU

    then for all chunks at once, with X = diag(b) [V, -diag(g) K] and Z = R X:

        dP = dY U^T    dZ = [dU, dU M^T]    dX = R^T dZ    d(diag(b) A) = -dX Z^T

    since d(R^-1) = -R^T dR R^T. About twice the forward's cost.
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> k = np.ones((1, 2, 1, 1))
    >>> y, _, ctx = delta_rule_forward(k, k, k, beta=np.array([[[1.0], [0.25]]]))
    >>> delta_rule_backward(np.ones_like(y), ctx).v.ravel().tolist()
    [1.75, 0.25]
    """
    require_context(ctx, DeltaRuleContext, "delta_rule_forward")
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    T, H, d_v = ctx.y.shape[1:]
    q, k, v, beta, log_g, A, P, R, Z, U, starts = ctx[:11]
    chunks = q.shape[1]
    dy, g = to_chunks(dy), xp.exp(log_g)
    late_k, kept = _to_the_end(xp, k, log_g)
    # 4. Y = g Q M + P U; 3. U = Ub + W M, next M = g_N M + late_k^T U, last chunk first
    dU = matmul(P.swapaxes(-1, -2), dy)
    dstarts = matmul((g * q).swapaxes(-1, -2), dy)
    dafter = xp.zeros_like(dstarts)
    for chunk in reversed(range(chunks)):
        if chunk + 1 < chunks:
            dafter[:, chunk] = dstarts[:, chunk + 1]
            matmul(late_k[:, chunk], dafter[:, chunk], accumulate_into=dU[:, chunk])
            dstarts[:, chunk] += kept[:, chunk] * dafter[:, chunk]
        matmul(Z[:, chunk, :, d_v:].swapaxes(-1, -2), dU[:, chunk], accumulate_into=dstarts[:, chunk])
    starts_t = starts.swapaxes(-1, -2)
    dP, dgq, dlate_k = matmul(dy, U.swapaxes(-1, -2)), matmul(dy, starts_t), matmul(U, dafter.swapaxes(-1, -2))
    # 2. Z = R X, X = b [V, -g K]
    dZ = xp.zeros_like(Z)
    dZ[..., :d_v] = dU
    matmul(dU, starts_t, accumulate_into=dZ[..., d_v:])
    dX = matmul(R.swapaxes(-1, -2), dZ)
    dL = matmul(dX, Z.swapaxes(-1, -2))
    xp.negative(dL, out=dL)
    dbv, dgk = dX[..., :d_v], dX[..., d_v:] * -g
    dv = beta * dbv
    dk = beta * dgk
    dlog_g = (dk * k).sum(axis=-1, keepdims=True)
    dbeta = (dbv * v).sum(axis=-1, keepdims=True) + (dgk * k).sum(axis=-1, keepdims=True)
    # L = b A, A and P with their decays
    dkk, dqk, dbeta_A, dlog_g_AP = apply_decay_backward(dL, dP, A, P, beta, log_g)
    dbeta += dbeta_A
    dlog_g += dlog_g_AP
    dq = g * dgq
    dlog_g += (dq * q).sum(axis=-1, keepdims=True)
    matmul(dqk, k, accumulate_into=dq)
    matmul(dqk.swapaxes(-1, -2), q, accumulate_into=dk)
    matmul(dkk, k, accumulate_into=dk)
    matmul(dkk.swapaxes(-1, -2), k, accumulate_into=dk)
    # late_k = (g_N / g) K, g_N
    dlate_k *= xp.exp(log_g[..., -1:, :] - log_g)
    dk += dlate_k
    dlog_decay = None
    if ctx.above_reset is not None:
        pull = (dlate_k * k).sum(axis=-1, keepdims=True)
        dlog_g -= pull
        dlog_g[..., -1:, :] += pull.sum(axis=-2, keepdims=True)
        dlog_g[..., -1:, :] += kept * (dafter * starts).sum(axis=(-1, -2), keepdims=True)
        # 1. g = exp(running sums), each term at least a reset
        dlog_decay = from_chunks(_running_sums(xp, dlog_g, reverse=True), T, H)[..., 0]
        dlog_decay = dlog_decay * ctx.above_reset
    dq, dk, dv, dbeta = (from_chunks(d, T, H) for d in (dq, dk, dv, dbeta))
    return DeltaRuleGrads(dq, dk, dv, dbeta[..., 0], dlog_decay)


def _running_sums(xp: Any, x: Array, *, reverse: bool = False) -> Array:
    """Sums over the tokens of each chunk (G, chunks, N, 1) up to and with each one, or from each one on."""
    N = x.shape[-2]
    ones = xp.tri(N, dtype=x.dtype)
    return matmul(x.reshape(-1, N), ones if reverse else ones.T).reshape(x.shape)


def _to_the_end(xp: Any, k: Array, log_g: Array) -> tuple[Array, Array]:
    """diag(g_N / g) K, by which a chunk's U reaches the next M, and g_N, (G, chunks, 1, 1)."""
    last = log_g[..., -1:, :]
    return k * xp.exp(last - log_g), xp.exp(last)


def _decay(xp: Any, log_g: Array) -> Array:
    """g_t / g_s for s <= t, else 0, (G, chunks, N, N)."""
    decay = log_g - log_g.swapaxes(-1, -2)
    xp.minimum(decay, 0, out=decay)  # above the diagonal it is not wanted and may overflow
    xp.exp(decay, out=decay)
    decay *= xp.tri(decay.shape[-1], dtype=decay.dtype)
    return decay


@accelerated
def apply_decay(kk: Array, qk: Array, beta: Array, log_g: Array) -> tuple[Array, Array, Array]:
    """A and P from the products k_t . k_s and q_t . k_s, and L = diag(b) A. OVERWRITES ``kk`` and ``qk``.

        A_ts = kk_ts g_t / g_s (s < t)        P_ts = qk_ts g_t / g_s (s <= t)        L_ts = b_t A_ts

    ``kk``, ``qk``: (..., N, N), C-contiguous; ``beta``, ``log_g``: (..., N, 1). Returns A, P, L of the shape of kk.

    >>> import numpy as np
    >>> kk, qk, beta, log_g = np.ones((2, 2)), np.ones((2, 2)), np.full((2, 1), 0.5), np.log([[1.0], [0.5]])
    >>> [m.tolist() for m in apply_decay(kk, qk, beta, log_g)]
    [[[0.0, 0.0], [0.5, 0.0]], [[1.0, 0.0], [0.5, 1.0]], [[0.0, 0.0], [0.25, 0.0]]]
    """
    xp = namespace_of(kk)
    decay = _decay(xp, log_g)
    qk *= decay
    decay *= xp.tri(decay.shape[-1], k=-1, dtype=decay.dtype)
    kk *= decay
    return kk, qk, beta * kk


@accelerated
def apply_decay_backward(
    dL: Array, dP: Array, A: Array, P: Array, beta: Array, log_g: Array
) -> tuple[Array, Array, Array, Array]:
    """Gradients of k_t . k_s and q_t . k_s, of beta and of log_g. May OVERWRITE ``dL`` and ``dP``.

        d log g_t = sum_s F_ts - sum_s F_st, F = dL * L + dP * P, since A and P hold g_t / g_s

    ``dL``, ``dP``, ``A``, ``P``: (..., N, N), C-contiguous; ``beta``, ``log_g``: (..., N, 1).

    >>> import numpy as np
    >>> A, P, L = apply_decay(np.ones((2, 2)), np.ones((2, 2)), np.full((2, 1), 0.5), np.zeros((2, 1)))
    >>> grads = apply_decay_backward(np.ones((2, 2)), np.zeros((2, 2)), A, P, np.full((2, 1), 0.5), np.zeros((2, 1)))
    >>> [d.ravel().tolist() for d in grads]
    [[0.0, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0], [-0.5, 0.5]]
    """
    xp = namespace_of(dL)
    decay = _decay(xp, log_g)
    through_A, through = dL * A, dP * P
    dbeta = through_A.sum(axis=-1, keepdims=True)
    through += beta * through_A
    dlog_g = through.sum(axis=-1, keepdims=True) - through.sum(axis=-2)[..., None]
    dqk = dP * decay
    decay *= xp.tri(decay.shape[-1], k=-1, dtype=decay.dtype)
    dkk = dL * decay
    dkk *= beta
    return dkk, dqk, dbeta, dlog_g
