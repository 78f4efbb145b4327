"""Retention and its slopes."""

import numpy as np
import pytest

from ramnet_np.core.retention import retention_backward, retention_forward
from tests.tolerances import assert_close

W = np.array([0.0, 1e-12, 1e-4, 0.3, 0.5, 0.9, 1 - 1e-9])


@pytest.mark.parametrize("gamma", [-5.0, -1.0, 0.0, 0.7, 3.0, 60.0])
def test_gsu_is_a_sigmoid_of_the_logit(gamma):
    w = W[1:]
    expected = 1 / (1 + np.exp(np.log(w / (1 - w)) + gamma))
    assert_close(retention_forward(w, np.array(gamma), "gsu"), expected)


def test_pdma_at_gamma_1_is_gsu_at_gamma_0():
    assert_close(retention_forward(W, np.array(1.0), "pdma"), retention_forward(W, np.array(0.0), "gsu"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("update", ["pdma", "gsu"])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.5, 300.0])
def test_retention_is_within_0_and_1_and_slopes_are_finite(gamma, update, dtype):
    w = np.concatenate([W, [1.0]]).astype(dtype)
    g = np.array(gamma, dtype)
    alpha = retention_forward(w, g, update)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert alpha[0] == 1
    slopes = retention_backward(w, g, alpha, update, 0.0)
    if gamma < 100:  # gsu's true slope at w = 0 is -exp(gamma), past float32 there
        assert all(np.isfinite(slope).all() for slope in slopes)
    assert all(slope.dtype == dtype for slope in slopes)


@pytest.mark.parametrize("proxy_eps", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.5])
def test_pdma_slopes_are_those_of_the_proxy(gamma, proxy_eps):
    def proxy(w, g):
        return (proxy_eps + (1 - proxy_eps) * (1 - w)) ** g

    w, g, h = np.array([0.01, 0.4, 0.9]), np.array(gamma), 1e-6
    dw, dgamma = retention_backward(w, g, retention_forward(w, g, "pdma"), "pdma", proxy_eps)
    np.testing.assert_allclose(dw, (proxy(w + h, g) - proxy(w - h, g)) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(dgamma, (proxy(w, g + h) - proxy(w, g - h)) / (2 * h), rtol=1e-7)


def test_pdma_slope_at_weight_1():
    """With the proxy: gamma * (1 - e) * e**(gamma - 1). Without: the steepest slope that any w < 1 has."""
    one, gamma = np.array([1.0]), np.array(0.5)
    dw, _ = retention_backward(one, gamma, np.array([0.0]), "pdma", 0.01)
    np.testing.assert_allclose(dw, -0.5 * 0.99 * 0.01**-0.5)
    dw, dgamma = retention_backward(one, gamma, np.array([0.0]), "pdma", 0.0)
    below = np.nextafter(one, 0)
    steepest, _ = retention_backward(below, gamma, retention_forward(below, gamma, "pdma"), "pdma", 0.0)
    assert dw == steepest
    assert dgamma == 0
