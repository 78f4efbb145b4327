"""Stacked products, heads and chunks, and the triangular inverse: what attention and the recurrences stand on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet_np.layers.heads import chunk_length, from_chunks, heads_first, heads_last, to_chunks
from ramnet_np.layers.matmul import matmul
from ramnet_np.layers.triangular import unit_lower_inverse


def test_products_of_stacks_slices_and_transposes():
    rng = np.random.default_rng(0)
    a, b, sums = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(2, 3, 5, 4)), rng.normal(size=(2, 3, 6, 9))
    expected = [[a[i, j].T @ b[i, j].T for j in range(3)] for i in range(2)]
    product = matmul(a.swapaxes(-1, -2), b.swapaxes(-1, -2))
    np.testing.assert_allclose(product, expected, rtol=1e-14)
    part, before = sums[..., 2:7], sums.copy()
    assert matmul(a.swapaxes(-1, -2), b.swapaxes(-1, -2), accumulate_into=part) is part
    np.testing.assert_allclose(sums[..., 2:7], before[..., 2:7] + expected, rtol=1e-14)
    np.testing.assert_array_equal(np.delete(sums, range(2, 7), axis=-1), np.delete(before, range(2, 7), axis=-1))


@given(st.integers(1, 3), st.integers(1, 150), st.integers(1, 3), st.integers(1, 3))
def test_heads_and_chunks_come_back(B, T, H, d):
    x = np.arange(B * T * H * d, dtype=float).reshape(B, T, H, d)
    first = heads_first(x)
    for b in range(B):
        for h in range(H):
            np.testing.assert_array_equal(first[b * H + h], x[b, :, h])
    np.testing.assert_array_equal(heads_last(first, H), x)
    chunked = to_chunks(x)
    N = chunk_length(T)
    assert chunked.shape == (B * H, -(-T // N), N, d)
    assert N <= 64
    assert N & (N - 1) == 0
    assert N < 2 * T
    flat = chunked.reshape(B * H, -1, d)
    np.testing.assert_array_equal(flat[:, :T], first)
    assert not flat[:, T:].any()
    np.testing.assert_array_equal(from_chunks(chunked, T, H), x)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_triangular_inverse(size):
    below = np.random.default_rng(size).normal(size=(2, 3, size, size)) / size
    lower = np.eye(size) + np.tril(below, -1)
    inverse = unit_lower_inverse(below)  # with numbers on and above the diagonal, which are not read
    np.testing.assert_allclose(inverse @ lower, np.broadcast_to(np.eye(size), below.shape), atol=1e-12)
    np.testing.assert_array_equal(inverse, np.tril(inverse))


def test_triangular_inverse_of_tokens_that_are_all_alike_keeps_float32():
    """All entries 1: the inverse is 1 and -1 beside each other; the powers of L grow to 10**18."""
    inverse = unit_lower_inverse(np.ones((64, 64), np.float32))
    np.testing.assert_array_equal(inverse, np.eye(64) - np.eye(64, k=-1))
    assert inverse.dtype == np.float32


def test_triangular_inverse_refuses():
    for shape in ((6, 6), (4, 8), (4,)):
        with pytest.raises(ValueError, match=r"below must have shape \(\.\.\., N, N\), N a power of two, got"):
            unit_lower_inverse(np.zeros(shape))
