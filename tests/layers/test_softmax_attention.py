import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers import softmax_attention
from ramnet_np.layers.softmax_attention import (
    softmax_attention_backward,
    softmax_attention_forward,
    softmax_attention_step,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of three queries, with a window of two: several blocks in few tokens."""
    monkeypatch.setattr(softmax_attention, "QUERIES", 3)
    monkeypatch.setattr(softmax_attention, "FEWEST_QUERIES", 2)


def draw(T=8, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, T, 3, d)).astype(dtype) for name, d in (("q", 4), ("k", 4), ("v", 5))}


def one_by_one(q, k, v, window=None, earlier=0):
    """Token by token, head by head; ``q`` starts at the token ``earlier`` of k and v."""
    B, T, H, d = q.shape
    y = np.zeros((B, T, H, v.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        end = earlier + t + 1
        seen = slice(0 if window is None else max(0, end - window), end)
        weights = np.exp(k[b, seen, h] @ q[b, t, h] / np.sqrt(d))
        y[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return y


@pytest.mark.parametrize("window", [None, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("T", [1, 3, 8])
def test_forward_is_the_sum_over_what_is_seen(T, window):
    inputs = draw(T)
    y, _ = softmax_attention_forward(**inputs, window=window)
    np.testing.assert_allclose(y, one_by_one(**inputs, window=window), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_gradients(window):
    may_be_zero = ("q", "k") if window == 1 else ()  # a token that sees itself alone
    gradcheck(
        lambda q, k, v: softmax_attention_forward(q, k, v, window),
        softmax_attention_backward,
        draw(),
        may_be_zero=may_be_zero,
    ).raise_if_failed()


@pytest.mark.parametrize("window", [None, 2, 6])
def test_in_pieces_as_at_once(window):
    q, k, v = draw(11).values()
    whole, _ = softmax_attention_forward(q, k, v, window)
    for cut in (1, 5, 10):
        past = k[:, :cut], v[:, :cut]
        y, ctx = softmax_attention_forward(q[:, cut:], k[:, cut:], v[:, cut:], window, past)
        np.testing.assert_allclose(y, whole[:, cut:], rtol=1e-12)
        np.testing.assert_allclose(y, one_by_one(q[:, cut:], k, v, window, earlier=cut), rtol=1e-12)
        assert [g.shape for g in softmax_attention_backward(y, ctx)] == [x[:, cut:].shape for x in (q, k, v)]


def test_gradients_with_a_past():
    past = tuple(x[:, :4] for x in list(draw(seed=5).values())[1:])
    gradcheck(
        lambda q, k, v: softmax_attention_forward(q, k, v, 6, past), softmax_attention_backward, draw(5)
    ).raise_if_failed()


def test_large_scores_do_not_overflow():
    q, k, v = draw(dtype=np.float32).values()
    y, ctx = softmax_attention_forward(1000 * q, 1000 * k, v)
    assert np.isfinite(y).all()
    assert all(np.isfinite(g).all() for g in softmax_attention_backward(y, ctx))


def test_keeps_float32_and_its_inputs():
    inputs = draw(dtype=np.float32)
    before = {name: x.copy() for name, x in inputs.items()}
    y, ctx = softmax_attention_forward(**inputs)
    first, again = softmax_attention_backward(y, ctx), softmax_attention_backward(y, ctx)
    assert {y.dtype, *(g.dtype for g in first)} == {np.dtype(np.float32)}
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])


def test_a_window_is_never_taken_apart_by_all_pairs(monkeypatch):
    """No product is larger than a block of queries by the keys that it reaches."""
    largest = 0

    def watched(a, b, accumulate_into=None):
        nonlocal largest
        largest = max(largest, a.shape[-2] * b.shape[-1], a.shape[-2] * a.shape[-1])
        return multiply(a, b, accumulate_into)

    multiply = softmax_attention.matmul
    monkeypatch.setattr(softmax_attention, "matmul", watched)
    y, ctx = softmax_attention_forward(**draw(50), window=4)
    softmax_attention_backward(y, ctx)
    assert largest <= 5 * 6


def test_refuses():
    q, k, v = draw().values()
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        softmax_attention_forward(q, k, v, window=0)
    with pytest.raises(ValueError, match=r"k must be float64 of shape \(2, 8, 3, 4\), got float64 of shape"):
        softmax_attention_forward(q, k[:, :3], v)
    with pytest.raises(ValueError, match=r"v must have shape \(2, 8, 3, d_v\), as q has it, got \(2, 8, 2, 5\)"):
        softmax_attention_forward(q, k, v[:, :, :2])
    with pytest.raises(TypeError, match=r"v must have the dtype of q \(float64\), got float32"):
        softmax_attention_forward(q, k, v.astype(np.float32))
    with pytest.raises(TypeError, match="q must be float32 or float64 on the CPU, got int64"):
        softmax_attention_forward(q.astype(int), k, v)
    with pytest.raises(TypeError, match="k must be an array, got list"):
        softmax_attention_forward(q, [1.0], v)
    with pytest.raises(ValueError, match=r"q must have shape \(B, T, H, d_k\), none of them 0, got \(2, 0, 3, 4\)"):
        softmax_attention_forward(q[:, :0], k, v)
    with pytest.raises(ValueError, match=r"past values must be float64 of shape \(2, 3, 3, 5\), got"):
        softmax_attention_forward(q, k, v, past=(k[:, :3], v[:, :2]))
    y, ctx = softmax_attention_forward(q, k, v)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        softmax_attention_backward(y[..., :1], ctx)


def test_a_step_is_the_next_token_of_a_sequence():
    q, k, v = draw(6).values()
    whole, _ = softmax_attention_forward(q, k, v)
    cache, used = tuple(np.full((len(x), 9, *x.shape[2:]), np.nan) for x in (k, v)), np.zeros(1, np.int64)
    for t in range(6):
        y = softmax_attention_step(*(x[:, t : t + 1] for x in (q, k, v)), cache, used)
        np.testing.assert_allclose(y[:, 0], whole[:, t], rtol=1e-12, atol=1e-12)
        used += 1
    for part, given in zip(cache, (k, v), strict=True):
        np.testing.assert_array_equal(part[:, :6], given)
        assert np.isnan(part[:, 6:]).all()


def test_what_does_not_fit_in_a_step_is_named():
    q, k, v = (x[:, :1] for x in draw(5).values())
    cache, used = tuple(np.zeros((len(x), 9, *x.shape[2:])) for x in (k, v)), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="q must hold one token in a step, got 2"):
        softmax_attention_step(*(np.repeat(x, 2, axis=1) for x in (q, k, v)), cache, used)
    with pytest.raises(ValueError, match="cache must be C-contiguous, got a view"):
        softmax_attention_step(q, k, v, tuple(x[:, :4] for x in cache), used)
    with pytest.raises(ValueError, match="past values must be float64 of shape"):
        softmax_attention_step(q, k, v, (cache[0], cache[1][:, :4]), used)
    with pytest.raises(ValueError, match=r"used must be int64 of shape \(1,\)"):
        softmax_attention_step(q, k, v, cache, used[0])
