"""The paper's equations taken literally: whole M-vectors, raw sums S and z, one loop over time.

Slow and memory-hungry on purpose (every address has M entries). It shares no code with the fast path, so that the two
are independent ways to the same numbers: an oracle for tests, and the first thing to read in a notebook.
Source: paper eq. 4 to 7; the options of the authors' package ramnet-ops.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ramnet_np.contract import Array, RAMState

# The share of S and z that is left where w is written. The oracle states each rule itself, as literally as possible.
RETAINED = {
    "pdma": lambda w, gamma: (1 - w) ** gamma,
    "gsu": lambda w, gamma: (1 - w) / ((1 - w) + np.exp(gamma) * w),
}


def dense_address(
    logits: Array, top_k: int = 8, renorm: bool = False, cape_heads: int = 0, positions: Array | None = None
) -> np.ndarray:
    """The addresses of every token and head as M-vectors, zero but for K entries: (B, T, H, M).

    ``logits``: (B, T, H, U, P). Equations 4 (product softmax), 5 (top-K) and 6 (CAPE).

    >>> a = dense_address(np.log([[[[[0.9, 0.1], [0.2, 0.8]]]]]), top_k=2)  # slot = d0 + 2 * d1
    >>> a.ravel().round(2).tolist()
    [0.18, 0.0, 0.72, 0.0]
    """
    B, T, H, U, P = logits.shape
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    # eq. 4: the outer product of the digits; digit u + 1 is more significant, so it is the slower axis
    rho = p[..., 0, :]
    for u in range(1, U):
        rho = (p[..., u, :, None] * rho[..., None, :]).reshape(B, T, H, P ** (u + 1))
    # eq. 5: keep the K largest, the earlier slot of equals
    kept = np.argsort(-rho, axis=-1, kind="stable")[..., :top_k]
    a = np.zeros_like(rho)
    np.put_along_axis(a, kept, np.take_along_axis(rho, kept, axis=-1), axis=-1)
    if renorm:
        a = a / a.sum(axis=-1, keepdims=True)
    # eq. 6: [P_t(a)]_i = a_{(i + t) mod M}
    positions = np.broadcast_to(np.arange(T) if positions is None else positions, (B, T))
    for b, t in np.ndindex(B, T):
        a[b, t, :cape_heads] = np.roll(a[b, t, :cape_heads], -int(positions[b, t]), axis=-1)
    return a


def dense_ram_attention(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array = 1.0,
    *,
    update: str = "pdma",
    top_k: int | tuple[int, int] = 8,
    renorm: bool | tuple[bool, bool] = False,
    cape_heads: int = 0,
    positions: Array | None = None,
    mask: Array | None = None,
    state: RAMState | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    cu_seqlens: Array | None = None,
) -> tuple[np.ndarray, RAMState]:
    """``ram_attention_forward`` with every M-vector written out: returns y (B, T, H, C) and the final state.

    Equation 7: S_t = retained * S_{t-1} + w v^T, z_t = retained * z_{t-1} + w, o = r (S / (z + eps)).
    ``cu_seqlens``: packed sequences are computed one by one.
    Time and memory are O(T M C) per head. ValueError for an update rule that is not stated here.

    >>> rng = np.random.default_rng(0)
    >>> write_logits, read_logits = rng.normal(size=(2, 1, 5, 1, 3, 2))
    >>> y, state = dense_ram_attention(write_logits, read_logits, rng.normal(size=(1, 5, 1, 4)), top_k=2)
    >>> y.shape, state.slots.shape
    ((1, 5, 1, 4), (1, 1, 8, 4))
    """
    if update not in RETAINED:
        raise ValueError(f"update must be {' or '.join(map(repr, RETAINED))} for the dense oracle, got {update!r}")
    if cu_seqlens is not None:
        options = {
            "update": update, "top_k": top_k, "renorm": renorm, "cape_heads": cape_heads, "mass_aware": mass_aware,
            "eps": eps,
        }  # fmt: skip
        return _one_by_one(cu_seqlens, write_logits, read_logits, values, gamma, positions, mask, state, options)
    B, T, H, U, P = write_logits.shape
    M, C = P**U, values.shape[-1]
    write_k, read_k = top_k if isinstance(top_k, tuple) else (top_k, top_k)
    write_renorm, read_renorm = renorm if isinstance(renorm, tuple) else (renorm, renorm)
    w = dense_address(write_logits, write_k, write_renorm, cape_heads, positions)  # (B, T, H, M)
    r = dense_address(read_logits, read_k, read_renorm, cape_heads, positions)
    gamma = np.broadcast_to(np.asarray(gamma, dtype=values.dtype), (B, T, H))

    if state is None:
        S, z = np.zeros((B, H, M, C), values.dtype), np.full((B, H, M), 1 / M, values.dtype)
    else:
        S, z = state.slots * state.mass[..., None], state.mass
    y = np.zeros_like(values)
    for t in range(T):
        w_t, g_t = w[:, t], gamma[:, t, :, None]
        retained = RETAINED[update](w_t, g_t)
        valid = np.ones((B, 1, 1), bool) if mask is None else mask[:, t, None, None]
        S = np.where(valid[..., None], retained[..., None] * S + w_t[..., None] * values[:, t, :, None, :], S)
        z = np.where(valid, retained * z + w_t, z)
        r_t = r[:, t]
        if mass_aware:
            r_t = r_t.sum(-1, keepdims=True) * r_t * z / ((r_t * z).sum(-1, keepdims=True) + eps)
        o = (r_t[..., None] * S / (z + eps)[..., None]).sum(axis=-2)
        y[:, t] = np.where(valid, o, 0)
    return y, RAMState(S / (z + eps)[..., None], z)


def _one_by_one(
    cu_seqlens: Array,
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array,
    positions: Array | None,
    mask: Array | None,
    state: RAMState | None,
    options: dict[str, Any],
) -> tuple[np.ndarray, RAMState]:
    """The sequences of a packed row, each as if it were alone: y (1, T, H, C) and the states (N, H, M, C)."""
    ys, states = [], []
    for n, (begin, end) in enumerate(itertools.pairwise(cu_seqlens)):
        own = slice(begin, end)
        y, final = dense_ram_attention(
            write_logits[:, own],
            read_logits[:, own],
            values[:, own],
            gamma[:, own] if isinstance(gamma, np.ndarray) else gamma,
            positions=None if positions is None else positions[..., own],
            mask=None if mask is None else mask[:, own],
            state=None if state is None else RAMState(state.slots[n : n + 1], state.mass[n : n + 1]),
            **options,
        )
        ys.append(y)
        states.append(final)
    return np.concatenate(ys, axis=1), RAMState(*map(np.concatenate, zip(*states, strict=True)))
