"""Sets on a GPU, with NumPy in CuPy's place: the rows gathered are those that a batch would have copied."""

import numpy as np
import pytest

from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.data.gpu_dataset import GPUDataset, GPUDatasets
from ramnet_np.data.mqar import MQARSettings, mqar_data
from ramnet_np.train.gpu_trainer import labelled_tokens

SETTINGS = MQARSettings(vocab=64, train=((2, 12, 24), (3, 16, 16)), test=((2, 12, 1),))


def test_batches_are_those_of_the_sets_on_the_host():
    sets = [Batch(*examples) for examples in mqar_data(SETTINGS)[0]]
    shuffled = ShuffledSets(sets, {}, batch=8, seed=3)
    on_gpu = GPUDatasets(shuffled, [GPUDataset(examples, 64, xp=np) for examples in sets])
    for step in range(12):  # more than two epochs
        copied, named = shuffled.batch(step), on_gpu.batch(step)
        ids, positions, labels = named.source.gather(named.rows)
        np.testing.assert_array_equal(ids, copied.ids)
        wanted_positions, wanted_labels = labelled_tokens(copied.labels, multiple=8)
        np.testing.assert_array_equal(positions, wanted_positions)
        np.testing.assert_array_equal(labels, wanted_labels)
        assert named.tokens == copied.tokens == copied.ids.size


def test_what_a_set_must_be():
    ids = np.zeros((2, 4), dtype=np.int32)
    labels = np.array([[1, -100, -100, -100], [1, 2, -100, -100]])
    with pytest.raises(ValueError, match="equally many labelled tokens, got 1 to 2"):
        GPUDataset(Batch(ids, labels), 8, xp=np)
    with pytest.raises(ValueError, match="equally many labelled tokens, got 0 to 0"):
        GPUDataset(Batch(ids, np.full((2, 4), -100)), 8, xp=np)
    with pytest.raises(ValueError, match="ids must lie between 0 and 7, got 9"):
        GPUDataset(Batch(ids + 9, labels[:1].repeat(2, 0)), 8, xp=np)
    with pytest.raises(ValueError, match="labels must lie between 0 and 7, got 8"):
        GPUDataset(Batch(ids, 8 * labels[:1].repeat(2, 0)), 8, xp=np)
