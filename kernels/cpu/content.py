"""The channels of the memory, given the coefficients of ``mass.py``: versions of slot contents, forward and backward.

Every channel goes its own way, so a (batch, head) is cut into slices of channels where there are few heads. The cut
depends on shapes alone, and sums over slices are taken in their order: any number of threads gives the same bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

UNITS = 8  # slice channels until there are about so many pieces of work ...
NARROWEST = 16  # ... but not thinner than this


def slice_width(units: int, channels: int) -> int:
    """Channels a slice: all of them where ``units`` = B*H is large enough.

    >>> slice_width(8, 64), slice_width(2, 64), slice_width(4, 64), slice_width(1, 20)
    (64, 16, 32, 20)
    """
    pieces = -(-UNITS // max(units, 1))
    if pieces == 1 or channels < 2 * NARROWEST:
        return channels
    return max(NARROWEST, -(-channels // (pieces * NARROWEST)) * NARROWEST)


@njit(cache=True, parallel=True)
def content_forward(values, mask, state_slots, base, width, writes, reads, rows, versions, y):
    """y (B, T, H, C) and ``versions`` (B*H, base + T*K_w, C) from values (B, T, H, C)."""
    H, C = values.shape[2], values.shape[3]
    slices = (C + width - 1) // width
    for piece in prange(versions.shape[0] * slices):
        unit, part = np.int64(piece) // slices, np.int64(piece) % slices
        _content_forward_piece(
            unit, unit // H, unit % H, part * width, min((part + 1) * width, C), values, mask, state_slots, base,
            writes, reads, rows, versions[unit], y,
        )  # fmt: skip


@njit(cache=True)
def _content_forward_piece(unit, b, h, c0, c1, values, mask, state_slots, base, writes, reads, rows, versions, y):
    T = values.shape[1]
    Kw, Kr = writes.row.shape[2], reads.row.shape[2]
    zero = values.dtype.type(0)
    if state_slots.size > 0:
        for row in range(rows.used[unit]):
            for c in range(c0, c1):
                versions[row, c] = state_slots[b, h, rows.slot[unit, row], c]
    else:
        for c in range(c0, c1):
            versions[0, c] = zero
    for t in range(T):
        out = y[b, t, h, c0:c1]
        for c in range(out.size):
            out[c] = zero
        if mask.size > 0 and not mask[b, t]:
            continue
        v = values[b, t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[unit, t, k]
            old = versions[writes.prev[unit, t, k], c0:c1]
            new = versions[base + t * Kw + k, c0:c1]
            for c in range(v.size):
                new[c] = old[c] + eta * (v[c] - old[c])
        for k in range(Kr):
            version = reads.version[unit, t, k]
            if version == 0 and state_slots.size == 0:
                continue  # never written: zeros
            r = reads.weight[unit, t, k]
            s = versions[version, c0:c1]
            for c in range(s.size):
                out[c] += r * s[c]


@njit(cache=True, parallel=True)
def store(given, rows, versions, mass, slots_out, mass_out):
    """Put the rows' contents into a state (B, H, M, C) and (B, H, M): the latest version of each, and its mass.

    ``given``: whether rows start at version ``row`` of their own. ``versions``: (B*H, ..., C); ``mass``: (B*H, N).
    """
    H = mass_out.shape[1]
    for unit in prange(mass.shape[0]):
        b, h = np.int64(unit) // H, np.int64(unit) % H
        for row in range(rows.used[unit]):
            slot = rows.slot[unit, row]
            version = row if given else rows.latest[unit, row]
            for c in range(versions.shape[2]):
                slots_out[b, h, slot, c] = versions[unit, version, c]
            mass_out[b, h, slot] = mass[unit, row]


@njit(cache=True, parallel=True)
def content_backward(dy, values, mask, dstate_slots, base, width, writes, reads, rows, versions, ds, deta, dread, dv):
    """Gradients: of eta and read weights (slices, B*H, T, K), of values, and ``ds`` (B*H, N, C) of first contents."""
    H, C = values.shape[2], values.shape[3]
    slices = (C + width - 1) // width
    for piece in prange(versions.shape[0] * slices):
        unit, part = np.int64(piece) // slices, np.int64(piece) % slices
        _content_backward_piece(
            unit, unit // H, unit % H, part * width, min((part + 1) * width, C), dy, values, mask, dstate_slots,
            writes, reads, rows, versions[unit], ds[unit], deta[part, unit], dread[part, unit], dv,
        )  # fmt: skip


# "reassoc" lets the two dot products below run in vector registers: without it each would be one long chain of scalar
# additions. The order of their sums is then the compiler's, fixed when this function is compiled: it depends on the
# slice's width and on nothing else, so runs and thread counts still agree bit for bit.
@njit(cache=True, fastmath={"reassoc", "nsz"})
def _content_backward_piece(
    unit, b, h, c0, c1, dy, values, mask, dstate_slots, writes, reads, rows, versions, ds, deta, dread, dv
):
    T = values.shape[1]
    Kw, Kr = writes.row.shape[2], reads.row.shape[2]
    zero = values.dtype.type(0)
    one = values.dtype.type(1)
    for row in range(rows.used[unit]):
        for c in range(c0, c1):
            ds[row, c] = dstate_slots[b, h, rows.slot[unit, row], c] if dstate_slots.size > 0 else zero
    for t in range(T - 1, -1, -1):
        dv_t = dv[b, t, h, c0:c1]
        for c in range(dv_t.size):
            dv_t[c] = zero
        if mask.size > 0 and not mask[b, t]:
            continue
        # y = sum_k r_k * s[version_k]
        dy_t = dy[b, t, h, c0:c1]
        for k in range(Kr):
            row = reads.row[unit, t, k]
            dr = zero
            if row >= 0:  # else the slot was never written: zeros
                r = reads.weight[unit, t, k]
                s = versions[reads.version[unit, t, k], c0:c1]
                ds_row = ds[row, c0:c1]
                for c in range(dy_t.size):
                    dr += s[c] * dy_t[c]
                    ds_row[c] += r * dy_t[c]
            dread[t, k] = dr
        # s_t = s + eta * (v - s)
        v = values[b, t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[unit, t, k]
            s = versions[writes.prev[unit, t, k], c0:c1]
            ds_row = ds[writes.row[unit, t, k], c0:c1]
            de = zero
            for c in range(v.size):
                de += (v[c] - s[c]) * ds_row[c]
                dv_t[c] += eta * ds_row[c]
                ds_row[c] *= one - eta
            deta[t, k] = de
