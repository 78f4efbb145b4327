"""The contents in the backward: once more forward, for what the backward needs of s, then its adjoint d in reverse.

    recompute   s as in ``content_forward.py``, for <dy_t, s[row]> of every read and the content that the first write of
                a token found
    backward    from the last token to the first:  d[row] += r dy_t;  then of every write
                <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta

Blocks, threads, tiles and barriers are those of ``content_forward.py``. ``plain_contents.py`` has both passes in a few
lines.
"""

from functools import cache

from .compiler import cuda, int32, int64, types, uint64
from .content_forward import first_token, write_function
from .groups_of_8 import GROUP_OF_8, state_access
from .launch import kernel
from .records import CONTENT_SIZES, accesses_type, content_gradients, state_dots, state_pass, token_arrays
from .tiles import access_functions, channel_sums, column, shared_layout, state_functions, value_functions


@cache
def content_recompute_kernel(number, in_shared: bool, lanes: int, groups: int, W: int, R: int, tile: int):
    """``content_recompute`` for this Numba type; the other arguments are those of ``content_forward_kernel``."""
    numbers = types.CPointer(number)
    threads, share, E = groups * lanes, GROUP_OF_8 // groups, W + R
    layout, step = shared_layout("recompute", tile, W, R, lanes, groups, number.bitwidth // 8), column(tile * R, lanes)
    values_at, dy_at, products_at, tile_end = layout.values, layout.dy, layout.products, layout.state
    get, _ = state_access(in_shared)
    start_state = state_functions(number, in_shared, lanes, groups, E).start_state
    access = access_functions(number, lanes, groups, tile, E, layout.coefs, layout.rows)
    each_access, load_share, take_share = access.each, access.load_share, access.take_share
    load_accesses, store_accesses = access.load_to_registers, access.store_to_shared
    value = value_functions(number, lanes, groups, tile)
    each_value, load_values, store_values = value.each, value.load_to_registers, value.store_to_shared
    write = write_function(number, in_shared, groups, lanes, W, access)
    add_reads = channel_sums(lanes, groups, tile * R, step, 1)

    @cuda.jit(device=True)
    def read(shared, shared_rows, working, own, access, dy, product, pairs):
        """Leaves <dy, s> of this thread's channel and reads; returns the next access and place for a product."""
        now, ahead = pairs
        row, _ = now
        s = cuda.local.array(share, number)
        for _ in range(0, R, GROUP_OF_8):
            access += GROUP_OF_8
            for j in range(share):
                s[j] = get(shared, working, own, row[j] * lanes)
            load_share(shared_rows, shared, access, ahead)
            for j in range(share):
                shared[uint64(product) + uint64(j * groups)] = dy * s[j]
            product += GROUP_OF_8
            take_share(ahead, now)
        return access, product

    @cuda.jit(device=True)
    def add_state_dots(shared, working, state_at, final, sizes, block, thread):
        """A thread adds up a row, all of whose numbers are there after the last barrier."""
        bh, slice_index = block
        first = slice_index * lanes
        for r in range(thread, sizes.n_rows, threads):
            total = number(0)
            for other in range(min(lanes, sizes.C - first)):
                s = get(shared, working, state_at, r * lanes + other)
                total += s * final.dstate[(bh * sizes.n_rows + r) * sizes.C + first + other]
            final.dots[(slice_index * int64(sizes.heads) + bh) * sizes.n_rows + r] = total

    @kernel(
        accesses_type(number), token_arrays(number), state_pass(number),
        state_dots(number), numbers, CONTENT_SIZES, most_threads=threads,
    )  # fmt: skip
    def content_recompute(accesses, tokens, state, final, dy_dot_s, sizes):
        """dy_dot_s (slices, B*H, T, R): <dy, s> over the slice; ``tokens.before``; and ``final.dots`` if wanted.

        A thread's products have places of their own, and are added up after the barrier that ends the tile.
        """
        shared, shared_rows = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        bh, slice_index = int64(cuda.blockIdx.x) // sizes.slices, cuda.blockIdx.x % sizes.slices
        first = slice_index * lanes
        T, inside = sizes.T, first + c < sizes.C
        own_value, next_token = first_token(bh, sizes.H, T, sizes.C) + first + c, int64(sizes.H) * sizes.C
        state_at = tile_end if in_shared else int64(cuda.blockIdx.x) * (sizes.n_rows + E) * lanes
        start_state(state, sizes, bh, first, shared, state_at, thread)
        next_accesses = cuda.local.array(each_access, int32), cuda.local.array(each_access, number)
        next_values, next_dy = cuda.local.array(each_value, number), cuda.local.array(each_value, number)
        now = cuda.local.array(share, int32), cuda.local.array(share, number)
        ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        s_first = cuda.local.array(1, number)
        own, v, dy, count = state_at + c, number(0), number(0), 0
        has_first = group == 0 and inside  # its first access is the token's first write
        for start in range(-tile, T, tile):
            coming, next_count = start + tile, min(tile, T - start - tile)
            next_value = own_value + coming * next_token
            load_accesses(accesses, (bh * T + coming) * E, next_count * E, thread, next_accesses)
            load_values(tokens.values, next_value, next_token, next_count, group, inside, next_values)
            load_values(tokens.dy, next_value, next_token, next_count, group, inside, next_dy)
            access, product, before_at = group, products_at + c * step + group, own_value + start * next_token
            for token in range(count):
                access = write(shared, shared_rows, state.working, own, access, v, (now, ahead), s_first)
                if has_first:
                    tokens.before[before_at] = s_first[0]
                cuda.syncthreads()
                v = shared[uint64(values_at + (token + 1) * lanes + c)]
                access, product = read(
                    shared, shared_rows, state.working, own, access, dy, product, (now, ahead)
                )  # fmt: skip
                dy = shared[uint64(dy_at + (token + 1) * lanes + c)]
                before_at += next_token
                cuda.syncthreads()
            dots_at = ((slice_index * int64(sizes.heads) + bh) * T + start) * R
            add_reads(shared, products_at, count * R, thread, dy_dot_s, dots_at)
            store_accesses(next_count * E, thread, next_accesses, shared_rows, shared)
            store_values(next_values, shared, values_at, next_count, group, c)
            store_values(next_dy, shared, dy_at, next_count, group, c)
            cuda.syncthreads()
            count = next_count
            load_share(shared_rows, shared, group, now)
            v, dy = shared[uint64(values_at + c)], shared[uint64(dy_at + c)]
        if final.wanted != 0:
            add_state_dots(shared, state.working, state_at, final, sizes, (bh, slice_index), thread)

    return content_recompute


@cache
def content_backward_kernel(number, in_shared: bool, lanes: int, groups: int, W: int, R: int, tile: int):
    """``content_backward`` for this Numba type; the other arguments are those of ``content_forward_kernel``."""
    threads, share, E = groups * lanes, GROUP_OF_8 // groups, W + R
    layout, step = shared_layout("backward", tile, W, R, lanes, groups, number.bitwidth // 8), column(tile * W, lanes)
    values_at, dy_at, before_at, parts_at = layout.values, layout.dy, layout.before, layout.parts
    products_at, before_products_at, tile_end = layout.products, layout.before_products, layout.state
    get, put = state_access(in_shared)
    states = state_functions(number, in_shared, lanes, groups, E)
    start_state, store_state = states.start_state, states.store_state
    access = access_functions(number, lanes, groups, tile, E, layout.coefs, layout.rows)
    each_access, load_share, take_share = access.each, access.load_share, access.take_share
    load_accesses, store_accesses = access.load_to_registers, access.store_to_shared
    value = value_functions(number, lanes, groups, tile)
    each_value, add_groups = value.each, value.add_groups
    load_values, store_values = value.load_to_registers, value.store_to_shared
    add_writes = channel_sums(lanes, groups, tile * W, step, 1)
    add_before = channel_sums(lanes, groups, tile, 1, lanes + 1)

    @cuda.jit(device=True)
    def read(shared, shared_rows, working, own, token, dy, group, pairs):
        """d += r dy in the slots of this thread's reads; the last loads the token's first writes."""
        now, ahead = pairs
        row, coef = now
        d, writes = cuda.local.array(share, number), token * E + group
        access = writes + W
        for done in range(GROUP_OF_8, R + GROUP_OF_8, GROUP_OF_8):
            access += GROUP_OF_8
            for j in range(share):
                d[j] = get(shared, working, own, row[j] * lanes)
            if done >= R:
                access = writes
            load_share(shared_rows, shared, access, ahead)
            for j in range(share):
                put(shared, working, own, row[j] * lanes, d[j] + coef[j] * dy)
            take_share(ahead, now)

    @cuda.jit(device=True)
    def write(shared, shared_rows, working, own, token, v_before, thread, pairs):
        """Leaves <d, v> and <d, before> of this thread's channel and writes; d *= 1 - eta; returns its part of dv."""
        now, ahead = pairs
        row, coef = now
        v, before = v_before
        group, c = thread // lanes, thread % lanes
        d, one, dv = cuda.local.array(share, number), number(1), number(0)
        access, product = token * E + group, products_at + c * step + token * W + group
        for done in range(GROUP_OF_8, W + GROUP_OF_8, GROUP_OF_8):
            access += GROUP_OF_8
            for j in range(share):
                d[j] = get(shared, working, own, row[j] * lanes)
            if done >= W:  # next are the reads of the token before; after the first token nothing is used
                access = token * E + group + W - (E if token > 0 else 0)
            load_share(shared_rows, shared, access, ahead)
            for j in range(share):
                put(shared, working, own, row[j] * lanes, (one - coef[j]) * d[j])
            if group == 0 and done == GROUP_OF_8:
                shared[uint64(before_products_at + token * (lanes + 1) + c)] = d[0] * before
            for j in range(share):
                dv += coef[j] * d[j]
                shared[uint64(product) + uint64(j * groups)] = d[j] * v
            product += GROUP_OF_8
            take_share(ahead, now)
        return dv

    @kernel(
        accesses_type(number), token_arrays(number), state_pass(number),
        content_gradients(number), CONTENT_SIZES,
        most_threads=threads,
    )  # fmt: skip
    def content_backward(accesses, tokens, state, out, sizes):
        """``out``, and the adjoint of the given state if wanted. ``state`` is the adjoint: it starts with dstate.

        Both phases change slots, each thread those of its group's accesses alone; barriers part a token's reads, its
        writes, and the reads of the token before.
        """
        shared, shared_rows = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        bh, slice_index = int64(cuda.blockIdx.x) // sizes.slices, cuda.blockIdx.x % sizes.slices
        first = slice_index * lanes
        T, inside = sizes.T, first + c < sizes.C
        own_value, next_token = first_token(bh, sizes.H, T, sizes.C) + first + c, int64(sizes.H) * sizes.C
        state_at = tile_end if in_shared else int64(cuda.blockIdx.x) * (sizes.n_rows + E) * lanes
        start_state(state, sizes, bh, first, shared, state_at, thread)
        next_accesses = cuda.local.array(each_access, int32), cuda.local.array(each_access, number)
        next_values, next_dy = cuda.local.array(each_value, number), cuda.local.array(each_value, number)
        next_before = cuda.local.array(each_value, number)
        now = cuda.local.array(share, int32), cuda.local.array(share, number)
        ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        own, count = state_at + c, 0
        for n in range((T + tile - 1) // tile, -1, -1):  # tiles come last to first
            start, coming = n * tile, (n - 1) * tile
            next_count = min(tile, T - coming) if n > 0 else 0
            next_value = own_value + coming * next_token
            load_accesses(accesses, (bh * T + coming) * E, next_count * E, thread, next_accesses)
            load_values(tokens.values, next_value, next_token, next_count, group, inside, next_values)
            load_values(tokens.dy, next_value, next_token, next_count, group, inside, next_dy)
            load_values(tokens.before, next_value, next_token, next_count, group, inside, next_before)
            for token in range(count - 1, -1, -1):
                at = token * lanes + c
                v_before = shared[uint64(values_at + at)], shared[uint64(before_at + at)]
                read(
                    shared, shared_rows, state.working, own, token, shared[uint64(dy_at + at)], group, (now, ahead)
                )  # fmt: skip
                cuda.syncthreads()
                dv = write(shared, shared_rows, state.working, own, token, v_before, thread, (now, ahead))
                shared[uint64(parts_at + token * threads + thread)] = dv
                cuda.syncthreads()
            dots_at = (slice_index * int64(sizes.heads) + bh) * T + start
            add_groups(shared, parts_at, count, group, c, inside, out.dv, own_value + start * next_token, next_token)
            add_writes(shared, products_at, count * W, thread, out.d_dot_v, dots_at * W)
            add_before(shared, before_products_at, count, thread, out.d_dot_before, dots_at)
            store_accesses(next_count * E, thread, next_accesses, shared_rows, shared)
            store_values(next_values, shared, values_at, next_count, group, c)
            store_values(next_dy, shared, dy_at, next_count, group, c)
            store_values(next_before, shared, before_at, next_count, group, c)
            cuda.syncthreads()
            count = next_count
            if count > 0:
                load_share(shared_rows, shared, (count - 1) * E + W + group, now)
        if state.has_end != 0:
            store_state(state, sizes, bh, first, shared, state_at, thread)

    return content_backward
