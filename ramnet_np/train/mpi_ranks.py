"""Ranks that exchange NumPy arrays over MPI.

A sum over N ranks takes two exchanges, each of (N - 1) / N of the array a rank:

    rank r receives slice r of every rank, and adds them up in the order of the ranks
    rank r sends its sum to every rank

This moves as few bytes as a ring does. The order of the sum is ours, so the bits don't depend on how the MPI library
sums. Messages go between pairs of ranks and never block, so a rank that doesn't come is noticed and named.
Source of the two exchanges: Rabenseifner, "Optimization of collective reduction operations" (2004).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.train.ranks import RankError

_SPINS = 200  # looks at the messages before this rank lets others have its core


class MPIRanks:
    """All processes that ``mpiexec`` or ``srun`` started together.

    ``local_rank``: among those of this host; ``timeout``: seconds after which a rank that doesn't answer is an error.
    RuntimeError where mpi4py or an MPI library is missing.
    """

    def __init__(self, local_rank: int = 0, timeout: float = 300.0):
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise RuntimeError(f"ranks on CPUs need mpi4py and MPI, pip install 'ramnet-np[ranks]' ({why})") from error
        self._world, self._timeout = MPI.COMM_WORLD, timeout
        self.rank, self.size, self.local_rank = self._world.rank, self._world.size, local_rank

    def all_reduce(self, array: Array) -> None:
        flat, others = _flat(array), [rank for rank in range(self.size) if rank != self.rank]
        bounds = [rank * flat.size // self.size for rank in range(self.size + 1)]
        slices = [flat[begin:end] for begin, end in pairwise(bounds)]
        own = slices[self.rank]
        received = np.empty((self.size, own.size), flat.dtype)
        received[self.rank] = own
        self._exchange({rank: slices[rank] for rank in others}, {rank: received[rank] for rank in others})
        total = received[0]
        for one in received[1:]:
            total += one
        own[...] = total
        self._exchange(dict.fromkeys(others, total), {rank: slices[rank] for rank in others})

    def start_all_reduce(self, array: Array) -> None:
        """At once: a CPU computes the sum itself, so there is nothing to gain beside other work."""
        self.all_reduce(array)

    def join(self) -> None:
        """Nothing is under way."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        flat = _flat(array)
        if self.rank == root:
            self._exchange(dict.fromkeys((rank for rank in range(self.size) if rank != root), flat), {})
        else:
            self._exchange({}, {root: flat})

    def barrier(self) -> None:
        self.all_reduce(np.zeros(self.size))

    def wait(self, event: Any = None) -> None:
        """Nothing is left to wait for: every call ends when it is done."""

    def abort(self, status: int) -> None:
        self._world.Abort(status)

    def _exchange(self, sent: Mapping[int, Any], received: Mapping[int, Any]) -> None:
        """Send and receive an array each; returns when all have gone and come."""
        coming = {rank: self._world.Irecv(_bytes(array), source=rank) for rank, array in received.items()}
        going = {rank: self._world.Isend(_bytes(array), dest=rank) for rank, array in sent.items()}
        deadline, looks = time.monotonic() + self._timeout, 0
        while coming or going:
            coming = {rank: request for rank, request in coming.items() if not request.Test()}
            going = {rank: request for rank, request in going.items() if not request.Test()}
            looks += 1
            if looks > _SPINS:
                time.sleep(1e-4)
                if time.monotonic() > deadline:
                    missing = ", ".join(map(str, sorted(coming.keys() | going.keys())))
                    raise RankError(f"rank {missing} has not answered for {self._timeout:g} s")


def _flat(array: Array) -> Any:
    """The array as one axis, a view of it."""
    if not array.flags.c_contiguous:
        raise ValueError("an array that ranks exchange must be contiguous")
    return array.reshape(-1)


def _bytes(array: Any) -> Any:
    return array.view(np.uint8)
