import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.embedding import embedding_backward, embedding_forward

REPEATS = np.array([[0, 3, 3, 3], [6, 0, 3, 6]])  # the first and the last row of the table, and one thrice in a run


def test_embedding_gradient_with_repeats():
    table = np.random.default_rng(0).normal(size=(7, 2))
    gradcheck(lambda table: embedding_forward(REPEATS, table), embedding_backward, {"table": table}).raise_if_failed()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_embedding_backward_adds_every_token_once(n, dtype):
    rng = np.random.default_rng(n)
    ids, table = rng.integers(0, 50, n).astype(dtype), rng.normal(size=(50, 3))
    y, ctx = embedding_forward(ids, table)
    np.testing.assert_array_equal(y, table[ids])
    dy = rng.normal(size=y.shape)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(embedding_backward(dy, ctx), expected, rtol=1e-12, atol=1e-12)


def test_embedding_backward_repeats_its_bits_and_keeps_float32():
    rng = np.random.default_rng(0)
    ids, table = rng.integers(0, 5, (64, 64)), rng.normal(size=(5, 16)).astype(np.float32)
    y, ctx = embedding_forward(ids, table)
    dy = rng.normal(size=y.shape).astype(np.float32)
    first = embedding_backward(dy, ctx)
    assert y.dtype == first.dtype == np.float32
    for _ in range(3):
        np.testing.assert_array_equal(embedding_backward(dy, ctx), first)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (np.array([0, 7]), ValueError, r"ids must lie between 0 and 6, got 7 at index \(1,\)"),
        (np.array([[-1, 0]]), ValueError, r"ids must lie between 0 and 6, got -1 at index \(0, 0\)"),
        (np.array([0.0]), TypeError, "ids must be integers, got float64"),
        ([0, 1], TypeError, "ids must be an array of integers, got list"),
    ],
)
def test_embedding_refuses(ids, error, message):
    with pytest.raises(error, match=message):
        embedding_forward(ids, np.zeros((7, 2)))


def test_embedding_backward_refuses():
    _, ctx = embedding_forward(REPEATS, np.zeros((7, 2)))
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        embedding_backward(np.zeros((8, 2)), ctx)
