"""The kernels for a few rows: near the mathematics, the same bits for any number of rows and threads."""

import numba
import numpy as np
import pytest
from ramnet_np.kernels.cpu import products
from ramnet_np.kernels.cpu.norm import few_rows_rmsnorm
from ramnet_np.kernels.cpu.products import few_rows_product

from ramnet_np.backend import use_backend
from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.layers.linear import linear_forward
from ramnet_np.layers.norm import rmsnorm_forward

RNG = np.random.default_rng(0)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_product_is_that_of_the_mathematics_for_any_rows_and_threads(dtype, monkeypatch):
    x, weight = RNG.normal(size=(8, 131)).astype(dtype), RNG.normal(size=(257, 131)).astype(dtype)
    whole = few_rows_product(x, weight)
    np.testing.assert_allclose(whole, ACCELERATED["few_rows_product"](x, weight), atol=50 * TOLERANCE[dtype])
    monkeypatch.setattr(products, "BYTES_PER_PIECE", 4096)  # shared out in many pieces
    usual = numba.get_num_threads()
    for threads in {1, usual}:
        numba.set_num_threads(threads)
        for rows in (1, 3, 8):
            np.testing.assert_array_equal(few_rows_product(x[:rows], weight), whole[:rows])
    numba.set_num_threads(usual)
    np.testing.assert_allclose(few_rows_product(x, weight.T.copy().T), whole, atol=50 * TOLERANCE[dtype])
    assert np.isnan(few_rows_product(np.full_like(x, np.nan), weight)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_norm_is_that_of_the_mathematics(dtype):
    x, weight = RNG.normal(size=(5, 200)).astype(dtype), RNG.normal(size=200).astype(dtype)
    x[1], x[2] = 0, x[2] / 10 * np.finfo(dtype).max  # squares that overflow
    for got, wanted in zip(
        few_rows_rmsnorm(x, weight, 1e-6), ACCELERATED["few_rows_rmsnorm"](x, weight, 1e-6), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=20 * TOLERANCE[dtype], atol=0)
    assert np.isfinite(few_rows_rmsnorm(x, weight, 1e-6)[0]).all()
    np.testing.assert_array_equal(few_rows_rmsnorm(x[3:4], weight, 1e-6)[0], few_rows_rmsnorm(x, weight, 1e-6)[0][3:4])


def test_layers_take_them_for_a_few_rows_and_a_selected_backend_decides(monkeypatch):
    x, weight = RNG.normal(size=(1, 8, 160)), RNG.normal(size=(160, 160))
    product = linear_forward(x, weight)[0]
    np.testing.assert_array_equal(product[0], few_rows_product(x[0], weight))
    np.testing.assert_array_equal(rmsnorm_forward(x, weight[0])[0][0], few_rows_rmsnorm(x[0], weight[0], 1e-6)[0])
    with use_backend("numpy"):
        np.testing.assert_array_equal(linear_forward(x, weight)[0], x @ weight.T)
    many = np.concatenate([x, x], axis=1)
    np.testing.assert_array_equal(linear_forward(many, weight)[0][0], many[0] @ weight.T)
