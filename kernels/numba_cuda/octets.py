"""Accesses by eights, and how a thread gets at the state, in shared or in device memory.

An octet is eight accesses of one token, to eight different slots: what threads share out among them. K is filled up to
octets by accesses that change nothing.
"""

from numba import cuda, int32, uint32, uint64

OCTET = 8


def padded(k: int) -> int:
    """Accesses of a token in memory: K up to the next multiple of eight.

    >>> padded(8), padded(9)
    (8, 16)
    """
    return -(-k // OCTET) * OCTET


def access(in_shared: bool):
    """(get, put) of one number of the state, which lies in shared memory or in device memory.

    The index into shared memory is made unsigned: Numba would else look whether it is negative and counts from the end.
    """
    return (get_shared, put_shared) if in_shared else (get_global, put_global)


@cuda.jit(device=True)
def get_shared(shared, memory, start, at):
    """shared[start + at]"""
    return shared[uint64(start + at)]


@cuda.jit(device=True)
def put_shared(shared, memory, start, at, value):
    """shared[start + at] = value"""
    shared[uint64(start + at)] = value


@cuda.jit(device=True)
def get_global(shared, memory, start, at):
    """memory[start + at]"""
    return memory[start + at]


@cuda.jit(device=True)
def put_global(shared, memory, start, at, value):
    """memory[start + at] = value"""
    memory[start + at] = value


@cuda.jit(device=True)
def split(i, n):
    """(i // n, i % n) of numbers that are not negative.

    A GPU has no instruction for it: one of 64 bits takes about 100 of them, one of 32 bits 20, and a signed one more,
    to round down as Python does.
    """
    whole = uint32(i) // uint32(n)
    return int32(whole), int32(uint32(i) - whole * uint32(n))
