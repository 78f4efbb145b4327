"""The masses of the slots, eta of every write and the weight of every read.

    z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]

``plain_masses.py`` has the same in a dozen lines, ``mass_backward.py`` the gradients.

Only z's own recurrence goes token by token. What needs no mass, a power for every write among it, is prepared for all
tokens at once, and what needs the masses before is finished for all tokens at once:

    mass_prepare   eight threads a token and head    rows, retention alpha
    mass_scan      one block a (batch, head)         z
    mass_finish    eight threads a token and head    eta, weights of mass-aware reads

In the scan, thread k is the k-th access of every token. A token's writes go to different slots, so no two threads
change one number; the next token's may go to the same slots, so a barrier lies between. Each thread loads its accesses
``AHEAD`` tokens at a time, and prefetches the next ones before it applies these: device memory takes longer than a
token.

An access that does nothing (masked, or to a slot without a row) goes to a row of its own after the slots: ``n_rows`` +
its number among the token's accesses. Whatever it changes there, nobody else reads.
"""

from functools import cache

from .compiler import SIMULATED, cuda, int32, int64, types
from .groups_of_8 import GROUP_OF_8, state_access, token_and_head
from .launch import THREADS, kernel
from .records import (
    MASS_SIZES,
    accesses_type,
    address_arrays,
    gamma_at,
    mass_arrays,
    state_pass,
    takes_part,
    token_options,
)
from .retention import retention_of

AHEAD = 2 if SIMULATED else 16  # tokens that a thread of the scan loads at a time
TOKENS = THREADS // GROUP_OF_8  # a block of ``mass_prepare`` or ``mass_finish`` takes


@cache
def mass_prepare_kernel(number, update: str, W: int, R: int):
    """``mass_prepare`` for this Numba type and update rule, and tokens of W writes and R reads."""
    alpha_of, E = retention_of(update, number).alpha, W + R

    @kernel(
        address_arrays(number), token_options(number), accesses_type(number), types.CPointer(number), MASS_SIZES
    )  # fmt: skip
    def mass_prepare(address, options, accesses, alpha, sizes):
        """Row and weight of every access, in the order (B*H, T, W + R), and alpha of every write, (B*H, T, W).

        Thread j of a token's eight takes accesses j, j + 8, ..: each element is written by one thread.
        """
        row, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // GROUP_OF_8, cuda.threadIdx.x % GROUP_OF_8
        if row >= sizes.tokens:
            return
        one, zero = number(1), number(0)
        token, at = token_and_head(row, sizes.T, sizes.H)
        kept, access = takes_part(options, token), int64(row) * E
        gamma = gamma_at(options, at)
        for k in range(j, W, GROUP_OF_8):
            slot, w, a = sizes.n_rows + k, zero, one
            if kept and k < sizes.Kw:
                slot, w = address.write_slot[at * sizes.Kw + k], address.write_weight[at * sizes.Kw + k]
                a = alpha_of(w, gamma)
            accesses.row[access + k], accesses.coef[access + k], alpha[int64(row) * W + k] = slot, w, a
        for k in range(j, R, GROUP_OF_8):
            slot, r = sizes.n_rows + W + k, zero
            if kept and k < sizes.Kr:
                r = address.read_weight[at * sizes.Kr + k]
                if address.read_slot[at * sizes.Kr + k] >= 0:
                    slot = address.read_slot[at * sizes.Kr + k]
            accesses.row[access + W + k], accesses.coef[access + W + k] = slot, r

    return mass_prepare


@cache
def mass_scan_kernel(number, in_shared: bool, W: int, R: int, aware: bool):
    """``mass_scan`` for this Numba type, masses in shared memory or in device memory, and tokens of W writes and R
    reads, mass-aware ones or not."""
    numbers = types.CPointer(number)
    get, put = state_access(in_shared)
    E, threads = W + R, max(W, R)

    @cuda.jit(device=True)
    def load_to_registers(accesses, alpha, bh, k, start, sizes, registers):
        """The k-th accesses of the tokens from ``start`` on; past the last token, or without one, what does nothing."""
        row, a, w, read_row = registers
        writes, reads = threads == W or k < W, threads == R or k < R  # whether there are such accesses
        access, write = bh * sizes.T * E + k, bh * sizes.T * W + k  # of token 0
        for i in range(AHEAD):
            t = start + i
            row[i], a[i], w[i], read_row[i] = sizes.n_rows + k, number(1), number(0), sizes.n_rows + W + k
            if writes and t < sizes.T:
                row[i], w[i] = accesses.row[access + t * E], accesses.coef[access + t * E]
                a[i] = alpha[write + t * W]
            if aware and reads and t < sizes.T:
                read_row[i] = accesses.row[access + t * E + W]

    @cuda.jit(device=True)
    def apply(shared, working, z_at, k, registers, found):
        """z = alpha z + w, token by token."""
        row, a, w, read_row = registers
        old, z, at_read = found
        writes, reads = threads == W or k < W, threads == R or k < R
        for i in range(AHEAD):
            if writes:
                old[i] = get(shared, working, z_at, row[i])
                z[i] = a[i] * old[i] + w[i]
                put(shared, working, z_at, row[i], z[i])
            cuda.syncthreads()
            if aware:
                if reads:
                    at_read[i] = get(shared, working, z_at, read_row[i])
                cuda.syncthreads()

    @cuda.jit(device=True)
    def store(found, masses, alpha, bh, k, start, T):
        """The masses that the tokens from ``start`` on found."""
        old, z, at_read = found
        writes, reads = threads == W or k < W, threads == R or k < R
        write, read = bh * T * W + k, bh * T * R + k  # of token 0
        for i in range(AHEAD):
            t = start + i
            if writes and t < T:
                masses.old_mass[write + t * W], alpha[write + t * W] = old[i], z[i]
            if aware and reads and t < T:
                masses.read_mass[read + t * R] = at_read[i]

    @kernel(
        accesses_type(number), numbers, mass_arrays(number), state_pass(number), number, MASS_SIZES,
        most_threads=threads,
    )  # fmt: skip
    def mass_scan(accesses, alpha, masses, state, initial, sizes):
        """z, token by token. Keeps the mass before each write, and puts the mass after it in the place of its alpha.

        Thread k is the only one that touches the k-th access; a barrier lies between tokens, which may have the
        same slots, and between a token's writes and its mass-aware reads.
        """
        shared = cuda.shared.array(0, number)
        k, bh, n_rows = cuda.threadIdx.x, int64(cuda.blockIdx.x), sizes.n_rows
        z_at = int64(0) if in_shared else bh * (n_rows + E)
        for r in range(k, n_rows + E, threads):
            given = state.has_start != 0 and r < n_rows
            put(shared, state.working, z_at, r, state.start[bh * n_rows + r] if given else initial)
        cuda.syncthreads()
        row, read_row = cuda.local.array(AHEAD, int32), cuda.local.array(AHEAD, int32)
        a, w = cuda.local.array(AHEAD, number), cuda.local.array(AHEAD, number)
        next_row, next_read_row = cuda.local.array(AHEAD, int32), cuda.local.array(AHEAD, int32)
        next_a, next_w = cuda.local.array(AHEAD, number), cuda.local.array(AHEAD, number)
        old, z = cuda.local.array(AHEAD, number), cuda.local.array(AHEAD, number)
        found = old, z, cuda.local.array(AHEAD, number)
        for start in range(-AHEAD, sizes.T, AHEAD):
            load_to_registers(accesses, alpha, bh, k, start + AHEAD, sizes, (next_row, next_a, next_w, next_read_row))
            if start >= 0:
                apply(shared, state.working, z_at, k, (row, a, w, read_row), found)
                store(found, masses, alpha, bh, k, start, sizes.T)
            for i in range(AHEAD):
                row[i], a[i], w[i], read_row[i] = next_row[i], next_a[i], next_w[i], next_read_row[i]
        if state.has_end != 0:
            for r in range(k, n_rows, threads):
                state.end[bh * n_rows + r] = get(shared, state.working, z_at, r)

    return mass_scan


@cache
def mass_finish_kernel(number, W: int, R: int, aware: bool):
    """``mass_finish`` for this Numba type and tokens of W writes and R reads, mass-aware ones or not."""
    numbers, E = types.CPointer(number), W + R

    @kernel(numbers, numbers, numbers, numbers, number, MASS_SIZES)
    def mass_finish(coefs, mass, read_weight, read_mass, eps, sizes):
        """eta of each write, whose coefficient was w; weights of mass-aware reads, (sum r) r z / (sum r z + eps).

        Threads as in ``mass_prepare``; each goes over all of a token's reads for the sums, and changes the coefficients
        of its own accesses. Those of masked tokens are 0 and stay so.
        """
        row, j = cuda.blockIdx.x * TOKENS + cuda.threadIdx.x // GROUP_OF_8, cuda.threadIdx.x % GROUP_OF_8
        if row >= sizes.tokens:
            return
        access, write = int64(row) * E, int64(row) * W
        for k in range(j, sizes.Kw, GROUP_OF_8):
            coefs[access + k] /= mass[write + k] + eps
        if aware:
            _, at = token_and_head(row, sizes.T, sizes.H)
            weight, read = at * sizes.Kr, int64(row) * R
            total, weighted = number(0), number(0)
            for k in range(sizes.Kr):
                total += read_weight[weight + k]
                weighted += read_weight[weight + k] * read_mass[read + k]
            for k in range(j, sizes.Kr, GROUP_OF_8):
                coefs[access + W + k] *= total * read_mass[read + k] / (weighted + eps)

    return mass_finish
