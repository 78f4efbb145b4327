"""The address decoder against the dense oracle's M-vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet_np import Address, decode_address
from ramnet_np.core.cape import cape_shift
from ramnet_np.core.dense import dense_address
from ramnet_np.core.product_softmax import digits_of
from tests.tolerances import assert_close


def scatter(address: Address, slots: int) -> np.ndarray:
    """K-hot addresses as M-vectors; refuses repeated slots."""
    B, T, H, K = address.index.shape
    dense = np.zeros((B, T, H, slots), address.weight.dtype)
    assert all(len(set(row)) == K for row in address.index.reshape(-1, K).tolist())
    np.put_along_axis(dense, address.index.astype(np.int64), address.weight, axis=-1)
    return dense


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize(
    ("order", "radix", "top_k"), [(1, 6, 1), (1, 6, 6), (3, 2, 8), (5, 4, 8), (2, 5, 25), (4, 3, 10)]
)
def test_decode_address_equals_dense(order, radix, top_k, renorm, dtype):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 4, 3, order, radix)).astype(dtype)
    positions = rng.integers(0, 5000, (2, 4))
    address = decode_address(logits, top_k, renorm, cape_heads=2, positions=positions, backend="numpy")
    assert address.index.dtype == np.int32
    assert address.weight.dtype == dtype
    dense = dense_address(logits.astype(np.float64), top_k, renorm, 2, positions)
    assert_close(scatter(address, radix**order), dense.astype(dtype))


@given(st.integers(0, 2**32 - 1), st.integers(1, 16), st.booleans())
def test_decode_address_of_random_ties_equals_dense(seed, top_k, renorm):
    """Probabilities that are powers of two multiply exactly: the oracle's products tie exactly when scores do."""
    rng = np.random.default_rng(seed)
    halvings = np.stack([rng.permutation([1, 2, 3, 3]) for _ in range(2 * 3 * 2)]).reshape(1, 3, 2, 2, 4)
    logits = -halvings * 1.0  # ties among logits are exact; p is not uniform
    address = decode_address(logits, top_k, renorm, backend="numpy")
    dense = dense_address(logits, 16, False)
    for row, w in zip(address.index.reshape(-1, top_k), dense.reshape(-1, 16), strict=True):
        expected = np.argsort(-w.round(12), kind="stable")[:top_k]
        assert row.tolist() == expected.tolist()


def test_cape_moves_a_slot_back_by_one_place_per_token():
    index = np.full((1, 5, 2, 1), 3)
    shifted = cape_shift(index, np.arange(5)[None], cape_heads=1, slots=8)
    assert shifted[0, :, 0, 0].tolist() == [3, 2, 1, 0, 7]
    assert shifted[0, :, 1, 0].tolist() == [3] * 5


def test_decode_address_with_all_slots_is_the_product_softmax():
    logits = np.random.default_rng(0).normal(size=(1, 2, 1, 3, 3))
    weight = decode_address(logits, 27, backend="numpy").weight
    assert_close(weight.sum(-1), np.ones((1, 2, 1)))


def test_digits_of_round_trip():
    index = np.arange(3**5)
    digits = digits_of(index, 5, 3)
    assert (np.tensordot(3 ** np.arange(5), digits, 1) == index).all()


def test_decode_address_survives_extreme_logits():
    logits = np.zeros((1, 1, 1, 2, 3), np.float32)
    logits[..., 0] = 1e30
    address = decode_address(logits, 3, backend="numpy")
    assert address.weight[0, 0, 0, 0] == 1
    assert np.isfinite(address.weight).all()
