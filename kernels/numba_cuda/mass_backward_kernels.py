"""The gradients of weights and gamma: the masses' recurrence in reverse.

They need <d, v> of every write and <dy, s> of every read, with s a slot's content and d its adjoint, which the passes
over the contents leave, and the content that a write found, which no pass keeps. Of that only <d, found> is needed, and
it follows from what there is: q = <d, s> of a slot changes by known amounts,

    at a read   q += r <dy, s>                      (in reverse time, before the read)
    at a write  q -= eta <d, v>,  and then q = (1 - eta) <d, found>.

Only the product with 1 - eta is known, so nothing may be divided by 1 - eta, which can be tiny; with
kappa = 1 - eta = (alpha z' + eps) / (z + eps), z' the mass before, a write takes q and the adjoint dz of its mass to

    q = q_after + b,   pull = p - g q,   dz = alpha (dz - pull)
    dw = u - h q + dz' + slope (dz' - pull)          with dz' the adjoint before, slope = z' alpha'(w)

That is as exact as w stays away from 1. At most one weight of a token is above 1/2, its first; for that one the passes
over the contents do compute <d, found>.

Only q and dz go token by token; alpha, b, g, p, u and a read's gain need neither, and dw and dgamma follow from both:

    mass_backward_prepare   eight threads a token and head    alpha, b, g, p, u, gain; dr
    mass_backward_scan      one block a (batch, head)         q, dz
    mass_backward_finish    eight threads a token and head    dw, dgamma

The scan's threads are those of ``mass_scan``: thread k is the k-th access of every token.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types

from .launch import SIMULATED, THREADS, kernel
from .mass_kernels import TOKENS
from .octets import OCTET, access, split
from .retention import retention, retention_slopes

AHEAD = 2 if SIMULATED else 8  # tokens that a thread of the scan loads at a time
ALPHA, B, G, P, U = range(5)  # of ``terms`` (5, B*H, T, W)
DZ, Q = ALPHA, B  # what the scan leaves in their place
GAIN, DMASS = range(2)  # of ``gains`` (2, B*H, T, R), or (1, ...) if reads are not mass-aware


@cuda.jit(device=True)
def dot_of(parts, at, slices, stride):
    """The sum over slices of channels, in their order."""
    total = parts[at]
    for s in range(1, slices):
        total += parts[at + s * stride]
    return total


@cache
def mass_backward_kernels(number, in_shared: bool, W: int, R: int, aware: bool):
    """``prepare``, ``scan`` and ``finish`` for this Numba type, q and dz in shared memory or in device memory,
    and tokens of W writes and R reads, mass-aware ones or not."""
    numbers, rows_type, flags = types.CPointer(number), types.CPointer(int32), types.CPointer(types.uint8)
    get, put = access(in_shared)
    E, threads = W + R, max(W, R)
    ahead = AHEAD * 32 // number.bitwidth if threads <= 256 else 1  # a thread of more has few registers

    @kernel(rows_type, *[numbers] * 3, flags, *[numbers] * 8, number, number, *[int32] * 10)
    def mass_backward_prepare(
        read_slot, write_weight, read_weight, gamma, mask, old_mass, read_mass, dwritten, dfound, dread, terms, gains,
        dr, gamma_number, eps, one_gamma, masked, gsu, tokens, T, H, Kw, Kr, slices, read_slices,
    ):  # fmt: skip
        """``terms`` of every write and ``gains`` of every read, and dr, the gradient of its weight.

        Thread j of a token's eight takes accesses j, j + 8, ..: each element is written by one thread.
        """
        token, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // OCTET, cuda.threadIdx.x % OCTET
        if token >= tokens:
            return
        unit, t = split(token, T)
        b, h = split(unit, H)
        one, zero = number(1), number(0)
        counts = masked == 0 or mask[int64(b) * T + t] != 0
        at = (int64(b) * T + t) * H + h
        all_writes, all_reads = int64(tokens) * W, int64(tokens) * R
        gamma_t = gamma_number if one_gamma != 0 else gamma[at]
        for k in range(j, W, OCTET):
            write = int64(token) * W + k
            alpha, b_, g, p, u = one, zero, zero, zero, zero
            if counts and k < Kw:
                w = write_weight[at * Kw + k]
                alpha = retention(w, gamma_t, gsu)
                kept = alpha * old_mass[write] + eps
                mass = kept + w
                eta, kappa = w / mass, kept / mass
                dot = dot_of(dwritten, write, slices, all_writes)  # <d, v>
                if k == 0:  # <d, found> is known
                    dot_found = dot_of(dfound, int64(token), slices, int64(tokens))
                    deta = (dot - dot_found) / mass
                    b_, p = kappa * dot_found, eta * deta
                    u = deta - p
                else:
                    g = eta / kept if kept > 0 else zero
                    b_, p, u = -eta * dot, g * (kappa * dot), kappa * dot / mass
            terms[ALPHA * all_writes + write] = alpha
            terms[B * all_writes + write] = b_
            terms[G * all_writes + write] = g
            terms[P * all_writes + write] = p
            terms[U * all_writes + write] = u
        total, weighted, through = zero, eps, zero  # of the token's reads, if they are mass-aware
        if aware:
            for k in range(Kr):
                read = int64(token) * R + k
                r, m = read_weight[at * Kr + k], read_mass[read]
                total += r
                weighted += r * m
                through += dot_of(dread, read, read_slices, all_reads) * (r * m)
            through /= weighted
        for k in range(j, R, OCTET):
            read = int64(token) * R + k
            gain, dmass = zero, zero
            if k < Kr:
                dweight, r = zero, read_weight[at * Kr + k]
                if counts:
                    dweight = dot_of(dread, read, read_slices, all_reads)
                    gain = r * dweight
                    if aware:
                        m = read_mass[read]
                        dn = (dweight - through) * total / weighted
                        gain *= total * m / weighted
                        dweight, dmass = dn * m + through, dn * r
                    if read_slot[at * Kr + k] < 0:
                        gain, dmass = zero, zero
                dr[at * Kr + k] = dweight
            gains[GAIN * all_reads + read] = gain
            if aware:
                gains[DMASS * all_reads + read] = dmass

    @kernel(rows_type, *[numbers] * 6, *[int32] * 6, most_threads=threads)
    def mass_backward_scan(
        rows, terms, gains, last, dfinal, working, dgiven, has_last, has_dgiven, units, T, n_rows,
        read_slices,
    ):  # fmt: skip
        """q and dz, the last token first. Of each write q takes the place of b and dz' that of alpha.

        Thread k is the only one that touches the k-th accesses; a barrier lies between a token's reads and its writes,
        which may meet, and between tokens.
        """
        shared = cuda.shared.array(0, number)
        k, unit = cuda.threadIdx.x, int64(cuda.blockIdx.x)
        writes, reads = threads == W or k < W, threads == R or k < R  # whether there are such accesses
        one, zero = number(1), number(0)
        all_writes, all_reads = int64(units) * T * W, int64(units) * T * R
        q_at = int64(0) if in_shared else unit * 2 * (n_rows + E)
        dz_at = q_at + n_rows + E
        for r in range(k, n_rows + E, threads):
            q, dz = zero, zero
            if has_last != 0 and r < n_rows:
                dz = dfinal[unit * n_rows + r]
                q = dot_of(last, unit * n_rows + r, read_slices, int64(units) * n_rows)
            put(shared, working, q_at, r, q)
            put(shared, working, dz_at, r, dz)
        cuda.syncthreads()
        write_row, read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        gain, dmass = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        alpha, b = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        g, p = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        new_write_row, new_read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        new_gain, new_dmass = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        new_alpha, new_b = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        new_g, new_p = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        q, dz = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        event, write, read = unit * T * E + k, unit * T * W + k, unit * T * R + k  # of token 0
        for start in range(T - 1 + ahead, -1, -ahead):
            for i in range(ahead):
                t = start - ahead - i
                new_write_row[i], new_alpha[i], new_b[i], new_g[i], new_p[i] = n_rows + k, one, zero, zero, zero
                new_read_row[i], new_gain[i], new_dmass[i] = n_rows + W + k, zero, zero
                if writes and t >= 0:
                    new_write_row[i] = rows[event + t * E]
                    new_alpha[i] = terms[ALPHA * all_writes + write + t * W]
                    new_b[i] = terms[B * all_writes + write + t * W]
                    new_g[i] = terms[G * all_writes + write + t * W]
                    new_p[i] = terms[P * all_writes + write + t * W]
                if reads and t >= 0:
                    new_read_row[i] = rows[event + t * E + W]
                    new_gain[i] = gains[GAIN * all_reads + read + t * R]
                    if aware:
                        new_dmass[i] = gains[DMASS * all_reads + read + t * R]
            if start < T:
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
                        q[i] = b[i] + (q_after if k > 0 else zero)  # of the first write q is known
                        pull = p[i] - g[i] * q[i]
                        put(shared, working, q_at, write_row[i], q[i])
                        put(shared, working, dz_at, write_row[i], alpha[i] * (dz[i] - pull))
                    cuda.syncthreads()
                for i in range(ahead):
                    t = start - i
                    if writes and t >= 0:
                        terms[Q * all_writes + write + t * W] = q[i]
                        terms[DZ * all_writes + write + t * W] = dz[i]
            for i in range(ahead):
                write_row[i], alpha[i], b[i], g[i], p[i] = new_write_row[i], new_alpha[i], new_b[i], new_g[i], new_p[i]
                read_row[i], gain[i], dmass[i] = new_read_row[i], new_gain[i], new_dmass[i]
        if has_dgiven != 0:
            for r in range(k, n_rows, threads):
                dgiven[unit * n_rows + r] = get(shared, working, dz_at, r)

    @kernel(numbers, numbers, flags, *[numbers] * 4, *[number] * 4, *[int32] * 7)
    def mass_backward_finish(
        write_weight, gamma, mask, old_mass, terms, dw, dgamma, gamma_number, eps, proxy_eps, smallest, one_gamma,
        masked, gsu, tokens, T, H, Kw,
    ):  # fmt: skip
        """dw, and dgamma, whose sum over a token's writes is formed in two steps: thread j of the eight adds up those
        of writes j, j + 8, .., and behind a barrier the first thread adds up the eight."""
        sums = cuda.shared.array(THREADS, number)
        thread = cuda.threadIdx.x
        token, j = cuda.blockIdx.x * TOKENS + thread // OCTET, thread % OCTET
        zero, at, through_gamma = number(0), int64(0), number(0)
        if token < tokens:
            unit, t = split(token, T)
            b, h = split(unit, H)
            at, all_writes = (int64(b) * T + t) * H + h, int64(tokens) * W
            counts = masked == 0 or mask[int64(b) * T + t] != 0
            gamma_t = gamma_number if one_gamma != 0 else gamma[at]
            for k in range(j, Kw, OCTET):
                write, dweight = int64(token) * W + k, zero
                if counts:
                    w, before = write_weight[at * Kw + k], old_mass[write]
                    alpha = retention(w, gamma_t, gsu)
                    slope_w, slope_gamma = retention_slopes(w, gamma_t, alpha, gsu, proxy_eps, smallest)
                    q, dz = terms[Q * all_writes + write], terms[DZ * all_writes + write]
                    pull = terms[P * all_writes + write] - terms[G * all_writes + write] * q
                    dweight = terms[U * all_writes + write] + dz + (dz - pull) * (before * slope_w)
                    if k > 0:
                        dweight -= q / (alpha * before + eps + w)
                    through_gamma += (dz - pull) * (before * slope_gamma)
                dw[at * Kw + k] = dweight
        sums[thread] = through_gamma
        cuda.syncthreads()
        if j == 0 and token < tokens:
            for other in range(1, OCTET):
                through_gamma += sums[thread + other]
            dgamma[at] = through_gamma

    return SimpleNamespace(prepare=mass_backward_prepare, scan=mass_backward_scan, finish=mass_backward_finish)
