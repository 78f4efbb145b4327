"""A linear map whose rows are scaled in groups."""

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.scale import scale_backward, scale_forward


@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_are_scaled_by_their_group_and_gradients_are_right(with_bias):
    rng = np.random.default_rng(0)
    inputs = {"weight": rng.normal(size=(12, 5)), "scale": rng.normal(size=(2, 3))}
    if with_bias:
        inputs["bias"] = rng.normal(size=12)

    def forward(weight, scale, bias=None):
        weight, bias, ctx = scale_forward(weight, bias, scale, tau=0.7)
        rows = weight if bias is None else np.concatenate([weight, bias[:, None]], axis=1)
        return rows, ctx

    def backward(drows, ctx):
        grads = scale_backward(drows[:, :5], drows[:, 5] if with_bias else None, ctx)
        return [getattr(grads, name) for name in inputs]

    rows, _ = forward(**inputs)
    factor = np.exp(inputs["scale"]).ravel().repeat(2)[:, None] / 0.7
    np.testing.assert_allclose(rows[:, :5], inputs["weight"] * factor, rtol=1e-14)
    if with_bias:
        np.testing.assert_allclose(rows[:, 5:], inputs["bias"][:, None] * factor, rtol=1e-14)
    gradcheck(forward, backward, inputs).raise_if_failed()
