"""Tiles of tokens, as the passes over the contents use them: loaded ahead, in shared memory, and summed up afterwards.

``content_forward.py`` says which thread is which.

A load from device memory takes longer than a token. But a thread waits for it only where it uses what was loaded, so
the next tile is loaded to registers before the present one is worked through, and stored to shared memory after it:

    load tile n + 1 to registers  |  tile n, token by token  |  sums of tile n, store tile n + 1  |  barrier

Lengths of tiles are compiled in, so that loops over one are unrolled and addresses in shared memory are constants.
"""

from functools import cache
from types import SimpleNamespace

from .compiler import cuda, uint64
from .groups_of_8 import GROUP_OF_8, split, state_access

BANKS = 32  # of shared memory: words 32 apart are in the same one


def column(sums: int, lanes: int) -> int:
    """Numbers from one channel's products to the next one's: such that a warp's writes fall into different banks.

    >>> column(64, 16), column(64, 8)
    (66, 68)
    """
    return sums + (BANKS // lanes - sums) % BANKS


@cache
def shared_layout(name: str, tile: int, W: int, R: int, lanes: int, groups: int, itemsize: int) -> SimpleNamespace:
    """Where the parts of a tile begin in the shared memory of the pass "forward", "recompute" or "backward".

    All count numbers of ``itemsize`` bytes, except ``rows``, which counts int32. ``state`` is the end of the tile: the
    state comes after it.

    >>> shared_layout("forward", tile=16, W=8, R=8, lanes=16, groups=4, itemsize=4)
    namespace(values=0, parts=272, coefs=1296, rows=1560, state=1824)
    """
    values, parts = tile * lanes, tile * lanes * groups
    sizes = {
        "forward": {"values": values + lanes, "parts": parts},
        "recompute": {"values": values + lanes, "dy": values + lanes, "products": lanes * column(tile * R, lanes)},
        "backward": {
            "values": values, "dy": values, "before": values, "parts": parts,
            "products": lanes * column(tile * W, lanes), "before_products": tile * (lanes + 1),
        },
    }[name]  # fmt: skip
    held = tile * (W + R) + GROUP_OF_8  # accesses: after the last, a group is loaded that nobody uses
    layout, at, words = SimpleNamespace(), 0, itemsize // 4
    for part, size in {**sizes, "coefs": held}.items():
        setattr(layout, part, at)
        at += size
    layout.rows, layout.state = at * words, at + held // words
    return layout


@cache
def state_functions(number, in_shared: bool, lanes: int, groups: int, E: int) -> SimpleNamespace:
    """Device functions that set and store a slice of the state; E rows after it are for accesses that do nothing."""
    threads = groups * lanes
    get, put = state_access(in_shared)

    @cuda.jit(device=True)
    def start_state(state, sizes, bh, first, shared, state_at, thread):
        """Every number of the slice is set by one thread: to the given state (B*H, rows, C), or 0."""
        for i in range(thread, (sizes.n_rows + E) * lanes, threads):
            row, c = split(i, lanes)
            c += first
            s = number(0)
            if state.has_start != 0 and row < sizes.n_rows and c < sizes.C:
                s = state.start[(bh * sizes.n_rows + row) * sizes.C + c]
            put(shared, state.working, state_at, i, s)

    @cuda.jit(device=True)
    def store_state(state, sizes, bh, first, shared, state_at, thread):
        """The slice of the state into (B*H, rows, C)."""
        for i in range(thread, sizes.n_rows * lanes, threads):
            row, c = split(i, lanes)
            c += first
            if c < sizes.C:
                state.end[(bh * sizes.n_rows + row) * sizes.C + c] = get(shared, state.working, state_at, i)

    return SimpleNamespace(start_state=start_state, store_state=store_state)


@cache
def access_functions(number, lanes: int, groups: int, tile: int, E: int, coefs_at: int, rows_at: int):
    """Device functions that bring a tile's accesses, E a token, to shared memory, and from there to registers.

    A pair ``(row, coef)`` of arrays in registers holds several accesses.
    """
    threads, share = groups * lanes, GROUP_OF_8 // groups
    each = -(-tile * E // threads)  # accesses of a thread

    @cuda.jit(device=True)
    def load_to_registers(accesses, at, count, thread, pair):
        """A tile's accesses: thread i loads the i-th, and every ``threads``-th after it."""
        row, coef = pair
        for j in range(each):
            if thread + j * threads < count:
                row[j] = accesses.row[at + thread + j * threads]
                coef[j] = accesses.coef[at + thread + j * threads]

    @cuda.jit(device=True)
    def store_to_shared(count, thread, pair, shared_rows, shared):
        """The same accesses from registers into shared memory."""
        row, coef = pair
        row_at, coef_at = uint64(rows_at + thread), uint64(coefs_at + thread)
        for j in range(each):
            if thread + j * threads < count:
                shared_rows[row_at + uint64(j * threads)] = row[j]
                shared[coef_at + uint64(j * threads)] = coef[j]

    @cuda.jit(device=True)
    def load_share(shared_rows, shared, access, pair):
        """A thread's share of a group of 8, from shared memory.

        An index is one unsigned number plus a constant, which the load itself can add.
        """
        row, coef = pair
        row_at, coef_at = uint64(rows_at + access), uint64(coefs_at + access)
        for j in range(share):
            row[j] = shared_rows[row_at + uint64(j * groups)]
            coef[j] = shared[coef_at + uint64(j * groups)]

    @cuda.jit(device=True)
    def take_share(ahead, now):
        """The accesses that were loaded ahead become the present ones."""
        (row_ahead, coef_ahead), (row, coef) = ahead, now
        for j in range(share):
            row[j] = row_ahead[j]
            coef[j] = coef_ahead[j]

    return SimpleNamespace(
        each=each,
        load_to_registers=load_to_registers,
        store_to_shared=store_to_shared,
        load_share=load_share,
        take_share=take_share,
    )


@cache
def value_functions(number, lanes: int, groups: int, tile: int) -> SimpleNamespace:
    """Device functions that bring a tile's values (or dy, ..) to shared memory, and that add up what threads left."""
    threads, each = groups * lanes, -(-tile // groups)  # values of a thread

    @cuda.jit(device=True)
    def load_to_registers(array, at, stride, count, group, inside, value):
        """A tile's numbers of the thread's own channel: its group takes every ``groups``-th token."""
        for j in range(each):
            value[j] = number(0)
            if inside and group + j * groups < count:
                value[j] = array[at + (group + j * groups) * stride]

    @cuda.jit(device=True)
    def store_to_shared(value, shared, at, count, group, c):
        """The same numbers from registers into shared memory; 0 in channels that C does not have."""
        to = uint64(at + group * lanes + c)
        for j in range(each):
            if group + j * groups < count:
                shared[to + uint64(j * threads)] = value[j]

    @cuda.jit(device=True)
    def add_groups(shared, parts_at, count, group, c, inside, out, out_at, stride):
        """Sums over groups of the parts that a tile's tokens left; a thread's tokens as in ``load_to_registers``."""
        for j in range(each):
            token = group + j * groups
            if inside and token < count:
                part = uint64(parts_at + token * threads + c)
                total = shared[part]
                for other in range(1, groups):
                    total += shared[part + uint64(other * lanes)]
                out[out_at + token * stride] = total

    return SimpleNamespace(
        each=each, load_to_registers=load_to_registers, store_to_shared=store_to_shared, add_groups=add_groups
    )


@cache
def channel_sums(lanes: int, groups: int, most: int, channel: int, row: int):
    """A device function that adds up rows of products over channels.

    A tile has up to ``most`` rows, ``row`` numbers from one to the next, and ``channel`` from one channel to the next.
    """
    threads = groups * lanes

    @cuda.jit(device=True)
    def add_channels(shared, products_at, count, thread, out, out_at):
        for j in range(-(-most // threads)):
            i = thread + j * threads
            if i < count:
                product = uint64(products_at + i * row)
                total = shared[product]
                for other in range(1, lanes):
                    total += shared[product + uint64(other * channel)]
                out[out_at + i] = total

    return add_channels
