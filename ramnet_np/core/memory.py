"""The memory: every token writes K_w slots, then reads K_r slots.

    alpha = retention(w, gamma)                    what the slot's mass keeps
    z_t   = alpha * z_{t-1} + w                    mass
    eta   = w / (z_t + eps)
    s_t   = s_{t-1} + eta * (v_t - s_{t-1})        content: a convex combination of past values
    y_t   = sum_a r_t[a] * s_t[a]                  a read sees the same token's write

Only the slots that a sequence touches are ever held: they are numbered, and a table with one row each takes the place
of the M slots. Cost: O((K_w + K_r) C) per token and head, in time and in memory, whatever M is.
The mass-aware read of the authors' package weighs r by mass first; it lives in ``mass_aware.py``.
Source: paper eq. 7, divided through by z; docs/mathematics.md derives the backward as well.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Address, Array, MemoryGrads, MemoryOptions, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.mass_aware import mass_aware_backward, mass_aware_forward
from ramnet_np.core.packed import sequence_of_tokens
from ramnet_np.core.require import readable
from ramnet_np.core.retention import retention_backward, retention_forward


@readable
class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs."""

    w: Array  # (B, T, H, K_w) write weights, zero at masked tokens
    r: Array  # (B, T, H, K_r) read weights, zero at masked tokens
    v: Array  # (B, T, H, C) values, zero at masked tokens
    gamma: Array  # (B, T, H, 1)
    alpha: Array  # (B, T, H, K_w)
    write_row: Array  # (B, T, H, K_w) rows of the table of touched slots
    read_row: Array  # (B, T, H, K_r)
    touched: Array  # (N,) the slot of each row, as (m * H + h) * M + slot
    slots: Array  # (N, C) contents after the last token: the backward unwinds a copy of them ...
    mass: Array  # (N,)
    old_slots: Array  # (B, T, H, K_w, C) ... with the contents that each write replaced: dividing by 1 - eta
    old_mass: Array  # (B, T, H, K_w)     would recover them too, but not at eta = 1, and not exactly
    mask: Array
    given_states: int | None  # how many memories started from a given state; None if none was given
    options: MemoryOptions


def memory_forward(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any = None,
) -> tuple[Array, RAMState | None, MemoryContext]:
    """Write and read token by token. Returns y (B, T, H, C), the state after the last token (or None), ctx.

    ``values``: (B, T, H, C); ``gamma``: a float or (B, T, H); ``mask``: (B, T) bool or None. A masked token writes
    with weight 0, which changes nothing, and reads with weight 0, which gives 0.
    ``cu_seqlens``: (N + 1,) int64 offsets of packed sequences, or None. Every row of a batch has a memory of its own,
    and so has every packed sequence: that is all that tells them apart.
    Arguments are taken as checked (``core/checks.py``). Source: paper eq. 7.

    >>> import numpy as np
    >>> address = Address(np.full((1, 2, 1, 1), 3), np.full((1, 2, 1, 1), 0.5))
    >>> values = np.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> options = MemoryOptions(slots=4)
    >>> y, state, ctx = memory_forward(address, address, values, 1.0, None, None, options, return_state=True)
    >>> y.ravel().round(3).tolist(), state.mass.ravel().round(4).tolist()
    ([0.4, 1.077], [0.25, 0.25, 0.25, 0.8125])
    """
    xp = namespace_of(values)
    B, T, H, C = values.shape
    w, r, v = (_where_kept(mask, x) for x in (write.weight, read.weight, values))
    gamma = xp.broadcast_to(xp.asarray(gamma, dtype=w.dtype), (B, T, H))[..., None]

    # 1. number the slots that are touched
    memory = xp.arange(B)[:, None] if cu_seqlens is None else xp.asarray(sequence_of_tokens(cu_seqlens))[None]
    write_row, read_row, touched = _number_touched(write.index, read.index, memory, options.slots)
    slots, mass = _load(state, touched, C, options.slots, v.dtype)
    # 2. retention depends on the write alone: all tokens at once
    alpha = retention_forward(w, gamma, options.update)

    y = xp.empty_like(v)
    old_slots = xp.empty((*w.shape, C), dtype=v.dtype)
    old_mass = xp.empty_like(w)
    for t in range(T):
        # 3. write: rows do not repeat within a token (K distinct slots a head, heads have rows of their own),
        #    so plain indexed assignment is safe
        row = write_row[:, t]
        s, z = slots[row], mass[row]
        old_slots[:, t], old_mass[:, t] = s, z
        z = alpha[:, t] * z + w[:, t]
        eta = w[:, t] / (z + options.eps)
        slots[row] = s + eta[..., None] * (v[:, t, :, None] - s)
        mass[row] = z
        # 4. read
        row = read_row[:, t]
        r_t = mass_aware_forward(r[:, t], mass[row], options.eps) if options.mass_aware else r[:, t]
        y[:, t] = (r_t[..., None, :] @ slots[row])[..., 0, :]

    memories = B if cu_seqlens is None else cu_seqlens.size - 1
    final = _store(state, touched, slots, mass, (memories, H, options.slots, C)) if return_state else None
    ctx = MemoryContext(
        w, r, v, gamma, alpha, write_row, read_row, touched, slots, mass, old_slots, old_mass,
        mask, memories if state is not None else None, options,
    )  # fmt: skip
    return y, final, ctx


def memory_backward(dy: Array, dstate: RAMState | None, ctx: MemoryContext) -> MemoryGrads:
    """The same tokens in reverse, with adjoints ds (N, C) and dz (N,) of the table's rows.

    ``dy``: (B, T, H, C); ``dstate``: gradient of the returned state, or None. Same cost as the forward.
    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> address = Address(np.full((1, 2, 1, 1), 3), np.full((1, 2, 1, 1), 0.5))
    >>> values = np.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> options = MemoryOptions(slots=4)
    >>> y, _, ctx = memory_forward(address, address, values, 1.0, None, None, options, return_state=False)
    >>> memory_backward(np.ones_like(y), None, ctx).values.ravel().round(3).tolist()
    [0.554, 0.308]
    """
    xp = namespace_of(dy)
    B, T, H, C = dy.shape
    eps, w, r, v = ctx.options.eps, ctx.w, ctx.r, ctx.v
    dy = _where_kept(ctx.mask, dy)
    slots, mass = ctx.slots.copy(), ctx.mass.copy()
    if dstate is None:
        ds, dz = xp.zeros_like(slots), xp.zeros_like(mass)
    else:
        ds, dz = _load(dstate, ctx.touched, C, ctx.options.slots, dy.dtype)

    # 2. (of the forward) the slopes of alpha
    slope_w, slope_gamma = retention_backward(w, ctx.gamma, ctx.alpha, ctx.options.update, ctx.options.proxy_eps)
    dw, dr, dv = xp.empty_like(w), xp.empty_like(r), xp.empty_like(v)
    dgamma = xp.empty((B, T, H), dtype=dy.dtype)
    for t in reversed(range(T)):
        # 4. y = sum_k r_k * s[row_k]
        row = ctx.read_row[:, t]
        dr_t = (slots[row] @ dy[:, t, :, :, None])[..., 0]
        r_t = r[:, t]
        if ctx.options.mass_aware:
            r_t = mass_aware_forward(r[:, t], mass[row], eps)
            dr_t, dz_read = mass_aware_backward(dr_t, r[:, t], mass[row], eps)
            dz[row] += dz_read  # rows do not repeat within a token: += adds each once, here and below
        dr[:, t] = dr_t
        ds[row] += r_t[..., None] * dy[:, t, :, None]
        # 3. s_t = s + eta * (v - s), with s and z as they were before the write
        row = ctx.write_row[:, t]
        s, z_old, z = ctx.old_slots[:, t], ctx.old_mass[:, t], mass[row]
        eta = w[:, t] / (z + eps)
        ds_t, dz_t = ds[row], dz[row]
        deta = ((v[:, t, :, None] - s) * ds_t).sum(axis=-1)
        dv[:, t] = (eta[..., None, :] @ ds_t)[..., 0, :]
        ds[row] = (1 - eta)[..., None] * ds_t
        #    eta = w / (z_t + eps)
        dw_t = deta / (z + eps)
        dz_t = dz_t - dw_t * eta
        #    z_t = alpha * z_{t-1} + w
        dalpha = dz_t * z_old
        dw[:, t] = dw_t + dz_t + dalpha * slope_w[:, t]
        dgamma[:, t] = (dalpha * slope_gamma[:, t]).sum(axis=-1)
        dz[row] = dz_t * ctx.alpha[:, t]
        slots[row], mass[row] = s, z_old

    # 1. masked tokens took part with weight 0: their inputs have no gradient
    dw, dr, dv, dgamma = (_where_kept(ctx.mask, x) for x in (dw, dr, dv, dgamma))
    dgiven = None
    if ctx.given_states is not None:
        shape = ctx.given_states, H, ctx.options.slots, C
        dgiven = _store(dstate, ctx.touched, ds, dz, shape, mass=0.0)
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


def memory_write_read(
    write: Address, read: Address, values: Array, gamma: Array, mask: Array, state: RAMState, options: MemoryOptions
) -> Array:
    """One token (T = 1): update ``state`` in place and return y (B, 1, H, C).

    Shapes as in :func:`memory_forward`. Source: docs/mathematics.md.

    >>> import numpy as np
    >>> address = Address(np.full((1, 1, 1, 1), 3), np.full((1, 1, 1, 1), 0.5))
    >>> state = RAMState.initial(batch=1, heads=1, slots=4, channels=1, dtype=np.float64)
    >>> y = memory_write_read(address, address, np.ones((1, 1, 1, 1)), 1.0, None, state, MemoryOptions(slots=4))
    >>> round(y.item(), 6), state.mass.ravel().tolist()
    (0.4, [0.25, 0.25, 0.25, 0.625])
    """
    xp = namespace_of(values)
    w, r, v = (_where_kept(mask, x)[:, 0] for x in (write.weight, read.weight, values))
    gamma = xp.broadcast_to(xp.asarray(gamma, dtype=w.dtype), values.shape[:3])[:, 0, :, None]
    b, h = xp.ogrid[: v.shape[0], : v.shape[1]]
    at = (b[..., None], h[..., None], write.index[:, 0])
    s, z = state.slots[at], state.mass[at]
    z = retention_forward(w, gamma, options.update) * z + w
    eta = w / (z + options.eps)
    state.slots[at] = s + eta[..., None] * (v[:, :, None] - s)
    state.mass[at] = z
    at = (b[..., None], h[..., None], read.index[:, 0])
    if options.mass_aware:
        r = mass_aware_forward(r, state.mass[at], options.eps)
    return (r[..., None, :] @ state.slots[at])[..., 0, :][:, None]


def _where_kept(mask: Array, x: Array) -> Array:
    """x (B, T, ...) with zeros at masked tokens."""
    if mask is None:
        return x
    return namespace_of(x).where(mask.reshape(*mask.shape, *(1,) * (x.ndim - 2)), x, 0)


def _number_touched(write_index: Array, read_index: Array, memory: Array, slots: int) -> tuple[Array, Array, Array]:
    """Rows for the touched slots: (write_row, read_row, touched), where touched[row] = (m * H + h) * M + slot.

    ``memory``: (B, T) or (B, 1), the number m of the memory that a token uses.
    """
    xp = namespace_of(write_index)
    H = write_index.shape[2]
    head = (memory[..., None] * H + xp.arange(H, dtype=xp.int64))[..., None] * slots
    keys = xp.concatenate([(head + write_index).ravel(), (head + read_index).ravel()])
    touched, row = xp.unique(keys, return_inverse=True)
    n = write_index.size
    return row[:n].reshape(write_index.shape), row[n:].reshape(read_index.shape), touched


def _load(state: RAMState | None, touched: Array, channels: int, slots: int, dtype: Any) -> tuple[Array, Array]:
    """The touched slots of a state, as a table: (N, C) contents and (N,) masses. None is the initial state."""
    xp = namespace_of(touched)
    if state is None:
        n = touched.size
        return xp.zeros((n, channels), dtype=dtype), xp.full(n, 1.0 / slots, dtype=dtype)
    return state.slots.reshape(-1, channels)[touched], state.mass.reshape(-1)[touched]


def _store(
    state: RAMState | None, touched: Array, s: Array, z: Array, shape: tuple[int, ...], mass: float | None = None
) -> RAMState:
    """A new state: ``state`` (None: s = 0 and z = ``mass``, by default 1/M) with the table's rows put in."""
    xp = namespace_of(s)
    B, H, M, C = shape
    if state is None:
        all_s = xp.zeros((B * H * M, C), dtype=s.dtype)
        all_z = xp.full(B * H * M, 1.0 / M if mass is None else mass, dtype=z.dtype)
    else:
        all_s, all_z = state.slots.reshape(-1, C).copy(), state.mass.reshape(-1).copy()
    all_s[touched], all_z[touched] = s, z
    return RAMState(all_s.reshape(shape), all_z.reshape(shape[:3]))
