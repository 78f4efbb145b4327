import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers import heads
from ramnet_np.layers.gated_linear_attention import gated_linear_attention_backward, gated_linear_attention_forward
from ramnet_np.layers.linear_attention import linear_attention_backward, linear_attention_forward
from tests.tolerances import assert_close

KINDS = {"a rate for each channel": 4, "one rate": 1}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 8)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def rates(request):
    return request.param


def draw(rates, T=19, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(size=(2, T, 3, d)) for name, d in (("q", 4), ("k", 4), ("v", 5))}
    inputs["log_decay"] = -rng.uniform(0.01, 1.0, (2, T, 3, rates))
    return {name: x.astype(dtype) for name, x in inputs.items()}


def some_state(dtype=np.float64):
    return np.random.default_rng(9).normal(size=(2, 3, 4, 5)).astype(dtype)


def one_by_one(q, k, v, log_decay, state=None):
    """The recurrence as it is written, in float64; returns y and the last S."""
    B, T, H, d = q.shape
    y, final = np.zeros(v.shape), np.zeros((B, H, d, v.shape[-1]))
    for b, h in np.ndindex(B, H):
        S = np.zeros((d, v.shape[-1])) if state is None else state[b, h].astype(np.float64)
        for t in range(T):
            a = np.broadcast_to(np.exp(log_decay[b, t, h].astype(np.float64)), d)
            S = np.diag(a) @ S + np.outer(k[b, t, h], v[b, t, h])
            y[b, t, h] = S.T @ q[b, t, h]
        final[b, h] = S
    return y, final


def backward_one_by_one(dy, q, k, v, log_decay, state):
    """R_t, the gradient of S_t, in reverse time, in float64."""
    B, T, H = q.shape[:3]
    grads = {name: np.zeros(x.shape) for name, x in (("q", q), ("k", k), ("v", v), ("log_decay", q))}
    a = np.broadcast_to(np.exp(log_decay.astype(np.float64)), q.shape)
    for b, h in np.ndindex(B, H):
        S = [state[b, h].astype(np.float64)]
        for t in range(T):
            S.append(a[b, t, h][:, None] * S[-1] + np.outer(k[b, t, h], v[b, t, h]))
        R = np.zeros(S[0].shape)
        for t in reversed(range(T)):
            at = b, t, h
            R = R + np.outer(q[at], dy[at])
            grads["q"][at], grads["k"][at], grads["v"][at] = S[t + 1] @ dy[at], R @ v[at], R.T @ k[at]
            R = a[at][:, None] * R
            grads["log_decay"][at] = (S[t] * R).sum(axis=1)
    if log_decay.shape[-1] == 1:
        grads["log_decay"] = grads["log_decay"].sum(axis=-1, keepdims=True)
    return grads


def forward(q, k, v, log_decay, state=None):
    y, _, ctx = gated_linear_attention_forward(q, k, v, log_decay, state)
    return y, ctx


@pytest.mark.parametrize("T", [1, 2, 8, 19])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_and_backward_are_the_recurrence(T, dtype, rates):
    inputs = draw(rates, T, dtype)
    for state in (None, some_state(dtype)):
        y, final, ctx = gated_linear_attention_forward(**inputs, state=state)
        expected = one_by_one(**inputs, state=state)
        assert_close(y, expected[0].astype(dtype))
        assert_close(final, expected[1].astype(dtype))
    dy = np.random.default_rng(1).normal(size=y.shape).astype(dtype)
    grads = gated_linear_attention_backward(dy, ctx)
    for name, expected in backward_one_by_one(dy, **inputs, state=state).items():
        assert_close(getattr(grads, name), expected.astype(dtype), gradient=True, name=name)


@pytest.mark.parametrize("T", [3, 19])
def test_gradients(T, rates):
    gradcheck(forward, gated_linear_attention_backward, draw(rates, T), samples=40).raise_if_failed()


def test_gradients_with_a_state(rates):
    with_state = (lambda *inputs: forward(*inputs, some_state())), gated_linear_attention_backward
    gradcheck(*with_state, draw(rates, 11), samples=40).raise_if_failed()


def test_one_rate_is_the_same_rate_for_every_channel():
    inputs = draw(rates=1)
    every = inputs | {"log_decay": np.repeat(inputs["log_decay"], 4, axis=-1)}
    (y, ctx), (every_y, every_ctx) = forward(**inputs), forward(**every)
    assert_close(every_y, y)
    grads, every_grads = gated_linear_attention_backward(y, ctx), gated_linear_attention_backward(y, every_ctx)
    assert_close(every_grads.log_decay.sum(axis=-1, keepdims=True), grads.log_decay, gradient=True)
    for a, b in zip(every_grads[:3], grads[:3], strict=True):
        assert_close(a, b, gradient=True)


def test_without_decay_it_is_linear_attention_without_a_normaliser(rates):
    inputs = draw(rates)
    inputs["log_decay"][:] = 0
    y, state, ctx = gated_linear_attention_forward(**inputs, state=some_state())
    q, k, v, _ = inputs.values()
    plain_y, plain_state, plain_ctx = linear_attention_forward(
        q, k, v, some_state(), feature_map="identity", normaliser=False
    )
    assert_close(y, plain_y)
    assert_close(state, plain_state)
    grads, plain_grads = gated_linear_attention_backward(y, ctx), linear_attention_backward(y, plain_ctx)
    for a, b in zip(grads[:3], plain_grads, strict=True):
        assert_close(a, b, gradient=True)


def test_in_pieces_as_at_once(rates):
    inputs = draw(rates)
    whole, final, _ = gated_linear_attention_forward(**inputs)
    state, pieces = None, []
    for cut in (slice(0, 5), slice(5, 6), slice(6, 19)):
        y, state, _ = gated_linear_attention_forward(*(x[:, cut] for x in inputs.values()), state=state)
        pieces.append(y)
    assert_close(np.concatenate(pieces, axis=1), whole)
    assert_close(state, final)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("low", [-60.0, -150.0, -1e6, -1e37, -np.inf])
def test_decays_that_underflow_leave_every_other_number_right(low, dtype, rates, monkeypatch):
    """Within whole chunks, resets stand between decays near 1: at the tolerance of any other decays."""
    monkeypatch.setattr(heads, "CHUNK", 64)
    inputs = draw(rates, 150, dtype)
    resets = np.random.default_rng(1).random(inputs["log_decay"].shape) < 0.3
    inputs["log_decay"] = np.where(resets, dtype(low), dtype(0.05) * inputs["log_decay"])
    state = some_state(dtype)
    y, final, ctx = gated_linear_attention_forward(**inputs, state=state)
    expected = one_by_one(**inputs, state=state)
    assert_close(y, expected[0].astype(dtype))
    assert_close(final, expected[1].astype(dtype))
    dy = np.random.default_rng(2).normal(size=y.shape).astype(dtype)
    grads = gated_linear_attention_backward(dy, ctx)
    for name, expected in backward_one_by_one(dy, **inputs, state=state).items():
        assert_close(getattr(grads, name), expected.astype(dtype), gradient=True, name=name)
    if low < -746:  # 0 in either dtype: no gradient, not the rounding of one
        assert not grads.log_decay[resets].any()


def test_leaves_its_inputs_and_ctx_alone(rates):
    inputs = {name: x[:, :16, :1] for name, x in draw(rates).items()}  # whole chunks of one head, read where they are
    before = {name: x.copy() for name, x in inputs.items()}
    y, _, ctx = gated_linear_attention_forward(**inputs)
    dy = y.copy()
    first, again = gated_linear_attention_backward(dy, ctx), gated_linear_attention_backward(dy, ctx)
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    np.testing.assert_array_equal(dy, y)
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])


def test_refuses(rates):
    inputs = draw(rates)
    for name, wrong in (("log_decay", (2, 19, 3, 2)), ("log_decay", (2, 19, 3)), ("state", (2, 3, 5, 4))):
        with pytest.raises(ValueError, match=rf"{name} must be float64 of shape .* got float64 of shape"):
            gated_linear_attention_forward(**{**inputs, name: np.zeros(wrong)})
    with pytest.raises(ValueError, match=r"log_decay must be float64 of shape .* got float32 of shape"):
        gated_linear_attention_forward(**{**inputs, "log_decay": inputs["log_decay"].astype(np.float32)})
    for wrong, most in ((0.5, "0.5"), (np.nan, "nan")):
        inputs["log_decay"][1, 2, 1, 0] = wrong
        with pytest.raises(ValueError, match=f"log_decay must be 0 or less, got a maximum of {most}"):
            gated_linear_attention_forward(**inputs)
    y, _, ctx = gated_linear_attention_forward(**draw(rates))
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        gated_linear_attention_backward(y[:1], ctx)
    with pytest.raises(
        TypeError, match="ctx must be the GatedLinearAttentionContext that gated_linear_attention_forward"
    ):
        gated_linear_attention_backward(y, y)
