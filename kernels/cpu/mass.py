"""What of the memory does not depend on channels: which row, which version, how much.

One pass over the tokens of a (batch, head) numbers the slots, runs the recurrence of the masses and leaves, for every
write and read, the coefficients with which ``content.py`` then runs all channels:

    write:  version e = base + t*K_w + k of row a is made from version prev:  s_e = s_prev + eta * (v - s_prev)
    read:   y += r * s_version

A row's contents are never overwritten: each write makes a version, and the backward finds every content that it needs.
Versions below ``base`` are what was there before the first token: one row of zeros, or a given state's contents.
``bh`` = b*H + h numbers the pairs of batch and head.
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

    write_index: np.ndarray  # (B, T, H, K_w) int32
    write_weight: np.ndarray  # (B, T, H, K_w)
    read_index: np.ndarray  # (B, T, H, K_r) int32
    read_weight: np.ndarray  # (B, T, H, K_r)
    gamma: np.ndarray  # flat, one number or one for each (b, t, h)
    mask: np.ndarray  # (B, T) bool, or size 0


class Writes(NamedTuple):
    """Per write, (B*H, T, K_w)."""

    row: np.ndarray  # int32
    prev: np.ndarray  # int32, the version that it replaces
    eta: np.ndarray
    alpha: np.ndarray
    old_mass: np.ndarray  # z before the write


class Reads(NamedTuple):
    """Per read, (B*H, T, K_r)."""

    row: np.ndarray  # int32
    version: np.ndarray  # int32
    weight: np.ndarray  # r, or r' of the mass-aware read
    mass: np.ndarray  # z of the slot read; size 0 unless mass-aware


class Rows(NamedTuple):
    """Per row of the table of touched slots, (B*H, N)."""

    used: np.ndarray  # (B*H,) int64, how many of the N rows are in use
    slot: np.ndarray  # int32
    latest: np.ndarray  # int32, the version after the last token
    mass: np.ndarray  # z after the last token


class MassGrads(NamedTuple):
    """Gradients that the masses leave."""

    write_weight: np.ndarray  # (B, T, H, K_w)
    read_weight: np.ndarray  # (B, T, H, K_r)
    gamma: np.ndarray  # (B, T, H)
    initial_mass: np.ndarray  # (B*H, N), per row


@parallel_kernel
def mass_forward(accesses, options, start, table, writes, reads, rows):
    """All (batch, head); fills ``writes``, ``reads`` and ``rows``.

    ``start``: the masses of a given state (B, H, M) or size 0, the mass 1/M of a slot without one, and ``base``.
    ``table``: hash tables (B*H, entries) int32, multiplier, shift (``slots.py``).
    """
    share_out(_mass_forward_head, rows.used.size, (accesses, options, start, table, writes, reads, rows))


@inner
def _mass_forward_head(bh, accesses, options, start, table, writes, reads, rows):
    _, T, H, Kw = accesses.write_index.shape
    Kr, b, h = accesses.read_index.shape[3], bh // H, bh % H
    state_mass, initial_mass, base = start
    tables, multiplier, shift = table
    given_state = state_mass.size > 0
    row_of_entry, slot_of, latest, mass = tables[bh], rows.slot[bh], rows.latest[bh], rows.mass[bh]
    for entry in range(row_of_entry.size):
        row_of_entry[entry] = NONE
    count = 0
    for t in range(T):
        if accesses.mask.size > 0 and not accesses.mask[b, t]:
            continue  # no kernel looks at what a masked token left unset
        gamma = accesses.gamma[((b * T + t) * H + h) * (accesses.gamma.size > 1)]
        for k in range(Kw):
            slot = accesses.write_index[b, t, h, k]
            entry = entry_of(slot, row_of_entry, slot_of, multiplier, shift)
            row = row_of_entry[entry]
            if row < 0:
                row = count
                count += 1
                row_of_entry[entry] = row
                slot_of[row] = slot
                latest[row] = row if given_state else 0
                mass[row] = state_mass[b, h, slot] if given_state else initial_mass
            w, z_old = accesses.write_weight[b, t, h, k], mass[row]
            alpha = retention(options, w, gamma)
            z = alpha * z_old + w
            mass[row] = z
            writes.row[bh, t, k] = row
            writes.prev[bh, t, k] = latest[row]
            writes.eta[bh, t, k] = w / (z + options.eps)
            writes.alpha[bh, t, k] = alpha
            writes.old_mass[bh, t, k] = z_old
            latest[row] = base + t * Kw + k
        for k in range(Kr):
            slot = accesses.read_index[b, t, h, k]
            entry = entry_of(slot, row_of_entry, slot_of, multiplier, shift)
            row = row_of_entry[entry]
            if row < 0 and given_state:
                row = count
                count += 1
                row_of_entry[entry] = row
                slot_of[row] = slot
                latest[row] = row
                mass[row] = state_mass[b, h, slot]
            reads.row[bh, t, k] = row
            reads.version[bh, t, k] = latest[row] if row >= 0 else 0
            reads.weight[bh, t, k] = accesses.read_weight[b, t, h, k]
            if options.mass_aware:
                reads.mass[bh, t, k] = mass[row] if row >= 0 else initial_mass
        if options.mass_aware:
            mass_aware_forward(reads.weight[bh, t], reads.mass[bh, t], options.eps)
    rows.used[bh] = count


@parallel_kernel
def mass_backward(accesses, options, dout, writes, reads, rows, grads):
    """All (batch, head); fills ``grads``, MassGrads.

    ``dout``: gradients of eta (slices, B*H, T, K_w) and of the read weights (slices, B*H, T, K_r), each with a part
    from every slice of channels, and of the final masses (B, H, M) or size 0.
    """
    heads = grads.initial_mass.shape[0]
    share_out(_mass_backward_head, heads, (accesses, options, dout, writes, reads, rows, grads))


@inner
def _mass_backward_head(bh, accesses, options, dout, writes, reads, rows, grads):
    _, T, H, Kw = accesses.write_weight.shape
    Kr, b, h = accesses.read_weight.shape[3], bh // H, bh % H
    deta, dread, dfinal_mass = dout
    dwrite_weight, dread_weight, dgamma, dinitial_mass = grads
    zero = options.eps - options.eps
    dz, dmass = dinitial_mass[bh], np.empty(Kr, accesses.read_weight.dtype)
    for row in range(rows.used[bh]):
        dz[row] = dfinal_mass[b, h, rows.slot[bh, row]] if dfinal_mass.size > 0 else zero
    for t in range(T - 1, -1, -1):
        if accesses.mask.size > 0 and not accesses.mask[b, t]:
            dgamma[b, t, h] = zero
            dwrite_weight[b, t, h] = zero
            dread_weight[b, t, h] = zero
            continue
        # read
        for k in range(Kr):
            total = zero
            for part in range(dread.shape[0]):  # slices of channels, in their order
                total += dread[part, bh, t, k]
            dread_weight[b, t, h, k] = total
        if options.mass_aware:
            mass_aware_backward(
                dread_weight[b, t, h], accesses.read_weight[b, t, h], reads.mass[bh, t], options.eps, dmass
            )
            for k in range(Kr):
                if reads.row[bh, t, k] >= 0:
                    dz[reads.row[bh, t, k]] += dmass[k]
        # write
        gamma = accesses.gamma[((b * T + t) * H + h) * (accesses.gamma.size > 1)]
        dg = zero
        for k in range(Kw):
            row = writes.row[bh, t, k]
            w, alpha, z_old = accesses.write_weight[b, t, h, k], writes.alpha[bh, t, k], writes.old_mass[bh, t, k]
            # eta = w / (z_t + eps)
            total = zero
            for part in range(deta.shape[0]):
                total += deta[part, bh, t, k]
            dw_eta = total / (alpha * z_old + w + options.eps)
            dz_row = dz[row] - dw_eta * writes.eta[bh, t, k]
            # z_t = alpha * z_{t-1} + w
            slope_w, slope_gamma = retention_slopes(options, w, gamma, alpha)
            dalpha = dz_row * z_old
            dwrite_weight[b, t, h, k] = dw_eta + dz_row + dalpha * slope_w
            dg += dalpha * slope_gamma
            dz[row] = dz_row * alpha
        dgamma[b, t, h] = dg
