import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.linear import add_in_place, linear_backward, linear_forward


def draw(shape=(2, 3), width=4, outputs=5, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    draws = (rng.normal(size=size).astype(dtype) for size in ((*shape, width), (outputs, width), (outputs,)))
    return dict(zip(("x", "weight", "bias"), draws, strict=True))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (2, 1, 3)])
def test_linear_gradients(shape):
    gradcheck(linear_forward, linear_backward, draw(shape)).raise_if_failed()


def test_linear_gradients_without_bias():
    inputs = draw()
    del inputs["bias"]
    gradcheck(linear_forward, lambda dy, ctx: linear_backward(dy, ctx)[:2], inputs).raise_if_failed()
    _, ctx = linear_forward(**inputs)
    assert linear_backward(np.ones((2, 3, 5)), ctx).bias is None


def test_linear_forward_is_the_sum_it_says():
    inputs = draw()
    y, _ = linear_forward(**inputs)
    expected = np.einsum("btd,ed->bte", inputs["x"], inputs["weight"]) + inputs["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_linear_keeps_float32():
    y, ctx = linear_forward(**draw(dtype=np.float32))
    assert {y.dtype, *(g.dtype for g in linear_backward(y, ctx))} == {np.dtype(np.float32)}


def test_linear_leaves_its_inputs_alone():
    inputs = draw()
    before = {name: x.copy() for name, x in inputs.items()}
    y, ctx = linear_forward(**inputs)
    linear_backward(y, ctx)
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])


def test_linear_backward_adds_onto_a_gradient_in_place():
    y, ctx = linear_forward(**draw())
    plain = linear_backward(y, ctx)
    sums = np.random.default_rng(5).normal(size=plain.x.shape)
    expected = sums + plain.x
    result = linear_backward(y, ctx, accumulate_into=sums)
    np.testing.assert_array_equal(result.x, expected)
    assert np.shares_memory(result.x, sums)
    np.testing.assert_array_equal(result.weight, plain.weight)


def test_linear_refuses():
    inputs = draw()
    with pytest.raises(ValueError, match=r"x must have 4 channels .* got shape \(2, 3, 3\)"):
        linear_forward(inputs["x"][..., :3], inputs["weight"])
    with pytest.raises(TypeError, match=r"x must have the dtype of the weight \(float64\), got float32"):
        linear_forward(inputs["x"].astype(np.float32), inputs["weight"])
    with pytest.raises(TypeError, match="x must be an array, got list"):
        linear_forward([1.0], inputs["weight"])
    _, ctx = linear_forward(**inputs)
    with pytest.raises(ValueError, match=r"dy must be float64 of shape \(2, 3, 5\), got float64 of shape \(2, 3, 1\)"):
        linear_backward(np.ones((2, 3, 1)), ctx)


def test_additions_in_place_refuse_what_does_not_fit():
    y = np.ones((2, 3))
    for x in (np.ones(2), np.ones((2, 3), np.float32), np.ones((1, 3))):
        with pytest.raises(ValueError, match=r"x must be float64 of shape \(2, 3\) or \(3,\), got"):
            add_in_place(y, x)
    with pytest.raises(TypeError, match="x must be an array, got list"):
        add_in_place(y, [1.0, 2.0, 3.0])
    assert (y == 1).all()
