import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers import heads
from ramnet_np.layers.delta_rule import delta_rule_backward, delta_rule_forward


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 4)


def draw(T=11, gated=True, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(size=(2, T, 3, d)) for name, d in (("q", 4), ("k", 4), ("v", 5))}
    inputs["k"] /= np.linalg.norm(inputs["k"], axis=-1, keepdims=True)
    inputs["beta"] = rng.uniform(0.1, 1.0, (2, T, 3))
    if gated:
        inputs["log_decay"] = -rng.uniform(0.01, 1.0, (2, T, 3))
    return {name: x.astype(dtype) for name, x in inputs.items()}


def one_by_one(q, k, v, beta, log_decay=None, state=None):
    """The recurrence as it is written; returns y and the transposes of the last S."""
    B, T, H, d = q.shape
    y, final = np.zeros(v.shape), np.zeros((B, H, d, v.shape[-1]))
    for b, h in np.ndindex(B, H):
        S = np.zeros((v.shape[-1], d)) if state is None else state[b, h].T
        for t in range(T):
            a = 1.0 if log_decay is None else np.exp(log_decay[b, t, h])
            key = k[b, t, h]
            S = a * S @ (np.eye(d) - beta[b, t, h] * np.outer(key, key)) + beta[b, t, h] * np.outer(v[b, t, h], key)
            y[b, t, h] = S @ q[b, t, h]
        final[b, h] = S.T
    return y, final


def forward(q, k, v, beta, log_decay=None, state=None):
    y, _, ctx = delta_rule_forward(q, k, v, beta, log_decay, state)
    return y, ctx


def backward(dy, ctx):
    return [grad for grad in delta_rule_backward(dy, ctx) if grad is not None]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("T", [1, 4, 11])
def test_forward_is_the_recurrence(T, gated):
    inputs = draw(T, gated)
    state = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    for start in (None, state):
        y, final, _ = delta_rule_forward(**inputs, state=start)
        for computed, expected in zip((y, final), one_by_one(**inputs, state=start), strict=True):
            np.testing.assert_allclose(computed, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("T", [3, 11])
def test_gradients(T, gated):
    gradcheck(forward, backward, draw(T, gated)).raise_if_failed()


def test_gradients_with_a_state():
    state = np.random.default_rng(9).normal(size=(2, 3, 4, 5))
    gradcheck(lambda *inputs: forward(*inputs, state=state), backward, draw(6)).raise_if_failed()


def test_no_gate_is_a_gate_that_keeps_all():
    inputs = draw(gated=False)
    y, _, ctx = delta_rule_forward(**inputs)
    open_y, _, open_ctx = delta_rule_forward(**inputs, log_decay=np.zeros((2, 11, 3)))
    np.testing.assert_array_equal(open_y, y)
    grads, open_grads = delta_rule_backward(y, ctx), delta_rule_backward(y, open_ctx)
    assert grads.log_decay is None
    for a, b in zip(grads[:4], open_grads[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_in_pieces_as_at_once():
    inputs = draw(11)
    whole, final, _ = delta_rule_forward(**inputs)
    state, pieces = None, []
    for cut in (slice(0, 5), slice(5, 6), slice(6, 11)):
        y, state, _ = delta_rule_forward(*(x[:, cut] for x in inputs.values()), state=state)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(state, final, rtol=1e-10, atol=1e-13)


def test_a_key_that_repeats_recalls_its_last_value_in_float32(monkeypatch):
    """Whole chunks of one key with b = 1: the triangular system is all ones."""
    monkeypatch.setattr(heads, "CHUNK", 64)
    T = 150
    k = np.zeros((1, T, 1, 8), np.float32)
    k[..., 2] = 1
    v = np.random.default_rng(0).normal(size=(1, T, 1, 3)).astype(np.float32)
    y, _, ctx = delta_rule_forward(k, k, v, np.ones((1, T, 1), np.float32))
    np.testing.assert_allclose(y, v, rtol=1e-5, atol=1e-6)
    assert {y.dtype, *(g.dtype for g in delta_rule_backward(y, ctx)[:4])} == {np.dtype(np.float32)}


def test_a_strong_decay_neither_overflows_nor_divides_by_zero():
    inputs = draw(dtype=np.float32)
    inputs["log_decay"][:] = -1000
    y, _, ctx = delta_rule_forward(**inputs)
    own = inputs["beta"][..., None] * inputs["v"] * (inputs["q"] * inputs["k"]).sum(-1, keepdims=True)
    np.testing.assert_allclose(y, own, rtol=1e-4, atol=1e-6)
    assert all(np.isfinite(grad).all() for grad in delta_rule_backward(y, ctx))


def test_resets_within_a_chunk_cost_float32_one_in_a_thousand(monkeypatch):
    """Every few tokens all is forgotten; the sums of logarithms reach -10**4 while the decays between are near 1."""
    monkeypatch.setattr(heads, "CHUNK", 64)
    inputs = draw(150)
    resets = np.random.default_rng(1).random((2, 150, 3)) < 0.3
    inputs["log_decay"] = np.where(resets, -600.0, 0.05 * inputs["log_decay"])
    single = {name: x.astype(np.float32) for name, x in inputs.items()}
    (y, ctx), (expected, expected_ctx) = forward(**single), forward(**inputs)
    np.testing.assert_allclose(expected, one_by_one(**inputs)[0], rtol=1e-9, atol=1e-11)
    computed, wanted = (y, *delta_rule_backward(y, ctx)), (expected, *delta_rule_backward(expected, expected_ctx))
    for got, want in zip(computed, wanted, strict=True):
        assert np.linalg.norm(got - want) <= 1e-3 * np.linalg.norm(want)


def test_leaves_its_inputs_and_ctx_alone():
    inputs = draw()
    before = {name: x.copy() for name, x in inputs.items()}
    y, _, ctx = delta_rule_forward(**inputs)
    first, again = delta_rule_backward(y, ctx), delta_rule_backward(y, ctx)
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])


def test_refuses():
    inputs = draw()
    for name, wrong in (("beta", (2, 11)), ("log_decay", (2, 11, 1)), ("state", (2, 3, 5, 4))):
        with pytest.raises(ValueError, match=rf"{name} must be float64 of shape .* got float64 of shape"):
            delta_rule_forward(**{**inputs, name: np.zeros(wrong)})
    with pytest.raises(ValueError, match=r"log_decay must be 0 or less, got a maximum of 0\.5"):
        delta_rule_forward(**{**inputs, "log_decay": np.full((2, 11, 3), 0.5)})
    with pytest.raises(ValueError, match="k must be float64 of shape"):
        delta_rule_forward(**{**inputs, "k": inputs["k"][:, :2]})
    y, _, ctx = delta_rule_forward(**inputs)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        delta_rule_backward(y[:1], ctx)


def token_by_token(q, k, v, beta, log_decay):
    """y by the recurrence itself, in float64."""
    B, T, H, d_k = q.shape
    y, S = np.zeros(v.shape), np.zeros((B, H, d_k, v.shape[-1]))
    for t in range(T):
        S = S * np.exp(log_decay[:, t])[..., None, None]
        change = beta[:, t, :, None] * (v[:, t] - np.einsum("bhk,bhkc->bhc", k[:, t], S))
        S = S + k[:, t, ..., None] * change[..., None, :]
        y[:, t] = np.einsum("bhk,bhkc->bhc", q[:, t], S)
    return y


@pytest.mark.parametrize("reset", [-150.0, -1e4, -1e6, -1e37, -np.inf])
@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 2e-3), (np.float64, 1e-10)])
def test_hard_resets_do_not_take_the_digits_of_what_comes_behind(reset, dtype, atol):
    rng = np.random.default_rng(0)
    B, T, H, d_k, d_v = 2, 70, 2, 8, 5
    q, k = rng.normal(size=(2, B, T, H, d_k))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    v, beta = rng.normal(size=(B, T, H, d_v)), rng.uniform(0, 1, (B, T, H))
    resets = rng.random((B, T, H)) < 0.3
    inputs = [x.astype(dtype) for x in (q, k, v, beta, np.where(resets, reset, -0.05))]
    y, _, ctx = delta_rule_forward(*inputs)
    np.testing.assert_allclose(y, token_by_token(q, k, v, beta, np.where(resets, reset, -0.05)), atol=atol)
    grads = delta_rule_backward(np.ones_like(y), ctx)
    assert all(np.isfinite(d).all() for d in grads)
    if reset < -746:  # the decay is 0 in either dtype, and stays so: no gradient, not the rounding of one
        assert (grads.log_decay[resets] == 0).all()
        assert (grads.log_decay[~resets] != 0).any()


def test_a_decay_that_is_nan_is_refused():
    q = np.ones((1, 3, 1, 2))
    log_decay = np.array([[[-1.0], [np.nan], [-1.0]]])
    with pytest.raises(ValueError, match="log_decay must be 0 or less, got a maximum of nan"):
        delta_rule_forward(q, q, q, np.ones((1, 3, 1)), log_decay)
