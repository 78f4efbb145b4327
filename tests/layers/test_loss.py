import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers.loss import cross_entropy_and_gradient, cross_entropy_backward, cross_entropy_forward

ALL = np.array([[0, 3, 2], [4, 4, 1]])
SOME = np.array([[0, -100, 2], [-100, 4, 1]])


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize("labels", [ALL, SOME])
def test_cross_entropy_gradient(labels):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    gradcheck(
        lambda logits: cross_entropy_forward(logits, labels), cross_entropy_backward, {"logits": logits}
    ).raise_if_failed()


@pytest.mark.parametrize("labels", [ALL, SOME])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_cross_entropy_forward_is_the_mean_over_what_counts(labels, shift):
    logits = 10 * np.random.default_rng(0).normal(size=(2, 3, 5)) + shift
    counts = labels >= 0
    expected = -log_softmax(logits)[counts, labels[counts]].mean()
    loss, _ = cross_entropy_forward(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_cross_entropy_ignores_other_logits():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    spoiled = logits.copy()
    spoiled[SOME < 0] = np.nan
    loss, ctx = cross_entropy_forward(spoiled, SOME)
    assert loss == cross_entropy_forward(logits, SOME)[0]
    assert not cross_entropy_backward(1.0, ctx)[SOME < 0].any()


def test_cross_entropy_of_extremes_is_finite():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    loss, ctx = cross_entropy_forward(logits, np.array([1, 0]))
    assert loss == 1e4
    np.testing.assert_allclose(cross_entropy_backward(1.0, ctx), [[0.5, -0.5], [0.0, 0.0]], atol=1e-7)


def test_cross_entropy_with_nothing_to_count_is_zero():
    loss, ctx = cross_entropy_forward(np.ones((2, 5)), np.array([-100, -100]))
    assert loss == 0
    np.testing.assert_array_equal(cross_entropy_backward(1.0, ctx), np.zeros((2, 5)))


def test_cross_entropy_keeps_float32_and_its_inputs():
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    before = logits.copy()
    loss, ctx = cross_entropy_forward(logits, ALL.ravel())
    assert loss.dtype == cross_entropy_backward(1.0, ctx).dtype == np.float32
    np.testing.assert_array_equal(logits, before)


def test_cross_entropy_takes_another_ignored_label():
    logits = np.random.default_rng(0).normal(size=(2, 5))
    loss, _ = cross_entropy_forward(logits, np.array([3, 0]), ignore_index=0)
    np.testing.assert_allclose(loss, -log_softmax(logits[0])[3], rtol=1e-12)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0, 5]), ValueError, "labels must lie between 0 and 4, got 5"),
        (np.array([0, -1]), ValueError, "labels must lie between 0 and 4, got -1"),
        (np.array([0, 1, 2]), ValueError, r"labels must have one entry per token, shape \(2,\), got \(3,\)"),
        (np.array([0.0, 1.0]), TypeError, "labels must be integers, got float64"),
    ],
)
def test_cross_entropy_refuses(labels, error, message):
    with pytest.raises(error, match=message):
        cross_entropy_forward(np.zeros((2, 5)), labels)


def test_loss_and_gradient_at_once_equal_the_two():
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(size=(6, 5)), np.array([0, 4, -100, 2, -100, 2])
    loss, ctx = cross_entropy_forward(logits, labels)
    result = cross_entropy_and_gradient(logits.copy(), labels)
    assert float(result.loss) == float(loss)
    assert (int(result.correct), int(result.count)) == (int((logits.argmax(1) == labels).sum()), 4)
    np.testing.assert_array_equal(result.dlogits, cross_entropy_backward(1.0, ctx))
    with pytest.raises(ValueError, match=r"labels must have one entry per token, shape \(6,\), got \(3,\)"):
        cross_entropy_and_gradient(logits, labels[:3])
