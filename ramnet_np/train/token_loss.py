"""The loss on every single token of documents: what tests of names, positions and erased slots take their means of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.model import RAMNet
from ramnet_np.train.text_loss import label_nats, read_documents


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
    found: dict[str, list[NDArray[np.float64]]] = {one.name: [] for one in documents if one.size > 1}
    for read in read_documents(model, corpus, documents, length, carry, tokens=tokens):
        counts = read.window.labels >= 0
        nats = label_nats(read.logits, read.window.labels[counts])
        ends = np.cumsum(counts.sum(axis=1))
        for document, part in zip(read.documents, np.split(nats, ends[:-1]), strict=True):
            found[document.name].append(part)
        advance(len(nats))
    return {name: np.concatenate(parts) for name, parts in found.items()}
