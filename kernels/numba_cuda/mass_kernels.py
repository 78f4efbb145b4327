"""The masses of the slots, and all of the memory's gradients that do not depend on channels.

    forward   z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
    backward  the same in reverse, with the adjoint of z: ``mass_backward_kernels.py``

Only z's own recurrence goes token by token. What needs no mass, a power for every write among it, is prepared for all
tokens at once, and what needs the masses found is finished for all tokens at once:

    mass_prepare   eight threads a token and head    rows, retention alpha
    mass_scan      one block a (batch, head)         z, eta
    mass_weigh     eight threads a token and head    weights of mass-aware reads

In the scan, thread k is the k-th access of every token. A token's accesses go to different slots, so its threads never
meet; the next token's may, and so a barrier lies between. Each thread loads its accesses ``AHEAD`` tokens at a time, and
asks for the next ones before it follows these: device memory takes longer than a token.

An access that does nothing (masked, or to a slot without a row) goes to a row of its own behind the slots: ``n_rows`` + its
place among the token's accesses. Whatever it changes there, nobody else reads.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types

from .launch import SIMULATED, THREADS, kernel
from .octets import OCTET, access, split
from .retention import retention

AHEAD = 2 if SIMULATED else 8  # tokens that a thread of a scan loads at a time
MOST_THREADS = 1024  # of a block
TOKENS = THREADS // OCTET  # of a block of ``mass_prepare`` and ``mass_weigh``


@cache
def mass_kernels(number, in_shared: bool):
    """``prepare``, ``scan`` and ``weigh`` for this Numba type, masses in shared memory or in device memory."""
    numbers, rows_type, flags = types.CPointer(number), types.CPointer(int32), types.CPointer(types.uint8)
    get, put = access(in_shared)

    @kernel(rows_type, rows_type, *[numbers] * 3, flags, rows_type, numbers, numbers, number, *[int32] * 11)
    def mass_prepare(
        write_slot, read_slot, write_weight, read_weight, gamma, mask, rows, coefs, alpha, gamma_number, one_gamma,
        masked, gsu, tokens, T, H, n_rows, Kw, Kr, W, R,
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
        at, event = (int64(b) * T + t) * H + h, int64(token) * (W + R)
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

    @kernel(rows_type, *[numbers] * 6, number, number, *[int32] * 7)
    def mass_scan(
        rows, coefs, alpha, read_mass, given, working, final, eps, initial, has_given, has_final, aware, T, n_rows, W, R,
    ):  # fmt: skip
        """z, token by token. Each write's coefficient w becomes eta, its alpha the mass that it found.

        Thread k is the only one that touches the k-th access; a barrier lies between tokens, whose accesses may meet,
        and between a token's writes and its mass-aware reads.
        """
        shared = cuda.shared.array(0, number)
        k, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit, E = int64(cuda.blockIdx.x), W + R
        one, zero = number(1), number(0)
        z_at = int64(0) if in_shared else unit * (n_rows + E)
        for row in range(k, n_rows + E, threads):
            put(shared, working, z_at, row, given[unit * n_rows + row] if has_given != 0 and row < n_rows else initial)
        cuda.syncthreads()
        row, a, w = cuda.local.array(AHEAD, int32), cuda.local.array(AHEAD, number), cuda.local.array(AHEAD, number)
        new_row, new_a = cuda.local.array(AHEAD, int32), cuda.local.array(AHEAD, number)
        new_w, read_row = cuda.local.array(AHEAD, number), cuda.local.array(AHEAD, int32)
        event, write = unit * T * E + k, unit * T * W + k  # of token 0
        for start in range(-AHEAD, T, AHEAD):
            for i in range(AHEAD):
                t = start + AHEAD + i
                new_row[i], new_a[i], new_w[i] = n_rows + k, one, zero
                if k < W and t < T:
                    new_row[i], new_w[i] = rows[event + t * E], coefs[event + t * E]
                    new_a[i] = alpha[write + t * W]
            if start >= 0:
                for i in range(AHEAD):
                    t = start + i
                    read_row[i] = n_rows + W + k
                    if aware != 0 and k < R and t < T:
                        read_row[i] = rows[event + W + t * E]
                for i in range(AHEAD):
                    t = start + i
                    if k < W:
                        found = get(shared, working, z_at, row[i])
                        z = a[i] * found + w[i]
                        put(shared, working, z_at, row[i], z)
                        if t < T:
                            coefs[event + t * E], alpha[write + t * W] = w[i] / (z + eps), found
                    cuda.syncthreads()
                    if aware != 0:
                        if k < R and t < T:
                            read_mass[(unit * T + t) * R + k] = get(shared, working, z_at, read_row[i])
                        cuda.syncthreads()
            for i in range(AHEAD):
                row[i], a[i], w[i] = new_row[i], new_a[i], new_w[i]
        if has_final != 0:
            for r in range(k, n_rows, threads):
                final[unit * n_rows + r] = get(shared, working, z_at, r)

    @kernel(numbers, numbers, numbers, number, *[int32] * 6)
    def mass_weigh(coefs, read_weight, read_mass, eps, tokens, T, H, Kr, W, R):
        """Weights of mass-aware reads, (sum r) r z / (sum r z + eps). Threads as in ``mass_prepare``; each goes over all
        of a token's reads for the sums, and writes the weights of its own. Those of masked tokens are 0 and stay so."""
        token, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // OCTET, cuda.threadIdx.x % OCTET
        if token >= tokens:
            return
        unit, t = split(token, T)
        b, h = split(unit, H)
        at, mass = ((int64(b) * T + t) * H + h) * Kr, int64(token) * R
        read = int64(token) * (W + R) + W
        total, weighted = number(0), number(0)
        for k in range(Kr):
            total += read_weight[at + k]
            weighted += read_weight[at + k] * read_mass[mass + k]
        for k in range(j, Kr, OCTET):
            coefs[read + k] = total * (coefs[read + k] * read_mass[mass + k]) / (weighted + eps)

    return SimpleNamespace(prepare=mass_prepare, scan=mass_scan, weigh=mass_weigh)
