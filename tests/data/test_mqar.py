"""The data set has Zoology's distribution: ranges, layout, gap law, and train apart from test."""

import numpy as np
import pytest
from scipy import stats

from ramnet_np.data.mqar import (
    IGNORED,
    MQAR_PRESETS,
    TEST_SETTINGS,
    TRAIN_SETTINGS,
    MQARSettings,
    gap_distribution,
    mqar_data,
    mqar_examples,
)

N, PAIRS, LENGTH, VOCAB = 4000, 6, 48, 96
SPACE = (LENGTH - 2 * PAIRS) // 2


@pytest.fixture(scope="module")
def examples():
    return mqar_examples(PAIRS, LENGTH, N, vocab=VOCAB, seed=11)


def offsets_in_key_order(ids, labels):
    """(N, pairs): the offset g at which each key, in the order shown, is asked."""
    asked = labels != IGNORED
    asked_keys, asked_at = ids[asked].reshape(len(ids), -1), np.nonzero(asked)[1].reshape(len(ids), -1)
    pairs = asked_at.shape[1]
    hit = ids[:, 0 : 2 * pairs : 2, None] == asked_keys[:, None, :]
    return (hit * (asked_at[:, None, :] - 2 * pairs) // 2).sum(axis=2)


def test_mqar_examples_layout(examples):
    ids, labels = examples
    assert ids.shape == labels.shape == (N, LENGTH)
    assert ids.dtype == labels.dtype == np.int32
    keys, values = ids[:, 0 : 2 * PAIRS : 2], ids[:, 1 : 2 * PAIRS : 2]
    assert keys.min() == 1
    assert keys.max() == VOCAB // 2 - 1
    assert values.min() == VOCAB // 2
    assert values.max() == VOCAB - 1
    for part in (keys, values):
        assert (np.diff(np.sort(part, axis=1), axis=1) > 0).all()  # distinct within a sequence
    assert (labels[:, : 2 * PAIRS] == IGNORED).all()
    asked = labels != IGNORED
    assert (asked.sum(axis=1) == PAIRS).all()
    assert (np.nonzero(asked)[1] % 2 == 0).all()
    for row in range(50):  # every key once, labelled with the value that followed it
        shown = dict(zip(keys[row].tolist(), values[row].tolist(), strict=True))
        at = np.nonzero(asked[row])[0]
        assert dict(zip(ids[row, at].tolist(), labels[row, at].tolist(), strict=True)) == shown


def test_mqar_examples_keys_and_fillers_are_uniform(examples):
    ids, labels = examples
    keys = np.bincount(ids[:, 0], minlength=VOCAB // 2)[1 : VOCAB // 2]
    last_values = np.bincount(ids[:, 2 * PAIRS - 1] - VOCAB // 2, minlength=VOCAB // 2)
    fillers = np.bincount(ids[:, 2 * PAIRS :][labels[:, 2 * PAIRS :] == IGNORED], minlength=VOCAB)
    for counts in (keys, last_values, fillers):
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_mqar_examples_first_gap_follows_the_power_law(power):
    ids, labels = mqar_examples(PAIRS, LENGTH, N, vocab=VOCAB, power=power, seed=5)
    first = offsets_in_key_order(ids, labels)[:, 0]  # the first key takes the first offset drawn
    expected = N * gap_distribution(LENGTH, PAIRS, power)
    assert stats.chisquare(np.bincount(first, minlength=SPACE), expected).pvalue > 1e-3


def test_mqar_examples_later_gaps_are_drawn_one_after_the_other(examples):
    """Against the sequential draw written out: NumPy's weighted choice without replacement, one row at a time."""
    rng, p = np.random.default_rng(0), gap_distribution(LENGTH, PAIRS)
    drawn = np.array([rng.choice(SPACE, PAIRS, replace=False, p=p) for _ in range(N)])
    ours = offsets_in_key_order(*examples)
    for j in range(1, PAIRS):
        table = np.stack([np.bincount(d[:, j], minlength=SPACE) for d in (drawn, ours)])
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_mqar_examples_same_seed_same_bits():
    first, again, other = (mqar_examples(4, 32, 100, vocab=64, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.ids, again.ids)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.ids != other.ids).any()


def test_mqar_examples_tightest_setting():
    """As many pairs as the length and the vocabulary hold: every offset and every key is used."""
    ids, labels = mqar_examples(8, 32, 20, vocab=18, seed=0)
    assert (np.sort(ids[:, 0:16:2]) == np.arange(1, 9)).all()
    assert ((labels != IGNORED)[:, 16::2]).all()


def test_mqar_data_keeps_test_apart_from_train():
    """At 3 keys and 4 values more than half of all lists of two pairs are in the training set by chance."""
    settings = MQARSettings(vocab=8, train=((2, 16, 60),), test=((2, 16, 40), (1, 12, 5)))
    train, test = mqar_data(settings, seed=2)
    free = mqar_examples(2, 16, 40, vocab=8, seed=np.random.SeedSequence(2, spawn_key=(1, 0)))
    seen = {row[:4].tobytes() for row in train[0].ids}
    assert any(row[:4].tobytes() in seen for row in free.ids)  # what the test set would have been
    assert not any(row[:4].tobytes() in seen for row in test[0].ids)
    for row, labels in zip(test[0].ids, test[0].labels, strict=True):  # drawn again whole, labels with ids
        asked = labels != IGNORED
        assert {*zip(row[asked], labels[asked], strict=True)} == {(row[0], row[1]), (row[2], row[3])}


def test_mqar_data_same_seed_same_bits():
    settings = MQARSettings(vocab=8, train=((2, 16, 60),), test=((2, 16, 40),))
    for first, again in zip(mqar_data(settings, seed=2), mqar_data(settings, seed=2), strict=True):
        np.testing.assert_array_equal(first[0].ids, again[0].ids)
        np.testing.assert_array_equal(first[0].labels, again[0].labels)


def test_mqar_data_without_room_for_a_test_set():
    with pytest.raises(ValueError, match=r"no held-out sequences of 1 pairs .* vocab 4"):
        mqar_data(MQARSettings(vocab=4, train=((1, 8, 50),), test=((1, 8, 5),)))


def test_named_settings_are_those_of_the_spec():
    assert TRAIN_SETTINGS["zoology"][0] == (4, 64, 100_000)
    assert sum(examples for _, _, examples in TRAIN_SETTINGS["zoology"]) == 180_000
    assert TEST_SETTINGS["zoology"][-1] == (256, 1024, 1000)
    assert len(TEST_SETTINGS["zoology"]) == 7
    demo = MQAR_PRESETS["demo"]
    assert demo.vocab >= 256
    assert demo.test[0][:2] == (8, 64)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pairs": 0, "length": 64}, "pairs must be at least 1, got 0"),
        ({"pairs": 17, "length": 64}, "length must be at least 68 for 17 pairs .* got 64"),
        ({"pairs": 8, "length": 64, "vocab": 17}, "vocab must be at least 18 for 8 distinct keys .* got 17"),
        ({"pairs": 8, "length": 64, "power": 0.0}, "power must be above 0 and at most 10, got 0"),
        ({"pairs": 8, "length": 64, "power": float("nan")}, "power must be above 0 and at most 10, got nan"),
        ({"pairs": 8, "length": 64, "power": float("inf")}, "power must be above 0 and at most 10, got inf"),
        ({"pairs": 8, "length": 64, "vocab": 2**31}, "vocab must be at most 2147483647, got 2147483648"),
        ({"pairs": 8, "length": 64, "examples": -3}, "examples must be at least 1, got -3"),
        ({"pairs": 8, "length": 64, "seed": -1}, "seed must be at least 0, got -1"),
        ({"pairs": 8, "length": 64, "examples": 0}, "examples must be at least 1, got 0"),
    ],
)
def test_mqar_examples_bad_input(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        mqar_examples(**({"examples": 3} | arguments))


def test_mqar_settings_bad_input():
    with pytest.raises(ValueError, match=r"data\.test must hold at least one set"):
        MQARSettings(test=())
    with pytest.raises(ValueError, match=r"data\.test must hold a setting once, got '4 pairs, length 64' twice"):
        MQARSettings(test=((4, 64, 10), (8, 64, 10), (4, 64, 20)))  # results go by these names
    with pytest.raises(ValueError, match=r"data\.train must hold sets of three numbers, .* got \(4, 64\)"):
        MQARSettings(train=((4, 64),))
    with pytest.raises(TypeError, match=r"pairs must be an integer, got 4\.0"):
        MQARSettings(train=((4.0, 64, 10),))
    with pytest.raises(ValueError, match="length must be at least 32"):
        MQARSettings(train=((8, 16, 10),))
