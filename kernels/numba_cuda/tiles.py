"""Tiles of tokens, as the passes over the contents use them: on their way from device memory, in shared memory, and the
sums that are formed behind a tile. ``content_kernels.py`` says which thread is which.

A load from device memory takes longer than a token. But a thread waits for it only where it uses what was loaded, so
the next tile is asked for before the present one is followed, into registers, and put into shared memory behind it:

    ask for tile n + 1  |  follow tile n, token by token  |  sums of tile n, put tile n + 1  |  barrier

Lengths of tiles are compiled in, so that loops over one are unrolled and places in shared memory are constants.
"""

from functools import cache
from types import SimpleNamespace

from numba import cuda, uint64

from .octets import OCTET

BANKS = 32  # of shared memory: words 32 apart are in the same one


def column(sums: int, lanes: int) -> int:
    """Numbers from one channel's products to the next one's: such that a warp's writes fall into different banks.

    >>> column(64, 16), column(64, 8)
    (66, 68)
    """
    return sums + (BANKS // lanes - sums) % BANKS


@cache
def tile_functions(number, lanes: int, groups: int, tile: int, E: int) -> SimpleNamespace:
    """Device functions for blocks of ``groups`` x ``lanes`` threads and tiles of ``tile`` tokens with E accesses."""
    threads, share = groups * lanes, OCTET // groups
    each_event, each_value = -(-tile * E // threads), -(-tile // groups)  # of a thread

    @cuda.jit(device=True)
    def ask_events(rows, coefs, at, count, thread, row, coef):
        """A tile's accesses: thread i loads the i-th, and every ``threads``-th after it."""
        for j in range(each_event):
            if thread + j * threads < count:
                row[j] = rows[at + thread + j * threads]
                coef[j] = coefs[at + thread + j * threads]

    @cuda.jit(device=True)
    def put_events(count, thread, row, coef, places, shared, place_at, coef_at):
        """The same into shared memory."""
        place, to = uint64(place_at + thread), uint64(coef_at + thread)
        for j in range(each_event):
            if thread + j * threads < count:
                places[place + uint64(j * threads)] = row[j]
                shared[to + uint64(j * threads)] = coef[j]

    @cuda.jit(device=True)
    def ask_values(array, at, stride, count, group, inside, value):
        """A tile's numbers of the thread's own channel: its group takes every ``groups``-th token."""
        for j in range(each_value):
            value[j] = number(0)
            if inside and group + j * groups < count:
                value[j] = array[at + (group + j * groups) * stride]

    @cuda.jit(device=True)
    def put_values(value, shared, at, count, group, c):
        """The same into shared memory; 0 in channels that C does not have."""
        to = uint64(at + group * lanes + c)
        for j in range(each_value):
            if group + j * groups < count:
                shared[to + uint64(j * threads)] = value[j]

    @cuda.jit(device=True)
    def load_share(places, shared, place_at, coef_at, row, coef):
        """A group's accesses of an octet, from shared memory: where their slots are, and eta or weight.

        An index is one unsigned number plus a constant, which the load itself can add.
        """
        place, at = uint64(place_at), uint64(coef_at)
        for j in range(share):
            row[j] = places[place + uint64(j * groups)]
            coef[j] = shared[at + uint64(j * groups)]

    @cuda.jit(device=True)
    def take_share(row_ahead, coef_ahead, row, coef):
        """The accesses that were loaded ahead are now the present ones."""
        for j in range(share):
            row[j] = row_ahead[j]
            coef[j] = coef_ahead[j]

    @cuda.jit(device=True)
    def add_groups(shared, part_at, count, group, c, inside, out, out_at, stride):
        """The sums over groups of the parts that a tile's tokens left; a thread's tokens as in ``ask_values``."""
        for j in range(each_value):
            token = group + j * groups
            if inside and token < count:
                part = uint64(part_at + token * threads + c)
                total = shared[part]
                for other in range(1, groups):
                    total += shared[part + uint64(other * lanes)]
                out[out_at + token * stride] = total

    def add_channels(most: int, channel: int, row: int):
        """A device function that adds up rows of products over channels: ``most`` rows of a tile, ``row`` numbers from
        one to the next, and ``channel`` from one channel to the next."""

        @cuda.jit(device=True)
        def add(shared, product_at, count, thread, out, out_at):
            for j in range(-(-most // threads)):
                i = thread + j * threads
                if i < count:
                    product = uint64(product_at + i * row)
                    total = shared[product]
                    for other in range(1, lanes):
                        total += shared[product + uint64(other * channel)]
                    out[out_at + i] = total

        return add

    return SimpleNamespace(
        each_event=each_event,
        each_value=each_value,
        ask_events=ask_events,
        put_events=put_events,
        ask_values=ask_values,
        put_values=put_values,
        load_share=load_share,
        take_share=take_share,
        add_groups=add_groups,
        add_channels=add_channels,
    )
