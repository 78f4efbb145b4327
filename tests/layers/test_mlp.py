import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.activation import ACTIVATIONS
from ramnet_np.layers.mlp import mlp_backward, mlp_forward, swiglu_backward, swiglu_forward

W, F = 3, 5


def draw(dtype=np.float64, **shapes):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


SWIGLU = {"x": (2, 4, W), "gate": (F, W), "up": (F, W), "down": (W, F)}
MLP = {"x": (2, 4, W), "up": (F, W), "down": (W, F), "up_bias": (F,), "down_bias": (W,)}


def test_swiglu_gradients():
    gradcheck(swiglu_forward, swiglu_backward, draw(**SWIGLU)).raise_if_failed()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_gradients(activation):
    gradcheck(
        lambda x, up, down, up_bias, down_bias: mlp_forward(x, up, down, activation, up_bias, down_bias),
        mlp_backward,
        draw(**MLP),
    ).raise_if_failed()


def test_swiglu_forward_is_the_formula():
    x, gate, up, down = draw(**SWIGLU).values()
    g = x @ gate.T
    y, _ = swiglu_forward(x, gate, up, down)
    np.testing.assert_allclose(y, (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T, rtol=1e-12)


def test_mlp_without_biases_has_none_back():
    x, up, down, *_ = draw(**MLP).values()
    y, ctx = mlp_forward(x, up, down, "silu")
    assert mlp_backward(y, ctx)[3:] == (None, None)


def test_mlps_keep_float32():
    y, ctx = swiglu_forward(**draw(np.float32, **SWIGLU))
    assert {y.dtype, *(g.dtype for g in swiglu_backward(y, ctx))} == {np.dtype(np.float32)}
    y, ctx = mlp_forward(**draw(np.float32, **MLP))
    assert {y.dtype, *(g.dtype for g in mlp_backward(y, ctx))} == {np.dtype(np.float32)}


def test_mlp_refuses_an_unknown_activation():
    x, up, down, *_ = draw(**MLP).values()
    with pytest.raises(ValueError, match="activation must be one of 'gelu', 'silu', 'relu', 'sigmoid', got 'tanh'"):
        mlp_forward(x, up, down, "tanh")


def test_backward_can_be_called_again():
    y, ctx = swiglu_forward(**draw(**SWIGLU))
    for first, second in zip(swiglu_backward(y, ctx), swiglu_backward(y, ctx), strict=True):
        np.testing.assert_array_equal(first, second)
