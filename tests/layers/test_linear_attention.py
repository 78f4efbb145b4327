import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.layers import heads
from ramnet_np.layers.linear_attention import linear_attention_backward, linear_attention_forward

EPS = 1e-6  # as the equation has it


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK", 4)


def draw(T=11, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, T, 3, d)).astype(dtype) for name, d in (("q", 4), ("k", 4), ("v", 5))}


def phi(x):
    return np.where(x > 0, x + 1, np.exp(x))


PHI = {
    "elu": phi,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "identity": lambda x: x,
}
KINDS = [*((name, False) for name in PHI), ("relu", True)]  # feature map, normaliser; other tests have ("elu", True)


def without_normaliser(q, k, v, feature_map):
    """The recurrence of one matrix for each head."""
    B, T, H, d = q.shape
    y, S = np.zeros(v.shape), np.zeros((B, H, d, v.shape[-1]))
    for b, t, h in np.ndindex(B, T, H):
        S[b, h] += np.outer(PHI[feature_map](k[b, t, h]), v[b, t, h])
        y[b, t, h] = S[b, h].T @ PHI[feature_map](q[b, t, h])
    return y, S


def one_by_one(q, k, v, phi=phi):
    """The recurrence of one matrix and one vector for each head."""
    B, T, H, d = q.shape
    y, state = np.zeros(v.shape), np.zeros((B, H, d, v.shape[-1] + 1))
    for b, h in np.ndindex(B, H):
        S, z = np.zeros((d, v.shape[-1])), np.zeros(d)
        for t in range(T):
            S += np.outer(phi(k[b, t, h]), v[b, t, h])
            z += phi(k[b, t, h])
            y[b, t, h] = S.T @ phi(q[b, t, h]) / (z @ phi(q[b, t, h]) + EPS)
        state[b, h] = np.concatenate([S, z[:, None]], axis=1)
    return y, state


def all_pairs(q, k, v):
    """Attention with phi(q) . phi(k) in the place of the exponential."""
    weights = np.einsum("bthd,bshd->bhts", phi(q), phi(k)) * np.tri(q.shape[1])
    return np.einsum("bhts,bshc->bthc", weights / (weights.sum(axis=-1, keepdims=True) + EPS), v)


def forward(q, k, v, state=None):
    y, _, ctx = linear_attention_forward(q, k, v, state)
    return y, ctx


@pytest.mark.parametrize("T", [1, 4, 11])
def test_forward_is_the_recurrence_and_the_sum_over_pairs(T):
    inputs = draw(T)
    inputs["q"][0] -= 10  # features so small that what is added to the normaliser counts
    y, state, _ = linear_attention_forward(**inputs)
    expected, final = one_by_one(**inputs)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(y, all_pairs(**inputs), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state, final, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("T", [3, 11])
def test_gradients(T):
    gradcheck(forward, linear_attention_backward, draw(T)).raise_if_failed()


def test_gradients_with_a_state():
    state = np.random.default_rng(9).uniform(0.1, 1.0, size=(2, 3, 4, 6))
    gradcheck(lambda q, k, v: forward(q, k, v, state), linear_attention_backward, draw(6)).raise_if_failed()


@pytest.mark.parametrize(("feature_map", "normaliser"), KINDS)
def test_other_features_and_no_normaliser(feature_map, normaliser):
    inputs, options = draw(11), {"feature_map": feature_map, "normaliser": normaliser}
    y, final, _ = linear_attention_forward(**inputs, **options)
    if normaliser:
        expected = one_by_one(**inputs, phi=PHI[feature_map])
    else:
        expected = without_normaliser(**inputs, feature_map=feature_map)
    np.testing.assert_allclose(y, expected[0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(final, expected[1], rtol=1e-12, atol=1e-13)
    before = {name: x[:, :5] for name, x in inputs.items()}
    _, state, _ = linear_attention_forward(**before, **options)
    after = {name: x[:, 5:] for name, x in inputs.items()}
    pieces_y, pieces_final, _ = linear_attention_forward(**after, state=state, **options)
    np.testing.assert_allclose(pieces_y, y[:, 5:], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(pieces_final, final, rtol=1e-12, atol=1e-13)

    def forward(*arrays):
        y, _, ctx = linear_attention_forward(*arrays, state, **options)
        return y, ctx

    gradcheck(forward, linear_attention_backward, after, samples=40).raise_if_failed()


def test_in_pieces_as_at_once():
    inputs = draw(11)
    whole, final, _ = linear_attention_forward(**inputs)
    state, pieces = None, []
    for cut in (slice(0, 5), slice(5, 6), slice(6, 11)):
        y, state, _ = linear_attention_forward(*(x[:, cut] for x in inputs.values()), state)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-12)
    np.testing.assert_allclose(state, final, rtol=1e-12)


def test_keeps_float32_and_its_inputs():
    inputs = draw(dtype=np.float32)
    before = {name: x.copy() for name, x in inputs.items()}
    y, state, ctx = linear_attention_forward(**inputs)
    first, again = linear_attention_backward(y, ctx), linear_attention_backward(y, ctx)
    assert {y.dtype, state.dtype, *(g.dtype for g in first)} == {np.dtype(np.float32)}
    for a, b in zip(first, again, strict=True):
        assert a.tobytes() == b.tobytes()
    for name, x in inputs.items():
        np.testing.assert_array_equal(x, before[name])
    np.testing.assert_allclose(y, one_by_one(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_features_that_underflow_divide_by_eps_at_worst():
    q, k, v = draw(dtype=np.float32).values()
    y, _, ctx = linear_attention_forward(q - 1000, k, v)
    assert not y.any()
    assert all(np.isfinite(g).all() for g in linear_attention_backward(np.ones_like(y), ctx))


def test_refuses():
    q, k, v = draw().values()
    with pytest.raises(ValueError, match=r"state must be float64 of shape \(2, 3, 4, 6\), got float64 of shape"):
        linear_attention_forward(q, k, v, np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match=r"state must be float64 of shape \(2, 3, 4, 5\), got float64 of shape"):
        linear_attention_forward(q, k, v, np.zeros((2, 3, 4, 6)), normaliser=False)
    with pytest.raises(ValueError, match="feature_map must be one of 'elu', 'relu', 'silu', 'identity', got 'exp'"):
        linear_attention_forward(q, k, v, feature_map="exp")
    with pytest.raises(ValueError, match=r"feature_map must be one of .* got \['elu'\]"):
        linear_attention_forward(q, k, v, feature_map=["elu"])
    with pytest.raises(TypeError, match="normaliser must be True or False, got 'no'"):
        linear_attention_forward(q, k, v, normaliser="no")
    for name in ("silu", "identity"):
        with pytest.raises(ValueError, match=f"normaliser must be False for feature_map '{name}', .* got True"):
            linear_attention_forward(q, k, v, feature_map=name)
    with pytest.raises(ValueError, match="k must be float64 of shape"):
        linear_attention_forward(q, k[..., :2], v)
    y, _, ctx = linear_attention_forward(q, k, v)
    with pytest.raises(ValueError, match="dy must be float64 of shape"):
        linear_attention_backward(y[:1], ctx)
