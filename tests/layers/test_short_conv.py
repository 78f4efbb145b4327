import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.short_conv import short_conv_backward, short_conv_forward


def draw(T=6, width=4, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(2, T, 3)).astype(dtype), "weight": rng.normal(size=(3, width)).astype(dtype)}


@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_forward_is_numpys_convolution(width):
    x, weight = draw(width=width).values()
    y, _ = short_conv_forward(x, weight)
    for b, c in np.ndindex(2, 3):
        np.testing.assert_allclose(y[b, :, c], np.convolve(x[b, :, c], weight[c, ::-1])[:6], rtol=1e-12)


@pytest.mark.parametrize("width", [1, 2, 4, 9])
def test_gradients(width):
    gradcheck(short_conv_forward, short_conv_backward, draw(width=width)).raise_if_failed()


@pytest.mark.parametrize("before", [1, 3])
def test_gradients_after_earlier_tokens(before):
    earlier = np.random.default_rng(1).normal(size=(2, before, 3))
    for T in (1, 2, 6):
        gradcheck(
            lambda x, weight: short_conv_forward(x, weight, earlier), short_conv_backward, draw(T)
        ).raise_if_failed()


def test_in_pieces_as_at_once():
    x, weight = draw(9).values()
    whole, _ = short_conv_forward(x, weight)
    for cut in (1, 2, 5):
        y, _ = short_conv_forward(x[:, cut:], weight, x[:, max(0, cut - 3) : cut])
        np.testing.assert_allclose(y, whole[:, cut:], rtol=1e-12)


def test_keeps_float32():
    y, ctx = short_conv_forward(**draw(dtype=np.float32))
    assert {y.dtype, *(g.dtype for g in short_conv_backward(y, ctx))} == {np.dtype(np.float32)}


def test_refuses():
    x, weight = draw().values()
    with pytest.raises(ValueError, match="x must have 3 channels"):
        short_conv_forward(x[..., :2], weight)
    for wrong in (weight[:, 0], weight[:, :0]):
        with pytest.raises(ValueError, match=r"weight must have shape \(D, width\), width at least 1, got \(3,"):
            short_conv_forward(x, wrong)
    with pytest.raises(ValueError, match=r"x must have shape \(B, T, D\), got \(6, 3\)"):
        short_conv_forward(x[0], weight)
    with pytest.raises(ValueError, match="before must hold at most 3 tokens, as the weight reaches, got 4"):
        short_conv_forward(x, weight, x[:, :4])
    with pytest.raises(ValueError, match=r"before must be float64 of shape \(2, 2, 3\), got"):
        short_conv_forward(x, weight, x[:1, :2])
    y, ctx = short_conv_forward(x, weight)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        short_conv_backward(y[:1], ctx)
