"""Recall inside a book: names that return, and facts that are planted and asked for. For ``ramnet-np evaluate``.

Names: the loss on the tokens of a proper name, by the distance to the mention before. Needles: the books, one behind
the other, are read from several places side by side. Facts are planted one after another at the beginning, and at each
distance a copy of the memory is asked for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.data.codec import Codec
from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.data.names import Mention, mentions
from ramnet_np.data.needles import WORDS, Needle, make_needles
from ramnet_np.model import RAMNet
from ramnet_np.model.states import arrays_of, each_array

DISTANCES = (100, 1_000, 10_000, 100_000)  # bytes to the mention before: where a range ends
ASKED_AFTER = (100, 1_000, 4_000, 16_000, 64_000, 256_000, 500_000)  # tokens between the last fact and the question
NEEDLES, STARTS, APART = 8, 8, 128  # facts of a text, texts, tokens from a fact to the next
STATE_BYTES = 2**32  # of copies of a memory that are asked at once, at most


def names_table(
    corpus: Corpus, documents: Sequence[Document], nats: Mapping[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """The loss on names, a row for the first mentions and for each range of distances that occurs.

    ``nats``: of each document, as :func:`~ramnet_np.train.token_loss.documents_nats` returns them. A mention counts
    the tokens that have a byte of it. Rows: ``begin`` and ``end`` of the range in bytes (None for first mentions),
    ``mentions``, ``nats`` of a mention, ``bits_per_byte`` over the bytes of its tokens.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> corpus = text_corpus(b"There Kim sat. " + b"Then Kim ran, and Kim fell. " * 4)
    >>> table = names_table(corpus, corpus.documents, {"text": np.full(126, np.log(2))})
    >>> [(row["begin"], row["end"], row["mentions"], round(row["bits_per_byte"], 3)) for row in table]
    [(None, None, 1, 1.0), (0, 100, 8, 1.0)]
    """
    texts, begins = {}, {}
    for document in documents:
        tokens = corpus.read(document, 0, document.size)
        texts[document.name] = b"".join(map(corpus.codec.piece, tokens.tolist()))
        begins[document.name] = np.concatenate([[0], np.cumsum(corpus.codec.token_bytes[tokens])])
    sums: dict[int, NDArray[np.float64]] = {}  # by range, -1: first mentions; mentions, nats, bytes
    for name, found in mentions(texts).items():
        for mention in found:
            first, last = _tokens_of(mention, begins[name])
            if first > 0:  # the first token of a book is given
                size = begins[name][last] - begins[name][first]
                ours = np.array([1.0, nats[name][first - 1 : last - 1].sum(), size])
                number = -1 if mention.distance is None else int(np.searchsorted(DISTANCES, mention.distance, "right"))
                sums[number] = sums.get(number, np.zeros(3)) + ours
    return [_names_row(number, *sums[number].tolist()) for number in sorted(sums)]


def _tokens_of(mention: Mention, begins: NDArray[np.int64]) -> tuple[int, int]:
    """The tokens, from the first to behind the last, that have a byte of a mention."""
    first = int(np.searchsorted(begins, mention.begin, side="right")) - 1
    return first, int(np.searchsorted(begins, mention.end, side="left"))


def _names_row(number: int, count: float, nats: float, size: float) -> dict[str, Any]:
    begin, end = (None, None) if number < 0 else ((0, *DISTANCES)[number], (*DISTANCES, None)[number])
    means = {"nats": nats / count, "bits_per_byte": nats / size / math.log(2)}
    return {"begin": begin, "end": end, "mentions": int(count), **means}


def needles_table(
    model: RAMNet,
    corpus: Corpus,
    documents: Sequence[Document],
    length: int,
    *,
    asked_after: Sequence[int] = ASKED_AFTER,
    starts: int = STARTS,
    advance: Callable[[int], Any] = lambda n: None,
) -> list[dict[str, Any]]:
    """How often the right word is the likeliest, a row for each distance in tokens.

    ``length``: tokens read at a time; ``starts``: texts side by side, from places evenly spread over the documents;
    ``advance``: told how many tokens have been read. Rows: ``tokens`` since the last fact, ``asked`` questions,
    ``accuracy``, ``nats`` of the right word among all words (log of their number for a guess). ValueError where a
    distance is longer than the documents together.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> corpus = text_corpus(b"Tom has a fox. " * 150)
    >>> [row] = needles_table(model, corpus, corpus.documents, 64, asked_after=(50,), starts=2)
    >>> row["tokens"], row["asked"], row["nats"] > 0
    (50, 16, True)
    """
    needles = [make_needles(NEEDLES, seed=number) for number in range(starts)]
    before = tokens_to_last_fact(corpus, documents, asked_after, starts)
    needed = before + max(asked_after)
    text = np.concatenate([corpus.read(document, 0, document.size) for document in documents])
    own = [np.roll(text, -(len(text) * number // starts)) for number in range(starts)]
    prefixes = [_planted(corpus.codec, *pair) for pair in zip(needles, own, strict=True)]
    streams = np.stack([
        np.concatenate([prefix, rest[NEEDLES * APART :]])[:needed] for prefix, rest in zip(prefixes, own, strict=True)
    ])  # fmt: skip
    memory, table = None, []
    for distance in sorted(asked_after):
        memory = _read(model, streams[:, : before + distance], memory, length, advance)
        answers = [
            _ask(model, corpus.codec, needle, _row(memory, row)) for row in range(starts) for needle in needles[row]
        ]
        right, nats = np.mean(answers, axis=0).tolist()
        table.append({"tokens": distance, "asked": len(answers), "accuracy": right, "nats": nats})
    return table


def tokens_to_last_fact(
    corpus: Corpus, documents: Sequence[Document], asked_after: Sequence[int] = ASKED_AFTER, starts: int = STARTS
) -> int:
    """How many tokens a text of needles has before the questions. ValueError where the documents are too short for it.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> corpus = text_corpus(b"Tom has a fox. " * 150)
    >>> tokens_to_last_fact(corpus, corpus.documents, (50,), 1)
    1508
    """
    needles = [make_needles(NEEDLES, seed=number) for number in range(starts)]
    before = NEEDLES * APART + max(sum(len(corpus.codec.encode(one.fact)) for one in some) for some in needles)
    needed, size = before + max(asked_after), sum(document.size for document in documents)
    if size < needed:
        raise ValueError(f"path must hold {needed:,} tokens or more for needles, got {size:,}")
    return before


class _Memory(NamedTuple):
    """What a model remembers of a text of so many tokens."""

    state: list[Any]
    tokens: int


def _planted(codec: Codec, needles: Sequence[Needle], text: NDArray[np.int32]) -> NDArray[np.int32]:
    """The beginning of a text with the facts in it, one behind every ``APART`` tokens."""
    parts = np.split(text[: len(needles) * APART], len(needles))
    facts = [codec.encode(needle.fact) for needle in needles]
    return np.concatenate([piece for pair in zip(parts, facts, strict=True) for piece in pair])


def _read(
    model: RAMNet, tokens: NDArray[np.int32], memory: _Memory | None, length: int, advance: Callable[[int], Any]
) -> _Memory:
    """The memory behind ``tokens`` (B, T), of which ``memory`` has seen the first."""
    done = 0 if memory is None else memory.tokens
    for begin in range(done, tokens.shape[1], length):
        window = tokens[:, begin : begin + length]
        _, memory = _forward(model, window, memory, select=np.zeros(1, np.int64))
        advance(window.size)
    assert memory is not None
    return memory


def _row(memory: _Memory, row: int) -> _Memory:
    """The memory of one of the texts."""
    return memory._replace(state=each_array(lambda array: array[row : row + 1], memory.state))


def _ask(model: RAMNet, codec: Codec, needle: Needle, memory: _Memory) -> tuple[bool, float]:
    """Whether the right word is the likeliest of all, and its nats among them."""
    question, words = codec.encode(needle.question), [codec.encode(f" {word}") for word in WORDS]
    size = len(question) + max(map(len, words)) - 1
    ids = np.zeros((len(words), size), np.int32)
    for row, word in zip(ids, words, strict=True):
        row[: len(question) + len(word) - 1] = np.concatenate([question, word[:-1]])
    bytes_of_one = sum(array.nbytes for array in arrays_of(memory.state))
    at_once, scores = max(1, STATE_BYTES // max(1, bytes_of_one)), np.zeros(len(words))
    for begin in range(0, len(words), at_once):
        some = slice(begin, min(begin + at_once, len(words)))
        logits, _ = _forward(model, ids[some], memory)
        logits = logits - logits.max(axis=-1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for number, word in enumerate(words[some]):
            scores[begin + number] = log_p[number, len(question) - 1 + np.arange(len(word)), word].sum()
    nats = float(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[needle.answer])
    return bool(scores.argmax() == needle.answer), nats


@on_gpu_of_arrays
def _forward(
    model: RAMNet, ids: NDArray[np.int32], memory: _Memory | None, select: NDArray[np.int64] | None = None
) -> tuple[NDArray[Any], _Memory]:
    """Logits on the host, of ``select`` or of all tokens; and the memory behind, whose rows are those of ``ids``."""
    xp = namespace_of(*model.params.values())
    state, before = (None, 0) if memory is None else (memory.state, memory.tokens)
    if state is not None and len(arrays_of(state)[0]) < len(ids):  # one memory, asked for several words
        state = each_array(lambda array: xp.repeat(array, len(ids), axis=0), state)
    positions = xp.arange(before, before + ids.shape[1])
    chosen = None if select is None else xp.asarray(select)
    logits, state = model.forward_with_state(xp.asarray(ids), state, select=chosen, positions=positions)
    return on_host(logits), _Memory(state, before + ids.shape[1])
