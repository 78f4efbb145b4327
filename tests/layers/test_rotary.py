import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.rotary import rotary_backward, rotary_forward


def draw(shape=(2, 5, 3, 6), dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("positions", [None, [3, 4, 9, 9, 100], [[0, 1, 2, 3, 4], [7, 5, 70, 2, 900]]])
def test_rotary_is_a_complex_rotation(positions):
    """Each pair as one complex number, times exp(i angle)."""
    x = draw()
    at = np.broadcast_to(np.arange(5) if positions is None else np.array(positions), (2, 5))
    y, _ = rotary_forward(x, positions)
    z = x[..., :3] + 1j * x[..., 3:]
    for i in range(3):
        z[..., i] *= np.exp(1j * at * 10_000.0 ** (-2 * i / 6))[..., None]
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], axis=-1), rtol=1e-10, atol=1e-12)


def test_rotary_gradients():
    positions = np.array([0, 3, 50, 2, 1])
    gradcheck(lambda x: rotary_forward(x, positions), rotary_backward, {"x": draw()}).raise_if_failed()


def test_products_see_differences_of_positions():
    q, k = np.tile(draw((1, 1, 2, 8)), (1, 6, 1, 1)), np.tile(draw((1, 1, 2, 8), seed=1), (1, 6, 1, 1))
    near, far = (
        (rotary_forward(q, t)[0] * rotary_forward(k, t - 3)[0]).sum(-1) for t in (np.arange(6), np.arange(6) + 40)
    )
    np.testing.assert_allclose(near, far, rtol=1e-10)
    np.testing.assert_allclose(near, np.broadcast_to(near[:, :1], near.shape), rtol=1e-10)


def test_rotary_far_out_in_float32():
    """Angles are reduced in float64: at position 10**6 float32 would be wrong by a hundredth of a turn."""
    x, positions = draw((1, 1, 1, 4), np.float32), np.array([1_000_003])
    y, _ = rotary_forward(x, positions)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, rotary_forward(x.astype(np.float64), positions)[0], atol=1e-6)


def test_rotary_refuses():
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, H, d\) with an even d, got \(2, 5, 3, 5\)"):
        rotary_forward(draw()[..., :5])
    with pytest.raises(ValueError, match=r"positions must have shape \(T,\) = \(5,\) or .* got \(4,\)"):
        rotary_forward(draw(), np.arange(4))
    with pytest.raises(TypeError, match="positions must be integers, got float64"):
        rotary_forward(draw(), np.arange(5.0))
    y, ctx = rotary_forward(draw())
    np.testing.assert_array_equal(rotary_forward(draw(), angles=ctx)[0], y)
    with pytest.raises(ValueError, match=r"x must be float64 of shape \(2, 5, 3, 6\), got float64 of shape"):
        rotary_forward(draw()[:1], angles=ctx)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        rotary_backward(y[:1], ctx)
