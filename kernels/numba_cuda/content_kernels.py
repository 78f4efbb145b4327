"""The contents of the slots, given every write's eta and every read's weight: three scans over the tokens.

    forward   s[row] += eta (v_t - s[row]),  y_t = sum r s[row]
    replay    the same writes again, for what the backward needs of s:  <dy_t, s[row]> of every read, and the content
              that the first write of a token found
    reverse   the adjoint d of s, from the last token to the first:
              d[row] += r dy_t;  then of every write <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta

One block a (batch, head) and slice of 16 channels, with that slice of all slots in shared memory. ONE thread owns one
channel of the slice, in every slot: lane c alone reads and writes s[:, c], so tokens follow one another without a
barrier, whichever slots they meet in, and there is nothing to race with. These lanes are the block's first warp. The
other warps help it, one barrier a tile of tokens:

    the first warp   ..         tile n - 1      tile n          tile n + 1
    the others       fetch 0    fetch n         fetch n + 1     fetch n + 2
                                add up n - 2    add up n - 1    add up n

Fetching brings a tile's accesses and values from device memory, which takes longer than a token. Adding up is for the
sums over channels, <dy, s> and <d, v>: each lane leaves its own product in shared memory, a row of ``lanes + 1`` words
for each access, and a tile later a helper adds up a row. (With rows of 16 words all helpers would stand in the same
banks. Shuffles between lanes would need no memory, but make the lanes wait for one another at every token.)

Two tiles are under way in each direction, so everything but the state is there twice, at ``n % 2``.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, int32, int64, types, uint32

from .launch import kernel
from .octets import OCTET, access, load_octet, split, take_octet


@cuda.jit(device=True)
def fetch_events(rows, coefs, event_at, count, lanes, places, shared, place_at, coef_at, helper, helpers):
    """The accesses of a tile; a row of the state begins at row * lanes."""
    for i in range(helper, count, helpers):
        places[uint32(place_at + i)] = rows[event_at + i] * lanes
        shared[uint32(coef_at + i)] = coefs[event_at + i]


@cuda.jit(device=True)
def fetch_values(array, b, h, start, count, T, H, C, first, lanes, shared, at, helper, helpers):
    """A slice of channels of (B, T, H, C) for ``count`` tokens; channels beyond C are left as they are."""
    for i in range(helper, count * lanes, helpers):
        token, c = split(i, lanes)
        c += first
        if c < C:
            shared[uint32(at + i)] = array[((b * T + start + token) * H + h) * C + c]


@cuda.jit(device=True)
def add_up(parts, part_at, count, lanes, width, out, out_at, helper, helpers):
    """Sums of ``count`` rows of products, of ``width`` channels each."""
    for i in range(helper, count, helpers):
        total = type(parts[0])(0)
        for c in range(width):
            total += parts[uint32(part_at + i * (lanes + 1) + c)]
        out[out_at + i] = total


def tile_bytes(tile: int, E: int, values: int, sums: int, lanes: int, itemsize: int) -> int:
    """Shared memory beside the state: two tiles with E accesses, ``values`` arrays and ``sums`` sums a token."""
    numbers = tile * E + OCTET + tile * (values * lanes + sums * (lanes + 1))
    return 2 * (numbers * itemsize + (tile * E + OCTET) * 4)


@cache
def content_kernels(number, in_shared: bool):
    """``content_forward``, ``content_replay``, ``content_reverse`` for this Numba type, the state in shared memory or
    in device memory."""
    numbers, rows_type = types.CPointer(number), types.CPointer(int32)
    words = number.bitwidth // 32
    get, put = access(in_shared)

    @cuda.jit(device=True)
    def start_state(given, has_given, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads):
        """Every number of the slice is set by one thread: to the given state (B*H, rows, C), or 0."""
        for i in range(thread, (n_rows + 2) * lanes, threads):
            row, c = split(i, lanes)
            c += first
            s = number(0)
            if has_given != 0 and row < n_rows and c < C:
                s = given[(unit * n_rows + row) * C + c]
            put(shared, working, state_at, i, s)

    @cuda.jit(device=True)
    def store_state(final, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads):
        """The slice of the state into (B*H, rows, C)."""
        for i in range(thread, n_rows * lanes, threads):
            row, c = split(i, lanes)
            c += first
            if c < C:
                final[(unit * n_rows + row) * C + c] = get(shared, working, state_at, i)

    @kernel(rows_type, *[numbers] * 6, *[int32] * 12)
    def content_forward(
        rows, coefs, values, given, working, final, y, has_given, has_final, T, H, C, n_rows, W, R, tile, lanes,
        slices, leaders,
    ):  # fmt: skip
        """y (B, T, H, C), and the state after the last token if wanted."""
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit, first = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices * lanes
        b, h, E = unit // H, unit % H, W + R
        # the state, then of both tiles coefficients, values, places
        state_at, at = int64(cuda.blockIdx.x) * (n_rows + 2) * lanes, 0
        if in_shared:
            state_at, at = int64(0), (n_rows + 2) * lanes
        half_tile = tile * E + OCTET  # an octet is looked at ahead of time, also of the last
        coef_at = at
        value_at = coef_at + 2 * half_tile
        place_at = (value_at + 2 * tile * lanes) * words
        start_state(given, has_given, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads)
        cuda.syncthreads()
        row, coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        next_row, next_coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        old = cuda.local.array(OCTET, number)
        own = state_at + thread  # of this lane, in slot 0
        tiles = (T + tile - 1) // tile
        for n in range(-1, tiles):
            if thread >= leaders and n + 1 < tiles:
                start, half = (n + 1) * tile, (n + 1) % 2
                here, helper, helpers = min(tile, T - start), thread - leaders, threads - leaders
                fetch_events(
                    rows, coefs, (unit * T + start) * E, here * E, lanes, places, shared, place_at + half * half_tile,
                    coef_at + half * half_tile, helper, helpers,
                )  # fmt: skip
                fetch_values(
                    values, b, h, start, here, T, H, C, first, lanes, shared, value_at + half * tile * lanes, helper,
                    helpers,
                )  # fmt: skip
            if n >= 0 and thread < lanes and first + thread < C:
                half = n % 2
                event = half * half_tile
                load_octet(places, shared, place_at + event, coef_at + event, row, coef)
                for token in range(min(tile, T - n * tile)):
                    v = shared[uint32(value_at + (half * tile + token) * lanes + thread)]
                    # s += eta * (v - s): the slots of an octet differ, so all are loaded before the first is stored
                    for _ in range(0, W, OCTET):
                        event += OCTET
                        for j in range(OCTET):
                            old[j] = get(shared, working, own, row[j])
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        for j in range(OCTET):
                            put(shared, working, own, row[j], old[j] + coef[j] * (v - old[j]))
                        take_octet(next_row, next_coef, row, coef)
                    # y = sum r s
                    total, more = number(0), number(0)
                    for _ in range(0, R, OCTET):
                        event += OCTET
                        for j in range(OCTET):
                            old[j] = get(shared, working, own, row[j])
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        for j in range(0, OCTET, 2):
                            total += coef[j] * old[j]
                            more += coef[j + 1] * old[j + 1]
                        take_octet(next_row, next_coef, row, coef)
                    y[((b * T + n * tile + token) * H + h) * C + first + thread] = total + more
            cuda.syncthreads()
        if has_final != 0:
            store_state(final, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads)

    @kernel(rows_type, *[numbers] * 9, *[int32] * 12, int32)
    def content_replay(
        rows, coefs, values, dy, given, working, dfinal, dread, found, last, has_given, has_last, T, H, C, n_rows, W, R,
        tile, lanes, slices, leaders, units,
    ):  # fmt: skip
        """dread (slices, B*H, T, R): <dy, s> over the slice; found (B, T, H, C): what a token's first write found;
        last (slices, B*H, rows): <dfinal, s> after the last token, if wanted."""
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit, cut = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices
        first = cut * lanes
        b, h, E = unit // H, unit % H, W + R
        state_at, at = int64(cuda.blockIdx.x) * (n_rows + 2) * lanes, 0
        if in_shared:
            state_at, at = int64(0), (n_rows + 2) * lanes
        half_tile = tile * E + OCTET  # an octet is looked at ahead of time, also of the last
        coef_at = at
        value_at = coef_at + 2 * half_tile
        dy_at = value_at + 2 * tile * lanes
        part_at = dy_at + 2 * tile * lanes
        place_at = (part_at + 2 * tile * R * (lanes + 1)) * words
        start_state(given, has_given, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads)
        cuda.syncthreads()
        row, coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        next_row, next_coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        old = cuda.local.array(OCTET, number)
        own = state_at + thread
        tiles = (T + tile - 1) // tile
        for n in range(-1, tiles + 1):
            if thread >= leaders:
                helper, helpers = thread - leaders, threads - leaders
                if n + 1 < tiles:
                    start, half = (n + 1) * tile, (n + 1) % 2
                    here = min(tile, T - start)
                    fetch_events(
                        rows, coefs, (unit * T + start) * E, here * E, lanes, places, shared,
                        place_at + half * half_tile, coef_at + half * half_tile, helper, helpers,
                    )  # fmt: skip
                    to = half * tile * lanes
                    fetch_values(
                        values, b, h, start, here, T, H, C, first, lanes, shared, value_at + to, helper, helpers
                    )
                    fetch_values(dy, b, h, start, here, T, H, C, first, lanes, shared, dy_at + to, helper, helpers)
                if n >= 1:
                    start, half = (n - 1) * tile, (n - 1) % 2
                    add_up(
                        shared, part_at + half * tile * R * (lanes + 1), min(tile, T - start) * R, lanes,
                        min(lanes, C - first), dread, ((cut * int64(units) + unit) * T + start) * R, helper, helpers,
                    )  # fmt: skip
            if n >= 0 and n < tiles and thread < lanes and first + thread < C:
                half = n % 2
                event, part = half * half_tile, part_at + half * tile * R * (lanes + 1) + thread
                load_octet(places, shared, place_at + event, coef_at + event, row, coef)
                for token in range(min(tile, T - n * tile)):
                    v = shared[uint32(value_at + (half * tile + token) * lanes + thread)]
                    dy_t = shared[uint32(dy_at + (half * tile + token) * lanes + thread)]
                    for o in range(0, W, OCTET):
                        event += OCTET
                        for j in range(OCTET):
                            old[j] = get(shared, working, own, row[j])
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        if o == 0:
                            found[((b * T + n * tile + token) * H + h) * C + first + thread] = old[0]
                        for j in range(OCTET):
                            put(shared, working, own, row[j], old[j] + coef[j] * (v - old[j]))
                        take_octet(next_row, next_coef, row, coef)
                    for _ in range(0, R, OCTET):
                        event += OCTET
                        for j in range(OCTET):
                            old[j] = get(shared, working, own, row[j])
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        for j in range(OCTET):
                            shared[uint32(part)] = dy_t * old[j]
                            part += lanes + 1
                        take_octet(next_row, next_coef, row, coef)
            cuda.syncthreads()
        if has_last != 0:  # all lanes' numbers are there, after the barrier: a thread adds up a row
            for r in range(thread, n_rows, threads):
                total = number(0)
                for c in range(min(lanes, C - first)):
                    s = get(shared, working, state_at, r * lanes + c)
                    total += s * dfinal[(unit * n_rows + r) * C + first + c]
                last[(cut * int64(units) + unit) * n_rows + r] = total

    @kernel(rows_type, *[numbers] * 10, *[int32] * 13)
    def content_reverse(
        rows, coefs, values, dy, found, dfinal, working, dgiven, dv, dwritten, dfound, has_dfinal, has_dgiven, T, H, C,
        n_rows, W, R, tile, lanes, slices, leaders, units,
    ):  # fmt: skip
        """dv (B, T, H, C); dwritten (slices, B*H, T, W): <d, v> over the slice; dfound (slices, B*H, T): <d, found> of
        the token's first write; dgiven (B*H, rows, C), the adjoint of the given state, if wanted."""
        shared, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit, cut = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices
        first = cut * lanes
        b, h, E = unit // H, unit % H, W + R
        state_at, at = int64(cuda.blockIdx.x) * (n_rows + 2) * lanes, 0
        if in_shared:
            state_at, at = int64(0), (n_rows + 2) * lanes
        half_tile = tile * E + OCTET  # an octet is looked at ahead of time, also of the last
        coef_at = at
        value_at = coef_at + 2 * half_tile
        dy_at = value_at + 2 * tile * lanes
        found_at = dy_at + 2 * tile * lanes
        part_at = found_at + 2 * tile * lanes
        found_part_at = part_at + 2 * tile * W * (lanes + 1)
        place_at = (found_part_at + 2 * tile * (lanes + 1)) * words
        start_state(dfinal, has_dfinal, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads)
        cuda.syncthreads()
        row, coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        next_row, next_coef = cuda.local.array(OCTET, int32), cuda.local.array(OCTET, number)
        d = cuda.local.array(OCTET, number)
        own, one = state_at + thread, number(1)
        tiles = (T + tile - 1) // tile
        for n in range(-1, tiles + 1):  # tiles come last to first
            if thread >= leaders:
                helper, helpers = thread - leaders, threads - leaders
                if n + 1 < tiles:
                    start, half = (tiles - 2 - n) * tile, (n + 1) % 2
                    here = min(tile, T - start)
                    fetch_events(
                        rows, coefs, (unit * T + start) * E, here * E, lanes, places, shared,
                        place_at + half * half_tile, coef_at + half * half_tile, helper, helpers,
                    )  # fmt: skip
                    to = half * tile * lanes
                    fetch_values(
                        values, b, h, start, here, T, H, C, first, lanes, shared, value_at + to, helper, helpers
                    )
                    fetch_values(dy, b, h, start, here, T, H, C, first, lanes, shared, dy_at + to, helper, helpers)
                    fetch_values(
                        found, b, h, start, here, T, H, C, first, lanes, shared, found_at + to, helper, helpers
                    )
                if n >= 1:
                    start, half = (tiles - n) * tile, (n - 1) % 2
                    here, width = min(tile, T - start), min(lanes, C - first)
                    tokens_at = (cut * int64(units) + unit) * T + start
                    add_up(
                        shared, part_at + half * tile * W * (lanes + 1), here * W, lanes, width, dwritten,
                        tokens_at * W, helper, helpers,
                    )  # fmt: skip
                    add_up(
                        shared, found_part_at + half * tile * (lanes + 1), here, lanes, width, dfound, tokens_at,
                        helper, helpers,
                    )  # fmt: skip
            if n >= 0 and n < tiles and thread < lanes and first + thread < C:
                start, half = (tiles - 1 - n) * tile, n % 2
                here = min(tile, T - start)
                event = half * half_tile + (here - 1) * E + W
                load_octet(places, shared, place_at + event, coef_at + event, row, coef)
                for token in range(here - 1, -1, -1):
                    writes_at = half * half_tile + token * E
                    at = (half * tile + token) * lanes + thread
                    v, dy_t = shared[uint32(value_at + at)], shared[uint32(dy_at + at)]
                    before = shared[uint32(found_at + at)]
                    # d += r dy
                    for o in range(0, R, OCTET):
                        for j in range(OCTET):
                            d[j] = get(shared, working, own, row[j])
                        event = event + OCTET if o + OCTET < R else writes_at
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        for j in range(OCTET):
                            put(shared, working, own, row[j], d[j] + coef[j] * dy_t)
                        take_octet(next_row, next_coef, row, coef)
                    # <d, v>;  dv += eta d;  d *= 1 - eta
                    part = part_at + (half * tile + token) * W * (lanes + 1) + thread
                    dv_t = number(0)
                    for o in range(0, W, OCTET):
                        for j in range(OCTET):
                            d[j] = get(shared, working, own, row[j])
                        event += OCTET
                        if o + OCTET >= W:  # next are the reads of the token before; there is none before the first
                            event = writes_at + W - (E if token > 0 else 0)
                        load_octet(places, shared, place_at + event, coef_at + event, next_row, next_coef)
                        if o == 0:
                            found_part = found_part_at + (half * tile + token) * (lanes + 1) + thread
                            shared[uint32(found_part)] = d[0] * before
                        for j in range(OCTET):
                            put(shared, working, own, row[j], (one - coef[j]) * d[j])
                        for j in range(OCTET):
                            dv_t += coef[j] * d[j]
                            shared[uint32(part)] = d[j] * v
                            part += lanes + 1
                        take_octet(next_row, next_coef, row, coef)
                    dv[((b * T + start + token) * H + h) * C + first + thread] = dv_t
            cuda.syncthreads()
        if has_dgiven != 0:
            store_state(dgiven, unit, first, n_rows, C, lanes, shared, working, state_at, thread, threads)

    return SimpleNamespace(forward=content_forward, replay=content_replay, reverse=content_reverse)
