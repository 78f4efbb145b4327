import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.norm import (
    l2norm_backward,
    l2norm_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)


def draw(shape=(2, 3, 5), dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    draws = (rng.normal(size=size).astype(dtype) for size in (shape, shape[-1:], shape[-1:]))
    return dict(zip(("x", "weight", "bias"), draws, strict=True))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 5)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rmsnorm_gradients(shape, eps):
    inputs = draw(shape)
    del inputs["bias"]
    gradcheck(lambda x, weight: rmsnorm_forward(x, weight, eps), rmsnorm_backward, inputs).raise_if_failed()


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 5)])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_layernorm_gradients(shape, eps):
    gradcheck(
        lambda x, weight, bias: layernorm_forward(x, weight, bias, eps), layernorm_backward, draw(shape)
    ).raise_if_failed()


def test_the_gradient_from_elsewhere_is_added():
    x, weight, bias = draw().values()
    add = np.random.default_rng(1).normal(size=x.shape)
    for (y, ctx), backward in (
        (rmsnorm_forward(x, weight), rmsnorm_backward),
        (layernorm_forward(x, weight, bias), layernorm_backward),
    ):
        kept = add.copy()
        with_add, without = backward(y, ctx, add), backward(y, ctx)
        np.testing.assert_array_equal(with_add.x, without.x + add)
        np.testing.assert_array_equal(with_add.weight, without.weight)
        np.testing.assert_array_equal(add, kept)
        with pytest.raises(ValueError, match="add must be float64 of shape"):
            backward(y, ctx, add[0])


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_l2norm_is_the_formula_and_has_its_gradients(eps):
    x = draw()["x"]
    y, _ = l2norm_forward(x, eps)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).sum(-1, keepdims=True) + eps), rtol=1e-12)
    gradcheck(lambda x: l2norm_forward(x, eps), l2norm_backward, {"x": x}, seed=7).raise_if_failed()


def test_rmsnorm_forward_is_the_formula():
    x, weight, _ = draw().values()
    y, _ = rmsnorm_forward(x, weight, 0.1)
    np.testing.assert_allclose(y, weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1), rtol=1e-12)


def test_layernorm_forward_is_the_formula():
    x, weight, bias = draw().values()
    y, _ = layernorm_forward(x, weight, bias, 0.1)
    expected = weight * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) + bias
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_norms_of_zeros_are_finite():
    zeros, ones = np.zeros((2, 4), np.float32), np.ones(4, np.float32)
    for y, ctx, backward in (
        (*rmsnorm_forward(zeros, ones), rmsnorm_backward),
        (*layernorm_forward(zeros, ones, ones), layernorm_backward),
        (*l2norm_forward(zeros), l2norm_backward),
    ):
        assert np.isfinite(y).all()
        grads = backward(np.ones_like(zeros), ctx)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_norms_keep_float32():
    x, weight, bias = draw(dtype=np.float32).values()
    y, ctx = rmsnorm_forward(x, weight)
    assert {y.dtype, *(g.dtype for g in rmsnorm_backward(y, ctx))} == {np.dtype(np.float32)}
    y, ctx = layernorm_forward(x, weight, bias)
    assert {y.dtype, *(g.dtype for g in layernorm_backward(y, ctx))} == {np.dtype(np.float32)}


def test_norms_refuse():
    x, weight, bias = draw().values()
    with pytest.raises(ValueError, match="x must have 4 channels"):
        rmsnorm_forward(x, weight[:4])
    _, ctx = rmsnorm_forward(x, weight)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        rmsnorm_backward(x[0], ctx)
    _, ctx = layernorm_forward(x, weight, bias)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        layernorm_backward(x.astype(np.float32), ctx)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e20), (np.float32, 1e35), (np.float64, 1e200)])
def test_rows_whose_squares_overflow_are_normalised(dtype, size):
    x = np.array([[3.0, -4.0, 1.0], [1.0, 2.0, 2.0]])
    weight, bias, dy = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.array([[1.0, -1.0, 2.0]] * 2)
    scaled = (x * [[size], [1.0]]).astype(dtype)  # only the first row
    for forward, backward, parameters in (
        (rmsnorm_forward, rmsnorm_backward, (weight,)),
        (layernorm_forward, layernorm_backward, (weight, bias)),
    ):
        expected, ctx = forward(x, *parameters, 0.0)
        y, scaled_ctx = forward(scaled, *(p.astype(dtype) for p in parameters), 0.0)
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        dx, dweight = backward(dy, ctx)[:2]
        scaled_dx, scaled_dweight = backward(dy.astype(dtype), scaled_ctx)[:2]
        np.testing.assert_allclose(scaled_dx * np.array([[size], [1.0]], dtype), dx, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scaled_dweight, dweight, rtol=1e-5)
    unit, _ = l2norm_forward(scaled)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=-1), 1, rtol=1e-6)
