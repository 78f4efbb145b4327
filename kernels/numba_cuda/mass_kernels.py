"""The masses of the slots, and all of the memory's gradients that do not depend on channels.

    forward   z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
    backward  the same in reverse, with the adjoint of z: ``mass_backward_kernels.py``

Only z's own recurrence goes token by token. What needs no mass, a power for every write among it, is prepared for all
tokens at once, and what needs the masses found is finished for all tokens at once:

    mass_prepare   eight threads a token and head    rows, retention alpha
    mass_scan      one block a (batch, head)         z
    mass_finish    eight threads a token and head    eta, weights of mass-aware reads

In the scan, thread k is the k-th access of every token. A token's accesses go to different slots, so its threads never
meet; the next token's may, and so a barrier lies between. Each thread loads its accesses ``AHEAD`` tokens at a time,
and asks for the next ones before it follows these: device memory takes longer than a token.

An access that does nothing (masked, or to a slot without a row) goes to a row of its own behind the slots: ``n_rows`` +
its place among the token's accesses. Whatever it changes there, nobody else reads.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types

from .launch import SIMULATED, THREADS, kernel
from .octets import OCTET, access, split
from .retention import retention

AHEAD = 2 if SIMULATED else 16  # tokens that a thread of the scan loads at a time
MOST_THREADS = 1024  # of a block
TOKENS = THREADS // OCTET  # of a block of ``mass_prepare`` and ``mass_finish``


@cache
def mass_kernels(number, in_shared: bool, W: int, R: int, aware: bool):
    """``prepare``, ``scan`` and ``finish`` for this Numba type, masses in shared memory or in device memory,
    and tokens of W writes and R reads, mass-aware ones or not."""
    numbers, rows_type, flags = types.CPointer(number), types.CPointer(int32), types.CPointer(types.uint8)
    get, put = access(in_shared)
    E, threads = W + R, max(W, R)
    ahead = AHEAD if threads <= 256 else 1  # a thread of more has few registers

    @kernel(rows_type, rows_type, *[numbers] * 3, flags, rows_type, numbers, numbers, number, *[int32] * 9)
    def mass_prepare(
        write_slot, read_slot, write_weight, read_weight, gamma, mask, rows, coefs, alpha, gamma_number, one_gamma,
        masked, gsu, tokens, T, H, n_rows, Kw, Kr,
    ):  # fmt: skip
        """Of every access, in the order (B*H, T, W + R), its row and weight; of every write alpha (B*H, T, W).

        Thread j of a token's eight takes accesses j, j + 8, ..: each element is written by one thread.
        """
        token, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // OCTET, cuda.threadIdx.x % OCTET
        if token >= tokens:
            return
        unit, t = split(token, T)
        b, h = split(unit, H)
        one, zero = number(1), number(0)
        counts = masked == 0 or mask[int64(b) * T + t] != 0
        at, event = (int64(b) * T + t) * H + h, int64(token) * E
        gamma_t = gamma_number if one_gamma != 0 else gamma[at]
        for k in range(j, W, OCTET):
            row, w, a = n_rows + k, zero, one
            if counts and k < Kw:
                row, w = write_slot[at * Kw + k], write_weight[at * Kw + k]
                a = retention(w, gamma_t, gsu)
            rows[event + k], coefs[event + k], alpha[int64(token) * W + k] = row, w, a
        for k in range(j, R, OCTET):
            row, r = n_rows + W + k, zero
            if counts and k < Kr:
                r = read_weight[at * Kr + k]
                if read_slot[at * Kr + k] >= 0:
                    row = read_slot[at * Kr + k]
            rows[event + W + k], coefs[event + W + k] = row, r

    @kernel(rows_type, *[numbers] * 7, number, *[int32] * 4, most_threads=threads)
    def mass_scan(
        rows, coefs, alpha, old_mass, read_mass, given, working, final, initial, has_given, has_final, T, n_rows,
    ):  # fmt: skip
        """z, token by token: of each write the mass that it found, and in place of alpha the mass that it left.

        Thread k is the only one that touches the k-th access; a barrier lies between tokens, whose accesses may meet,
        and between a token's writes and its mass-aware reads.
        """
        shared = cuda.shared.array(0, number)
        k, unit = cuda.threadIdx.x, int64(cuda.blockIdx.x)
        writes, reads = threads == W or k < W, threads == R or k < R  # whether there are such accesses
        one, zero = number(1), number(0)
        z_at = int64(0) if in_shared else unit * (n_rows + E)
        for row in range(k, n_rows + E, threads):
            put(shared, working, z_at, row, given[unit * n_rows + row] if has_given != 0 and row < n_rows else initial)
        cuda.syncthreads()
        row, read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        a, w = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        new_row, new_read_row = cuda.local.array(ahead, int32), cuda.local.array(ahead, int32)
        new_a, new_w = cuda.local.array(ahead, number), cuda.local.array(ahead, number)
        found, z, seen = (
            cuda.local.array(ahead, number), cuda.local.array(ahead, number), cuda.local.array(ahead, number),
        )  # fmt: skip
        event, write, read = unit * T * E + k, unit * T * W + k, unit * T * R + k  # of token 0
        for start in range(-ahead, T, ahead):
            for i in range(ahead):
                t = start + ahead + i
                new_row[i], new_a[i], new_w[i], new_read_row[i] = n_rows + k, one, zero, n_rows + W + k
                if writes and t < T:
                    new_row[i], new_w[i] = rows[event + t * E], coefs[event + t * E]
                    new_a[i] = alpha[write + t * W]
                if aware and reads and t < T:
                    new_read_row[i] = rows[event + t * E + W]
            if start >= 0:
                for i in range(ahead):  # z = alpha z + w
                    if writes:
                        found[i] = get(shared, working, z_at, row[i])
                        z[i] = a[i] * found[i] + w[i]
                        put(shared, working, z_at, row[i], z[i])
                    cuda.syncthreads()
                    if aware:
                        if reads:
                            seen[i] = get(shared, working, z_at, read_row[i])
                        cuda.syncthreads()
                for i in range(ahead):
                    t = start + i
                    if writes and t < T:
                        old_mass[write + t * W], alpha[write + t * W] = found[i], z[i]
                    if aware and reads and t < T:
                        read_mass[read + t * R] = seen[i]
            for i in range(ahead):
                row[i], a[i], w[i], read_row[i] = new_row[i], new_a[i], new_w[i], new_read_row[i]
        if has_final != 0:
            for r in range(k, n_rows, threads):
                final[unit * n_rows + r] = get(shared, working, z_at, r)

    @kernel(*[numbers] * 4, number, *[int32] * 5)
    def mass_finish(coefs, mass, read_weight, read_mass, eps, tokens, T, H, Kw, Kr):
        """eta of each write, whose coefficient was w; weights of mass-aware reads, (sum r) r z / (sum r z + eps).

        Threads as in ``mass_prepare``; each goes over all of a token's reads for the sums, and changes the coefficients
        of its own accesses. Those of masked tokens are 0 and stay so.
        """
        token, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // OCTET, cuda.threadIdx.x % OCTET
        if token >= tokens:
            return
        event, write = int64(token) * E, int64(token) * W
        for k in range(j, Kw, OCTET):
            coefs[event + k] /= mass[write + k] + eps
        if aware:
            unit, t = split(token, T)
            b, h = split(unit, H)
            at, read = ((int64(b) * T + t) * H + h) * Kr, int64(token) * R
            total, weighted = number(0), number(0)
            for k in range(Kr):
                total += read_weight[at + k]
                weighted += read_weight[at + k] * read_mass[read + k]
            for k in range(j, Kr, OCTET):
                coefs[event + W + k] *= total * read_mass[read + k] / (weighted + eps)

    return SimpleNamespace(prepare=mass_prepare, scan=mass_scan, finish=mass_finish)
