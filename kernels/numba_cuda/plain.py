"""The memory as one would write it first, to be read beside ``ramnet_np/core/memory.py``: token after token.

The same steps under the same numbers, for one (batch, head) a block. A token's slots are distinct, so a thread can take
an access, or a channel, and no two change one number; a barrier lies where one thread reads what another one wrote.

    plain_masses               2., 3.  a thread an access     alpha, z, eta of every write;  4.  weights of reads
    plain_contents             3., 4.  a thread a channel     s += eta (v - s),  y = sum r s
    plain_contents_in_shared           a thread a channel     the same with a slice of the state in shared memory
    plain_recompute            3., 4.  a thread a channel, then a read     s once more, for <dy, s> of every read
    plain_contents_backward    4., 3.  a thread a channel, then a write    d += r dy;  <d, v>, dv, d *= 1 - eta
    plain_masses_backward      4., 3.  a thread an access     q, dz;  dw, dr, dgamma

``content_forward.py``, ``content_backward.py``, ``mass_forward.py`` and ``mass_backward.py`` compute the same faster,
for up to ``MAX_FAST_K`` accesses of a token. These kernels take any K, so they serve the calls with more.

The backward keeps no content that a write replaced: that would be K C numbers a token. Of it only <d, before> is
needed, and q = <d, s> of a slot gives it: ``mass_backward.py`` says how. Every sum has one thread and one order.
"""

from functools import cache
from typing import Any, NamedTuple

from .compiler import cuda, int64, types, uint32
from .launch import kernel, record
from .records import (
    PLAIN_SIZES,
    accesses_type,
    address_arrays,
    content_dots,
    content_gradients,
    gamma_at,
    mass_arrays,
    slope_numbers,
    state_dots,
    state_pass,
    takes_part,
    token_arrays,
    token_options,
    weight_gradients,
)
from .retention import retention_of


@cuda.jit(device=True)
def token_of(bh, t, sizes):
    """Where token t of a (batch, head) lies in arrays (B, T, ..), (B, T, H, ..) and (B*H, T, ..)."""
    token = bh // sizes.H * sizes.T + t
    return token, token * sizes.H + bh % sizes.H, bh * sizes.T + t


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


@cuda.jit(device=True)
def start_contents(state, bh, sizes):
    """A thread sets its channels of every row: to the given state, or 0."""
    rows = sizes.n_rows + sizes.W + sizes.R
    for row in range(rows):
        for c in range(cuda.threadIdx.x, sizes.C, cuda.blockDim.x):
            at = (bh * rows + row) * sizes.C + c
            state.working[at] = 0
            if state.has_start != 0 and row < sizes.n_rows:
                state.working[at] = state.start[(bh * sizes.n_rows + row) * sizes.C + c]


@cuda.jit(device=True)
def store_contents(state, bh, sizes):
    """A thread stores its channels of every slot."""
    rows = sizes.n_rows + sizes.W + sizes.R
    for row in range(sizes.n_rows):
        for c in range(cuda.threadIdx.x, sizes.C, cuda.blockDim.x):
            state.end[(bh * sizes.n_rows + row) * sizes.C + c] = state.working[(bh * rows + row) * sizes.C + c]


@cache
def plain_contents_kernel(number):
    """``plain_contents`` for this Numba type."""
    numbers = types.CPointer(number)

    @kernel(accesses_type(number), numbers, state_pass(number), numbers, PLAIN_SIZES)
    def plain_contents(accesses, values, state, y, sizes):
        """One thread a channel, the state in device memory: a thread reads only what it wrote itself."""
        bh, C, W, R = int64(cuda.blockIdx.x), sizes.C, sizes.W, sizes.R
        s, s_at = state.working, bh * (sizes.n_rows + W + R)  # the contents, and this head's first row
        start_contents(state, bh, sizes)
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
                # 3. write
                for k in range(W):
                    i = (s_at + accesses.row[access + k]) * C + c
                    s[i] += accesses.coef[access + k] * (values[at * C + c] - s[i])
                # 4. read
                total = number(0)
                for k in range(W, W + R):
                    total += accesses.coef[access + k] * s[(s_at + accesses.row[access + k]) * C + c]
                y[at * C + c] = total
        if state.has_end != 0:
            store_contents(state, bh, sizes)

    return plain_contents


@cache
def plain_contents_in_shared_kernel(number, lanes: int):
    """``plain_contents_in_shared`` for this Numba type and slices of ``lanes`` channels."""
    numbers = types.CPointer(number)

    @kernel(accesses_type(number), numbers, state_pass(number), numbers, PLAIN_SIZES)
    def plain_contents_in_shared(accesses, values, state, y, sizes):
        """One thread a channel of a slice, which lies in shared memory, a row's channels side by side."""
        s = cuda.shared.array(0, number)
        own, slices, W, R = cuda.threadIdx.x, (sizes.C + lanes - 1) // lanes, sizes.W, sizes.R
        bh, c = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices * lanes + own
        if c >= sizes.C:
            return
        for row in range(sizes.n_rows + W + R):
            given = state.has_start != 0 and row < sizes.n_rows
            start = state.start[(bh * sizes.n_rows + row) * sizes.C + c] if given else number(0)
            s[uint32(row * lanes + own)] = start  # unsigned: Numba would else look whether the index is negative
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 3. write
            for k in range(W):
                i = uint32(accesses.row[access + k] * lanes + own)
                s[i] += accesses.coef[access + k] * (values[at * sizes.C + c] - s[i])
            # 4. read
            total = number(0)
            for k in range(W, W + R):
                total += accesses.coef[access + k] * s[uint32(accesses.row[access + k] * lanes + own)]
            y[at * sizes.C + c] = total
        if state.has_end != 0:
            for row in range(sizes.n_rows):
                state.end[(bh * sizes.n_rows + row) * sizes.C + c] = s[uint32(row * lanes + own)]

    return plain_contents_in_shared


@cuda.jit(device=True)
def dot(a, a_at, b, b_at, C, zero):
    """<a, b> over the channels of two rows."""
    total = zero
    for c in range(C):
        total += a[a_at + c] * b[b_at + c]
    return total


@cache
def plain_recompute_kernel(number):
    """``plain_recompute`` for this Numba type."""
    zero = number(0)

    @kernel(
        accesses_type(number), token_arrays(number), state_pass(number), state_dots(number), types.CPointer(number),
        PLAIN_SIZES,
    )  # fmt: skip
    def plain_recompute(accesses, tokens, state, final, dy_dot_s, sizes):
        """<dy, s> of every read; the content before each token's first write; <dstate, s> after the last token."""
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        C, W, R, n_rows = sizes.C, sizes.W, sizes.R, sizes.n_rows
        s, s_at = state.working, bh * (n_rows + W + R)
        start_contents(state, bh, sizes)
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 3. write
            for c in range(thread, C, threads):
                tokens.before[at * C + c] = s[(s_at + accesses.row[access]) * C + c]
                for k in range(W):
                    i = (s_at + accesses.row[access + k]) * C + c
                    s[i] += accesses.coef[access + k] * (tokens.values[at * C + c] - s[i])
            cuda.syncthreads()
            # 4. read: a thread adds up a dot product over all channels
            for k in range(thread, R, threads):
                row = s_at + accesses.row[access + W + k]
                dy_dot_s[here * R + k] = dot(tokens.dy, at * C, s, row * C, C, zero)
            cuda.syncthreads()
        if final.wanted != 0:
            for row in range(thread, n_rows, threads):
                at = (bh * n_rows + row) * C
                final.dots[bh * n_rows + row] = dot(final.dstate, at, s, (s_at + row) * C, C, zero)

    return plain_recompute


@cache
def plain_contents_backward_kernel(number):
    """``plain_contents_backward`` for this Numba type."""
    zero, one = number(0), number(1)

    @kernel(accesses_type(number), token_arrays(number), state_pass(number), content_gradients(number), PLAIN_SIZES)
    def plain_contents_backward(accesses, tokens, state, out, sizes):
        """``out``, and the adjoint of the given state if wanted. ``state`` is the adjoint d: it starts with dstate."""
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        C, W, R = sizes.C, sizes.W, sizes.R
        d, d_at = state.working, bh * (sizes.n_rows + W + R)
        start_contents(state, bh, sizes)
        for t in range(sizes.T - 1, -1, -1):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 4. y = sum r s
            for c in range(thread, C, threads):
                for k in range(W, W + R):
                    i = (d_at + accesses.row[access + k]) * C + c
                    d[i] += accesses.coef[access + k] * tokens.dy[at * C + c]
            cuda.syncthreads()
            # 3. s_t = s + eta (v - s): <d, v> of every write, <d, before> of the first; a thread adds up all channels
            for k in range(thread, W, threads):
                row = d_at + accesses.row[access + k]
                out.d_dot_v[here * W + k] = dot(tokens.values, at * C, d, row * C, C, zero)
                if k == 0:
                    out.d_dot_before[here] = dot(tokens.before, at * C, d, row * C, C, zero)
            cuda.syncthreads()
            #    dv, and d before the write
            for c in range(thread, C, threads):
                dv = zero
                for k in range(W):
                    i = (d_at + accesses.row[access + k]) * C + c
                    dv += accesses.coef[access + k] * d[i]
                    d[i] *= one - accesses.coef[access + k]
                out.dv[at * C + c] = dv
        if state.has_end != 0:
            store_contents(state, bh, sizes)

    return plain_contents_backward


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
