"""The contents of the slots, given every write's eta and every read's weight: three scans over the tokens.

    forward   s[row] += eta (v_t - s[row]),  y_t = sum r s[row]
    replay    the same writes again, for what the backward needs of s:  <dy_t, s[row]> of every read, and the content
              that the first write of a token found
    reverse   the adjoint d of s, from the last token to the first:
              d[row] += r dy_t;  then of every write <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta

One block a (batch, head) and slice of ``lanes`` channels, with that slice of all slots in shared memory. Its threads
are ``groups`` x ``lanes``: a thread owns one channel, and its group takes a share of a token's accesses, two of eight:

    thread       0 .. 15       16 .. 31      32 .. 47      48 .. 63
    group        0             1             2             3
    channel      0 .. 15       0 .. 15       0 .. 15       0 .. 15
    accesses     0, 4          1, 5          2, 6          3, 7           then 8, 12 .. of larger K

A token writes to different slots, so no two groups touch one number while they write; nor while they read, since reads
change nothing (in reverse they do, and go to different slots too). One barrier lies between a token's writes and its
reads, one between its reads and the next token's writes: what one group wrote another one reads behind a barrier only.

What a token waits for is then a chain of loads and barriers, so everything else is kept off it. Tiles of tokens come
from device memory into registers while the tile before is followed, and go to shared memory behind it (``tiles.py``).
Sums over groups (y, dv) and over channels (<dy, s>, <d, v>) are not formed token by token: each thread leaves its own
part in shared memory, and behind the tile a thread adds up a row of them.

Every sum has one order, whatever the timing: the same inputs give the same bits.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types, uint64

from .launch import kernel
from .octets import OCTET, access, split
from .tiles import column, tile_functions


def tile_bytes(name: str, tile: int, W: int, R: int, lanes: int, groups: int, itemsize: int) -> int:
    """Shared memory that a pass needs beside the state."""
    values, parts = tile * lanes, tile * lanes * groups
    numbers = {
        "forward": values + lanes + parts,
        "replay": 2 * (values + lanes) + lanes * column(tile * R, lanes),
        "reverse": 3 * values + parts + lanes * column(tile * W, lanes) + tile * (lanes + 1),
    }[name]
    events = tile * (W + R) + OCTET
    return (numbers + events) * itemsize + events * 4


@cache
def content_kernels(number, in_shared: bool, lanes: int, groups: int, W: int, R: int, tile: int):
    """``content_forward``, ``content_replay``, ``content_reverse`` for this Numba type.

    The state is in shared memory or in device memory. Blocks have ``groups`` x ``lanes`` threads, tokens W writes and R
    reads, tiles ``tile`` tokens.
    """
    numbers, rows_type = types.CPointer(number), types.CPointer(int32)
    words = number.bitwidth // 32
    threads, share, E = groups * lanes, OCTET // groups, W + R
    held = tile * E + OCTET  # accesses in shared memory: an octet is looked at ahead of time, also of the last
    get, put = access(in_shared)
    tiles = tile_functions(number, lanes, groups, tile, E)
    each_event, each_value = tiles.each_event, tiles.each_value
    load_share, take_share = tiles.load_share, tiles.take_share
    ask_events, put_events, ask_values, put_values = (
        tiles.ask_events, tiles.put_events, tiles.ask_values, tiles.put_values,
    )  # fmt: skip
    add_groups, step = tiles.add_groups, column(tile * R, lanes)
    add_reads = tiles.add_channels(tile * R, step, 1)
    write_step = column(tile * W, lanes)
    add_writes, add_found = tiles.add_channels(tile * W, write_step, 1), tiles.add_channels(tile, 1, lanes + 1)

    @cuda.jit(device=True)
    def start_state(given, has_given, unit, first, n_rows, all_rows, C, shared, working, state_at, thread):
        """Every number of the slice is set by one thread: to the given state (B*H, rows, C), or 0."""
        for i in range(thread, all_rows * lanes, threads):
            row, c = split(i, lanes)
            c += first
            s = number(0)
            if has_given != 0 and row < n_rows and c < C:
                s = given[(unit * n_rows + row) * C + c]
            put(shared, working, state_at, i, s)

    @cuda.jit(device=True)
    def store_state(final, unit, first, n_rows, C, shared, working, state_at, thread):
        """The slice of the state into (B*H, rows, C)."""
        for i in range(thread, n_rows * lanes, threads):
            row, c = split(i, lanes)
            c += first
            if c < C:
                final[(unit * n_rows + row) * C + c] = get(shared, working, state_at, i)

    @kernel(rows_type, *[numbers] * 6, *[int32] * 7, most_threads=threads)
    def content_forward(
        rows, coefs, values, given, working, final, y, has_given, has_final, T, H, C, n_rows, slices,
    ):  # fmt: skip
        """y (B, T, H, C), and the state after the last token if wanted.

        A thread changes and reads its own channel of the slots that its group accesses: other ones than any other
        thread's of the same phase. Barriers part the phases: a token's writes, its reads, the next token's writes.
        """
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        unit, first = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices * lanes
        inside = first + c < C
        own_row = ((unit // H * T) * H + unit % H) * C + first + c  # of token 0 in (B, T, H, C)
        next_token = int64(H) * C
        # shared memory: of a tile values, parts of y, coefficients, places; then the state
        value_at, part_at = 0, (tile + 1) * lanes
        coef_at = part_at + tile * threads
        place_at, end = (coef_at + held) * words, coef_at + held + held // words
        all_rows = n_rows + E
        state_at = end if in_shared else int64(cuda.blockIdx.x) * all_rows * lanes
        start_state(given, has_given, unit, first, n_rows, all_rows, C, shared, working, state_at, thread)
        new_row, new_coef = cuda.local.array(each_event, int32), cuda.local.array(each_event, number)
        new_value = cuda.local.array(each_value, number)
        row, coef = cuda.local.array(share, int32), cuda.local.array(share, number)
        row_ahead, coef_ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        s = cuda.local.array(share, number)
        own, v, here = state_at + c, number(0), 0
        for start in range(-tile, T, tile):
            new, there = start + tile, min(tile, T - start - tile)  # the next tile comes while this one is followed
            ask_events(rows, coefs, (unit * T + new) * E, there * E, thread, new_row, new_coef)
            ask_values(values, own_row + new * next_token, next_token, there, group, inside, new_value)
            event = group
            for token in range(here):
                # s += eta (v - s)
                for _ in range(0, W, OCTET):
                    event += OCTET
                    for j in range(share):
                        s[j] = get(shared, working, own, row[j] * lanes)
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        put(shared, working, own, row[j] * lanes, s[j] + coef[j] * (v - s[j]))
                    take_share(row_ahead, coef_ahead, row, coef)
                cuda.syncthreads()
                # y = sum r s, this group's part of it
                y_t = number(0)
                v = shared[uint64(value_at + (token + 1) * lanes + c)]
                for _ in range(0, R, OCTET):
                    event += OCTET
                    for j in range(share):
                        s[j] = get(shared, working, own, row[j] * lanes)
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        y_t += coef[j] * s[j]
                    take_share(row_ahead, coef_ahead, row, coef)
                shared[uint64(part_at + token * threads + thread)] = y_t
                cuda.syncthreads()
            add_groups(shared, part_at, here, group, c, inside, y, own_row + start * next_token, next_token)
            put_events(there * E, thread, new_row, new_coef, places, shared, place_at, coef_at)
            put_values(new_value, shared, value_at, there, group, c)
            cuda.syncthreads()
            here = there
            load_share(places, shared, place_at + group, coef_at + group, row, coef)
            v = shared[uint64(value_at + c)]
        if has_final != 0:
            store_state(final, unit, first, n_rows, C, shared, working, state_at, thread)

    @kernel(rows_type, *[numbers] * 9, *[int32] * 8, most_threads=threads)
    def content_replay(
        rows, coefs, values, dy, given, working, dfinal, dread, found, last, has_given, has_last, T, H, C, n_rows,
        slices, units,
    ):  # fmt: skip
        """dread (slices, B*H, T, R): <dy, s> over the slice; found (B, T, H, C): what a token's first write found;
        last (slices, B*H, rows): <dfinal, s> after the last token, if wanted.

        Threads and barriers as in ``content_forward``. A thread's products have places of their own, and are added up
        behind the barrier that ends the tile's last token.
        """
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        unit, cut = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices
        first = cut * lanes
        inside = first + c < C
        own_row = ((unit // H * T) * H + unit % H) * C + first + c
        next_token = int64(H) * C
        # shared memory: of a tile values, dy, products, coefficients, places; then the state
        value_at, dy_at = 0, (tile + 1) * lanes
        product_at = dy_at + (tile + 1) * lanes
        coef_at = product_at + lanes * step
        place_at, end = (coef_at + held) * words, coef_at + held + held // words
        all_rows = n_rows + E
        state_at = end if in_shared else int64(cuda.blockIdx.x) * all_rows * lanes
        start_state(given, has_given, unit, first, n_rows, all_rows, C, shared, working, state_at, thread)
        new_row, new_coef = cuda.local.array(each_event, int32), cuda.local.array(each_event, number)
        new_value, new_dy = cuda.local.array(each_value, number), cuda.local.array(each_value, number)
        row, coef = cuda.local.array(share, int32), cuda.local.array(share, number)
        row_ahead, coef_ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        s = cuda.local.array(share, number)
        own, v, dy_t, here = state_at + c, number(0), number(0), 0
        finds = group == 0 and inside  # its first access is the token's first write
        for start in range(-tile, T, tile):
            new, there = start + tile, min(tile, T - start - tile)
            ask_events(rows, coefs, (unit * T + new) * E, there * E, thread, new_row, new_coef)
            ask_values(values, own_row + new * next_token, next_token, there, group, inside, new_value)
            ask_values(dy, own_row + new * next_token, next_token, there, group, inside, new_dy)
            event, product, found_at = group, product_at + c * step + group, own_row + start * next_token
            for token in range(here):
                for o in range(0, W, OCTET):
                    event += OCTET
                    for j in range(share):
                        s[j] = get(shared, working, own, row[j] * lanes)
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        put(shared, working, own, row[j] * lanes, s[j] + coef[j] * (v - s[j]))
                    if finds and o == 0:
                        found[found_at] = s[0]
                    take_share(row_ahead, coef_ahead, row, coef)
                cuda.syncthreads()
                # <dy, s>, this channel's part of it
                v = shared[uint64(value_at + (token + 1) * lanes + c)]
                for _ in range(0, R, OCTET):
                    event += OCTET
                    for j in range(share):
                        s[j] = get(shared, working, own, row[j] * lanes)
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        shared[uint64(product) + uint64(j * groups)] = dy_t * s[j]
                    product += OCTET
                    take_share(row_ahead, coef_ahead, row, coef)
                dy_t = shared[uint64(dy_at + (token + 1) * lanes + c)]
                found_at += next_token
                cuda.syncthreads()
            add_reads(shared, product_at, here * R, thread, dread, ((cut * int64(units) + unit) * T + start) * R)
            put_events(there * E, thread, new_row, new_coef, places, shared, place_at, coef_at)
            put_values(new_value, shared, value_at, there, group, c)
            put_values(new_dy, shared, dy_at, there, group, c)
            cuda.syncthreads()
            here = there
            load_share(places, shared, place_at + group, coef_at + group, row, coef)
            v, dy_t = shared[uint64(value_at + c)], shared[uint64(dy_at + c)]
        if has_last != 0:  # a thread adds up a row, all of whose numbers are there after the barrier
            for r in range(thread, n_rows, threads):
                total = number(0)
                for other in range(min(lanes, C - first)):
                    s_r = get(shared, working, state_at, r * lanes + other)
                    total += s_r * dfinal[(unit * n_rows + r) * C + first + other]
                last[(cut * int64(units) + unit) * n_rows + r] = total

    @kernel(rows_type, *[numbers] * 10, *[int32] * 8, most_threads=threads)
    def content_reverse(
        rows, coefs, values, dy, found, dfinal, working, dgiven, dv, dwritten, dfound, has_dfinal, has_dgiven, T, H, C,
        n_rows, slices, units,
    ):  # fmt: skip
        """dv (B, T, H, C); dwritten (slices, B*H, T, W): <d, v> over the slice; dfound (slices, B*H, T): <d, found> of
        the token's first write; dgiven (B*H, rows, C), the adjoint of the given state, if wanted.

        Threads as in ``content_forward``. Both phases change slots, each thread those of its group's accesses alone;
        barriers part a token's reads, its writes, and the reads of the token before.
        """
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread = cuda.threadIdx.x
        group, c = thread // lanes, thread % lanes
        unit, cut = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices
        first = cut * lanes
        inside = first + c < C
        own_row = ((unit // H * T) * H + unit % H) * C + first + c
        next_token = int64(H) * C
        # shared memory: of a tile values, dy, found, parts of dv, products, coefficients, places; then the adjoint
        value_at, dy_at, found_at = 0, tile * lanes, 2 * tile * lanes
        part_at = found_at + tile * lanes
        product_at = part_at + tile * threads
        found_product_at = product_at + lanes * write_step
        coef_at = found_product_at + tile * (lanes + 1)
        place_at, end = (coef_at + held) * words, coef_at + held + held // words
        all_rows = n_rows + E
        state_at = end if in_shared else int64(cuda.blockIdx.x) * all_rows * lanes
        start_state(dfinal, has_dfinal, unit, first, n_rows, all_rows, C, shared, working, state_at, thread)
        new_row, new_coef = cuda.local.array(each_event, int32), cuda.local.array(each_event, number)
        new_value, new_dy = cuda.local.array(each_value, number), cuda.local.array(each_value, number)
        new_found = cuda.local.array(each_value, number)
        row, coef = cuda.local.array(share, int32), cuda.local.array(share, number)
        row_ahead, coef_ahead = cuda.local.array(share, int32), cuda.local.array(share, number)
        d = cuda.local.array(share, number)
        own, one, here = state_at + c, number(1), 0
        tiles = (T + tile - 1) // tile
        for n in range(tiles, -1, -1):  # tiles come last to first
            start, new = n * tile, (n - 1) * tile
            there = min(tile, T - new) if n > 0 else 0
            ask_events(rows, coefs, (unit * T + new) * E, there * E, thread, new_row, new_coef)
            ask_values(values, own_row + new * next_token, next_token, there, group, inside, new_value)
            ask_values(dy, own_row + new * next_token, next_token, there, group, inside, new_dy)
            ask_values(found, own_row + new * next_token, next_token, there, group, inside, new_found)
            for token in range(here - 1, -1, -1):
                at, writes = token * lanes + c, token * E + group
                v, before = shared[uint64(value_at + at)], shared[uint64(found_at + at)]
                dy_t = shared[uint64(dy_at + at)]
                # d += r dy
                event = writes + W
                for o in range(OCTET, R + OCTET, OCTET):
                    event += OCTET
                    for j in range(share):
                        d[j] = get(shared, working, own, row[j] * lanes)
                    if o >= R:
                        event = writes
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        put(shared, working, own, row[j] * lanes, d[j] + coef[j] * dy_t)
                    take_share(row_ahead, coef_ahead, row, coef)
                cuda.syncthreads()
                # <d, v>;  dv += eta d;  d *= 1 - eta
                product, dv_t = product_at + c * write_step + token * W + group, number(0)
                for o in range(OCTET, W + OCTET, OCTET):
                    event += OCTET
                    for j in range(share):
                        d[j] = get(shared, working, own, row[j] * lanes)
                    if o >= W:  # next are the reads of the token before; behind the first token nothing is used
                        event = writes + W - (E if token > 0 else 0)
                    load_share(places, shared, place_at + event, coef_at + event, row_ahead, coef_ahead)
                    for j in range(share):
                        put(shared, working, own, row[j] * lanes, (one - coef[j]) * d[j])
                    if group == 0 and o == OCTET:
                        shared[uint64(found_product_at + token * (lanes + 1) + c)] = d[0] * before
                    for j in range(share):
                        dv_t += coef[j] * d[j]
                        shared[uint64(product) + uint64(j * groups)] = d[j] * v
                    product += OCTET
                    take_share(row_ahead, coef_ahead, row, coef)
                shared[uint64(part_at + token * threads + thread)] = dv_t
                cuda.syncthreads()
            tokens_at = (cut * int64(units) + unit) * T + start
            add_groups(shared, part_at, here, group, c, inside, dv, own_row + start * next_token, next_token)
            add_writes(shared, product_at, here * W, thread, dwritten, tokens_at * W)
            add_found(shared, found_product_at, here, thread, dfound, tokens_at)
            put_events(there * E, thread, new_row, new_coef, places, shared, place_at, coef_at)
            put_values(new_value, shared, value_at, there, group, c)
            put_values(new_dy, shared, dy_at, there, group, c)
            put_values(new_found, shared, found_at, there, group, c)
            cuda.syncthreads()
            here = there
            if here > 0:
                event = (here - 1) * E + W + group
                load_share(places, shared, place_at + event, coef_at + event, row, coef)
        if has_dgiven != 0:
            store_state(dgiven, unit, first, n_rows, C, shared, working, state_at, thread)

    return SimpleNamespace(forward=content_forward, replay=content_replay, reverse=content_reverse)
