"""How well a model predicts text: in nats a token, in bits a byte, as perplexity, and by the position in a document.

    nats          mean over the tokens of -log p(token | those before)
    perplexity    exp(nats)
    bits a byte   sum of -log2 p over the tokens, divided by the bytes that they stand for

Bits a byte compare models of any tokenizer and of bytes. The first token of a document is given, not predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.data.batches import Batch
from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.data.text import windows
from ramnet_np.model import RAMNet
from ramnet_np.train.carried import map_arrays
from ramnet_np.train.ranks import ONE, Ranks

EDGES = (1_000, 10_000, 100_000)  # bytes of a document before the token: where one range of positions ends


@dataclass(frozen=True)
class TextLoss:
    """Sums over tokens that were predicted."""

    tokens: int
    bytes: int  # that the tokens stand for
    nats: float  # sum of -log p
    correct: int  # tokens that were the likeliest

    @property
    def nats_per_token(self) -> float:
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / max(1, self.bytes) / math.log(2)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats_per_token, 700.0))  # what float64 holds

    @property
    def accuracy(self) -> float:
        return self.correct / max(1, self.tokens)

    def record(self) -> dict[str, float]:
        """The means, as metrics have them.

        >>> TextLoss(tokens=2, bytes=4, nats=math.log(4), correct=1).record()
        {'nats': 0.6931471805599453, 'bits_per_byte': 0.5, 'perplexity': 2.0}
        """
        return {"nats": self.nats_per_token, "bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity}


class PositionLoss(NamedTuple):
    """The loss on the tokens before which their document has ``begin`` bytes or more, and fewer than ``end``."""

    begin: int
    end: int | None  # None: to the end of the document
    loss: TextLoss


class DocumentsLoss(NamedTuple):
    """The loss on whole documents, and on each range of positions that has tokens."""

    loss: TextLoss
    by_position: tuple[PositionLoss, ...]

    def table(self) -> list[dict[str, Any]]:
        """The ranges as JSON values."""
        return [
            {"begin": part.begin, "end": part.end, "tokens": part.loss.tokens, "bytes": part.loss.bytes}
            | part.loss.record()
            for part in self.by_position
        ]


def windows_loss(
    model: RAMNet,
    batch: Batch,
    token_bytes: NDArray[np.int64] | None = None,
    tokens: int | None = None,
    ranks: Ranks = ONE,
) -> TextLoss:
    """The loss on windows that each start with an empty memory.

    ``token_bytes``: (V,), bytes of each token; None: one each. ``tokens``: how many at a time; None: 8192, or 65536 on
    a GPU. ``ranks``: those that share the windows; each has the result.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> round(windows_loss(model, Batch(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))).bits_per_byte, 6)
    8.0
    """
    sums = _Sums(token_bytes if token_bytes is not None else np.ones(model.config.vocab, np.int64), ())
    rows = rows_at_once(model, batch.ids.shape[1], tokens)
    own = Batch(*(x[ranks.rank :: ranks.size] for x in batch))
    for i in range(0, len(own.ids), rows):
        part = Batch(*(on_host(x[i : i + rows]) for x in own))
        logits, _ = _forward(model, part, None, None)
        sums.add(logits, part, np.zeros(part.ids.shape, np.int64))
    sums.add_ranks(ranks)
    return sums.total()


def documents_loss(
    model: RAMNet,
    corpus: Corpus,
    documents: Sequence[Document],
    length: int,
    *,
    carry: bool = True,
    edges: Sequence[int] = EDGES,
    most_windows: int | None = None,
    tokens: int | None = None,
    advance: Callable[[int], Any] = lambda n: None,
    ranks: Ranks = ONE,
) -> DocumentsLoss:
    """The loss on documents from their first token on, read in windows of ``length`` tokens, several at a time.

    ``carry``: whether a window goes on from the memory that the one before left; else every window starts with an empty
    one. ``edges``: bytes at which ranges of positions end. ``most_windows``: of each document, from its start; None for
    all. ``tokens``: as in :func:`windows_loss`. ``advance``: told how many tokens have been predicted. ``ranks``:
    those that share the documents; each has the result.
    With ``carry`` the memory of softmax attention holds the whole document. ValueError for a length below 1.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> corpus = text_corpus(b"Tom has a fox.")
    >>> result = documents_loss(model, corpus, corpus.documents, length=4, edges=(10,))
    >>> [(part.begin, part.end, part.loss.tokens) for part in result.by_position]
    [(0, 10, 9), (10, None, 4)]
    """
    sums = _Sums(corpus.codec.token_bytes, tuple(edges))
    own = sorted(documents, key=lambda one: -one.size)[ranks.rank :: ranks.size]
    for read in read_documents(model, corpus, own, length, carry, most_windows, tokens):
        sums.add(read.logits, read.window, read.before)
        advance(int(np.count_nonzero(read.window.labels >= 0)))
    sums.add_ranks(ranks)
    return DocumentsLoss(sums.total(), sums.ranges())


def label_nats(logits: Array, labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """-log p of each label, (N,) on the host.

    ``logits``: (N, V), on any device; ``labels``: (N,).

    >>> label_nats(np.zeros((1, 4)), np.array([2])).round(3).tolist()
    [1.386]
    """
    xp = namespace_of(logits)
    largest = logits.max(axis=-1, keepdims=True)
    log_sums = xp.log(xp.exp(logits - largest).sum(axis=-1)) + largest[:, 0]
    return on_host(log_sums - logits[xp.arange(len(labels)), xp.asarray(labels)]).astype(np.float64)


class ReadWindows(NamedTuple):
    """Windows that were read at once, a row for each of ``documents``; a document's windows come in their order."""

    logits: Array  # (N, V), of the tokens with a label alone
    window: Batch
    before: NDArray[np.int64]  # (B, T), bytes of the document before each label's token
    documents: tuple[Document, ...]


def read_documents(
    model: RAMNet,
    corpus: Corpus,
    documents: Sequence[Document],
    length: int,
    carry: bool,
    most_windows: int | None = None,
    tokens: int | None = None,
) -> Iterator[ReadWindows]:
    """All windows of documents. Arguments and errors as of :func:`documents_loss`.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2))
    >>> corpus = text_corpus(b"Tom has a fox.")
    >>> [read.logits.shape for read in read_documents(model, corpus, corpus.documents, length=8, carry=True)]
    [(8, 256), (5, 256)]
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    by_size = sorted((document for document in documents if document.size > 1), key=lambda one: -one.size)
    length = min(length, max((document.size - 1 for document in by_size), default=1))  # a longer window is padding
    rows = rows_at_once(model, length, tokens)
    if carry:
        for i in range(0, len(by_size), rows):
            yield from _side_by_side(model, corpus, by_size[i : i + rows], length, most_windows)
    else:
        yield from _apart(model, corpus, by_size, length, most_windows, rows)


def _side_by_side(
    model: RAMNet, corpus: Corpus, documents: Sequence[Document], length: int, most: int | None
) -> Iterator[ReadWindows]:
    """A window of every document at a time, each with the memory that the one before left. The longest come first."""
    state: list[Any] | None = None
    bytes_read = np.zeros(len(documents), np.int64)  # of each document in the windows before
    for number in range(-(-(documents[0].size - 1) // length) if most is None else most):
        start = number * length
        left = [document for document in documents if document.size - 1 > start]  # the first ones: they are longest
        if not left:
            return
        window = windows(corpus, [(document, start) for document in left], length)
        if state is not None:
            state = map_arrays(lambda array: array[: len(left)], state)  # noqa: B023 - called at once
        logits, state = _forward(model, window, state, np.arange(start, start + length))
        before = bytes_read[: len(left), None] + np.cumsum(corpus.codec.token_bytes[window.ids], axis=1)
        bytes_read = before[:, -1]
        yield ReadWindows(logits, window, before, tuple(left))


def _apart(
    model: RAMNet, corpus: Corpus, documents: Sequence[Document], length: int, most: int | None, rows: int
) -> Iterator[ReadWindows]:
    """``rows`` windows at a time, of any documents: each begins with an empty memory, so none waits for another."""
    places = [(document, start) for document in documents for start in list(range(0, document.size - 1, length))[:most]]
    bytes_read = 0  # of the document that is being read
    for i in range(0, len(places), rows):
        part = places[i : i + rows]
        window = windows(corpus, part, length)
        before = np.cumsum(corpus.codec.token_bytes[window.ids], axis=1)
        for row, (_, start) in enumerate(part):
            before[row] += bytes_read if start else 0
            bytes_read = before[row, -1]
        yield ReadWindows(
            _forward(model, window, None, None)[0], window, before, tuple(document for document, _ in part)
        )


@on_gpu_of_arrays
def _forward(
    model: RAMNet, window: Batch, state: list[Any] | None, positions: NDArray[np.int64] | None
) -> tuple[Array, list[Any] | None]:
    """Logits of the tokens that have a label; where ``positions`` say where the tokens are, the state after them."""
    xp = namespace_of(*model.params.values())
    ids, select = xp.asarray(window.ids), xp.asarray(np.flatnonzero(window.labels >= 0))
    if positions is None:
        # no backward follows: with "block" a forward keeps only what goes into each block
        return model.forward(ids, select=select, recompute="block")[0], None
    return model.forward_with_state(ids, state, select=select, positions=xp.asarray(positions))


def rows_at_once(model: RAMNet, length: int, tokens: int | None) -> int:
    """How many windows of ``length`` tokens make ``tokens``; None: 8192, or 65536 on a GPU.

    >>> from ramnet_np.model import RAMNetConfig
    >>> rows_at_once(RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2)), 1024, None)
    8
    """
    on_cpu = namespace_of(*model.params.values()) is np
    return max(1, (tokens or (8192 if on_cpu else 65536)) // length)


class _Sums:
    """Sums over tokens, for each range of positions."""

    def __init__(self, token_bytes: NDArray[np.int64], edges: tuple[int, ...]):
        self._token_bytes, self._edges = token_bytes, edges
        self._sums = np.zeros((len(edges) + 1, 4))  # tokens, bytes, nats, correct

    def add(self, logits: Array, window: Batch, before: NDArray[np.int64]) -> None:
        """``logits``: (N, V) of the labelled tokens, in their order; ``before``: (B, T), bytes before each label."""
        xp, counts = namespace_of(logits), window.labels >= 0
        labels, number = window.labels[counts], np.searchsorted(self._edges, before[counts], side="right")
        nats, correct = label_nats(logits, labels), on_host(logits.argmax(axis=-1) == xp.asarray(labels))
        for column, values in enumerate((np.ones(len(labels)), self._token_bytes[labels], nats, correct)):
            self._sums[:, column] += np.bincount(number, weights=values, minlength=len(self._sums))

    def add_ranks(self, ranks: Ranks) -> None:
        """Add what the other ranks have."""
        ranks.all_reduce(self._sums)

    def total(self) -> TextLoss:
        return _text_loss(self._sums.sum(axis=0))

    def ranges(self) -> tuple[PositionLoss, ...]:
        begins, ends = (0, *self._edges), (*self._edges, None)
        parts = (PositionLoss(b, e, _text_loss(s)) for b, e, s in zip(begins, ends, self._sums, strict=True))
        return tuple(part for part in parts if part.loss.tokens)


def _text_loss(sums: NDArray[np.float64]) -> TextLoss:
    tokens, size, nats, correct = sums.tolist()
    return TextLoss(int(tokens), int(size), nats, int(correct))
