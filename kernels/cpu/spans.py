"""Where the sequences of a call stand: the rows of a batch, or the sequences of a packed row.

Kernels count the tokens of all sequences through: those of sequence n are ``token[n]`` up to ``token[n] + length[n]``.
What is kept of a sequence follows its own length, so that a long one takes no room from many short ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .slots import hash_size


class Spans(NamedTuple):
    """Where every sequence lies, arrays (N,) int64."""

    token: np.ndarray  # its first token
    length: np.ndarray
    row: np.ndarray  # its first row of touched slots
    version: np.ndarray  # its first version of a slot's content
    base: np.ndarray  # versions that were there before the first token, counted from the sequence's first
    hashing: np.ndarray  # (N, 3): the entries of its hash table, multiplier and shift, as ``hash_size`` gives them


class Sizes(NamedTuple):
    """How much memory all sequences together need."""

    rows: int
    versions: int


def place(batch: int, tokens: int, cu_seqlens: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """First token and length of the rows of a batch, or of packed sequences.

    >>> place(2, 3, None)
    (array([0, 3]), array([3, 3]))
    >>> place(1, 3, np.array([0, 1, 3]))
    (array([0, 1]), array([1, 2]))
    """
    if cu_seqlens is None:
        return np.arange(batch) * tokens, np.full(batch, tokens)
    return cu_seqlens[:-1], np.diff(cu_seqlens)


def spans(
    token: np.ndarray, length: np.ndarray, slots: int, writes: int, reads: int, given_state: bool
) -> tuple[Spans, Sizes]:
    """Room for every sequence's slots. ``writes``, ``reads``: of a token; ValueError for too many writes.

    >>> where, sizes = spans(np.array([0, 1]), np.array([1, 2]), slots=64, writes=8, reads=8, given_state=False)
    >>> where.row.tolist(), where.version.tolist(), sizes
    ([0, 8], [0, 9], Sizes(rows=24, versions=26))
    """
    # Only slots that are written need a row, unless there is a given state to read and to differentiate.
    touches = length * (writes + reads if given_state else writes)
    rows = np.minimum(slots, touches)
    base = rows if given_state else np.ones_like(rows)
    versions = base + length * writes
    longest = int(versions.argmax()) if versions.size else None
    if longest is not None and versions[longest] > np.iinfo(np.int32).max:  # versions are int32
        most = (2**31 - 1 - base[longest]) // writes + 1
        raise ValueError(
            f"T must be below {most} on backend 'numba' for {writes} writes a token, got {length[longest]}"
        )
    sizes = {int(n): hash_size(slots, max(int(n), 1)) for n in np.unique(touches)}
    hashing = np.array([sizes[int(n)] for n in touches], dtype=np.int64).reshape(-1, 3)
    found = Spans(token, length, rows.cumsum() - rows, versions.cumsum() - versions, base, hashing)
    return found, Sizes(int(rows.sum()), int(versions.sum()))
