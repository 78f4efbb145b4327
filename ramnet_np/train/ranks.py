"""Ranks: the processes that train one model together, each on its own rows of every batch.

    rank 0   rows 0 .. B/N - 1         ─┐
    rank 1   rows B/N .. 2 B/N - 1     ─┼─▶  sum of the gradients  ─▶  the same update on every rank
      ...                              ─┘

:class:`Ranks` is what training needs from them. :class:`OneRank` is a process that trains alone;
:class:`~ramnet_np.train.mpi_ranks.MPIRanks` exchanges NumPy arrays,
:class:`~ramnet_np.train.nccl_ranks.NCCLRanks` those of CuPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of

# Which variables say what place a process has: Open MPI, MPICH and Intel MPI, Slurm (only steps of srun have the second
# name), and launchers such as torchrun.
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
)


class RankError(RuntimeError):
    """Another rank did not answer in time, or ended."""


class Place(NamedTuple):
    """Which of the ranks a process is."""

    rank: int
    size: int
    local_rank: int  # among the ranks of its host


class Ranks(Protocol):
    """What training needs from the ranks. Every rank makes the same calls in the same order.

    RankError where another rank does not come to a call in time.
    """

    rank: int
    size: int
    local_rank: int

    def all_reduce(self, array: Array) -> None:
        """Replace a contiguous array, in place, by its sum over the ranks: the same bits on all of them and in all runs
        of so many ranks."""

    def start_all_reduce(self, array: Array) -> None:
        """As :meth:`all_reduce`, beside the calls that follow; the array must be left alone until :meth:`join`."""

    def join(self) -> None:
        """The arrays of :meth:`start_all_reduce` are their sums for the calls that follow."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replace a contiguous array, in place, by that of rank ``root``."""

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def wait(self, event: Any = None) -> None:
        """Wait until the calls before are done on this rank's device, or those before a CUDA ``event``."""

    def abort(self, status: int) -> None:
        """End all ranks at once."""


class OneRank:
    """A process that trains alone.

    >>> array = np.ones(2)
    >>> OneRank().all_reduce(array)
    >>> array
    array([1., 1.])
    """

    rank, size, local_rank = 0, 1, 0

    def all_reduce(self, array: Array) -> None:
        pass

    def start_all_reduce(self, array: Array) -> None:
        pass

    def join(self) -> None:
        pass

    def broadcast(self, array: Array, root: int = 0) -> None:
        pass

    def barrier(self) -> None:
        pass

    def wait(self, event: Any = None) -> None:
        if event is not None:
            event.synchronize()

    def abort(self, status: int) -> None:
        raise SystemExit(status)


ONE = OneRank()


def place_in(environment: Mapping[str, str]) -> Place:
    """The place that MPI, Slurm or another launcher gave to a process; rank 0 of 1 without one.

    ValueError where the variables contradict each other.

    >>> place_in({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}), place_in({})
    (Place(rank=5, size=8, local_rank=1), Place(rank=0, size=1, local_rank=0))
    """
    for names in _VARIABLES:
        rank, size, local = (environment.get(name) for name in names)
        if rank is None or size is None:
            continue
        try:
            place = Place(int(rank), int(size), int(rank if local is None else local))
        except ValueError as error:
            raise ValueError(f"{', '.join(names)} must be whole numbers, got {rank}, {size}, {local}") from error
        if not 0 <= place.rank < place.size or place.local_rank < 0:
            raise ValueError(f"{names[0]} must be from 0 to {names[1]} - 1 ({place.size - 1}), got {place.rank}")
        return place
    return Place(0, 1, 0)


def of_every_rank(ranks: Ranks, value: float) -> np.ndarray:
    """``value`` of each rank, (size,) float64.

    >>> of_every_rank(ONE, 3.0)
    array([3.])
    """
    values = np.zeros(ranks.size)
    values[ranks.rank] = value
    ranks.all_reduce(values)
    return values


def gathered_rows(ranks: Ranks, array: Array) -> Array:
    """The rows of all ranks, which have equally many each, one below the other, bit for bit.

    >>> gathered_rows(ONE, np.ones((2, 1)))
    array([[1.],
           [1.]])
    """
    rows, xp = len(array), namespace_of(array)
    together = xp.zeros((ranks.size * rows, *array.shape[1:]), array.dtype)
    together[ranks.rank * rows : (ranks.rank + 1) * rows] = array
    # as whole numbers: a sum with zeros then keeps every bit, that of a negative zero too
    ranks.all_reduce(together.reshape(-1).view(f"i{array.dtype.itemsize}"))
    return together


def require_rows(size: int, batch: int, accumulate: int) -> None:
    """ValueError unless each of ``size`` ranks gets equally many rows of a batch, a multiple of ``accumulate``.

    >>> require_rows(2, batch=8, accumulate=4)
    """
    if batch % (size * accumulate):
        raise ValueError(
            f"train.batch must be a multiple of the {size} ranks times train.accumulate ({accumulate}), got {batch}: "
            "every rank computes equally many sequences"
        )
