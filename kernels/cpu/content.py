"""The channels of the memory, given the coefficients of ``mass.py``: versions of slot contents, forward and backward.

Every channel goes its own way, so the channels of a sequence and head are cut into slices where there are few of them.
The cut depends on shapes alone, and sums over slices are taken in their order: any number of threads gives the same
bits. Arrays count tokens, rows and versions as in ``mass.py``.
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

    values: np.ndarray  # (tokens, H, C)
    mask: np.ndarray  # (tokens,) bool, or size 0
    width: int  # channels of a slice


class ContentGrads(NamedTuple):
    """Gradients that the contents leave."""

    eta: np.ndarray  # (slices, H, tokens, K_w), a part from each slice
    read_weight: np.ndarray  # (slices, H, tokens, K_r), likewise
    values: np.ndarray  # (tokens, H, C)
    first_versions: np.ndarray  # (H, rows, C), of what was there before the first token


class Slice(NamedTuple):
    """A piece of work: channels ``start`` to ``stop`` - 1 of ``nh`` = n*H + h."""

    nh: int
    n: int
    h: int
    part: int  # which slice of the sequence and head
    start: int
    stop: int


def slice_width(heads: int, channels: int) -> int:
    """Channels of a slice: all of them where the heads of all sequences, ``heads``, are enough.

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
    _, H, C = channels.values.shape
    slices = (C + channels.width - 1) // channels.width
    nh, part = piece // slices, piece % slices
    return Slice(nh, nh // H, nh % H, part, part * channels.width, min((part + 1) * channels.width, C))


@parallel_kernel
def content_forward(spans, channels, state_slots, writes, reads, rows, versions, y):
    """y (tokens, H, C) and ``versions`` (H, versions, C) from values (tokens, H, C).

    ``state_slots``: the contents of a given state (N, H, M, C) or size 0.
    """
    slices = (y.shape[2] + channels.width - 1) // channels.width
    given = spans, channels, state_slots, writes, reads, rows, versions, y
    share_out(_content_forward_slice, rows.used.size * slices, given)


@inner
def _content_forward_slice(piece, spans, channels, state_slots, writes, reads, rows, versions, y):
    nh, n, h, _, c0, c1 = _slice(piece, channels)
    Kw, Kr = writes.row.shape[2], reads.row.shape[2]
    zero = y.dtype.type(0)
    values, mask, _ = channels
    given_state = state_slots.size > 0
    first, base, first_row = spans.token[n], spans.base[n], spans.row[n]
    s = versions[h, spans.version[n] :]
    if given_state:
        for row in range(rows.used[nh]):
            for c in range(c0, c1):
                s[row, c] = state_slots[n, h, rows.slot[h, first_row + row], c]
    else:
        for c in range(c0, c1):
            s[0, c] = zero
    for t in range(first, first + spans.length[n]):
        out = y[t, h, c0:c1]
        for c in range(out.size):
            out[c] = zero
        if mask.size > 0 and not mask[t]:
            continue
        v = values[t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[h, t, k]
            old = s[writes.prev[h, t, k], c0:c1]
            new = s[base + (t - first) * Kw + k, c0:c1]
            for c in range(v.size):
                new[c] = old[c] + eta * (v[c] - old[c])
        for k in range(Kr):
            version = reads.version[h, t, k]
            if version == 0 and not given_state:
                continue  # never written: zeros
            r = reads.weight[h, t, k]
            content = s[version, c0:c1]
            for c in range(content.size):
                out[c] += r * content[c]


@parallel_kernel
def store(spans, rows, contents, by_row, mass, state):
    """Put the contents and masses of all rows into ``state``, a RAMState.

    ``contents`` (H, ..., C) holds versions, of which each row's latest is taken, or with ``by_row`` one for each row;
    ``mass``: (H, rows).
    """
    share_out(_store_head, rows.used.size, (spans, rows, contents, by_row, mass, state))


@inner
def _store_head(nh, spans, rows, contents, by_row, mass, state):
    H = state.mass.shape[1]
    n, h = nh // H, nh % H
    for row in range(spans.row[n], spans.row[n] + rows.used[nh]):
        slot = rows.slot[h, row]
        at = row if by_row else spans.version[n] + rows.latest[h, row]
        for c in range(contents.shape[2]):
            state.slots[n, h, slot, c] = contents[h, at, c]
        state.mass[n, h, slot] = mass[h, row]


@parallel_kernel
def content_backward(spans, channels, dout, writes, reads, rows, versions, grads):
    """Fills ``grads``, ContentGrads. ``dout``: gradients of y (tokens, H, C) and of the final contents, or size 0."""
    slices = (channels.values.shape[2] + channels.width - 1) // channels.width
    given = spans, channels, dout, writes, reads, rows, versions, grads
    share_out(_content_backward_slice, rows.used.size * slices, given)


# "reassoc" lets the two dot products below run in vector registers: without it each would be one long chain of scalar
# additions. The order of their sums is then the compiler's, fixed when this function is compiled: it depends on the
# slice's width and on nothing else, so runs and thread counts still agree bit for bit. "forceinline" sees to it that
# there is one compiled form: else the process that compiles it calls the function as it stands, and a process that
# loads the kernel from the cache calls a second copy, which was optimised along with the kernel and sums otherwise.
@inner(fastmath={"reassoc", "nsz"}, forceinline=True)
def _content_backward_slice(piece, spans, channels, dout, writes, reads, rows, versions, grads):
    nh, n, h, part, c0, c1 = _slice(piece, channels)
    values, mask, _ = channels
    dout_y, dfinal_slots = dout
    deta, dread, dvalues, dfirst = grads
    Kw, Kr = writes.row.shape[2], reads.row.shape[2]
    zero, one = dout_y.dtype.type(0), dout_y.dtype.type(1)
    first, first_row = spans.token[n], spans.row[n]
    s, ds = versions[h, spans.version[n] :], dfirst[h, first_row:]
    for row in range(rows.used[nh]):
        for c in range(c0, c1):
            ds[row, c] = dfinal_slots[n, h, rows.slot[h, first_row + row], c] if dfinal_slots.size > 0 else zero
    for t in range(first + spans.length[n] - 1, first - 1, -1):
        dv = dvalues[t, h, c0:c1]
        for c in range(dv.size):
            dv[c] = zero
        if mask.size > 0 and not mask[t]:
            continue
        # y = sum_k r_k * s[version_k]
        dy = dout_y[t, h, c0:c1]
        for k in range(Kr):
            row = reads.row[h, t, k]
            dr = zero
            if row >= 0:  # else the slot was never written: zeros
                r = reads.weight[h, t, k]
                content, ds_row = s[reads.version[h, t, k], c0:c1], ds[row, c0:c1]
                for c in range(dy.size):
                    dr += content[c] * dy[c]
                    ds_row[c] += r * dy[c]
            dread[part, h, t, k] = dr
        # s_t = s + eta * (v - s)
        v = values[t, h, c0:c1]
        for k in range(Kw):
            eta = writes.eta[h, t, k]
            old, ds_row = s[writes.prev[h, t, k], c0:c1], ds[writes.row[h, t, k], c0:c1]
            de = zero
            for c in range(v.size):
                de += (v[c] - old[c]) * ds_row[c]
                dv[c] += eta * ds_row[c]
                ds_row[c] *= one - eta
            deta[part, h, t, k] = de
