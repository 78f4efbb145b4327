"""The gradients of weights and gamma: the masses' recurrence in reverse.

They need <d, v> of every write and <dy, s> of every read, with s a slot's content and d its adjoint, which the passes
over the contents leave, and the content that a write found, which no pass keeps. Of that only <d, before> is needed,
and it follows from what there is: q = <d, s> of a slot changes by known amounts,

    at a read   q += r <dy, s>                      (in reverse time, before the read)
    at a write  q -= eta <d, v>,  and then q = (1 - eta) <d, before>.

Only the product with 1 - eta is known, so nothing may be divided by 1 - eta, which can be tiny; with
kappa = 1 - eta = (alpha z' + eps) / (z + eps), z' the mass before, a write takes q and the adjoint dz of its mass to

    q = q_after + b,   pull = p - g q,   dz = alpha (dz - pull)
    dw = u - h q + dz' + slope (dz' - pull)          with dz' the adjoint before, slope = z' alpha'(w)

That is as exact as w stays away from 1. At most one weight of a token is above 1/2, its first; for that one the passes
over the contents do compute <d, before>. ``plain_masses.py`` has the same, one token after the other.

Only q and dz go token by token; alpha, b, g, p, u and a read's gain need neither, and dw and dgamma follow from both:

    mass_backward_prepare   eight threads a token and head    alpha, b, g, p, u, gain; dr
    mass_backward_scan      one block a (batch, head)         q, dz
    mass_backward_finish    eight threads a token and head    dw, dgamma

The scan's threads are those of ``mass_scan``: thread k is the k-th access of every token.
"""

from functools import cache
from typing import Any, NamedTuple

from .compiler import SIMULATED, cuda, int32, int64, types
from .groups_of_8 import GROUP_OF_8, state_access, token_and_head
from .launch import THREADS, kernel, record
from .mass_forward import TOKENS
from .records import (
    INDICES,
    MASS_SIZES,
    address_arrays,
    content_dots,
    gamma_at,
    mass_arrays,
    slope_numbers,
    state_pass,
    takes_part,
    token_options,
    weight_gradients,
)
from .retention import retention_of

AHEAD = 2 if SIMULATED else 8  # tokens that a thread of the scan loads at a time, in float32
ALPHA, B, G, P, U = range(5)  # of ``terms`` (5, B*H, T, W)
DZ, Q = ALPHA, B  # what the scan leaves in their place
GAIN, DMASS = range(2)  # of ``gains`` (2, B*H, T, R), or (1, ...) if reads are not mass-aware


class AccessGradients(NamedTuple):
    """What the kernels of this file hand on, and the gradient of the reads' weights."""

    terms: Any  # (5, B*H, T, W): alpha, b, g, p, u of every write
    gains: Any  # (2, B*H, T, R): r <dy, s> of every read, and its share of dz if reads are mass-aware
    dr: Any  # (B, T, H, K_r)


@cuda.jit(device=True)
def sum_slices(parts, at, slices, stride):
    """The sum over slices of channels, in their order."""
    total = parts[at]
    for s in range(1, slices):
        total += parts[at + s * stride]
    return total


@cache
def mass_backward_prepare_kernel(number, update: str, W: int, R: int, aware: bool):
    """``mass_backward_prepare`` for this Numba type and update rule, and tokens of W writes and R reads, mass-aware
    ones or not."""
    numbers = types.CPointer(number)
    alpha_of = retention_of(update, number).alpha

    @cuda.jit(device=True)
    def write_terms(w, old_mass, alpha, dots, indices, eps):
        """b, g, p, u of a write, ``indices`` = (number of the write, of all writes, of the token, of all tokens, k)."""
        write, all_writes, row, tokens, k = indices
        kept = alpha * old_mass + eps
        mass = kept + w
        eta, kappa = w / mass, kept / mass
        d_dot_v = sum_slices(dots.d_dot_v, write, dots.slices, all_writes)
        if k == 0:  # <d, before> is known
            d_dot_before = sum_slices(dots.d_dot_before, int64(row), dots.slices, int64(tokens))
            deta = (d_dot_v - d_dot_before) / mass
            p = eta * deta
            return kappa * d_dot_before, number(0), p, deta - p
        g = eta / kept if kept > 0 else number(0)
        return -eta * d_dot_v, g, g * (kappa * d_dot_v), kappa * d_dot_v / mass

    @cuda.jit(device=True)
    def mass_aware_sums(read_weight, read_mass, dots, weight, read, Kr, all_reads, eps):
        """sum r, sum r z + eps, and the mean of dr weighted by r z, over a token's mass-aware reads."""
        total, weighted, mean_dr = number(0), eps, number(0)
        for k in range(Kr):
            r, m = read_weight[weight + k], read_mass[read + k]
            total += r
            weighted += r * m
            mean_dr += sum_slices(dots.dy_dot_s, read + k, dots.read_slices, all_reads) * (r * m)
        return total, weighted, mean_dr / weighted

    @kernel(
        address_arrays(number), token_options(number), mass_arrays(number), content_dots(number),
        record(AccessGradients, terms=numbers, gains=numbers, dr=numbers), number, MASS_SIZES,
    )  # fmt: skip
    def mass_backward_prepare(address, options, masses, dots, out, eps, sizes):
        """``terms`` of every write and ``gains`` of every read, and dr, the gradient of its weight.

        Thread j of a token's eight takes accesses j, j + 8, ..: each element is written by one thread.
        """
        row, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // GROUP_OF_8, cuda.threadIdx.x % GROUP_OF_8
        if row >= sizes.tokens:
            return
        one, zero, Kw, Kr = number(1), number(0), sizes.Kw, sizes.Kr
        token, at = token_and_head(row, sizes.T, sizes.H)
        kept, gamma = takes_part(options, token), gamma_at(options, at)
        all_writes, all_reads = int64(sizes.tokens) * W, int64(sizes.tokens) * R
        for k in range(j, W, GROUP_OF_8):
            write = int64(row) * W + k
            alpha, b, g, p, u = one, zero, zero, zero, zero
            if kept and k < Kw:
                w = address.write_weight[at * Kw + k]
                alpha = alpha_of(w, gamma)
                indices = write, all_writes, row, sizes.tokens, k
                b, g, p, u = write_terms(w, masses.old_mass[write], alpha, dots, indices, eps)
            out.terms[ALPHA * all_writes + write] = alpha
            out.terms[B * all_writes + write] = b
            out.terms[G * all_writes + write] = g
            out.terms[P * all_writes + write] = p
            out.terms[U * all_writes + write] = u
        total, weighted, mean_dr = zero, eps, zero
        if aware:
            total, weighted, mean_dr = mass_aware_sums(
                address.read_weight, masses.read_mass, dots, at * Kr, int64(row) * R, Kr, all_reads, eps
            )
        for k in range(j, R, GROUP_OF_8):
            read = int64(row) * R + k
            gain, dmass = zero, zero
            if k < Kr:
                dr, r = zero, address.read_weight[at * Kr + k]
                if kept:
                    dr = sum_slices(dots.dy_dot_s, read, dots.read_slices, all_reads)
                    gain = r * dr
                    if aware:
                        m = masses.read_mass[read]
                        dn = (dr - mean_dr) * total / weighted
                        gain *= total * m / weighted
                        dr, dmass = dn * m + mean_dr, dn * r
                out.dr[at * Kr + k] = dr
            out.gains[GAIN * all_reads + read] = gain
            if aware:
                out.gains[DMASS * all_reads + read] = dmass

    return mass_backward_prepare


class FinalDots(NamedTuple):
    """<dstate, s> of every row after the last token, if the gradient of the final state is given."""

    dots: Any  # (slices, B*H, rows)
    slices: Any


@cache
def mass_backward_scan_kernel(number, in_shared: bool, W: int, R: int, aware: bool):
    """``mass_backward_scan`` for this Numba type, q and dz in shared memory or in device memory, and tokens of W writes
    and R reads, mass-aware ones or not."""
    numbers = types.CPointer(number)
    get, put = state_access(in_shared)
    E, threads = W + R, max(W, R)
    ahead = AHEAD * 32 // number.bitwidth  # as many registers in float64

    @cuda.jit(device=True)
    def load_writes(rows, terms, bh, k, start, sizes, registers):
        """The k-th writes of the tokens from ``start`` back; before the first token, what does nothing."""
        row, alpha, b, g, p = registers
        writes = threads == W or k < W  # whether there are such accesses
        access, write, all_writes = bh * sizes.T * E + k, bh * sizes.T * W + k, int64(sizes.tokens) * W
        for i in range(ahead):
            t = start - i
            row[i], alpha[i], b[i], g[i], p[i] = sizes.n_rows + k, number(1), number(0), number(0), number(0)
            if writes and t >= 0:
                row[i] = rows[access + t * E]
                alpha[i] = terms[ALPHA * all_writes + write + t * W]
                b[i] = terms[B * all_writes + write + t * W]
                g[i] = terms[G * all_writes + write + t * W]
                p[i] = terms[P * all_writes + write + t * W]

    @cuda.jit(device=True)
    def load_reads(rows, gains, bh, k, start, sizes, registers):
        """The k-th reads of the same tokens."""
        row, gain, dmass = registers
        reads = threads == R or k < R
        access, read, all_reads = bh * sizes.T * E + W + k, bh * sizes.T * R + k, int64(sizes.tokens) * R
        for i in range(ahead):
            t = start - i
            row[i], gain[i], dmass[i] = sizes.n_rows + W + k, number(0), number(0)
            if reads and t >= 0:
                row[i] = rows[access + t * E]
                gain[i] = gains[GAIN * all_reads + read + t * R]
                if aware:
                    dmass[i] = gains[DMASS * all_reads + read + t * R]

    @cuda.jit(device=True)
    def apply(shared, working, at, k, write_registers, read_registers, found):
        """Reads and writes of a few tokens, the last first; ``at``: where q and dz begin."""
        q_at, dz_at = at
        write_row, alpha, b, g, p = write_registers
        read_row, gain, dmass = read_registers
        q, dz = found
        writes, reads = threads == W or k < W, threads == R or k < R
        for i in range(ahead):
            if reads:
                put(shared, working, q_at, read_row[i], get(shared, working, q_at, read_row[i]) + gain[i])
                if aware:
                    dz_read = get(shared, working, dz_at, read_row[i]) + dmass[i]
                    put(shared, working, dz_at, read_row[i], dz_read)
            cuda.syncthreads()
            if writes:
                q_after = get(shared, working, q_at, write_row[i])
                dz[i] = get(shared, working, dz_at, write_row[i])
                q[i] = b[i] + (q_after if k > 0 else number(0))  # of the first write q is known
                pull = p[i] - g[i] * q[i]
                put(shared, working, q_at, write_row[i], q[i])
                put(shared, working, dz_at, write_row[i], alpha[i] * (dz[i] - pull))
            cuda.syncthreads()

    @cuda.jit(device=True)
    def store(found, terms, bh, k, start, sizes):
        """q and dz of the writes, in place of b and alpha."""
        q, dz = found
        writes = threads == W or k < W
        write, all_writes = bh * sizes.T * W + k, int64(sizes.tokens) * W
        for i in range(ahead):
            t = start - i
            if writes and t >= 0:
                terms[Q * all_writes + write + t * W] = q[i]
                terms[DZ * all_writes + write + t * W] = dz[i]

    @cuda.jit(device=True)
    def start_state(state, final, sizes, bh, k, shared, at):
        """dz of the final state, if given, and its q; else 0."""
        q_at, dz_at = at
        n_rows, heads = sizes.n_rows, int64(cuda.gridDim.x)
        for r in range(k, n_rows + E, threads):
            q, dz = number(0), number(0)
            if state.has_start != 0 and r < n_rows:
                dz = state.start[bh * n_rows + r]
                q = sum_slices(final.dots, bh * n_rows + r, final.slices, heads * n_rows)
            put(shared, state.working, q_at, r, q)
            put(shared, state.working, dz_at, r, dz)

    @kernel(
        INDICES, numbers, numbers, record(FinalDots, dots=numbers, slices=int32), state_pass(number), MASS_SIZES,
        most_threads=threads,
    )  # fmt: skip
    def mass_backward_scan(rows, terms, gains, final, state, sizes):
        """q and dz, the last token first. For each write, q takes the place of b, and dz' that of alpha.

        Thread k is the only one that touches the k-th accesses; a barrier lies between a token's reads and its writes,
        which may have the same slots, and between tokens. ``state`` is the adjoint of the masses: it starts with that
        of the final ones.
        """
        shared = cuda.shared.array(0, number)
        k, bh, n_rows = cuda.threadIdx.x, int64(cuda.blockIdx.x), sizes.n_rows
        q_at = int64(0) if in_shared else bh * 2 * (n_rows + E)
        dz_at = q_at + n_rows + E
        start_state(state, final, sizes, bh, k, shared, (q_at, dz_at))
        cuda.syncthreads()
        write_row, read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        gain, dmass = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        alpha, b = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        g, p = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        next_write_row, next_read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        next_gain, next_dmass = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        next_alpha, next_b = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        next_g, next_p = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        found = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        for start in range(sizes.T - 1 + ahead, -1, -ahead):
            coming = start - ahead
            load_writes(rows, terms, bh, k, coming, sizes, (next_write_row, next_alpha, next_b, next_g, next_p))
            load_reads(rows, gains, bh, k, coming, sizes, (next_read_row, next_gain, next_dmass))
            if start < sizes.T:
                writes, reads = (write_row, alpha, b, g, p), (read_row, gain, dmass)
                apply(shared, state.working, (q_at, dz_at), k, writes, reads, found)
                store(found, terms, bh, k, start, sizes)
            for i in range(ahead):
                write_row[i], alpha[i], b[i] = next_write_row[i], next_alpha[i], next_b[i]
                g[i], p[i] = next_g[i], next_p[i]
                read_row[i], gain[i], dmass[i] = next_read_row[i], next_gain[i], next_dmass[i]
        if state.has_end != 0:
            for r in range(k, n_rows, threads):
                state.end[bh * n_rows + r] = get(shared, state.working, dz_at, r)

    return mass_backward_scan


@cache
def mass_backward_finish_kernel(number, update: str, W: int):
    """``mass_backward_finish`` for this Numba type and update rule, and tokens of W writes."""
    numbers = types.CPointer(number)
    alpha_of, slopes_of = retention_of(update, number)

    @kernel(
        numbers, token_options(number), numbers, numbers, weight_gradients(number),
        slope_numbers(number), MASS_SIZES,
    )  # fmt: skip
    def mass_backward_finish(write_weight, options, old_mass, terms, out, constants, sizes):
        """dw, and dgamma, whose sum over a token's writes is formed in two steps: thread j of the eight adds up those
        of writes j, j + 8, .., and after a barrier the first thread adds up the eight."""
        sums = cuda.shared.array(THREADS, number)
        thread = cuda.threadIdx.x
        row, j = cuda.blockIdx.x * TOKENS + thread // GROUP_OF_8, thread % GROUP_OF_8
        at, dgamma = int64(0), number(0)
        if row < sizes.tokens:
            token, at = token_and_head(row, sizes.T, sizes.H)
            kept, gamma, all_writes = takes_part(options, token), gamma_at(options, at), int64(sizes.tokens) * W
            for k in range(j, sizes.Kw, GROUP_OF_8):
                write, dw = int64(row) * W + k, number(0)
                if kept:
                    w, before = write_weight[at * sizes.Kw + k], old_mass[write]
                    alpha = alpha_of(w, gamma)
                    slope_w, slope_gamma = slopes_of(w, gamma, alpha, constants.proxy_eps, constants.smallest)
                    q, dz = terms[Q * all_writes + write], terms[DZ * all_writes + write]
                    pull = terms[P * all_writes + write] - terms[G * all_writes + write] * q
                    dw = terms[U * all_writes + write] + dz + (dz - pull) * (before * slope_w)
                    if k > 0:
                        dw -= q / (alpha * before + constants.eps + w)
                    dgamma += (dz - pull) * (before * slope_gamma)
                out.dw[at * sizes.Kw + k] = dw
        sums[thread] = dgamma
        cuda.syncthreads()
        if j == 0 and row < sizes.tokens:
            for other in range(1, GROUP_OF_8):
                dgamma += sums[thread + other]
            out.dgamma[at] = dgamma

    return mass_backward_finish
