import numpy as np
import pytest

from ramnet_np.data.batches import Batch, ShuffledSets


def numbered(count, length, start=0):
    ids = np.arange(start, start + count)[:, None] * np.ones(length, int)
    return Batch(ids, ids + 1000)


def test_shuffled_sets_visit_everything_once_an_epoch():
    data = ShuffledSets([numbered(12, 3), numbered(8, 5, start=100)], {}, batch=4, seed=7)
    assert data.batches_per_epoch == 5
    orders = []
    for epoch in range(2):
        batches = [data.batch(epoch * 5 + i) for i in range(5)]
        for ids, labels in batches:
            assert ids.shape in {(4, 3), (4, 5)}
            np.testing.assert_array_equal(labels, ids + 1000)  # rows of ids and labels stay together
        order = np.concatenate([ids[:, 0] for ids, _ in batches])
        assert sorted(order.tolist()) == [*range(12), *range(100, 108)]
        orders.append(order.tolist())
    assert orders[0] != orders[1]


def test_shuffled_sets_order_follows_from_seed_and_step_alone():
    sets = [numbered(40, 3)]
    walked, jumped = ShuffledSets(sets, {}, 4, seed=1), ShuffledSets(sets, {}, 4, seed=1)
    for step in range(23):
        last = walked.batch(step)
    np.testing.assert_array_equal(last.ids, jumped.batch(22).ids)
    np.testing.assert_array_equal(walked.batch(3).ids, jumped.batch(3).ids)  # and back
    assert (ShuffledSets(sets, {}, 4, seed=2).batch(22).ids != last.ids).any()


def test_shuffled_sets_leave_out_what_fills_no_batch():
    data = ShuffledSets([numbered(11, 3)], {}, batch=4, seed=0)
    seen = np.concatenate([data.batch(i).ids[:, 0] for i in range(data.batches_per_epoch)])
    assert len(seen) == len(set(seen.tolist())) == 8


def test_shuffled_sets_bad_input():
    with pytest.raises(ValueError, match="got batch 8 and 5 examples in training set 1"):
        ShuffledSets([numbered(20, 3), numbered(5, 3)], {}, batch=8, seed=0)
    one = numbered(8, 3)
    for error, words, arguments in (
        (ValueError, "train must hold at least one set, got none", ([], {}, 4, 0)),
        (ValueError, "batch must be at least 1, got 0", ([one], {}, 0, 0)),
        (ValueError, "seed must be at least 0, got -1", ([one], {}, 4, -1)),
        (TypeError, "ids of train\\[0\\] must be an array, got list", ([Batch([[1]], [[1]])], {}, 1, 0)),
        (
            ValueError,
            "ids and labels of new must have one shape",
            ([one], {"new": Batch(one.ids, one.labels[1:])}, 4, 0),
        ),
        (ValueError, "ids and labels of new must .* got \\(0, 3\\)", ([one], {"new": numbered(0, 3)}, 4, 0)),
    ):
        with pytest.raises(error, match=words):
            ShuffledSets(*arguments)
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        ShuffledSets([one], {}, 4, 0).batch(-1)
