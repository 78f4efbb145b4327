import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.feature_map import FEATURE_MAPS, NEVER_NEGATIVE

X = np.random.default_rng(0).normal(size=(3, 4, 5)) * 3
EXPECTED = {
    "elu": np.where(X > 0, X + 1, np.exp(X)),
    "relu": np.where(X > 0, X, 0),
    "silu": X / (1 + np.exp(-X)),
    "identity": X,
}


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_a_map_and_its_gradient(name):
    phi = FEATURE_MAPS[name]
    y, ctx = phi.forward(X)
    np.testing.assert_allclose(y, EXPECTED[name], rtol=1e-14)
    assert (y.min() >= 0) == (name in NEVER_NEGATIVE)
    gradcheck(phi.forward, phi.backward, {"x": X}).raise_if_failed()
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        phi.backward(y[:1], ctx)
    with pytest.raises(TypeError, match=r"ctx must be the .*Context that .*_forward returned last, got ndarray"):
        phi.backward(y, y)


def test_elu_neither_overflows_nor_changes_the_dtype():
    phi = FEATURE_MAPS["elu"]
    y, ctx = phi.forward(np.array([-1000.0, 0.0, 1000.0], np.float32))
    np.testing.assert_array_equal(y, np.array([0, 1, 1001], np.float32), strict=True)
    np.testing.assert_array_equal(phi.backward(np.ones_like(y), ctx), np.array([0, 1, 1], np.float32), strict=True)
