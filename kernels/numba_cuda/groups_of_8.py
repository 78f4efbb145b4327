"""Groups of 8 accesses, and how a thread reaches the state, in shared or in device memory.

Threads share out a token's accesses by groups of 8, which go to 8 different slots. K is padded to a multiple of 8 with
accesses that change nothing.
"""

from .compiler import cuda, int32, int64, uint32, uint64

GROUP_OF_8 = 8


def padded(k: int) -> int:
    """Accesses of a token in memory: K up to the next multiple of 8.

    >>> padded(8), padded(9)
    (8, 16)
    """
    return -(-k // GROUP_OF_8) * GROUP_OF_8


def state_access(in_shared: bool):
    """(get, put) for one number of the state, which lies in shared memory or in device memory.

    The index into shared memory is made unsigned: for a signed one, Numba tests whether it is negative and counts from
    the end.
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

    A GPU has no instruction for it: a division of 64 bits takes about 100 instructions, one of 32 bits 20, and a signed
    one more, to round down as Python does.
    """
    whole = uint32(i) // uint32(n)
    return int32(whole), int32(uint32(i) - whole * uint32(n))


@cuda.jit(device=True)
def token_and_head(row, T, H):
    """Where row (b * H + h) * T + t of arrays (B*H, T, ...) lies in arrays (B, T, ...) and (B, T, H, ...)."""
    bh, t = split(row, T)
    b, h = split(bh, H)
    token = int64(b) * T + t
    return token, token * H + h
