import math

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.activation import ACTIVATIONS

FORMULAS = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_gradient(name):
    x = 2 * np.random.default_rng(0).normal(size=(4, 5))
    x = np.where(np.abs(x) < 0.01, 0.01, x)  # away from ReLU's corner
    gradcheck(*ACTIVATIONS[name], {"x": x}).raise_if_failed()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_forward_is_the_formula(name):
    x = np.linspace(-30, 30, 101)
    y, _ = ACTIVATIONS[name].forward(x)
    np.testing.assert_allclose(y, np.vectorize(FORMULAS[name])(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_keeps_its_dtype_and_stays_finite(name, dtype):
    x = np.array([-1e30, -1e4, -89.0, 0.0, 89.0, 1e4], dtype)
    if name == "gelu":
        x[0] = -1e15  # its square is the largest float32 that the density can take
    y, ctx = ACTIVATIONS[name].forward(x)
    dx = ACTIVATIONS[name].backward(np.ones_like(x), ctx)
    assert y.dtype == dx.dtype == dtype
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_backward_refuses_another_shape(name):
    _, ctx = ACTIVATIONS[name].forward(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"dy must be float64 of shape \(2, 3\), got float64 of shape \(3,\)"):
        ACTIVATIONS[name].backward(np.ones(3), ctx)
