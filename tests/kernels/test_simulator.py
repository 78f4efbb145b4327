"""What the simulator of these tests promises: a barrier that is missing, and an error in one thread, are found."""

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda.compiler import cuda, float64, int32

from tests.kernels.numba_cuda_device import NEEDS_SIMULATOR

pytestmark = NEEDS_SIMULATOR
THREADS = 4


def neighbours(distance, with_barrier):
    """What each thread of two blocks finds that its neighbour has written: the neighbour's number."""

    def body(found):
        written = cuda.shared.array(THREADS, int32)
        me = cuda.threadIdx.x
        written[me] = -1
        cuda.syncthreads()
        written[me] = me
        if with_barrier:
            cuda.syncthreads()
        found[cuda.blockIdx.x, me] = written[(me + distance) % THREADS]

    found = np.zeros((2, THREADS), np.int32)
    cuda.jit(body)[2, THREADS](found)
    return found.tolist()


@pytest.mark.parametrize("distance", [1, -1])
def test_a_missing_barrier_is_found_in_every_second_block_at_least(distance):
    expected = [(me + distance) % THREADS for me in range(THREADS)]
    assert neighbours(distance, with_barrier=True) == [expected] * 2
    found = neighbours(distance, with_barrier=False)
    wrong = [sum(value != right for value, right in zip(row, expected, strict=True)) for row in found]
    assert sorted(wrong) == [1, THREADS - 1]  # of both orders, those whose neighbour comes later


def test_an_error_in_one_thread_is_raised_when_all_have_ended():
    ended = []

    def body():
        try:
            if cuda.threadIdx.x == 1:
                raise ValueError("a bad thread")
            cuda.syncthreads()
        finally:
            ended.append(cuda.threadIdx.x)

    with pytest.raises(ValueError, match=r"tid=\[1, 0, 0\] .*: a bad thread"):
        cuda.jit(body)[1, THREADS]()
    assert sorted(ended) == list(range(THREADS))


def test_an_error_that_numba_cannot_word_anew_is_raised_too():
    def body():
        cuda.syncthreads()
        if cuda.threadIdx.x == 1:
            b"\xff".decode()  # its error takes five arguments

    with pytest.raises(TypeError, match="argument"):
        cuda.jit(body)[1, THREADS]()


def test_memory_that_nobody_has_written_holds_no_number():
    """In every block, whatever the one before has left."""

    def body(found):
        shared, own = cuda.shared.array(2, float64), cuda.local.array(1, float64)
        found[cuda.blockIdx.x] = shared[0], shared[1], own[0], cuda.shared.array(0, float64)[0]
        shared[:] = own[0] = 7

    found = np.zeros((3, 4))
    cuda.jit(body)[3, 1, 0, 8](found)
    assert np.isnan(found).all()
