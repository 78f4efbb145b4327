"""Moments that are shared out, over ranks that are threads here: tests/train/test_ranks.py has processes."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from ramnet_np.train.optim import AdamWState
from ramnet_np.train.shards import Shards, own, owners

SHAPES = {"a": (3, 50), "b": (), "c": (7,), "d": (64, 2), "e": (1,)}


class ThreadRanks:
    """One of several threads that exchange arrays; as on a GPU, what is received is there after ``wait``."""

    def __init__(self, rank, size, meet, box):
        self.rank, self.size, self._meet, self._box, self._coming = rank, size, meet, box, []

    def broadcast(self, array, root=0):
        assert array.flags.c_contiguous
        if self.rank == root:
            self._box[:] = [array.copy()]
        self._meet.wait(10)
        self._coming.append((array, self._box[0]))
        self._meet.wait(10)

    def wait(self):
        for array, received in self._coming:
            array[...] = received
        self._coming.clear()


def on_ranks(size, call):
    """What ``call`` returned on each rank."""
    meet, box = Barrier(size), []
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: call(ThreadRanks(rank, size, meet, box)), range(size)))


def params():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_rank_has_what_each_updated_and_rank_0_all_moments(size):
    def train(ranks):
        given = params()
        shards = Shards(ranks, given)
        for name, param in shards.params.items():
            np.testing.assert_array_equal(param, given[name])
        mine = own(shards.params, ranks)
        for name in mine:
            shards.params[name][...] += len(name) + ranks.rank
        shards.send()
        ranks.wait()
        mean, square = (
            {name: np.full(param.shape, ranks.rank + more) for name, param in mine.items()} for more in (0.5, 2)
        )
        whole = shards.whole(AdamWState(7, mean, square))
        return shards.params, list(mine), whole

    of, results = owners(params(), size), on_ranks(size, train)
    for rank, (trained, mine, whole) in enumerate(results):
        assert mine == [name for name in SHAPES if of[name] == rank]
        for name, param in params().items():
            np.testing.assert_array_equal(trained[name], param + np.float32(1 + of[name]))
            address = trained[name].ctypes.data - min(other.ctypes.data for other in trained.values())
            assert address % 256 == 0, "kernels read a parameter from where it begins"
        assert whole.step == 7
        assert whole.mean.keys() == whole.square.keys() == (SHAPES.keys() if rank == 0 else set())
    for name, shape in SHAPES.items():
        np.testing.assert_array_equal(results[0][2].mean[name], np.full(shape, of[name] + 0.5))
        np.testing.assert_array_equal(results[0][2].square[name], np.full(shape, of[name] + 2))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_rank_has_more_than_the_average_and_one_parameter(size):
    sizes, of = {name: param.size for name, param in params().items()}, owners(params(), size)
    loads = [sum(sizes[name] for name, owner in of.items() if owner == rank) for rank in range(size)]
    assert list(of) == list(SHAPES)
    assert sum(loads) == sum(sizes.values())
    assert max(loads) <= sum(loads) / size + max(sizes.values())
    assert (min(loads) > 0) == (size <= len(SHAPES))
