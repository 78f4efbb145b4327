"""The contents of the slots, forward, given every write's eta and every read's weight:

    s[row] += eta (v_t - s[row]),  y_t = sum r s[row]

``plain_contents.py`` has the same in a dozen lines. Here one block takes a (batch, head) and a slice of ``lanes``
channels, with that slice of all slots in shared memory. Its threads are ``groups`` x ``lanes``: a thread owns one
channel, and its group takes a share of a token's accesses, two of eight:

    thread       0 .. 15       16 .. 31      32 .. 47      48 .. 63
    group        0             1             2             3
    channel      0 .. 15       0 .. 15       0 .. 15       0 .. 15
    accesses     0, 4          1, 5          2, 6          3, 7           then 8, 12 .. of larger K

A token writes to different slots, so no two groups touch one number while they write; nor while they read, since reads
change nothing (in the backward they do, and go to different slots too). One barrier lies between a token's writes and
its reads, one between its reads and the next token's writes: what one group wrote another one reads after a barrier
only.

What a token waits for is then a chain of loads and barriers, so everything else is kept off it. Tiles of tokens come
from device memory into registers during the tile before, and go to shared memory after it (``tiles.py``). Sums over
groups (y, dv) and over channels (<dy, s>, <d, v>) are not formed token by token: each thread leaves its own part in
shared memory, and after the tile a thread adds up a row of them.

Every sum has one order, whatever the timing: the same inputs give the same bits.
"""

from functools import cache
from types import SimpleNamespace

from .compiler import cuda, int32, int64, types, uint64
from .groups_of_8 import GROUP_OF_8, state_access
from .launch import kernel
from .records import CONTENT_SIZES, accesses_type, state_pass
from .tiles import access_functions, shared_layout, state_functions, value_functions


@cuda.jit(device=True)
def first_token(bh, H, T, C):
    """Where channel 0 of token 0 of a (batch, head) lies in (B, T, H, C)."""
    return ((bh // H * T) * H + bh % H) * C


def write_function(number, in_shared: bool, groups: int, lanes: int, W: int, accesses: SimpleNamespace):
    """The device function of a token's writes."""
    share = GROUP_OF_8 // groups
    get, put = state_access(in_shared)
    load_share, take_share = accesses.load_share, accesses.take_share

    @cuda.jit(device=True)
    def write(shared, shared_rows, working, own, access, v, pairs, s_first):
        """s += eta (v - s) in the slots of this thread's writes; returns the next access, the thread's first read.

        ``own``: this thread's channel in row 0; ``pairs``: the present accesses and those loaded ahead; ``s_first``
        takes what the thread's first write found.
        """
        now, ahead = pairs
        row, coef = now
        s = cuda.local.array(share, number)
        for done in range(0, W, GROUP_OF_8):
            access += GROUP_OF_8
            for j in range(share):
                s[j] = get(shared, working, own, row[j] * lanes)
            load_share(shared_rows, shared, access, ahead)
            for j in range(share):
                put(shared, working, own, row[j] * lanes, s[j] + coef[j] * (v - s[j]))
            if done == 0:
                s_first[0] = s[0]
            take_share(ahead, now)
        return access

    return write


@cache
def content_forward_kernel(number, in_shared: bool, lanes: int, groups: int, W: int, R: int, tile: int):
    """``content_forward`` for this Numba type, with the state in shared memory or in device memory.

    Blocks have ``groups`` x ``lanes`` threads, tokens W writes and R reads, tiles ``tile`` tokens.
    """
    numbers = types.CPointer(number)
    threads, share, E = groups * lanes, GROUP_OF_8 // groups, W + R
    layout = shared_layout("forward", tile, W, R, lanes, groups, number.bitwidth // 8)
    values_at, parts_at, tile_end = layout.values, layout.parts, layout.state
    get, _ = state_access(in_shared)
    states = state_functions(number, in_shared, lanes, groups, E)
    start_state, store_state = states.start_state, states.store_state
    access = access_functions(number, lanes, groups, tile, E, layout.coefs, layout.rows)
    each_access, load_share, take_share = access.each, access.load_share, access.take_share
    load_accesses, store_accesses = access.load_to_registers, access.store_to_shared
    value = value_functions(number, lanes, groups, tile)
    each_value, add_groups = value.each, value.add_groups
    load_values, store_values = value.load_to_registers, value.store_to_shared
    write = write_function(number, in_shared, groups, lanes, W, access)

    @cuda.jit(device=True)
    def read(shared, shared_rows, working, own, access, pairs):
        """y = sum r s over this thread's reads, and the next access, the thread's first write of the next token."""
        now, ahead = pairs
        row, coef = now
        s, y = cuda.local.array(share, number), number(0)
        for _ in range(0, R, GROUP_OF_8):
            access += GROUP_OF_8
            for j in range(share):
                s[j] = get(shared, working, own, row[j] * lanes)
            load_share(shared_rows, shared, access, ahead)
            for j in range(share):
                y += coef[j] * s[j]
            take_share(ahead, now)
        return y, access

    @kernel(accesses_type(number), numbers, state_pass(number), numbers, CONTENT_SIZES, most_threads=threads)
    def content_forward(accesses, values, state, y, sizes):
        """y (B, T, H, C), and the state after the last token if wanted.

        A thread changes and reads its own channel of the slots that its group accesses: other ones than any other
        thread's of the same phase. Barriers part the phases: a token's writes, its reads, the next token's writes.
        """
        shared, shared_rows = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        bh, first = int64(cuda.blockIdx.x) // sizes.slices, cuda.blockIdx.x % sizes.slices * lanes
        T, inside = sizes.T, first + c < sizes.C
        own_value, next_token = first_token(bh, sizes.H, T, sizes.C) + first + c, int64(sizes.H) * sizes.C
        state_at = tile_end if in_shared else int64(cuda.blockIdx.x) * (sizes.n_rows + E) * lanes
        start_state(state, sizes, bh, first, shared, state_at, thread)
        next_accesses = cuda.local.array(each_access, int32), cuda.local.array(each_access, number)
        next_values, s_first = cuda.local.array(each_value, number), cuda.local.array(1, number)
        now = cuda.local.array(share, int32), cuda.local.array(share, number)
        ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        own, v, count = state_at + c, number(0), 0
        for start in range(-tile, T, tile):
            coming, next_count = start + tile, min(tile, T - start - tile)
            load_accesses(accesses, (bh * T + coming) * E, next_count * E, thread, next_accesses)
            load_values(values, own_value + coming * next_token, next_token, next_count, group, inside, next_values)
            access = group
            for token in range(count):
                access = write(shared, shared_rows, state.working, own, access, v, (now, ahead), s_first)
                cuda.syncthreads()
                v = shared[uint64(values_at + (token + 1) * lanes + c)]
                y_t, access = read(shared, shared_rows, state.working, own, access, (now, ahead))
                shared[uint64(parts_at + token * threads + thread)] = y_t
                cuda.syncthreads()
            add_groups(shared, parts_at, count, group, c, inside, y, own_value + start * next_token, next_token)
            store_accesses(next_count * E, thread, next_accesses, shared_rows, shared)
            store_values(next_values, shared, values_at, next_count, group, c)
            cuda.syncthreads()
            count = next_count
            load_share(shared_rows, shared, group, now)
            v = shared[uint64(values_at + c)]
        if state.has_end != 0:
            store_state(state, sizes, bh, first, shared, state_at, thread)

    return content_forward
