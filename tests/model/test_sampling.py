"""Sampling against a plain definition, token by token, and against the distribution that it defines."""

import numpy as np
import pytest

from ramnet_np.backend import use_backend
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model.sampling import Sampling, next_token

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(40, 23)).astype(np.float32) * 3
LOGITS[::4] = np.round(LOGITS[::4])  # rows with ties
SEEN = RNG.random(LOGITS.shape) < 0.3
SETTINGS = {
    "plain": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.1},
    "top_k": {"top_k": 5},
    "top_k of more than all": {"top_k": 99},
    "top_p": {"top_p": 0.6},
    "tiny top_p": {"top_p": 1e-9},
    "min_p": {"min_p": 0.2},
    "min_p of 1": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "top_k, then top_p": {"top_k": 6, "top_p": 0.5},
    "all": {"temperature": 1.5, "top_k": 9, "top_p": 0.85, "min_p": 0.05, "repetition_penalty": 1.3},
}


def probabilities(logits, seen, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0):
    """Every token's probability as the module defines it, for one row, with Python's numbers, step by step."""
    penalised = [
        (x / repetition_penalty if x > 0 else x * repetition_penalty) if was_there else x
        for x, was_there in zip(map(float, logits), seen, strict=True)
    ]
    weights = np.exp([(x - max(penalised)) / temperature for x in penalised])
    ranking = sorted(range(len(weights)), key=lambda token: (-weights[token], token))
    ranking = ranking[:top_k]
    total, kept, so_far = sum(weights[token] for token in ranking), [], 0.0
    for token in ranking:
        if top_p < 1 and so_far >= top_p * total:
            break
        kept.append(token)
        so_far += weights[token]
    kept = [token for token in kept if weights[token] >= min_p * weights[ranking[0]]]
    p = np.zeros(len(weights))
    p[kept] = weights[kept]
    return p / p.sum()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_token_is_the_one_that_the_definition_names(settings):
    p = np.array([probabilities(row, seen, **settings) for row, seen in zip(LOGITS, SEEN, strict=True)])
    for u in (0.0, 0.1, 0.5, 0.77, 0.999):
        expected = [int(np.flatnonzero(row.cumsum() > u * row.cumsum()[-1])[0]) for row in p]
        got = next_token(LOGITS, Sampling(**{"temperature": 1.0} | settings), np.full(len(LOGITS), u), SEEN)
        assert got.tolist() == expected


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_draws_have_the_distribution_of_the_definition(settings):
    stats = pytest.importorskip("scipy.stats")  # a model runs without SciPy
    n, row = 20_000, 4
    expected = probabilities(LOGITS[row], SEEN[row], **settings)
    u = uniform(row_seeds(11, n, LOGITS), np.full(n, 7))
    logits, seen = np.repeat(LOGITS[row : row + 1], n, axis=0), np.repeat(SEEN[row : row + 1], n, axis=0)
    drawn = np.bincount(next_token(logits, Sampling(**{"temperature": 1.0} | settings), u, seen), minlength=23)
    assert drawn[expected == 0].sum() == 0
    often = expected * n > 5
    if often.sum() > 1:
        counted = [*drawn[often], drawn[~often].sum()]
        wanted = [*(expected[often] * n), expected[~often].sum() * n]
        counted, wanted = np.array(counted), np.array(wanted)
        assert stats.chisquare(counted[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 1e-3}, {"temperature": 1.0, "top_p": 0.6}])
def test_large_logits_are_drawn_as_small_ones(settings):
    """exp(5000) is no number."""
    u, sampling = np.linspace(0, 0.99, len(LOGITS)), Sampling(**settings)
    whole = np.round(LOGITS)  # 5000 more is exact
    np.testing.assert_array_equal(next_token(whole + 5000, sampling, u, SEEN), next_token(whole, sampling, u, SEEN))


@pytest.mark.parametrize(("top_p", "last"), [(0.5, 1), (0.5001, 2), (0.4999, 1), (0.25, 0)])
def test_top_p_stops_where_the_share_is_reached_exactly(top_p, last):
    got = next_token(np.zeros((1, 4), np.float32), Sampling(temperature=1.0, top_p=top_p), np.array([0.9999]), None)
    assert got.tolist() == [last]


def test_greedy_takes_the_likeliest_after_the_penalty():
    penalised = np.where(SEEN, np.where(LOGITS > 0, LOGITS / 2.0, LOGITS * 2.0), LOGITS.astype(np.float64))
    got = next_token(LOGITS, Sampling(repetition_penalty=2.0, top_k=3), None, SEEN)
    assert got.tolist() == penalised.argmax(axis=-1).tolist() != LOGITS.argmax(axis=-1).tolist()


def test_numbers_are_uniform_by_seed_and_by_position():
    stats = pytest.importorskip("scipy.stats")
    by_seed = uniform(row_seeds(0, 5000, LOGITS), np.full(5000, 3))
    by_position = uniform(np.full(5000, 9, np.uint64), np.arange(5000))
    for numbers in (by_seed, by_position):
        assert ((numbers >= 0) & (numbers < 1)).all()
        assert stats.chisquare(np.histogram(numbers, bins=50, range=(0, 1))[0]).pvalue > 1e-3
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4 / np.sqrt(5000)


def test_the_largest_number_times_a_sum_is_below_the_sum(monkeypatch):
    """Else no token would be the one that is drawn."""
    monkeypatch.setattr("ramnet_np.layers.uniform._mix", lambda z: np.full_like(z, 2**64 - 1))
    with use_backend("numpy"):
        [u] = uniform(np.zeros(1, np.uint64), np.zeros(1, np.int64))
    sums = RNG.random(1000) * 100
    assert 1 - 1e-15 < u < 1
    assert (u * sums < sums).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_of_which_none_can_be_chosen_are_named(wrong, temperature):
    logits = LOGITS[:3].copy()
    logits[1] = wrong
    with pytest.raises(FloatingPointError, match="logits must be finite for a token to be chosen, got "):
        next_token(logits, Sampling(temperature=temperature), np.zeros(3))
    logits[1] = LOGITS[1]
    logits[:, 5] = -np.inf  # a token that is ruled out
    assert 5 not in next_token(logits, Sampling(temperature=temperature), np.zeros(3))
    assert next_token(logits[:0], Sampling(temperature=temperature), np.zeros(0)).tolist() == []


def test_what_is_not_set_takes_the_likeliest_of_all():
    assert Sampling() == Sampling(temperature=0.0, top_k=None, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5"),
        ({"top_p": "all"}, "top_p must be a number, got 'all'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_k": 2.5}, "top_k must be an integer, got 2.5"),
        ({"min_p": -0.1}, "min_p must be between 0 and 1, got -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be between 1e-30 and"),
        ({"temperature": float("nan")}, "temperature must be between 0 and"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 2**64}, "seed must be between 0 and 18446744073709551615"),
    ],
)
def test_a_wrong_setting_is_named(settings, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Sampling(**settings)
