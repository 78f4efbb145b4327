"""AdamW against the paper's algorithm written out, and clipping."""

import math

import numpy as np
import pytest

from ramnet_np.train.optim import adamw_init, adamw_update, clip_by_global_norm, global_norm, has_weight_decay

SHAPES = {"layer.proj.weight": (5, 7), "layer.proj.bias": (5,), "layer.w_scale": (2, 3), "norm.weight": (7,)}


def adamw_oracle(p, grads, lr, beta1, beta2, eps, decay):
    """Algorithm 2 of arXiv 1711.05101, in float64, line by line."""
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * p)
    return p


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_adamw_update_against_the_algorithm(dtype, rtol):
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}
    grads = [{name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()} for _ in range(6)]
    options = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3}
    params, before = {n: p.copy() for n, p in start.items()}, [{n: g.copy() for n, g in gs.items()} for gs in grads]
    state = adamw_init(params)
    for g in grads:
        state = adamw_update(params, g, state, 0.05, weight_decay=0.3, **options)
    assert state.step == 6
    for name in SHAPES:
        decay = 0.3 if name == "layer.proj.weight" else 0.0
        expected = adamw_oracle(start[name], [g[name].astype(np.float64) for g in before], 0.05, decay=decay, **options)
        np.testing.assert_allclose(params[name], expected, rtol=rtol, atol=rtol)
        assert params[name].dtype == dtype
    for g, same in zip(grads, before, strict=True):  # gradients are left alone
        for name in SHAPES:
            np.testing.assert_array_equal(g[name], same[name])


def test_adamw_update_in_place_and_same_bits():
    rng = np.random.default_rng(1)
    grads = {"a.weight": rng.standard_normal((64, 33)).astype(np.float32)}
    results = []
    for _ in range(2):
        params = {"a.weight": np.ones((64, 33), np.float32)}
        array = params["a.weight"]
        state = adamw_init(params)
        for _ in range(3):
            state = adamw_update(params, grads, state, 0.01, weight_decay=0.1)
        assert params["a.weight"] is array
        results.append(array)
    np.testing.assert_array_equal(*results)


def test_adamw_update_names_must_agree():
    params = {"a": np.zeros((2, 2)), "b": np.zeros((2, 2))}
    with pytest.raises(ValueError, match="'b' is in one of them only"):
        adamw_update(params, {"a": np.zeros((2, 2))}, adamw_init(params), 0.1)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.embeddings.weight", (8, 4), True),
        ("model.layers.0.attn.r_proj.weight", (8, 4), True),
        ("model.layers.0.attn.r_proj.bias", (8,), False),
        ("model.layers.0.attn.r_scale", (2, 5), False),
        ("model.layers.0.attn.gamma_modifier", (2,), False),
        ("model.layers.0.attn.gamma_modifier.weight", (2, 4), True),
        ("model.layers.0.attn_norm.weight", (4,), False),
        ("model.layers.0.attn.o_norm.weight", (2, 4), False),
    ],
)
def test_decays(name, shape, expected):
    assert has_weight_decay(name, np.zeros(shape)) is expected


def test_clip_by_global_norm():
    rng = np.random.default_rng(2)
    grads = {"a": rng.standard_normal((4, 5)), "b": rng.standard_normal(3)}
    before = {n: g.copy() for n, g in grads.items()}
    norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
    assert clip_by_global_norm(grads, 2 * norm) == pytest.approx(norm, rel=1e-14)
    for name, g in grads.items():
        np.testing.assert_array_equal(g, before[name])
    clip_by_global_norm(grads, norm / 4)
    assert global_norm(grads) == pytest.approx(norm / 4, rel=1e-12)
    for name, g in grads.items():  # the direction stays
        np.testing.assert_allclose(g, before[name] / 4, rtol=1e-12)


def test_clip_by_global_norm_shows_what_is_not_finite():
    grads = {"a": np.array([1.0, np.nan]), "b": np.array([2.0])}
    assert math.isnan(clip_by_global_norm(grads, 1.0))
    assert grads["b"][0] == 2.0


def test_clip_by_global_norm_bad_input():
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        clip_by_global_norm({"a": np.ones(2)}, 0)


@pytest.mark.parametrize(
    ("dtype", "sizes"), [(np.float32, (1e-44, 1e-25, 1e-13, 1e18, 2e19, 1e38)), (np.float64, (1e-200, 1e200))]
)
def test_global_norm_of_what_squares_cannot_hold(dtype, sizes):
    for size in sizes:
        grads = {"a": np.full(3, size, dtype), "b": np.zeros((0, 2), dtype), "c": np.full((2, 1), -size, dtype)}
        expected = float(grads["a"][0]) * math.sqrt(5)
        assert global_norm(grads) == pytest.approx(expected, rel=1e-6)
        assert clip_by_global_norm(grads, expected / 2) == pytest.approx(expected, rel=1e-6)
        assert global_norm(grads) == pytest.approx(
            expected / 2, rel=1e-6 if size > 1e-30 or dtype == np.float64 else 0.2
        )


@pytest.mark.parametrize(("value", "norm"), [(np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan), (0.0, 0.0)])
def test_global_norm_of_what_is_not_finite(value, norm):
    grads = {"a": np.array([1e30, value], np.float32) if value else np.zeros(2, np.float32), "b": np.ones(1) * value}
    np.testing.assert_equal(global_norm(grads), norm)


def unchangeable(kind):
    """Parameters, gradients and moments of two names, something of which cannot be changed in place."""
    params, grads = ({name: np.ones((2, 2)) for name in "ab"} for _ in range(2))
    state = adamw_init(params)
    if kind == "read-only parameter":
        params["b"].flags.writeable = False
    elif kind == "read-only moment":
        state.square["b"].flags.writeable = False
    elif kind == "one array twice":
        params["b"] = params["a"]
    elif kind == "a moment that is a parameter":
        state.mean["b"] = params["b"]
    elif kind == "gradient's shape":
        grads["b"] = np.ones((2, 1))
    elif kind == "gradient's dtype":
        grads["b"] = np.ones((2, 2), np.float32)
    elif kind == "a moment less":
        del state.mean["b"]
    return params, grads, state


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("read-only parameter", r"params\['b'\] must be writeable to be changed in place, got a read-only array"),
        ("read-only moment", r"square\['b'\] must be writeable"),
        ("one array twice", r"params\['a'\] and params\['b'\] must be two arrays to be changed in place, got one"),
        ("a moment that is a parameter", r"params\['b'\] and mean\['b'\] must be two arrays"),
        ("gradient's shape", r"grads\['b'\] must be float64 of shape \(2, 2\), got float64 of shape \(2, 1\)"),
        ("gradient's dtype", r"grads\['b'\] must be float64 of shape \(2, 2\), got float32"),
        ("a moment less", "mean must name the same arrays as params, 'b' is in one of them only"),
    ],
)
def test_an_update_that_cannot_be_made_changes_nothing(kind, words):
    params, grads, state = unchangeable(kind)
    before = [a.copy() for arrays in (params, state.mean, state.square) for a in arrays.values()]
    with pytest.raises(ValueError, match=words):
        adamw_update(params, grads, state, 0.1)
    now = [a for arrays in (params, state.mean, state.square) for a in arrays.values()]
    for a, b in zip(now, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_gradients_that_cannot_be_clipped_are_left_alone():
    first, last = np.full(2, 3.0), np.full(2, 3.0)
    last.flags.writeable = False
    with pytest.raises(ValueError, match=r"grads\['b'\] must be writeable to be changed in place"):
        clip_by_global_norm({"a": first, "b": last}, 1.0)
    with pytest.raises(ValueError, match=r"grads\['a'\] and grads\['b'\] must be two arrays"):
        clip_by_global_norm({"a": first, "b": first}, 1.0)
    assert first.tolist() == [3, 3]
