"""Generation on a GPU: a token is taken in, and the next one chosen, before the host has looked at it.

    host      reads token k ············· reads token k+1 ···········
    device    │ take k in, choose k+1     │ take k+1 in, choose k+2 │
               └────── one graph ───────┘

What is chosen ahead is no part of where the sequences stand: it is chosen again if the next call asks for other
settings. So the host may stop anywhere, and while it waits for a token or looks at one, the device works.

The first token after a change of settings runs as launches, which compile what they need. The second is captured as a
CUDA graph. Both give the same bits. A memory that grows with every token has room for more (room.py); when it moves to
a larger one, the graph is captured again. A sparse memory makes room for its rows before each launch; once rows are on
a disk, the host looks at the addresses of each layer, and tokens run as launches.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ramnet_np.contract import Array, weights_stay
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.cuda_graph import (
    Graphs,
    HostCopy,
    capture,
    free_with,
    graph_pool,
    in_order_on,
    own_stream,
    why_not_captured,
)
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.layers.sampling import mark_seen
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model.room import Room
from ramnet_np.model.sampling import Sampling, next_token
from ramnet_np.model.states import arrays_of
from ramnet_np.model.stepping import Standing


class TokensAhead:
    """Sequences that step together on the current GPU, and the token of each that comes next.

    ``standing``: with one stepper, whose rows are in order; its arrays change in place, so that a graph finds them.
    """

    def __init__(self, standing: Standing, graphs: Graphs):
        self._now, [self._stepper], self._graphs = standing, standing.steppers, graphs
        self._token = namespace_of(standing.logits).empty(len(standing.positions), dtype=np.int64)
        self._sampling: Sampling | None = None
        self._seeds: Array = None
        self._chosen = False  # whether ``_token`` is what comes next
        self._stays, self._graph = False, None  # whether a step left the state's shapes as they were; and the graph
        self._room = Room(self._stepper)
        self._stream, self._pool, self._host = own_stream(), graph_pool(), HostCopy(self._token)
        free_with(self, self._stream, self._pool)

    def next(self, sampling: Sampling) -> Array:
        """One more token of every sequence, (B,) int64; the device goes on to the one behind it."""
        with in_order_on(self._stream):
            self._require_chosen(sampling)
            token = self._token.copy()
            self._go_on()
        return token

    def next_on_host(self, sampling: Sampling) -> np.ndarray:
        """As :meth:`next`, as a NumPy array: waits for this token alone."""
        with in_order_on(self._stream):
            self._require_chosen(sampling)
            self._host.start(self._token)
            self._go_on()
        return self._host.wait()

    def forget(self) -> None:
        """Choose the next token again, as someone may look at where the sequences stand, or change it."""
        self._chosen = False
        self._room.close()

    def _require_chosen(self, sampling: Sampling) -> None:
        if sampling != self._sampling:
            self._forget_graph()
            self._sampling, self._chosen = sampling, False
            self._seeds = row_seeds(sampling.seed, len(self._token), self._now.logits)
        if not self._chosen:
            self._choose()

    def _go_on(self) -> None:
        """Take the token in and choose the next, by a graph where there is one."""
        if not self._room.open():
            self._forget_graph()
        if self._graph is None and self._stays and self._graphs != "off":
            self._capture()
        if self._graph is not None and not self._has_room():
            self._forget_graph()
        if self._graph is not None:
            self._graph.launch()
        else:
            self._take_in_and_choose()
        self._room.tokens += 1

    def _forget_graph(self) -> None:
        """What the next token finds may lie elsewhere: it runs as launches."""
        self._stream.synchronize()  # a graph that runs must stay
        self._stays, self._graph = False, None

    def _has_room(self) -> bool:
        """Make room for the rows of sparse memories; whether a graph finds all that it asks for without the host."""
        memories = [memory for memory in arrays_of(self._stepper.state) if isinstance(memory, SparseRAMState)]
        for memory in memories:
            memory.rows.prepare()
        return not any(map(_moves, memories))

    def _take_in_and_choose(self) -> None:
        _, logits, positions, seen = self._now
        mark_seen(seen, self._token)
        before = list(self._stepper.state)
        logits[...] = self._stepper.step(self._token, positions)
        self._stays = _in_place(before, self._stepper.state)
        self._room.count()
        positions += 1
        self._choose()

    def _choose(self) -> None:
        assert self._sampling is not None  # of the call
        u = None if self._sampling.greedy else uniform(self._seeds, self._now.positions)
        self._token[...] = next_token(self._now.logits, self._sampling, u, self._now.seen)
        self._chosen = True

    def _capture(self) -> None:
        state = list(self._stepper.state)
        try:
            with weights_stay():
                self._graph, _ = capture(self._take_in_and_choose, self._stream, self._pool)
        except BaseException as error:
            self._stepper.state[:] = state
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            why = why_not_captured(error)
            if self._graphs == "on":
                raise RuntimeError(f"a token could not be captured as a CUDA graph ({why})") from error
            self._graphs = "off"
            warnings.warn(f"without CUDA graphs, as a token could not be captured ({why})", stacklevel=2)


def _moves(memory: Any) -> bool:
    return isinstance(memory, SparseRAMState) and not memory.rows.stays


def _in_place(before: list[Any], state: list[Any]) -> bool:
    """Put what a step replaced in ``state`` where it was ``before``; whether all of it has the same shapes still."""
    stays = True
    for layer, (old, new) in enumerate(zip(before, state, strict=True)):
        pairs = list(zip(arrays_of(old), arrays_of(new), strict=True))
        if any(a.shape != b.shape or a.dtype != b.dtype or _moves(a) for a, b in pairs):
            stays = False
            continue
        for a, b in pairs:
            if a is not b:
                a[...] = b
        state[layer] = old
    return stays
