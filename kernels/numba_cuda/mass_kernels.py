"""The masses of the slots, and all of the memory's gradients that do not depend on channels.

    forward   z[row] = alpha(w) z[row] + w,  eta = w / (z[row] + eps);  mass-aware reads weigh by z[row]
    backward  the same in reverse, with the adjoint of z

One block a (batch, head). Only z's own recurrence goes token by token, and ONE thread follows it: it alone touches the
masses, so there is nothing to race with. What needs no mass, a power for every write among it, is prepared by the other
threads a tile of tokens ahead; what needs the masses found is finished by them a tile behind. One barrier a tile:

    the leader     ..           tile n - 1      tile n          tile n + 1
    the helpers    prepare 0    prepare n       prepare n + 1   prepare n + 2
                                finish n - 2    finish n - 1    finish n

so three tiles are under way, in three parts of shared memory. A token's K accesses go to K different slots and are
padded to octets, which the leader loads, changes and stores together: the loads of an octet wait for memory once.
Padding goes to the row behind the last slot (of writes) and the one behind that (of reads), and changes nothing there.

The backward is given <d, v> of every write and <dy, s> of every read, with s a slot's content and d its adjoint, but
not the content that a write found, which no pass keeps. It needs of it only <d, found>, and that follows from what it
has: q = <d, s> of a slot changes by known amounts,

    at a read   q += r <dy, s>                      (in reverse time, before the read)
    at a write  q -= eta <d, v>,  and then q = (1 - eta) <d, found>.

Only the product with 1 - eta is known, so nothing may be divided by 1 - eta, which can be tiny; with
kappa = 1 - eta = (alpha z' + eps) / (z + eps), z' the mass before, a write takes q and the adjoint dz of its mass to

    q = q_after + b,   pull = p - g q,   dz = alpha (dz - pull)
    dw = u - h q + dz' + slope (dz' - pull)          with dz' the adjoint before, slope = z' alpha'(w)

That is as exact as w stays away from 1. At most one weight of a token is above 1/2, its first; for that one the passes
over the contents do compute <d, found>.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types, uint32

from .launch import kernel
from .octets import OCTET, access, split
from .retention import retention, retention_slopes

TILES = 3  # under way


def forward_bytes(W: int, R: int, aware: bool, itemsize: int) -> int:
    """Shared memory of one token in all tiles of ``mass_forward``."""
    return TILES * (W * (3 * itemsize + 4) + aware * R * (itemsize + 4))


def backward_bytes(W: int, R: int, aware: bool, itemsize: int) -> int:
    """Shared memory of one token in all tiles of ``mass_backward``."""
    return TILES * (W * (10 * itemsize + 4) + R * ((1 + aware) * itemsize + 4))


@cache
def mass_kernels(number, in_shared: bool):
    """``mass_forward`` and ``mass_backward`` for this Numba type, masses in shared memory or in device memory."""
    numbers, rows_type, flags = types.CPointer(number), types.CPointer(int32), types.CPointer(types.uint8)
    words = number.bitwidth // 32
    get, put = access(in_shared)

    @kernel(
        rows_type, rows_type, numbers, numbers, numbers, flags, numbers, numbers, numbers, rows_type, numbers, numbers,
        numbers, *[number] * 3, *[int32] * 15,
    )  # fmt: skip
    def mass_forward(
        write_slot, read_slot, write_weight, read_weight, gamma, mask, given, working, final, rows, coefs, old_mass,
        read_mass, gamma_number, eps, initial, one_gamma, masked, has_given, has_final, gsu, aware, T, H, n_rows, Kw,
        Kr, W, R, tile, leaders,
    ):  # fmt: skip
        """Leaves events: rows and coefs (B*H, T, W + R), of each write its row and eta, of each read row and weight.

        Thread 0 owns z and what it found, the helpers share out everything else element by element; a tile changes
        hands at the barrier.
        """
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit = int64(cuda.blockIdx.x)
        b, h = unit // H, unit % H
        one, zero = number(1), number(0)
        writes, reads = tile * W, tile * R  # elements of a tile
        z_at = unit * (n_rows + 2)
        first = 0  # of alpha, w, found and the masses read; three tiles each
        if in_shared:
            z_at = int64(0)
            first = n_rows + 2
        alpha_at, w_at, found_at = first, first + 3 * writes, first + 6 * writes
        read_at = first + 9 * writes
        row_at = (read_at + aware * 3 * reads) * words
        read_row_at = row_at + 3 * writes
        for row in range(thread, n_rows + 2, threads):
            put(shared, working, z_at, row, given[unit * n_rows + row] if has_given != 0 and row < n_rows else initial)
        cuda.syncthreads()
        tiles = (T + tile - 1) // tile
        for n in range(-1, tiles + 1):
            helper, helpers = thread - leaders, threads - leaders
            if helper >= 0 and n + 1 < tiles:
                # 1. prepare: what needs no mass
                part = (n + 1) % 3
                for i in range(helper, writes, helpers):
                    token, k = split(i, W)
                    t = (n + 1) * tile + token
                    w, alpha, row = zero, one, n_rows
                    if k < Kw and t < T and (masked == 0 or mask[b * T + t] != 0):
                        at = ((b * T + t) * H + h) * Kw + k
                        w, row = write_weight[at], write_slot[at]
                        alpha = retention(w, gamma_number if one_gamma != 0 else gamma[(b * T + t) * H + h], gsu)
                    shared[uint32(w_at + part * writes + i)] = w
                    shared[uint32(alpha_at + part * writes + i)] = alpha
                    places[uint32(row_at + part * writes + i)] = row
                if aware != 0:
                    for i in range(helper, reads, helpers):
                        token, k = split(i, R)
                        t = (n + 1) * tile + token
                        row = n_rows + 1
                        if k < Kr and t < T and (masked == 0 or mask[b * T + t] != 0):
                            slot = read_slot[((b * T + t) * H + h) * Kr + k]
                            row = slot if slot >= 0 else row
                        places[uint32(read_row_at + part * reads + i)] = row
            if thread == 0 and n >= 0 and n < tiles:
                # 2. follow: z = alpha z + w, token by token
                part = n % 3
                z, own = cuda.local.array(OCTET, number), cuda.local.array(OCTET, int32)
                for token in range(min(tile, T - n * tile)):
                    for o in range(0, W, OCTET):
                        at = part * writes + token * W + o
                        rows_o, alpha_o = uint32(row_at + at), uint32(alpha_at + at)
                        w_o, found_o = uint32(w_at + at), uint32(found_at + at)
                        for j in range(OCTET):
                            own[j] = places[rows_o + uint32(j)]
                        for j in range(OCTET):
                            z[j] = get(shared, working, z_at, own[j])
                        for j in range(OCTET):
                            a, w = shared[alpha_o + uint32(j)], shared[w_o + uint32(j)]
                            shared[found_o + uint32(j)] = z[j]
                            put(shared, working, z_at, own[j], a * z[j] + w)
                    if aware != 0:
                        at = part * reads + token * R
                        for k in range(R):
                            seen = places[uint32(read_row_at + at + k)]
                            shared[uint32(read_at + at + k)] = get(shared, working, z_at, seen)
            if helper >= 0 and n >= 1:
                # 3. finish: eta, the weights of the reads
                part, start = (n - 1) % 3, (n - 1) * tile
                here = min(tile, T - start)
                for i in range(helper, here * W, helpers):
                    token, k = split(i, W)
                    w, found = shared[uint32(w_at + part * writes + i)], shared[uint32(found_at + part * writes + i)]
                    alpha = shared[uint32(alpha_at + part * writes + i)]
                    event = (unit * T + start + token) * (W + R) + k
                    row = places[uint32(row_at + part * writes + i)]
                    rows[event] = row
                    coefs[event] = w / (alpha * found + w + eps) if row < n_rows else zero
                    old_mass[(unit * T + start) * W + i] = found
                for i in range(helper, here * R, helpers):
                    token, k = split(i, R)
                    t = start + token
                    r, row = zero, n_rows + 1
                    if k < Kr and (masked == 0 or mask[b * T + t] != 0):
                        at = ((b * T + t) * H + h) * Kr
                        r = read_weight[at + k]
                        row = read_slot[at + k] if read_slot[at + k] >= 0 else row
                        if aware != 0:
                            total, weighted = zero, zero
                            masses = read_at + part * reads + token * R
                            for j in range(Kr):
                                total += read_weight[at + j]
                                weighted += read_weight[at + j] * shared[uint32(masses + j)]
                            r = total * (r * shared[uint32(masses + k)]) / (weighted + eps)
                            read_mass[(unit * T + start) * R + i] = shared[uint32(masses + k)]
                    event = (unit * T + t) * (W + R) + W + k
                    rows[event] = row
                    coefs[event] = r
            cuda.syncthreads()
        if has_final != 0:
            for row in range(thread, n_rows, threads):
                final[unit * n_rows + row] = get(shared, working, z_at, row)

    @kernel(
        rows_type, rows_type, numbers, numbers, numbers, flags, *[numbers] * 12, *[number] * 4, *[int32] * 18,
    )  # fmt: skip
    def mass_backward(
        write_slot, read_slot, write_weight, read_weight, gamma, mask, old_mass, read_mass, dwritten, dfound,
        dread, last, dfinal, working, dw, dr, dgamma, dgiven, gamma_number, eps, proxy_eps, smallest, one_gamma, masked,
        has_last, has_dgiven, gsu, aware, T, H, n_rows, Kw, Kr, W, R, tile, leaders, units,
        read_slices, slices,
    ):  # fmt: skip
        """Gradients of weights and gamma. Tiles come last to first; thread 0 owns q and dz, as z in the forward."""
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit = int64(cuda.blockIdx.x)
        b, h = unit // H, unit % H
        one, zero = number(1), number(0)
        writes, reads = tile * W, tile * R
        q_at = unit * 2 * (n_rows + 2)
        first = 0
        if in_shared:
            q_at = int64(0)
            first = 2 * (n_rows + 2)
        dz_at = q_at + n_rows + 2
        # of a write, three tiles each
        alpha_at, b_at, g_at, p_at = first, first + 3 * writes, first + 6 * writes, first + 9 * writes
        u_at, h_at, slope_at = first + 12 * writes, first + 15 * writes, first + 18 * writes
        slope_gamma_at, after_at, before_at = first + 21 * writes, first + 24 * writes, first + 27 * writes
        gain_at = first + 30 * writes
        dmass_at = gain_at + 3 * reads
        row_at = (dmass_at + aware * 3 * reads) * words
        read_row_at = row_at + 3 * writes
        for row in range(thread, n_rows + 2, threads):
            q, dz = zero, zero
            if has_last != 0 and row < n_rows:
                dz = dfinal[unit * n_rows + row]
                for s in range(read_slices):
                    q += last[(s * int64(units) + unit) * n_rows + row]
            put(shared, working, q_at, row, q)
            put(shared, working, dz_at, row, dz)
        cuda.syncthreads()
        tiles = (T + tile - 1) // tile
        for n in range(-1, tiles + 1):
            helper, helpers = thread - leaders, threads - leaders
            if helper >= 0 and n + 1 < tiles:
                # 1. prepare: what needs no adjoint
                part, start = (n + 1) % 3, (tiles - 2 - n) * tile
                for i in range(helper, writes, helpers):
                    token, k = split(i, W)
                    t = start + token
                    alpha, b_, g, p, u, h_, slope, slope_gamma = one, zero, zero, zero, zero, zero, zero, zero
                    row = n_rows
                    if k < Kw and t < T and (masked == 0 or mask[b * T + t] != 0):
                        at = ((b * T + t) * H + h) * Kw + k
                        w, row, before = write_weight[at], write_slot[at], old_mass[(unit * T + t) * W + k]
                        gamma_t = gamma_number if one_gamma != 0 else gamma[(b * T + t) * H + h]
                        alpha = retention(w, gamma_t, gsu)
                        slope_w, slope_g = retention_slopes(w, gamma_t, alpha, gsu, proxy_eps, smallest)
                        slope, slope_gamma = before * slope_w, before * slope_g
                        kept = alpha * before + eps
                        mass = kept + w
                        eta, kappa = w / mass, kept / mass
                        dot = zero  # <d, v>
                        for s in range(slices):
                            dot += dwritten[((s * int64(units) + unit) * T + t) * W + k]
                        if k == 0:  # <d, found> is known
                            dot_found = zero
                            for s in range(slices):
                                dot_found += dfound[(s * int64(units) + unit) * T + t]
                            deta = (dot - dot_found) / mass
                            b_, p = kappa * dot_found, eta * deta
                            u = deta - p
                        else:
                            g = eta / kept if kept > 0 else zero
                            b_, p = -eta * dot, g * (kappa * dot)
                            h_, u = one / mass, kappa * dot / mass
                    to = part * writes + i
                    shared[uint32(alpha_at + to)] = alpha
                    shared[uint32(b_at + to)] = b_
                    shared[uint32(g_at + to)] = g
                    shared[uint32(p_at + to)] = p
                    shared[uint32(u_at + to)] = u
                    shared[uint32(h_at + to)] = h_
                    shared[uint32(slope_at + to)] = slope
                    shared[uint32(slope_gamma_at + to)] = slope_gamma
                    places[uint32(row_at + to)] = row
                for i in range(helper, reads, helpers):
                    token, k = split(i, R)
                    t = start + token
                    gain, dmass, row = zero, zero, n_rows + 1
                    if k < Kr and t < T:
                        at = ((b * T + t) * H + h) * Kr
                        dweight = zero
                        if masked == 0 or mask[b * T + t] != 0:
                            dots = (unit * T + t) * R
                            dweight = dot_of(dread, dots + k, read_slices, int64(units) * T * R)
                            gain = read_weight[at + k] * dweight
                            if aware != 0:
                                total, weighted, through = zero, eps, zero
                                for j in range(Kr):
                                    r, m = read_weight[at + j], read_mass[dots + j]
                                    total += r
                                    weighted += r * m
                                    through += dot_of(dread, dots + j, read_slices, int64(units) * T * R) * (r * m)
                                through /= weighted
                                m = read_mass[dots + k]
                                dn = (dweight - through) * total / weighted
                                gain *= total * m / weighted
                                dweight = dn * m + through
                                dmass = dn * read_weight[at + k]
                            if read_slot[at + k] >= 0:
                                row = read_slot[at + k]
                            else:
                                gain, dmass = zero, zero
                        dr[at + k] = dweight
                    shared[uint32(gain_at + part * reads + i)] = gain
                    if aware != 0:
                        shared[uint32(dmass_at + part * reads + i)] = dmass
                    places[uint32(read_row_at + part * reads + i)] = row
            if thread == 0 and n >= 0 and n < tiles:
                # 2. follow, in reverse: reads, then writes
                part = n % 3
                qs, dzs = cuda.local.array(OCTET, number), cuda.local.array(OCTET, number)
                own = cuda.local.array(OCTET, int32)
                for token in range(tile - 1, -1, -1):
                    for o in range(0, R, OCTET):
                        at = part * reads + token * R + o
                        rows_o, gain_o, dmass_o = uint32(read_row_at + at), uint32(gain_at + at), uint32(dmass_at + at)
                        for j in range(OCTET):
                            own[j] = places[rows_o + uint32(j)]
                        for j in range(OCTET):
                            qs[j] = get(shared, working, q_at, own[j])
                        for j in range(OCTET):
                            put(shared, working, q_at, own[j], qs[j] + shared[gain_o + uint32(j)])
                        if aware != 0:
                            for j in range(OCTET):
                                dzs[j] = get(shared, working, dz_at, own[j])
                            for j in range(OCTET):
                                put(shared, working, dz_at, own[j], dzs[j] + shared[dmass_o + uint32(j)])
                    for o in range(0, W, OCTET):
                        at = part * writes + token * W + o
                        rows_o, alpha_o, b_o = uint32(row_at + at), uint32(alpha_at + at), uint32(b_at + at)
                        g_o, p_o = uint32(g_at + at), uint32(p_at + at)
                        after_o, before_o = uint32(after_at + at), uint32(before_at + at)
                        for j in range(OCTET):
                            own[j] = places[rows_o + uint32(j)]
                        for j in range(OCTET):
                            qs[j] = get(shared, working, q_at, own[j])
                            dzs[j] = get(shared, working, dz_at, own[j])
                        if o == 0:
                            qs[0] = zero  # of the first write q is known
                        for j in range(OCTET):
                            qs[j] += shared[b_o + uint32(j)]
                            pull = shared[p_o + uint32(j)] - shared[g_o + uint32(j)] * qs[j]
                            shared[after_o + uint32(j)] = qs[j]
                            shared[before_o + uint32(j)] = dzs[j]
                            put(shared, working, q_at, own[j], qs[j])
                            put(shared, working, dz_at, own[j], shared[alpha_o + uint32(j)] * (dzs[j] - pull))
            if helper >= 0 and n >= 1:
                # 3. finish: gradients of write weights and gamma
                part, start = (n - 1) % 3, (tiles - n) * tile
                here = min(tile, T - start)
                for i in range(helper, here * W, helpers):
                    (token, k), at = split(i, W), part * writes + i
                    if k < Kw:
                        q, dz = shared[uint32(after_at + at)], shared[uint32(before_at + at)]
                        pull = shared[uint32(p_at + at)] - shared[uint32(g_at + at)] * q
                        dweight = shared[uint32(u_at + at)] - shared[uint32(h_at + at)] * q + dz
                        dweight += (dz - pull) * shared[uint32(slope_at + at)]
                        dw[((b * T + start + token) * H + h) * Kw + k] = dweight
                for token in range(helper, here, helpers):
                    total = zero
                    for k in range(Kw):
                        at = part * writes + token * W + k
                        pull = shared[uint32(p_at + at)] - shared[uint32(g_at + at)] * shared[uint32(after_at + at)]
                        total += (shared[uint32(before_at + at)] - pull) * shared[uint32(slope_gamma_at + at)]
                    dgamma[(b * T + start + token) * H + h] = total
            cuda.syncthreads()
        if has_dgiven != 0:
            for row in range(thread, n_rows, threads):
                dgiven[unit * n_rows + row] = get(shared, working, dz_at, row)

    return SimpleNamespace(forward=mass_forward, backward=mass_backward)


@cuda.jit(device=True)
def dot_of(parts, at, slices, stride):
    """The sum over slices of channels, in their order."""
    total = type(parts[at])(0)
    for s in range(slices):
        total += parts[at + s * stride]
    return total
