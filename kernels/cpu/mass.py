"""What of the memory does not depend on channels: which row, which version, how much.

One pass over the tokens of a sequence and head numbers the slots, runs the recurrence of the masses and leaves, for
every write and read, the coefficients with which ``content.py`` then runs all channels:

    write:  version e = base + t*K_w + k of row a is made from version prev:  s_e = s_prev + eta * (v - s_prev)
    read:   y += r * s_version

A row's contents are never overwritten: each write makes a version, and the backward finds every content that it needs.
Versions below ``base`` are what was there before the first token: one row of zeros, or a given state's contents.
Arrays count tokens through all sequences, which stand where ``spans.py`` says; ``nh`` = n*H + h numbers the pairs of
sequence and head. Rows and versions are counted from the sequence's first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiling import inner, parallel_kernel
from .mass_aware import mass_aware_backward, mass_aware_forward
from .retention import retention, retention_slopes
from .share import share_out
from .slots import entry_of

NONE = -1  # the row of a read that finds a slot which was never written, where no state was given


class Accesses(NamedTuple):
    """What a sequence writes and reads where, and how it forgets."""

    write_index: np.ndarray  # (tokens, H, K_w) int32
    write_weight: np.ndarray  # (tokens, H, K_w)
    read_index: np.ndarray  # (tokens, H, K_r) int32
    read_weight: np.ndarray  # (tokens, H, K_r)
    gamma: np.ndarray  # flat, one number or one for each (token, h)
    mask: np.ndarray  # (tokens,) bool, or size 0


class Writes(NamedTuple):
    """Per write, (H, tokens, K_w)."""

    row: np.ndarray  # int32
    prev: np.ndarray  # int32, the version that it replaces
    eta: np.ndarray
    alpha: np.ndarray
    old_mass: np.ndarray  # z before the write


class Reads(NamedTuple):
    """Per read, (H, tokens, K_r)."""

    row: np.ndarray  # int32
    version: np.ndarray  # int32
    weight: np.ndarray  # r, or r' of the mass-aware read
    mass: np.ndarray  # z of the slot read; size 0 unless mass-aware


class Rows(NamedTuple):
    """Per row of the tables of touched slots, (H, rows)."""

    used: np.ndarray  # (N*H,) int64, how many of a sequence's rows are in use
    slot: np.ndarray  # int32
    latest: np.ndarray  # int32, the version after the last token
    mass: np.ndarray  # z after the last token


class MassGrads(NamedTuple):
    """Gradients that the masses leave."""

    write_weight: np.ndarray  # (tokens, H, K_w)
    read_weight: np.ndarray  # (tokens, H, K_r)
    gamma: np.ndarray  # (tokens, H)
    initial_mass: np.ndarray  # (H, rows)


@parallel_kernel
def mass_forward(spans, accesses, options, start, writes, reads, rows):
    """All sequences and heads; fills ``writes``, ``reads`` and ``rows``.

    ``start``: the masses of a given state (N, H, M) or size 0, and the mass 1/M of a slot without one.
    """
    share_out(_mass_forward_head, rows.used.size, (spans, accesses, options, start, writes, reads, rows))


@inner
def _mass_forward_head(nh, spans, accesses, options, start, writes, reads, rows):
    _, H, Kw = accesses.write_index.shape
    Kr, n, h = accesses.read_index.shape[2], nh // H, nh % H
    state_mass, initial_mass = start
    given_state = state_mass.size > 0
    first, base, first_row = spans.token[n], spans.base[n], spans.row[n]
    entries, multiplier, shift = spans.hashing[n]
    slot_of, latest, mass = rows.slot[h, first_row:], rows.latest[h, first_row:], rows.mass[h, first_row:]
    row_of_entry = np.empty(entries, np.int32)
    for entry in range(entries):
        row_of_entry[entry] = NONE
    count = 0
    for t in range(first, first + spans.length[n]):
        if accesses.mask.size > 0 and not accesses.mask[t]:
            continue  # no kernel looks at what a masked token left unset
        gamma = accesses.gamma[(t * H + h) * (accesses.gamma.size > 1)]
        for k in range(Kw):
            slot = accesses.write_index[t, h, k]
            entry = entry_of(slot, row_of_entry, slot_of, multiplier, shift)
            row = row_of_entry[entry]
            if row < 0:
                row = count
                count += 1
                row_of_entry[entry] = row
                slot_of[row] = slot
                latest[row] = row if given_state else 0
                mass[row] = state_mass[n, h, slot] if given_state else initial_mass
            w, z_old = accesses.write_weight[t, h, k], mass[row]
            alpha = retention(options, w, gamma)
            z = alpha * z_old + w
            mass[row] = z
            writes.row[h, t, k] = row
            writes.prev[h, t, k] = latest[row]
            writes.eta[h, t, k] = w / (z + options.eps)
            writes.alpha[h, t, k] = alpha
            writes.old_mass[h, t, k] = z_old
            latest[row] = base + (t - first) * Kw + k
        for k in range(Kr):
            slot = accesses.read_index[t, h, k]
            entry = entry_of(slot, row_of_entry, slot_of, multiplier, shift)
            row = row_of_entry[entry]
            if row < 0 and given_state:
                row = count
                count += 1
                row_of_entry[entry] = row
                slot_of[row] = slot
                latest[row] = row
                mass[row] = state_mass[n, h, slot]
            reads.row[h, t, k] = row
            reads.version[h, t, k] = latest[row] if row >= 0 else 0
            reads.weight[h, t, k] = accesses.read_weight[t, h, k]
            if options.mass_aware:
                reads.mass[h, t, k] = mass[row] if row >= 0 else initial_mass
        if options.mass_aware:
            mass_aware_forward(reads.weight[h, t], reads.mass[h, t], options.eps)
    rows.used[nh] = count


@parallel_kernel
def mass_backward(spans, accesses, options, dout, writes, reads, rows, grads):
    """All sequences and heads; fills ``grads``, MassGrads.

    ``dout``: gradients of eta (slices, H, tokens, K_w) and of the read weights (slices, H, tokens, K_r), each with a
    part from every slice of channels, and of the final masses (N, H, M) or size 0.
    """
    share_out(_mass_backward_head, rows.used.size, (spans, accesses, options, dout, writes, reads, rows, grads))


@inner
def _mass_backward_head(nh, spans, accesses, options, dout, writes, reads, rows, grads):
    _, H, Kw = accesses.write_weight.shape
    Kr, n, h = accesses.read_weight.shape[2], nh // H, nh % H
    first, first_row = spans.token[n], spans.row[n]
    deta, dread, dfinal_mass = dout
    dwrite_weight, dread_weight, dgamma, dinitial_mass = grads
    zero = options.eps - options.eps
    dz, dmass = dinitial_mass[h, first_row:], np.empty(Kr, accesses.read_weight.dtype)
    for row in range(rows.used[nh]):
        dz[row] = dfinal_mass[n, h, rows.slot[h, first_row + row]] if dfinal_mass.size > 0 else zero
    for t in range(first + spans.length[n] - 1, first - 1, -1):
        if accesses.mask.size > 0 and not accesses.mask[t]:
            dgamma[t, h] = zero
            dwrite_weight[t, h] = zero
            dread_weight[t, h] = zero
            continue
        # read
        for k in range(Kr):
            total = zero
            for part in range(dread.shape[0]):  # slices of channels, in their order
                total += dread[part, h, t, k]
            dread_weight[t, h, k] = total
        if options.mass_aware:
            mass_aware_backward(dread_weight[t, h], accesses.read_weight[t, h], reads.mass[h, t], options.eps, dmass)
            for k in range(Kr):
                if reads.row[h, t, k] >= 0:
                    dz[reads.row[h, t, k]] += dmass[k]
        # write
        gamma = accesses.gamma[(t * H + h) * (accesses.gamma.size > 1)]
        dg = zero
        for k in range(Kw):
            row = writes.row[h, t, k]
            w, alpha, z_old = accesses.write_weight[t, h, k], writes.alpha[h, t, k], writes.old_mass[h, t, k]
            # eta = w / (z_t + eps)
            total = zero
            for part in range(deta.shape[0]):
                total += deta[part, h, t, k]
            dw_eta = total / (alpha * z_old + w + options.eps)
            dz_row = dz[row] - dw_eta * writes.eta[h, t, k]
            # z_t = alpha * z_{t-1} + w
            slope_w, slope_gamma = retention_slopes(options, w, gamma, alpha)
            dalpha = dz_row * z_old
            dwrite_weight[t, h, k] = dw_eta + dz_row + dalpha * slope_w
            dg += dalpha * slope_gamma
            dz[row] = dz_row * alpha
        dgamma[t, h] = dg
