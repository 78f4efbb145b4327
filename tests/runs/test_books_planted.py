"""The tests on books find what is there: models whose memory is known, in place of trained ones."""

import re

import numpy as np
import pytest

from ramnet_np.data.corpus import Corpus, text_corpus
from ramnet_np.data.synthetic_facts import facts_text
from ramnet_np.runs import book_tests
from ramnet_np.runs.book_tests import names_table, needles_table
from ramnet_np.runs.slot_tests import slots_table
from ramnet_np.runs.text import load_text_model
from ramnet_np.train.text_loss import documents_loss
from ramnet_np.train.token_loss import documents_nats
from tests.test_notebooks import FOLDER

SURE = 20.0  # logit of the byte that is expected; of all others 0
NATS = np.log1p(255 * np.exp(-SURE))  # of a byte that came as expected


class Recaller:
    """In place of a RAMNet: it expects what followed when the text last ended as it does now.

    ``least``: bytes that must be alike, else it expects nothing. ``span``: bytes that it remembers; None: all.
    ``wrong``: it expects the byte with the next number.
    """

    def __init__(self, least=4, span=None, wrong=False):
        self.least, self.span, self.wrong = least, span, wrong
        self.params = {"numbers": np.zeros(1)}  # says where the model lives

    def forward(self, ids, select=None, recompute="none"):
        logits, _ = self.forward_with_state(ids, select=select)
        return logits, None

    def forward_with_state(self, ids, state=None, *, select=None, positions=None):
        before = np.zeros((len(ids), 0), np.int64) if state is None else state[0]
        texts = np.concatenate([before, ids], axis=1)
        chosen = range(ids.size) if select is None else select.tolist()
        logits = np.zeros((len(chosen), 256))
        for row, at in zip(logits, chosen, strict=True):
            b, t = divmod(at, ids.shape[1])
            expected = self._expected(texts[b, : before.shape[1] + t + 1].astype(np.uint8).tobytes())
            if expected is not None:
                row[(expected + self.wrong) % 256] = SURE
        texts = texts if self.span is None else texts[:, -self.span :]
        return (logits.reshape(*ids.shape, 256) if select is None else logits), [texts]

    def _expected(self, text):
        longest, found = self.least - 1, None
        while longest < len(text) - 1:
            place = text.rfind(text[-longest - 1 :], 0, len(text) - 1)
            if place < 0:
                break
            longest += 1
            found = text[place + longest]
        return found


def books(*texts):
    parts = [text_corpus(text, f"book {i}") for i, text in enumerate(texts)]
    return Corpus(tuple(part.documents[0] for part in parts), parts[0].dtype, parts[0].codec, "")


def noise(size, seed=0):
    return bytes(np.random.default_rng(seed).integers(97, 123, size).tolist())


@pytest.fixture
def _few_needles(monkeypatch):
    monkeypatch.setattr(book_tests, "NEEDLES", 3)
    monkeypatch.setattr(book_tests, "APART", 16)


@pytest.mark.usefixtures("_few_needles")
def test_a_memory_of_all_answers_every_needle():
    corpus = books(noise(2000))
    asked = {"length": 100, "asked_after": (50, 400), "starts": 2}
    for row in needles_table(Recaller(), corpus, corpus.documents, **asked):
        assert (row["asked"], row["accuracy"]) == (6, 1.0)
        assert row["nats"] < 1e-6
    for row in needles_table(Recaller(wrong=True), corpus, corpus.documents, **asked):
        assert row["accuracy"] < 0.5  # a guess is right now and then
    for row in needles_table(Recaller(least=10_000), corpus, corpus.documents, **asked):
        assert row["nats"] > 2  # knows nothing: short words are likelier, so this is not log 16


@pytest.mark.usefixtures("_few_needles")
def test_a_memory_that_forgets_answers_near_needles_alone():
    corpus = books(noise(2000))
    near, far = needles_table(Recaller(span=400), corpus, corpus.documents, 100, asked_after=(50, 600), starts=2)
    assert near["accuracy"] == 1.0
    assert far["accuracy"] < 0.5
    assert far["nats"] > 2


def test_names_cost_nothing_once_they_are_known_and_remembered():
    """A name comes five times nearby, then after 300 bytes of noise; before it stands what announces it."""
    near, far = b"and then spoke Kinraid of it. " * 8, b"and then spoke Kinraid of it. "
    corpus = books(near + noise(300) + far)

    def costs(model, carry=True):
        nats = documents_nats(model, corpus, corpus.documents, 64, carry=carry)
        rows = names_table(corpus, corpus.documents, nats)
        assert [(row["begin"], row["mentions"]) for row in rows] == [(None, 1), (0, 7), (100, 1)]
        return [row["bits_per_byte"] for row in rows]

    first, soon, late = costs(Recaller())
    assert first == pytest.approx(8)  # of 256 bytes that are all alike
    assert soon < 1e-6
    assert late < 1e-6
    first, soon, late = costs(Recaller(span=200))
    assert (first, late) == pytest.approx((8, 8))
    assert soon < 1e-6
    first, soon, late = costs(Recaller(), carry=False)  # windows of 64 bytes hold two sentences
    assert late == pytest.approx(8)
    assert 0 < soon < 8


def test_positions_show_where_a_book_begins_to_repeat_itself():
    part = noise(1000)
    corpus = books(part + part)
    ranges = {}
    for carry in (True, False):
        found = documents_loss(Recaller(), corpus, corpus.documents, 100, carry=carry, edges=(1000,))
        ranges[carry] = [one.loss.bits_per_byte for one in found.by_position]
    assert ranges[True][0] > 7.9
    assert ranges[True][1] < 0.1  # four bytes are read before it knows where it is
    assert min(ranges[False]) > 7.9


def test_a_slot_of_a_fact_is_no_slot_that_is_read_most():
    """The model of notebook 10 recalls a fact from a slot or two: erasing one slot in 64 costs a part of what all cost.

    Those that are read most do not hold facts, so without them it loses less than without some at random.
    """
    model = load_text_model(FOLDER / "data" / "facts")
    lines = [line + b"\n" for line in facts_text(3000, 3, seed=99).splitlines()]
    told = [re.match(rb"(?:\w+\. ){3}", line).end() for line in lines]
    corpus = books(*[line for line, end in zip(lines, told, strict=True) if end == 27 and len(line) > 54][:60])
    assert len(corpus.documents) == 60
    first, second = slots_table(model, corpus, corpus.documents, 27, read=1)  # what is told, then the first repeat
    assert second["erased_all"] > 1
    assert second["erased_all"] / 256 < second["erased_random"] < second["erased_all"] / 16
    assert second["erased"] < second["erased_random"]
    assert first["erased_all"] < second["erased_all"]
