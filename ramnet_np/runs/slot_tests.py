"""What the memory does while a model reads a book: a row for every layer with slots. For ``ramnet-np evaluate``.

    touched    share of the slots that are written with a weight of 0.01 or more
    entropy    of the writes and of the reads, over slots, as a share of log M (train/slot_use.py)
    mass       median of the touched slots' masses at the end
    kept_N     cosine between the content of a slot and its content N tokens later, mean over the touched slots
    erased     bits a byte more in the next window where the hundredth of the layer's slots that were read most are
               emptied; erased_random: where as many are that are drawn at random; erased_all: where the layer's
               whole memory is, which says how much there is to lose

Slots of heads with CAPE are those of the memory for ``mass``, ``kept`` and ``erased``, and those of the content, before
they are moved, for ``touched`` and ``entropy``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ramnet_np.contract import Array, RAMState
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.data.batches import Batch
from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.data.text import windows
from ramnet_np.model import RAMNet
from ramnet_np.model.block import ConvState
from ramnet_np.model.states import each_array
from ramnet_np.train.slot_use import LEAST, mean_entropy, written_mass
from ramnet_np.train.text_loss import label_nats

READ, BACK = 33, (1, 4, 16)  # windows of a book; how many windows lie between the contents that are compared
ERASED = 0.01  # of the slots


def slots_table(
    model: RAMNet,
    corpus: Corpus,
    documents: Sequence[Document],
    length: int,
    *,
    read: int = READ,
    advance: Callable[[int], Any] = lambda n: None,
) -> list[dict[str, Any]]:
    """The rows of the page's head, of documents that are read side by side from their beginning.

    ``length``: tokens of a window; ``read``: windows, fewer where a document is shorter; ``advance``: told how many
    tokens have been read. ValueError unless every document has two windows.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none"), seed=0)
    >>> corpus = text_corpus(b"Tom has a fox. " * 9)
    >>> [row] = slots_table(model, corpus, corpus.documents, 20)
    >>> row["layer"], [name for name in row if name.startswith("kept")], 0 < row["touched"] <= 1
    (0, ['kept_80', 'kept_20'], True)
    """
    read = windows_read(documents, length, read)
    reader = _Reader(model, len(documents))
    earlier: dict[int, dict[int, RAMState]] = {}
    for number in range(read):
        window = windows(corpus, [(document, number * length) for document in documents], length)
        reader.read(window, number * length)
        advance(window.tokens)
        if read - 1 - number in BACK:
            earlier[(read - 1 - number) * length] = reader.slots()
    latest = reader.slots()
    following = windows(corpus, [(document, read * length) for document in documents], length)
    rows = []
    for layer in reader.layers:
        written = reader.written[layer] >= LEAST
        kept = {f"kept_{tokens}": _cosine(slots[layer], latest[layer], written) for tokens, slots in earlier.items()}
        erased = _erased(reader, layer, following, read * length, corpus.codec.token_bytes)
        mass = latest[layer].mass[written]
        middle = float(np.median(mass)) if mass.size else 0.0
        rows.append({"layer": layer, **reader.use(layer), "mass": middle, **kept, **erased})
    return rows


def windows_read(documents: Sequence[Document], length: int, read: int = READ) -> int:
    """How many windows are read before the one whose loss is measured. ValueError unless every document has two.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> windows_read(text_corpus(b"Tom has a fox. " * 9).documents, 20)
    5
    """
    shortest = min(documents, key=lambda document: document.size)
    if shortest.size <= 2 * length:  # the last token of a window is predicted by the one before: one more is needed
        raise ValueError(
            f"length must leave two windows of every document for slots, got {length}, "
            f"and {shortest.name!r} has {shortest.size} tokens"
        )
    return min(read, (shortest.size - 1) // length - 1)


class _Reader:
    """Reads books window by window, and counts what is written and read."""

    def __init__(self, model: RAMNet, books: int):
        self.model, self.layers = model, list[int]()
        self.state: list[Any] | None = None
        config = model.config
        self._written = np.zeros((config.layers, config.heads, config.slots))
        self._read = np.zeros_like(self._written)
        self.written = np.zeros((config.layers, books, config.heads, config.slots))  # slots of the memory, so far
        self.read_last = np.zeros_like(self.written)  # in the last window

    @on_gpu_of_arrays
    def read(self, window: Batch, first: int) -> None:
        """The next window, which begins at token ``first``."""
        xp, model, M = namespace_of(*self.model.params.values()), self.model, self.model.config.slots
        ids, positions = xp.asarray(window.ids), xp.arange(first, first + window.ids.shape[1])
        traced = model.trace(ids, positions=positions, state=self.state)
        self.layers = [layer for layer, found in enumerate(traced) if found]
        for layer in self.layers:
            cape = model.config.cape_heads(layer)
            for name, sums in (("write", self._written), ("read", self._read)):
                index, weight = (on_host(part) for part in traced[layer][name])
                sums[layer] += written_mass(index, weight.astype(np.float64), M, cape, first)
                rows = [written_mass(i[None], w[None], M) for i, w in zip(index, weight, strict=True)]
                if name == "write":
                    self.written[layer] += rows
                else:
                    self.read_last[layer] = rows
        _, self.state = model.forward_with_state(ids, self.state, select=xp.zeros(1, np.int64), positions=positions)

    def slots(self) -> dict[int, RAMState]:
        """The slots of every layer, on the host."""
        assert self.state is not None  # a window has been read
        return {layer: RAMState(*map(on_host, _slots_of(self.state[layer]))) for layer in self.layers}

    def use(self, layer: int) -> dict[str, float]:
        """How the slots of a layer were used so far."""
        written, read = self._written[layer], self._read[layer]
        return {
            "touched": float((written >= LEAST).mean()),
            "write_entropy": mean_entropy(written),
            "read_entropy": mean_entropy(read),
        }

    @on_gpu_of_arrays
    def bits_per_byte(self, window: Batch, first: int, state: list[Any], token_bytes: NDArray[np.int64]) -> float:
        """The loss on a window that is read with another memory."""
        xp, labels = namespace_of(*self.model.params.values()), window.labels[window.labels >= 0]
        positions = xp.arange(first, first + window.ids.shape[1])
        select = xp.asarray(np.flatnonzero(window.labels >= 0))
        logits, _ = self.model.forward_with_state(xp.asarray(window.ids), state, select=select, positions=positions)
        return float(label_nats(logits, labels).sum() / token_bytes[labels].sum() / math.log(2))


def _slots_of(state: Any) -> RAMState:
    return state.memory if isinstance(state, ConvState) else state


def _cosine(before: RAMState, after: RAMState, written: NDArray[np.bool_]) -> float:
    a, b = before.slots[written], after.slots[written]
    sizes = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean((a * b).sum(axis=-1)[sizes > 0] / sizes[sizes > 0])) if (sizes > 0).any() else 0.0


def _erased(reader: _Reader, layer: int, window: Batch, first: int, token_bytes: NDArray[np.int64]) -> dict[str, float]:
    """Bits a byte more of the window where slots of the layer are emptied: the most read, some at random, or all."""
    read = reader.read_last[layer]
    count = max(1, round(ERASED * read.shape[-1]))
    chosen = {
        "erased": np.argsort(-read, axis=-1, kind="stable")[..., :count],
        "erased_random": np.argsort(np.random.default_rng(layer).random(read.shape), axis=-1)[..., :count],
        "erased_all": np.broadcast_to(np.arange(read.shape[-1]), read.shape),
    }
    assert reader.state is not None  # windows have been read
    whole = reader.bits_per_byte(window, first, reader.state, token_bytes)
    changes = {}
    for name, index in chosen.items():
        state = list(reader.state)
        state[layer] = each_array(lambda array: array.copy(), state[layer])
        _empty(_slots_of(state[layer]), index, reader.model.config.init_mass)
        changes[name] = reader.bits_per_byte(window, first, state, token_bytes) - whole
    return changes


def _empty(slots: RAMState, index: NDArray[np.int64], init_mass: float | None) -> None:
    """Make slots what they are before anything is written; ``index``: (B, H, N)."""
    xp = namespace_of(slots.mass)
    places: tuple[Array, ...] = tuple(map(xp.asarray, (*np.ogrid[: index.shape[0], : index.shape[1]],)))
    places = places[0][..., None], places[1][..., None], xp.asarray(index)
    slots.slots[places] = 0
    slots.mass[places] = 1 / slots.mass.shape[-1] if init_mass is None else init_mass
