"""Whole documents side by side: every token once an epoch, in order, and the same for every step."""

import itertools

import numpy as np
import pytest

from ramnet_np.data.codec import ByteCodec
from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.data.streams import Streams
from ramnet_np.data.text import TextData, TextSettings

SIZES = [50, 7, 2, 33, 20, 21]


def corpus(sizes=SIZES):
    """Documents whose tokens tell where they are: document i counts up from 20 i."""
    documents = tuple(
        Document(f"{i}.txt", (20 * i + np.arange(size) % 20).astype(np.uint8), 0, size) for i, size in enumerate(sizes)
    )
    return Corpus(documents, np.dtype(np.uint8), ByteCodec(), "0")


def test_rows_go_on_and_every_window_comes_once_an_epoch():
    length, rows = 10, 3
    streams = Streams(SIZES, length, rows, seed=1)
    windows = {(d, w * length) for d, size in enumerate(SIZES) for w in range(-(-(size - 1) // length))}
    order = [[tuple(place) for place in streams.places(step)] for step in range(30)]
    for before, now in itertools.pairwise(order):
        for (document, start), (next_document, next_start) in zip(before, now, strict=True):
            ended = start + length >= SIZES[document] - 1
            assert (next_start == 0) if ended else (next_document, next_start) == (document, start + length)
    begun = [place[0] for step in order for place in step if place[1] == 0]
    for epoch in range(2):  # documents are taken in epochs; a row in a longer one may still be in the epoch before
        assert sorted(begun[epoch * len(SIZES) : (epoch + 1) * len(SIZES)]) == list(range(len(SIZES)))
    assert begun[:6] != begun[6:12]
    assert {place for step in order for place in step} == windows


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one, two = (Streams(SIZES, 10, 3, seed=1) for _ in range(2))
    forward = [one.places(step) for step in range(20)]
    assert two.places(19) == forward[19]
    assert [two.places(step) for step in range(20)] == forward
    assert [Streams(SIZES, 10, 3, seed=2).places(step) for step in range(20)] != forward
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        one.places(-1)


def test_a_document_without_anything_to_predict():
    with pytest.raises(ValueError, match="sizes must be of documents of two tokens or more, got 1"):
        Streams([5, 1], 10, 3, seed=1)


def test_a_batch_has_the_tokens_of_its_places_and_labels_to_the_end_of_a_document():
    settings = TextSettings(length=10, carry_state=True, held_out=1)
    data = TextData(corpus(), settings, batch=3, seed=1)
    assert [document.name for document in data.aside] == ["5.txt"]
    seen = np.zeros(5, int)
    for step in range(8):
        batch, places = data.batch(step), data._streams.places(step)
        for ids, labels, start, place in zip(*batch, places, strict=True):
            size = SIZES[place.document]
            assert start == place.start
            count = min(10, size - 1 - place.start)
            at = place.start + np.arange(count)
            np.testing.assert_array_equal(ids[:count], 20 * place.document + at % 20)
            np.testing.assert_array_equal(labels[:count], 20 * place.document + (at + 1) % 20)
            assert (labels[count:] == -100).all()
            seen[place.document] += count
    assert (seen >= np.array(SIZES[:5]) - 1).sum() >= 4
