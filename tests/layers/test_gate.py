"""The gated product."""

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.gate import gate_backward, gate_forward


@pytest.mark.parametrize("silu", [False, True])
def test_gate_is_the_product_and_its_gradients_are_right(silu):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    y, _ = gate_forward(a, b, silu=silu)
    sigmoid = 1 / (1 + np.exp(-a))
    np.testing.assert_allclose(y, (a * sigmoid if silu else sigmoid) * b, rtol=1e-14)
    report = gradcheck(lambda a, b: gate_forward(a, b, silu=silu), gate_backward, {"a": a, "b": b})
    assert report.passed, str(report)


def test_gate_backward_leaves_its_input_and_may_be_called_again():
    rng = np.random.default_rng(1)
    a, b, dy = rng.normal(size=(3, 4))
    _, ctx = gate_forward(a, b)
    kept = dy.copy()
    first, again = gate_backward(dy, ctx), gate_backward(dy, ctx)
    np.testing.assert_array_equal(dy, kept)
    np.testing.assert_array_equal(first, again)


def test_gate_refuses_other_shapes_and_dtypes():
    with pytest.raises(ValueError, match=r"b must be float64 of shape \(2, 3\), got float64 of shape \(3,\)"):
        gate_forward(np.zeros((2, 3)), np.zeros(3))
    _, ctx = gate_forward(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match="dy must be float64"):
        gate_backward(np.zeros(3, np.float32), ctx)
