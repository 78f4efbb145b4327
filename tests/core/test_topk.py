"""Beam search against looking at all M slots."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet_np.core.product_softmax import digit_scores, digits_of
from ramnet_np.core.topk import beam_search, staircase


def brute_force(scores, top_k):
    """Every slot's score, summed in the order of the digits; the K best, ties to the smaller slot."""
    order, radix = scores.shape
    slots = [
        sum(d * radix**u for u, d in enumerate(digits)) for digits in itertools.product(range(radix), repeat=order)
    ]
    total = {}
    for slot in slots:
        score = 0.0
        for u in range(order):
            score = score + scores[u, slot // radix**u % radix]
        total[slot] = score
    return sorted(slots, key=lambda slot: (-total[slot], slot))[:top_k], total


@st.composite
def sizes(draw):
    order, radix = draw(st.sampled_from([(1, 1), (1, 7), (2, 2), (2, 5), (3, 3), (4, 2), (5, 2), (3, 4), (2, 9)]))
    return order, radix, draw(st.integers(1, radix**order)), draw(st.integers(0, 2**32 - 1))


@given(sizes())
def test_beam_search_equals_brute_force(size):
    order, radix, top_k, seed = size
    scores = digit_scores(np.random.default_rng(seed).normal(size=(order, radix)))
    expected, _ = brute_force(scores, top_k)
    assert beam_search(scores, top_k).tolist() == expected


@given(sizes())
def test_beam_search_breaks_ties_to_the_smaller_slot(size):
    """Scores of whole numbers add exactly, so ties are exact and plenty."""
    order, radix, top_k, seed = size
    scores = digit_scores(np.random.default_rng(seed).integers(0, 3, (order, radix)).astype(float))
    expected, _ = brute_force(scores, top_k)
    assert beam_search(scores, top_k).tolist() == expected


@pytest.mark.parametrize(("order", "radix", "top_k"), [(1, 8, 3), (5, 4, 8), (10, 2, 32), (3, 3, 27)])
def test_beam_search_of_equal_logits_keeps_the_first_slots(order, radix, top_k):
    logits = np.full((2, 3, order, radix), 0.7, np.float32)
    index = beam_search(digit_scores(logits), top_k)
    assert (index == np.arange(top_k)).all()


def test_beam_search_orders_best_first_in_float32():
    scores = digit_scores(np.random.default_rng(0).normal(size=(50, 5, 4)).astype(np.float32))
    index = beam_search(scores, 8)
    picked = np.take_along_axis(scores, digits_of(index, 5, 4), axis=-1)
    total = picked[:, 0]
    for u in range(1, 5):
        total = total + picked[:, u]
    assert (np.diff(total, axis=-1) <= 0).all()


def test_staircase_is_about_k_log_k():
    i, j = staircase(64, 64, 64)
    assert len(i) == sum(64 // (d + 1) for d in range(64))
    assert set(zip(i.tolist(), j.tolist(), strict=True)) >= {(0, 0), (63, 0), (0, 63), (7, 7)}
