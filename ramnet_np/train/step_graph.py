"""A training step as CUDA graphs, cut where the ranks exchange arrays.

    graph ─▶ labels of all ranks ─▶ graph ─▶ start bucket 0 ─▶ graph ─▶ start bucket 1 ─▶ ... ─▶ join ─▶ graph
    forward                         backward of the last block      of the block before                  AdamW

NCCL's own calls are not captured. It asks that a call is captured on all ranks or on none, and that all launch graphs
of one capture. But ranks may meet batches of different shapes: then one has a graph for a step, and another has not.
A process that trains alone has one graph.
Source: NCCL user guide, "Using NCCL with CUDA Graphs".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ramnet_np.contract import Array
from ramnet_np.core.cuda_graph import begin_capture
from ramnet_np.train.ranks import Ranks


class StepGraph:
    """The graphs of a step that is captured on ``stream``, and the calls between them.

    ``addresses``: the table that the optimiser's kernels read, which must live as long.
    """

    def __init__(self, stream: Any, addresses: Array):
        self._stream, self.addresses = stream, addresses
        self._parts: list[Callable[[], Any]] = []

    def cut(self, call: Callable[[], Any]) -> None:
        """``call`` is made at every launch, behind what was captured so far; what follows is another graph."""
        self._parts += self._stream.end_capture().launch, call
        begin_capture(self._stream)

    def finish(self, last: Any) -> None:
        """``last``: the graph of what was captured behind the last cut."""
        self._parts.append(last.launch)

    def launch(self) -> None:
        """The step, on the stream that is current."""
        for part in self._parts:
            part()


class RanksBetweenGraphs:
    """``ranks``, whose exchanges become cuts of the graph that is being captured. Without one they are made at once."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self.rank, self.size, self.local_rank = ranks.rank, ranks.size, ranks.local_rank
        self.graph: StepGraph | None = None

    def between(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Make a call that cannot be captured: now, or between two graphs."""
        if self.graph is None:
            call(*arguments)
        else:
            self.graph.cut(partial(call, *arguments))

    def all_reduce(self, array: Array) -> None:
        self.between(self._ranks.all_reduce, array)

    def start_all_reduce(self, array: Array) -> None:
        self.between(self._ranks.start_all_reduce, array)

    def join(self) -> None:
        self.between(self._ranks.join)

    def broadcast(self, array: Array, root: int = 0) -> None:
        self.between(self._ranks.broadcast, array, root)

    def barrier(self) -> None:
        self._ranks.barrier()

    def wait(self, event: Any = None) -> None:
        self._ranks.wait(event)

    def abort(self, status: int) -> None:
        self._ranks.abort(status)
