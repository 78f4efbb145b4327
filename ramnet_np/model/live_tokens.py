"""The tokens that take part, apart from those that do not: how layers see masked rows and packed rows.

Most of a layer runs along its rows from the first token to the last. To it a masked token must not be there, and packed
sequences must not see one another. So the live tokens of every sequence are moved to the front of a row of their own,
and what a layer makes of them is moved back:

    ids    . . a b c        rows    a b c          ids           a b c d e        rows    a b c
    mask   0 0 1 1 1                               cu_seqlens    0 3 5                    d e .

No token sees those behind it: the zeros that fill up a row change nothing. The operation of RAM-Net takes masks and
packed rows itself. There only the short convolution needs its tokens moved: all into one row, with zeros before each
sequence for what the convolution would see there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.packed import sequence_of_tokens


class Rows(NamedTuple):
    """Tokens of (B, T) in rows of another shape. Each move is the other's transpose, and so the other's backward.

    >>> rows = live_tokens((1, 4), np.array([[False, True, True, True]]), None).rows(np.zeros(1))
    >>> x = rows.apart(np.array([[[5.0], [6.0], [7.0], [8.0]]]))
    >>> x.ravel().tolist(), rows.together(x).ravel().tolist()
    ([6.0, 7.0, 8.0], [0.0, 6.0, 7.0, 8.0])
    """

    source: Array  # (n,): the live tokens, b*T + t
    target: Array  # (n,): their places in the rows
    given: tuple[int, int]  # (B, T)
    shape: tuple[int, int]  # of the rows

    def apart(self, x: Array) -> Array:
        """(B, T, ...) in rows, with zeros elsewhere."""
        return _moved(x, self.source, self.target, self.shape)

    def together(self, x: Array) -> Array:
        """Rows back in (B, T, ...), with zeros at tokens that are not live."""
        return _moved(x, self.target, self.source, self.given)


class LiveTokens(NamedTuple):
    """Which tokens of (B, T) are live, and the sequence of each."""

    tokens: np.ndarray  # (n,): b*T + t, in order
    sequence: np.ndarray  # (n,): its row of the batch, or its packed sequence
    counts: np.ndarray  # (N,): live tokens of each sequence
    given: tuple[int, int]  # (B, T)

    def rows(self, like: Array) -> Rows:
        """A row for each sequence, on the device of ``like``."""
        before = self.counts.cumsum() - self.counts
        length = max(1, int(self.counts.max(initial=0)))
        place = np.arange(self.tokens.size) - np.repeat(before, self.counts)
        return self._rows(self.sequence * length + place, (self.counts.size, length), like)

    def one_row(self, zeros: int, like: Array) -> Rows:
        """All sequences in one row, with so many zeros before each.

        >>> x = np.array([[[5.0], [6.0], [7.0]]])
        >>> live_tokens((1, 3), None, np.array([0, 2, 3])).one_row(1, x).apart(x).ravel().tolist()
        [0.0, 5.0, 6.0, 0.0, 7.0]
        """
        target = np.arange(self.tokens.size) + (self.sequence + 1) * zeros
        return self._rows(target, (1, self.tokens.size + self.counts.size * zeros), like)

    def _rows(self, target: np.ndarray, shape: tuple[int, int], like: Array) -> Rows:
        xp = namespace_of(like)
        return Rows(xp.asarray(self.tokens), xp.asarray(target), self.given, shape)


def live_tokens(shape: tuple[int, int], mask: Array | None, cu_seqlens: np.ndarray | None) -> LiveTokens:
    """The live tokens of ids of ``shape`` (B, T). A mask on a GPU is copied, which waits for the GPU.

    ``mask``: (B, T) bool, False where a token is not live, or None; ``cu_seqlens``: checked, or None.

    >>> live_tokens((2, 3), np.array([[False, True, True], [True, True, True]]), None).counts.tolist()
    [2, 3]
    """
    B, T = shape
    tokens = np.arange(B * T) if mask is None else np.flatnonzero(on_host(mask))
    sequence, N = (
        (tokens // T, B) if cu_seqlens is None else (sequence_of_tokens(cu_seqlens)[tokens], cu_seqlens.size - 1)
    )
    return LiveTokens(tokens, sequence, np.bincount(sequence, minlength=N), shape)


def _moved(x: Array, source: Array, target: Array, shape: tuple[int, int]) -> Array:
    rest = x.shape[2:]
    moved = namespace_of(x).zeros((shape[0] * shape[1], *rest), dtype=x.dtype)
    moved[target] = x.reshape(-1, *rest)[source]
    return moved.reshape(*shape, *rest)
