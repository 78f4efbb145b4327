"""The masses as one would write them first, token after token: read ``plain_contents.py`` before, which has the plan.

    plain_masses               2., 3.  a thread an access     alpha, z, eta of every write;  4.  weights of reads
    plain_masses_backward      4., 3.  a thread an access     q, dz;  dw, dr, dgamma

``mass_forward.py`` and ``mass_backward.py`` compute the same faster.

The backward keeps no content that a write replaced: that would be K C numbers a token. Of it only <d, before> is
needed, and q = <d, s> of a slot gives it: ``mass_backward.py`` says how.
"""

from functools import cache
from typing import Any, NamedTuple

from .compiler import cuda, int64, types
from .launch import kernel, record
from .records import (
    PLAIN_SIZES,
    accesses_type,
    address_arrays,
    content_dots,
    gamma_at,
    mass_arrays,
    slope_numbers,
    state_pass,
    takes_part,
    token_of,
    token_options,
    weight_gradients,
)
from .retention import retention_of


@cache
def plain_masses_kernel(number, update: str):
    """``plain_masses`` for this Numba type and update rule."""
    alpha_of = retention_of(update, number).alpha

    @cuda.jit(device=True)
    def mass_aware(accesses, masses, z, z_at, here, eps, sizes):
        """r becomes (sum r) r z / (sum r z + eps) for this thread's reads."""
        first = here * (sizes.W + sizes.R) + sizes.W
        total, weighted = number(0), number(0)
        for k in range(sizes.R):
            total += accesses.coef[first + k]
            weighted += accesses.coef[first + k] * z[z_at + accesses.row[first + k]]
        cuda.syncthreads()  # every thread has read every r
        for k in range(cuda.threadIdx.x, sizes.R, cuda.blockDim.x):
            m = z[z_at + accesses.row[first + k]]
            masses.read_mass[here * sizes.R + k] = m
            accesses.coef[first + k] *= total * m / (weighted + eps)

    @kernel(
        address_arrays(number), token_options(number), accesses_type(number), mass_arrays(number), state_pass(number),
        number, number, PLAIN_SIZES,
    )  # fmt: skip
    def plain_masses(address, options, accesses, masses, state, initial, eps, sizes):
        """The row of every access, eta of every write, the weight of every read, and the masses that they find.

        An access that does nothing (masked, or a read of what is never written) goes to a row of its own after the
        slots, so that the other kernels need not know of it.
        """
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        n_rows, W, R = sizes.n_rows, sizes.W, sizes.R
        z, z_at = state.working, bh * (n_rows + W + R)  # the masses, and where those of this head begin
        for row in range(thread, n_rows + W + R, threads):
            given = state.has_start != 0 and row < n_rows
            z[z_at + row] = state.start[bh * n_rows + row] if given else initial
        cuda.syncthreads()
        for t in range(sizes.T):
            token, at, here = token_of(bh, t, sizes)
            kept, gamma, access = takes_part(options, token), gamma_at(options, at), here * (W + R)
            # 2. retention, 3. write
            for k in range(thread, W, threads):
                row, w, alpha = n_rows + k, number(0), number(1)
                if kept:
                    row, w = address.write_slot[at * W + k], address.write_weight[at * W + k]
                    alpha = alpha_of(w, gamma)
                before = z[z_at + row]
                after = alpha * before + w
                z[z_at + row] = after
                masses.old_mass[here * W + k] = before
                accesses.row[access + k], accesses.coef[access + k] = row, w / (after + eps)
            # 4. read
            for k in range(thread, R, threads):
                row, r = n_rows + W + k, number(0)
                if kept:
                    r = address.read_weight[at * R + k]
                    if address.read_slot[at * R + k] >= 0:
                        row = address.read_slot[at * R + k]
                accesses.row[access + W + k], accesses.coef[access + W + k] = row, r
            cuda.syncthreads()
            if sizes.aware != 0 and kept:
                mass_aware(accesses, masses, z, z_at, here, eps, sizes)
                cuda.syncthreads()
        if state.has_end != 0:
            for row in range(thread, n_rows, threads):
                state.end[bh * n_rows + row] = z[z_at + row]

    return plain_masses


class ReadGradients(NamedTuple):
    """What the backward of the masses leaves beside :class:`WeightGradients`, and what it needs of the final state."""

    dr: Any  # (B, T, H, K_r)
    dgamma_terms: Any  # (B*H, T, K_w): each write's share of dgamma
    final_dots: Any  # (B*H, rows): <dstate, s> after the last token


@cache
def plain_masses_backward_kernel(number, update: str):
    """``plain_masses_backward`` for this Numba type and update rule."""
    numbers, zero = types.CPointer(number), number(0)
    alpha_of, slopes_of = retention_of(update, number)

    @cuda.jit(device=True)
    def mass_aware_sums(address, masses, dots, at, here, eps, sizes):
        """sum r, sum r z + eps, and the mean of dr weighted by r z, over a token's reads."""
        total, weighted, mean_dr = zero, eps, zero
        for k in range(sizes.R):
            r, m = address.read_weight[at * sizes.R + k], masses.read_mass[here * sizes.R + k]
            total += r
            weighted += r * m
            mean_dr += dots.dy_dot_s[here * sizes.R + k] * (r * m)
        return total, weighted, mean_dr / weighted

    @cuda.jit(device=True)
    def mass_aware_read_backward(dr, r, m, sums):
        """dr of a read, r <dy, s> with the r that mass made of it, and what goes to the mass m."""
        total, weighted, mean_dr = sums
        dn = (dr - mean_dr) * total / weighted
        return dn * m + mean_dr, r * dr * (total * m / weighted), dn * r

    @cuda.jit(device=True)
    def write_backward(w, alpha, before, q_after, d_dot_v, d_dot_before, first, eps):
        """(q before the write, (1 - eta) deta/(z + eps), eta deta/(z + eps)); <d, before> is known of the ``first``."""
        kept = alpha * before + eps
        mass = kept + w
        eta, kappa = w / mass, kept / mass  # kappa = 1 - eta
        if first:
            dweight = (d_dot_v - d_dot_before) / mass
            return kappa * d_dot_before, kappa * dweight, eta * dweight
        q = q_after - eta * d_dot_v  # = kappa <d, before>, so nothing need be divided by kappa
        difference = kappa * d_dot_v - q
        return q, difference / mass, eta / kept * difference if kept > 0 else zero

    @cuda.jit(device=True)
    def add_gamma(dgamma_terms, dgamma, bh, sizes):
        """dgamma of every token: the sum over its writes."""
        for t in range(cuda.threadIdx.x, sizes.T, cuda.blockDim.x):
            _, at, here = token_of(bh, t, sizes)
            total = zero
            for k in range(sizes.W):
                total += dgamma_terms[here * sizes.W + k]
            dgamma[at] = total

    @kernel(
        address_arrays(number), token_options(number), accesses_type(number), mass_arrays(number), content_dots(number),
        state_pass(number), weight_gradients(number),
        record(ReadGradients, dr=numbers, dgamma_terms=numbers, final_dots=numbers), slope_numbers(number),
        PLAIN_SIZES,
    )  # fmt: skip
    def plain_masses_backward(address, options, accesses, masses, dots, state, out, more, constants, sizes):
        """dw, dr, dgamma, and the adjoint of the given masses if wanted. ``state`` is the adjoint of the masses."""
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        n_rows, W, R = sizes.n_rows, sizes.W, sizes.R
        rows, eps = n_rows + W + R, constants.eps
        q, dz, q_at, dz_at = state.working, state.working, bh * 2 * rows, (bh * 2 + 1) * rows
        for row in range(thread, rows, threads):
            given = state.has_start != 0 and row < n_rows
            q[q_at + row] = more.final_dots[bh * n_rows + row] if given else zero
            dz[dz_at + row] = state.start[bh * n_rows + row] if given else zero
        cuda.syncthreads()
        for t in range(sizes.T - 1, -1, -1):
            token, at, here = token_of(bh, t, sizes)
            kept, gamma, access = takes_part(options, token), gamma_at(options, at), here * (W + R)
            # 4. y = sum r s: dr, and q before the read
            sums = zero, eps, zero
            if sizes.aware != 0 and kept:
                sums = mass_aware_sums(address, masses, dots, at, here, eps, sizes)
            for k in range(thread, R, threads):
                dr = zero
                if kept:
                    dr, r = dots.dy_dot_s[here * R + k], address.read_weight[at * R + k]
                    gain, row = r * dr, accesses.row[access + W + k]
                    if sizes.aware != 0:
                        dr, gain, dmass = mass_aware_read_backward(dr, r, masses.read_mass[here * R + k], sums)
                        dz[dz_at + row] += dmass
                    q[q_at + row] += gain
                more.dr[at * R + k] = dr
            cuda.syncthreads()
            # 3. eta = w / (z_t + eps), z_t = alpha z + w
            for k in range(thread, W, threads):
                dw, dgamma = zero, zero
                if kept:
                    w, row = address.write_weight[at * W + k], accesses.row[access + k]
                    before, alpha = masses.old_mass[here * W + k], alpha_of(w, gamma)
                    d_dot_v, d_dot_before = dots.d_dot_v[here * W + k], dots.d_dot_before[here]
                    q[q_at + row], dw, pull = write_backward(
                        w, alpha, before, q[q_at + row], d_dot_v, d_dot_before, k == 0, eps
                    )  # fmt: skip
                    dz_t = dz[dz_at + row]
                    slope_w, slope_gamma = slopes_of(w, gamma, alpha, constants.proxy_eps, constants.smallest)
                    dw += dz_t + (dz_t - pull) * (before * slope_w)
                    dgamma = (dz_t - pull) * (before * slope_gamma)
                    dz[dz_at + row] = alpha * (dz_t - pull)
                out.dw[at * W + k], more.dgamma_terms[here * W + k] = dw, dgamma
            cuda.syncthreads()
        add_gamma(more.dgamma_terms, out.dgamma, bh, sizes)
        if state.has_end != 0:
            for row in range(thread, n_rows, threads):
                state.end[bh * n_rows + row] = dz[dz_at + row]

    return plain_masses_backward
