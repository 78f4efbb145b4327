"""Text as training data: every token predicts the next one, and a token is a byte or a piece of a tokenizer.

    bytes   T o m :   f o x .
    ids     T o m :   f o x         a window of ``length`` tokens
    labels  o m :   f o x .         the same, one token later

Bytes need no tokenizer and nothing to download: 256 tokens spell every language and every file. Windows lie within one
document. They are drawn at random, each with an empty memory; or they are whole documents in order, whose memory is
carried from window to window (:mod:`~ramnet_np.data.streams`); or documents are packed into rows, each with an empty
memory (:mod:`~ramnet_np.data.packed_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.batches import WHOLE, Batch, PackedBatch, Share, StreamBatch
from ramnet_np.data.checks import check_count, check_seed
from ramnet_np.data.corpus import (
    Corpus,
    Document,
    HeldOut,
    Watch,
    check_held_out,
    held_out_names,
    read_corpus,
    text_corpus,
)
from ramnet_np.data.packed_rows import PackedRows, Piece
from ramnet_np.data.streams import Streams
from ramnet_np.data.synthetic_facts import facts_text

Start = Literal["anywhere", "line"]

FACTS_LINES = 40_000  # lines of the text made here, 3 MB: few of them are seen twice in a run
NO_LABEL = -100


@dataclass(frozen=True)
class TextSettings:
    """What to read, and how it is cut into sequences."""

    path: Path | None = None
    """Any file or a folder of .txt files, whose bytes are the tokens; or a folder that `ramnet-np tokenize` made. None:
    made-up facts that must be recalled (data/synthetic_facts.py)."""
    length: int = 128
    """Tokens of a training sequence. Memory starts empty in each, unless it is carried."""
    start: Start = "anywhere"
    """Where training sequences start: anywhere in a document, or at the start of a line (of bytes)."""
    held_out: HeldOut = 0.05
    """What is measured on and never trained on. A share below 1: of a file, its end; of a folder, that share of its
    files. A whole number: so many files, the last by name. Or names of files, where * and ? may stand for others. A
    tokenised folder has files that its tokenizer has not seen: these, unless a number or names are given."""
    held_out_sequences: int = 200
    """How many held-out sequences to measure on while training, at most; all documents have a like share."""
    carry_state: bool = False
    """Read whole documents in order, `train.batch` of them side by side, and carry the memory of each from window to
    window. Gradients stay within a window (truncated backpropagation). The memory is empty where a document begins."""
    pack: bool = False
    """Pack documents into rows of `data.length` tokens, one after another: short ones waste nothing, and none sees
    another. A document that a row ends goes on in the next one with an empty memory."""

    def __post_init__(self) -> None:
        check_count("data.length", self.length)
        check_count("data.held_out_sequences", self.held_out_sequences)
        if self.start not in get_args(Start):
            allowed = ", ".join(map(repr, get_args(Start)))
            raise ValueError(f"data.start must be one of {allowed}, got {self.start!r}")
        if not isinstance(self.carry_state, bool):
            raise TypeError(f"data.carry_state must be True or False, got {self.carry_state!r}")
        if self.carry_state and self.start != "anywhere":
            raise ValueError(f"data.start must be 'anywhere' with data.carry_state, got {self.start!r}")
        if not isinstance(self.pack, bool):
            raise TypeError(f"data.pack must be True or False, got {self.pack!r}")
        if self.pack and (self.carry_state or self.start != "anywhere"):
            got = "data.carry_state" if self.carry_state else f"data.start {self.start!r}"
            raise ValueError(f"data.pack must be False unless sequences start anywhere with an empty memory, got {got}")
        if isinstance(self.held_out, list):
            object.__setattr__(self, "held_out", tuple(self.held_out))
        check_held_out("data.held_out", self.held_out)
        if isinstance(self.path, str):
            object.__setattr__(self, "path", Path(self.path))


class TextData:
    """The training batches of a corpus and its held-out documents.

    ``text``: a corpus, or the bytes of one document; ``batch``: sequences of a training batch; ``seed``: with the step,
    decides which windows; ``share``: the rows of every batch that are wanted. ValueError where no document is longer
    than ``settings.length``, or ``held_out`` does not fit the documents. A window of a document that is shorter has
    labels for what there is.

    >>> data = TextData(b"Tom has a fox. " * 9, TextSettings(length=4), batch=2, seed=0)
    >>> data.batch(0).ids.shape, [document.size for document in data.aside]
    ((2, 4), [7])
    """

    def __init__(self, text: bytes | Corpus, settings: TextSettings, batch: int, seed: int, share: Share = WHOLE):
        check_count("batch", batch)
        check_seed(seed)
        self.corpus = text if isinstance(text, Corpus) else text_corpus(text)
        self.sha256, self.codec = self.corpus.sha256, self.corpus.codec
        self.train, self.aside = _split(self.corpus, settings.held_out)
        self._settings, self._batch, self._seed, self._share = settings, batch, seed, share
        _require_length(self.train, self.aside, 1 if settings.pack else settings.length)
        if settings.start == "line" and self.codec.unit != "byte":
            raise ValueError("data.start must be 'anywhere' for a folder of tokens, which has no lines, got 'line'")
        if settings.pack:
            self._rows = PackedRows([document.size for document in self.train], settings.length, seed)
        elif settings.carry_state:
            self._streams = Streams([document.size for document in self.train], settings.length, batch, seed)
        else:
            self._starts = [_starts(self.corpus, document, settings) for document in self.train]
            self._before = np.cumsum([0, *map(len, self._starts)])  # starts in the documents before each

    def batch(self, step: int) -> Batch | StreamBatch | PackedBatch:
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if self._settings.pack:
            numbers = self._share.of(range(step * self._batch, (step + 1) * self._batch))
            return self._packed([self._rows.row(number) for number in numbers])
        if self._settings.carry_state:
            places = self._share.of(self._streams.places(step))
            windows = self._windows([(self.train[place.document], place.start) for place in places])
            return StreamBatch(*windows, np.array([place.start for place in places], dtype=np.int64))
        rng = np.random.default_rng([self._seed, step])
        drawn = self._share.of(rng.integers(self._before[-1], size=self._batch))
        numbers = np.searchsorted(self._before, drawn, side="right") - 1
        return self._windows([
            (self.train[number], int(self._starts[number][at - self._before[number]]))
            for number, at in zip(numbers, drawn, strict=True)
        ])  # fmt: skip

    def held_out(self) -> Mapping[str, Batch]:
        """Windows from the start of every held-out document, which do not overlap."""
        each = max(1, self._settings.held_out_sequences // len(self.aside))
        chosen = [
            (document, start)
            for document in self.aside
            for start in _side_by_side(_starts(self.corpus, document, self._settings), self._settings.length, each)
        ]
        return {f"next {self.codec.unit}": self._windows(chosen[: self._settings.held_out_sequences])}

    def _packed(self, rows: Sequence[Sequence[Piece]]) -> PackedBatch:
        """The tokens of the pieces of each row, with the tokens that follow as labels."""
        ids = np.empty((len(rows), self._settings.length), dtype=np.int32)
        labels = np.empty_like(ids)
        for row, pieces in enumerate(rows):
            read = [self.corpus.read(self.train[p.document], p.start, p.start + p.size + 1) for p in pieces]
            ids[row], labels[row] = (
                np.concatenate([tokens[of] for tokens in read]) for of in (slice(-1), slice(1, None))
            )
        return PackedBatch(ids, labels, tuple(tuple(piece.size for piece in pieces) for pieces in rows))

    def _windows(self, places: Sequence[tuple[Document, int]]) -> Batch:
        """``length`` tokens of each document from each start on, with the tokens that follow as labels."""
        return windows(self.corpus, places, self._settings.length)


def windows(corpus: Corpus, places: Sequence[tuple[Document, int]], length: int) -> Batch:
    """A batch with a row for each document and start; where the document ends before, token 0 and no label.

    >>> corpus = text_corpus(bytes([5, 6, 7]))
    >>> ids, labels = windows(corpus, [(corpus.documents[0], 0)], length=4)
    >>> ids.tolist(), labels.tolist()
    ([[5, 6, 0, 0]], [[6, 7, -100, -100]])
    """
    ids = np.zeros((len(places), length), dtype=np.int32)
    labels = np.full((len(places), length), NO_LABEL, dtype=np.int32)
    for row, (document, start) in enumerate(places):
        tokens = corpus.read(document, start, start + length + 1)
        ids[row, : len(tokens) - 1], labels[row, : len(tokens) - 1] = tokens[:-1], tokens[1:]
    return Batch(ids, labels)


def read_data(
    settings: TextSettings, batch: int, seed: int = 0, watch: Watch = lambda n: None, share: Share = WHOLE
) -> TextData:
    """The data that ``settings`` describe; ``watch`` is told how many bytes of it have been read. The rest as of
    :func:`~ramnet_np.data.corpus.read_corpus` and :class:`TextData`.

    >>> data = read_data(TextSettings(), batch=1)
    >>> bytes(data.corpus.read(data.train[0], 0, 20).tolist())
    b'FredCat. EricMole. A'
    """
    if settings.path is None:
        return TextData(facts_text(FACTS_LINES, seed=seed), settings, batch, seed, share)
    return TextData(read_corpus(settings.path, watch), settings, batch, seed, share)


def _split(corpus: Corpus, held_out: HeldOut) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Documents to train on and to measure on, without those that have nothing to predict."""
    documents = corpus.documents
    if len(documents) == 1:
        [one] = documents
        if not isinstance(held_out, float):
            raise ValueError(f"data.held_out must be a share of the one document that there is, got {held_out!r}")
        kept = int(one.size * (1 - held_out))
        rest = one._replace(name=f"the end of {one.name}", begin=one.begin + kept, size=one.size - kept)
        return (one._replace(size=kept),), (rest,)
    if corpus.aside and isinstance(held_out, float):
        names = set(corpus.aside)
    else:
        names = set(held_out_names([document.name for document in documents], held_out))
    some = [document for document in documents if document.size > 1]
    train = tuple(document for document in some if document.name not in names)
    return train, tuple(document for document in some if document.name in names)


def _require_length(train: Sequence[Document], aside: Sequence[Document], length: int) -> None:
    for part, what in ((train, "to train on"), (aside, "held out")):
        longest = max((document.size for document in part), default=0)
        if longest < 2:
            raise ValueError(f"data.held_out must leave a document of 2 tokens or more {what}, got none")
        if longest <= length:
            raise ValueError(
                f"data.length must be below the {longest} tokens of the longest document {what}, got {length}: longer "
                "documents or shorter sequences would do"
            )


def _starts(corpus: Corpus, document: Document, settings: TextSettings) -> Sequence[int] | NDArray[np.int64]:
    """Where a window of ``length`` + 1 tokens may start: everywhere, or at byte 0 and after every newline."""
    starts = range(max(1, document.size - settings.length))
    if settings.start == "anywhere":
        return starts
    newlines = np.flatnonzero(corpus.read(document, 0, len(starts) - 1) == ord("\n"))
    return np.concatenate([[0], newlines + 1])


def _side_by_side(allowed: Sequence[int] | NDArray[np.int64], length: int, most: int) -> list[int]:
    """Starts of windows that do not overlap, beginning with the first allowed start."""
    chosen: list[int] = []
    free, at = 0, 0
    while len(chosen) < most and at < len(allowed):
        chosen.append(int(allowed[at]))
        free = chosen[-1] + length
        at = free if isinstance(allowed, range) else int(np.searchsorted(allowed, free))
    return chosen
