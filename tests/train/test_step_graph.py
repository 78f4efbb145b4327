"""What a step's graphs launch, and what is called between them, in which order; with a stand-in for a CUDA stream."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from ramnet_np.core.cuda_graph import capture
from ramnet_np.train.gradient_sum import GradientSum
from ramnet_np.train.ranks import OneRank
from ramnet_np.train.step_graph import RanksBetweenGraphs, StepGraph


class Stream:
    """Kernels run when they are launched, or become part of the graph that is being captured."""

    def __init__(self, done):
        self.done, self.captured = done, None

    def run(self, kernel):
        (self.done if self.captured is None else self.captured).append(kernel)

    def begin_capture(self, mode):
        assert (self.captured, mode) == (None, "relaxed")
        self.captured = []

    def end_capture(self):
        kernels, self.captured = self.captured, None
        return SimpleNamespace(launch=lambda: self.done.extend(kernels))


class Recorded(OneRank):
    size = 2

    def __init__(self, done):
        self.done = done

    def all_reduce(self, array):
        self.done.append("labels")

    def start_all_reduce(self, array):
        self.done.append("start")

    def join(self):
        self.done.append("join")

    def broadcast(self, array, root=0):
        self.done.append(f"broadcast {root}")


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    runtime = SimpleNamespace(streamCaptureModeRelaxed="relaxed")
    cuda = SimpleNamespace(runtime=runtime, using_allocator=nullcontext)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))


def step(stream, ranks, over_ranks):
    stream.run("forward")
    over_ranks.labels(np.int64(4))
    for name in "ba":
        stream.run(f"backward {name}")
        over_ranks.add({name: np.ones(3)})
    over_ranks.total(np.float64(1), np.int64(2))
    stream.run("AdamW")
    ranks.broadcast(np.zeros(2), 1)


def test_exchanges_stand_between_the_graphs_and_happen_at_every_launch():
    order = ["forward", "labels", "backward b", "start", "backward a", "start", "join", "AdamW", "broadcast 1"]
    done = []
    stream, ranks = Stream(done), RanksBetweenGraphs(Recorded(done))
    over_ranks = GradientSum(ranks, {"a": np.zeros(3), "b": np.zeros(3)}, bucket=1)
    step(stream, ranks, over_ranks)
    assert done == order
    done.clear()
    ranks.graph = graph = StepGraph(stream, None)
    last, _ = capture(lambda: step(stream, ranks, over_ranks), stream, SimpleNamespace(malloc=None))
    graph.finish(last)
    ranks.graph = None
    assert done == []
    for _ in range(2):
        graph.launch()
    assert done == 2 * order
    step(stream, ranks, over_ranks)
    assert done == 3 * order


def test_a_capture_that_fails_leaves_no_stream_that_captures():
    stream = Stream([])
    graph = StepGraph(stream, None)

    def cut_and_fail():
        graph.cut(lambda: None)
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        capture(cut_and_fail, stream, SimpleNamespace(malloc=None))
    assert stream.captured is None
