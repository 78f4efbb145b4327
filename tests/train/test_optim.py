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
