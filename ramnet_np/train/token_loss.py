"""The loss on every single token of documents: what tests of names, positions and erased slots take their means of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.model import RAMNet
from ramnet_np.train.text_loss import label_nats, read_side_by_side, rows_at_once


def documents_nats(
    model: RAMNet,
    corpus: Corpus,
    documents: Sequence[Document],
    length: int,
    *,
    carry: bool = True,
    tokens: int | None = None,
    advance: Callable[[int], Any] = lambda n: None,
) -> dict[str, NDArray[np.float64]]:
    """-log p of every token of each document but its first, (size - 1,), by the document's name.

    Arguments as of :func:`~ramnet_np.train.text_loss.documents_loss`.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> corpus = text_corpus(b"Tom has a fox.")
    >>> documents_nats(model, corpus, corpus.documents, length=4)["text"].round(3)[:2].tolist()
    [5.545, 5.545]
    """
    by_size = sorted((document for document in documents if document.size > 1), key=lambda one: -one.size)
    found: dict[str, list[NDArray[np.float64]]] = {document.name: [] for document in by_size}
    rows = rows_at_once(model, length, tokens)
    for i in range(0, len(by_size), rows):
        own = by_size[i : i + rows]
        for logits, window, _ in read_side_by_side(model, corpus, own, length, carry, None):
            counts = window.labels >= 0
            nats = label_nats(logits, window.labels[counts])
            ends = np.cumsum(counts.sum(axis=1))
            for document, part in zip(own, np.split(nats, ends[:-1]), strict=False):
                found[document.name].append(part)
            advance(len(nats))
    return {name: np.concatenate(parts) for name, parts in found.items()}
