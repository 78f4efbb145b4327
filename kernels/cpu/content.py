"""The channels of the memory, given the coefficients of ``mass.py``: versions of slot contents, forward and backward.

Every channel goes its own way, so a (batch, head) is cut into slices of channels where there are few heads. The cut
depends on shapes alone, and sums over slices are taken in their order: any number of threads gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiling import inner, parallel_kernel
from .share import share_out

MIN_PIECES = 8  # slice channels until there are about so many pieces of work ...
MIN_WIDTH = 16  # ... but not thinner than this


class Channels(NamedTuple):
    """What the channels of a sequence are given."""

    values: np.ndarray  # (B, T, H, C)
    mask: np.ndarray  # (B, T) bool, or size 0
    width: int  # channels of a slice


class ContentGrads(NamedTuple):
    """Gradients that the contents leave."""

    eta: np.ndarray  # (slices, B*H, T, K_w), a part from each slice
    read_weight: np.ndarray  # (slices, B*H, T, K_r), likewise
    values: np.ndarray  # (B, T, H, C)
    first_versions: np.ndarray  # (B*H, N, C), per row, of what was there before the first token


class Slice(NamedTuple):
    """A piece of work: channels ``start`` to ``stop`` - 1 of ``bh`` = b*H + h."""

    bh: int
    b: int
    h: int
    part: int  # which slice of the (batch, head)
    start: int
    stop: int


def slice_width(heads: int, channels: int) -> int:
    """Channels of a slice: all of them where there are ``heads`` = B*H enough.

    >>> slice_width(8, 64), slice_width(2, 64), slice_width(4, 64), slice_width(1, 20)
    (64, 16, 32, 20)
    """
    pieces = -(-MIN_PIECES // max(heads, 1))
    if pieces == 1 or channels < 2 * MIN_WIDTH:
        return channels
    return max(MIN_WIDTH, -(-channels // (pieces * MIN_WIDTH)) * MIN_WIDTH)


@inner
def _slice(piece, channels):
    """Slice number ``piece`` of all."""
    H, C = channels.values.shape[2], channels.values.shape[3]
    slices = (C + channels.width - 1) // channels.width
    bh, part = piece // slices, piece % slices
    return Slice(bh, bh // H, bh % H, part, part * channels.width, min((part + 1) * channels.width, C))


@parallel_kernel
def content_forward(channels, start, writes, reads, rows, versions, y):
    """y (B, T, H, C) and ``versions`` (B*H, base + T*K_w, C) from values (B, T, H, C).

    ``start``: the contents of a given state (B, H, M, C) or size 0, and ``base``.
    """
    slices = (y.shape[3] + channels.width - 1) // channels.width
    given = channels, start, writes, reads, rows, versions, y
    share_out(_content_forward_slice, versions.shape[0] * slices, given)


@inner
def _content_forward_slice(piece, channels, start, writes, reads, rows, versions, y):
    bh, b, h, _, c0, c1 = _slice(piece, channels)
    T, Kw, Kr = y.shape[1], writes.row.shape[2], reads.row.shape[2]
    zero = y.dtype.type(0)
    values, mask, _ = channels
    state_slots, base = start
    given_state = state_slots.size > 0
    s = versions[bh]
    if given_state:
        for row in range(rows.used[bh]):
            for c in range(c0, c1):
                s[row, c] = state_slots[b, h, rows.slot[bh, row], c]
    else:
        for c in range(c0, c1):
            s[0, c] = zero
    for t in range(T):
        out = y[b, t, h, c0:c1]
        for c in range(out.size):
            out[c] = zero
        if mask.size > 0 and not mask[b, t]:
            continue
        v = values[b, t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[bh, t, k]
            old = s[writes.prev[bh, t, k], c0:c1]
            new = s[base + t * Kw + k, c0:c1]
            for c in range(v.size):
                new[c] = old[c] + eta * (v[c] - old[c])
        for k in range(Kr):
            version = reads.version[bh, t, k]
            if version == 0 and not given_state:
                continue  # never written: zeros
            r = reads.weight[bh, t, k]
            content = s[version, c0:c1]
            for c in range(content.size):
                out[c] += r * content[c]


@parallel_kernel
def store(rows, contents, by_row, mass, state):
    """Put the contents and masses of all rows into ``state``, a RAMState.

    ``contents`` (B*H, ..., C) holds versions, of which each row's latest is taken, or with ``by_row`` one for each row;
    ``mass``: (B*H, N).
    """
    share_out(_store_head, mass.shape[0], (rows, contents, by_row, mass, state))


@inner
def _store_head(bh, rows, contents, by_row, mass, state):
    H = state.mass.shape[1]
    b, h = bh // H, bh % H
    for row in range(rows.used[bh]):
        slot = rows.slot[bh, row]
        at = row if by_row else rows.latest[bh, row]
        for c in range(contents.shape[2]):
            state.slots[b, h, slot, c] = contents[bh, at, c]
        state.mass[b, h, slot] = mass[bh, row]


@parallel_kernel
def content_backward(channels, dout, writes, reads, rows, versions, grads):
    """Fills ``grads``, ContentGrads. ``dout``: gradients of y (B, T, H, C) and of the final contents, or size 0."""
    slices = (channels.values.shape[3] + channels.width - 1) // channels.width
    given = channels, dout, writes, reads, rows, versions, grads
    share_out(_content_backward_slice, versions.shape[0] * slices, given)


# "reassoc" lets the two dot products below run in vector registers: without it each would be one long chain of scalar
# additions. The order of their sums is then the compiler's, fixed when this function is compiled: it depends on the
# slice's width and on nothing else, so runs and thread counts still agree bit for bit. "forceinline" sees to it that
# there is one compiled form: else the process that compiles it calls the function as it stands, and a process that
# loads the kernel from the cache calls a second copy, which was optimised along with the kernel and sums otherwise.
@inner(fastmath={"reassoc", "nsz"}, forceinline=True)
def _content_backward_slice(piece, channels, dout, writes, reads, rows, versions, grads):
    bh, b, h, part, c0, c1 = _slice(piece, channels)
    values, mask, _ = channels
    dout_y, dfinal_slots = dout
    deta, dread, dvalues, dfirst = grads
    T, Kw, Kr = dout_y.shape[1], writes.row.shape[2], reads.row.shape[2]
    zero, one = dout_y.dtype.type(0), dout_y.dtype.type(1)
    s, ds = versions[bh], dfirst[bh]
    for row in range(rows.used[bh]):
        for c in range(c0, c1):
            ds[row, c] = dfinal_slots[b, h, rows.slot[bh, row], c] if dfinal_slots.size > 0 else zero
    for t in range(T - 1, -1, -1):
        dv = dvalues[b, t, h, c0:c1]
        for c in range(dv.size):
            dv[c] = zero
        if mask.size > 0 and not mask[b, t]:
            continue
        # y = sum_k r_k * s[version_k]
        dy = dout_y[b, t, h, c0:c1]
        for k in range(Kr):
            row = reads.row[bh, t, k]
            dr = zero
            if row >= 0:  # else the slot was never written: zeros
                r = reads.weight[bh, t, k]
                content, ds_row = s[reads.version[bh, t, k], c0:c1], ds[row, c0:c1]
                for c in range(dy.size):
                    dr += content[c] * dy[c]
                    ds_row[c] += r * dy[c]
            dread[part, bh, t, k] = dr
        # s_t = s + eta * (v - s)
        v = values[b, t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[bh, t, k]
            old, ds_row = s[writes.prev[bh, t, k], c0:c1], ds[writes.row[bh, t, k], c0:c1]
            de = zero
            for c in range(v.size):
                de += (v[c] - old[c]) * ds_row[c]
                dv[c] += eta * ds_row[c]
                ds_row[c] *= one - eta
            deta[part, bh, t, k] = de
