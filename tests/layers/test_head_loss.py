"""The head and its loss in pieces: those of all logits at once, to rounding; and gradients of what they are."""

import numpy as np
import pytest

from ramnet_np.layers.head_loss import head_loss_and_gradients
from ramnet_np.layers.loss import cross_entropy_forward


def draw(N=11, D=5, V=7, ignored=(2, 9)):
    rng = np.random.default_rng(0)
    labels = rng.integers(V, size=N)
    labels[list(ignored)] = -100
    return rng.normal(size=(N, D)), rng.normal(size=(V, D)), labels


@pytest.mark.parametrize("piece", [1, 7, 21, 28, 77, 10**9])
def test_pieces_give_the_whole(piece):
    x, weight, labels = draw()
    result = head_loss_and_gradients(x, weight, labels, piece=piece)
    logits = x @ weight.T
    loss, _ = cross_entropy_forward(logits, labels)
    counts = labels >= 0
    assert result.loss == pytest.approx(loss, rel=1e-13)
    assert (int(result.correct), int(result.count)) == ((logits.argmax(-1) == labels)[counts].sum(), counts.sum())
    exps = np.exp(logits)
    dlogits = exps / exps.sum(-1, keepdims=True)
    dlogits[counts, labels[counts]] -= 1
    dlogits[~counts] = 0
    dlogits /= counts.sum()
    np.testing.assert_allclose(result.x, dlogits @ weight, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(result.weight, dlogits.T @ x, rtol=1e-12, atol=1e-15)


def test_a_part_divides_by_the_labels_of_all():
    x, weight, labels = draw()
    whole = head_loss_and_gradients(x, weight, labels)
    parts = [head_loss_and_gradients(x[s], weight, labels[s], whole.count, piece=14) for s in (slice(4), slice(4, 11))]
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss, rel=1e-13)
    assert sum(int(part.correct) for part in parts) == whole.correct
    np.testing.assert_allclose(np.concatenate([part.x for part in parts]), whole.x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(parts[0].weight + parts[1].weight, whole.weight, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("piece", [3, 10**9])
def test_no_labels_that_count(piece):
    x, weight, labels = draw(ignored=range(11))
    result = head_loss_and_gradients(x, weight, labels, piece=piece)
    assert (result.loss, result.count) == (0, 0)
    assert not result.x.any()
    assert not result.weight.any()


def test_refused():
    x, weight, labels = draw()
    with pytest.raises(ValueError, match="labels must have one entry per token"):
        head_loss_and_gradients(x, weight, labels[1:])
    with pytest.raises(ValueError, match="x must"):
        head_loss_and_gradients(x[:, 1:], weight, labels)
