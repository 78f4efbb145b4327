"""What of the memory does not depend on channels: which row, which version, how much.

One pass over the tokens of a (batch, head) numbers the slots, runs the recurrence of the masses and leaves, for every
write and read, the coefficients with which ``content.py`` then runs all channels:

    write:  version e = base + t*K_w + k of row a is made from version prev:  s_e = s_prev + eta * (v - s_prev)
    read:   y += r * s_version

A row's contents are never overwritten: each write makes a version, and the backward finds every content that it needs.
Versions below ``base`` are what was there before the first token: one row of zeros, or a given state's contents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .retention import retention, retention_slopes
from .slots import place_of

NONE = -1  # the row of a read that finds a slot which was never written, where no state was given


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


@njit(cache=True, parallel=True)
def mass_forward(
    write_index, write_weight, read_index, read_weight, gamma, mask, state_mass, initial_mass, gsu, mass_aware, eps,
    directory, multiplier, shift, base, writes, reads, rows,
):  # fmt: skip
    """All (batch, head). ``base``: int; state_mass (B, H, M) or size 0; directory (B*H, places)."""
    H = write_index.shape[2]
    for i in prange(directory.shape[0]):
        unit = np.int64(i)  # prange counts in uint64, which would compile everything below a second time
        _mass_forward_unit(
            unit, unit // H, unit % H, write_index, write_weight, read_index, read_weight, gamma, mask, state_mass,
            initial_mass, gsu, mass_aware, eps, directory[unit], multiplier, shift, base, writes, reads, rows,
        )  # fmt: skip


@njit(cache=True)
def _mass_forward_unit(
    unit, b, h, write_index, write_weight, read_index, read_weight, gamma, mask, state_mass,
    initial_mass, gsu, mass_aware, eps, directory, multiplier, shift, base, writes, reads, rows,
):  # fmt: skip
    _, T, H, Kw = write_index.shape
    Kr = read_index.shape[3]
    given = state_mass.size > 0
    slot_of, latest, mass = rows.slot[unit], rows.latest[unit], rows.mass[unit]
    zero = eps - eps
    for place in range(directory.size):
        directory[place] = NONE
    count = 0
    for t in range(T):
        if mask.size > 0 and not mask[b, t]:
            continue  # no kernel looks at what a masked token left unset
        g = gamma[((b * T + t) * H + h) * (gamma.size > 1)]
        for k in range(Kw):
            slot = write_index[b, t, h, k]
            place = place_of(slot, directory, slot_of, multiplier, shift)
            row = directory[place]
            if row < 0:
                row = count
                count += 1
                directory[place] = row
                slot_of[row] = slot
                latest[row] = row if given else 0
                mass[row] = state_mass[b, h, slot] if given else initial_mass
            w, z_old = write_weight[b, t, h, k], mass[row]
            alpha = retention(w, g, gsu)
            z = alpha * z_old + w
            mass[row] = z
            writes.row[unit, t, k] = row
            writes.prev[unit, t, k] = latest[row]
            writes.eta[unit, t, k] = w / (z + eps)
            writes.alpha[unit, t, k] = alpha
            writes.old_mass[unit, t, k] = z_old
            latest[row] = base + t * Kw + k
        total_r, total_n = zero, zero
        for k in range(Kr):
            slot = read_index[b, t, h, k]
            place = place_of(slot, directory, slot_of, multiplier, shift)
            row = directory[place]
            if row < 0 and given:
                row = count
                count += 1
                directory[place] = row
                slot_of[row] = slot
                latest[row] = row
                mass[row] = state_mass[b, h, slot]
            reads.row[unit, t, k] = row
            reads.version[unit, t, k] = latest[row] if row >= 0 else 0
            r = read_weight[b, t, h, k]
            if mass_aware:
                z = mass[row] if row >= 0 else initial_mass
                reads.mass[unit, t, k] = z
                total_r += r
                total_n += r * z
                r *= z
            reads.weight[unit, t, k] = r
        if mass_aware:
            for k in range(Kr):
                reads.weight[unit, t, k] = total_r * reads.weight[unit, t, k] / (total_n + eps)
    rows.used[unit] = count


@njit(cache=True, parallel=True)
def mass_backward(
    deta, dread, write_weight, read_weight, gamma, mask, gsu, mass_aware, eps, proxy_eps, smallest, dstate_mass,
    writes, reads, rows, dz, dwrite_weight, dread_weight, dgamma,
):  # fmt: skip
    """From the gradients of eta (slices, B*H, T, K_w) and of the read weights to those of the given weights.

    dstate_mass (B, H, M) or size 0: gradient of the final masses. ``dz``: (B*H, N), of the initial ones.
    """
    H = write_weight.shape[2]
    for i in prange(dz.shape[0]):
        unit = np.int64(i)  # prange counts in uint64, which would compile everything below a second time
        _mass_backward_unit(
            unit, unit // H, unit % H, deta, dread, write_weight, read_weight, gamma, mask, gsu, mass_aware, eps,
            proxy_eps, smallest, dstate_mass, writes, reads, rows, dz[unit], dwrite_weight, dread_weight, dgamma,
        )  # fmt: skip


@njit(cache=True)
def _mass_backward_unit(
    unit, b, h, deta, dread, write_weight, read_weight, gamma, mask, gsu, mass_aware, eps, proxy_eps, smallest,
    dstate_mass, writes, reads, rows, dz, dwrite_weight, dread_weight, dgamma,
):  # fmt: skip
    _, T, H, Kw = write_weight.shape
    Kr = read_weight.shape[3]
    zero = eps - eps
    for row in range(rows.used[unit]):
        dz[row] = dstate_mass[b, h, rows.slot[unit, row]] if dstate_mass.size > 0 else zero
    for t in range(T - 1, -1, -1):
        if mask.size > 0 and not mask[b, t]:
            dgamma[b, t, h] = zero
            for k in range(Kw):
                dwrite_weight[b, t, h, k] = zero
            for k in range(Kr):
                dread_weight[b, t, h, k] = zero
            continue
        # read: dr, the gradient of r' where the read is mass-aware
        total_r, total_n, dtotal_r = zero, zero, zero
        for k in range(Kr):
            dr = zero
            for part in range(dread.shape[0]):  # channel slices, in their order
                dr += dread[part, unit, t, k]
            dread_weight[b, t, h, k] = dr
            if mass_aware:
                r = read_weight[b, t, h, k]
                total_r += r
                total_n += r * reads.mass[unit, t, k]
                dtotal_r += dr * r * reads.mass[unit, t, k]
        if mass_aware:
            # r' = R * n / D with n = r * z, R = sum(r), D = sum(n) + eps
            D = total_n + eps
            dtotal_r /= D
            for k in range(Kr):
                dn = (dread_weight[b, t, h, k] - dtotal_r) * total_r / D
                dread_weight[b, t, h, k] = dn * reads.mass[unit, t, k] + dtotal_r
                row = reads.row[unit, t, k]
                if row >= 0:
                    dz[row] += dn * read_weight[b, t, h, k]
        # write
        g = gamma[((b * T + t) * H + h) * (gamma.size > 1)]
        dg = zero
        for k in range(Kw):
            row = writes.row[unit, t, k]
            w, alpha, z_old = write_weight[b, t, h, k], writes.alpha[unit, t, k], writes.old_mass[unit, t, k]
            # eta = w / (z_t + eps)
            de = zero
            for part in range(deta.shape[0]):
                de += deta[part, unit, t, k]
            dw = de / (alpha * z_old + w + eps)
            dz_row = dz[row] - dw * writes.eta[unit, t, k]
            # z_t = alpha * z_{t-1} + w
            slope_w, slope_gamma = retention_slopes(w, g, alpha, gsu, proxy_eps, smallest)
            dalpha = dz_row * z_old
            dwrite_weight[b, t, h, k] = dw + dz_row + dalpha * slope_w
            dg += dalpha * slope_gamma
            dz[row] = dz_row * alpha
        dgamma[b, t, h] = dg
