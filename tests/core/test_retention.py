"""Update rules: retention and its slopes."""

import math
from typing import get_args

import numpy as np
import pytest

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward
from ramnet_np.core.dense import dense_ram_attention
from ramnet_np.core.retention import RULES, Update, retention_backward, retention_forward
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.gamma import gamma_forward
from tests.tolerances import assert_close

W = np.array([0.0, 1e-12, 1e-4, 0.3, 0.5, 0.9, 1 - 1e-9])


@pytest.mark.parametrize("gamma", [-5.0, -1.0, 0.0, 0.7, 3.0, 60.0])
def test_gsu_is_a_sigmoid_of_the_logit(gamma):
    w = W[1:]
    expected = 1 / (1 + np.exp(np.log(w / (1 - w)) + gamma))
    assert_close(retention_forward(w, np.array(gamma), "gsu"), expected)


def test_pdma_at_gamma_1_is_gsu_at_gamma_0():
    assert_close(retention_forward(W, np.array(1.0), "pdma"), retention_forward(W, np.array(0.0), "gsu"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("update", RULES)
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.5, 300.0])
def test_retention_is_within_0_and_1_and_slopes_are_finite(gamma, update, dtype):
    w = np.concatenate([W, [1.0]]).astype(dtype)
    g = np.array(gamma, dtype)
    alpha = retention_forward(w, g, update)
    assert ((alpha >= 0) & (alpha <= 1)).all()
    assert alpha[0] == 1
    slopes = retention_backward(w, g, alpha, update, 0.0)
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert all(slope.dtype == dtype for slope in slopes)


@pytest.mark.parametrize("proxy_eps", [0.0, 0.05])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.5])
def test_pdma_slopes_are_those_of_the_proxy(gamma, proxy_eps):
    def proxy(w, g):
        return (proxy_eps + (1 - proxy_eps) * (1 - w)) ** g

    w, g, h = np.array([0.01, 0.4, 0.9]), np.array(gamma), 1e-6
    dw, dgamma = retention_backward(w, g, retention_forward(w, g, "pdma"), "pdma", proxy_eps)
    np.testing.assert_allclose(dw, (proxy(w + h, g) - proxy(w - h, g)) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(dgamma, (proxy(w, g + h) - proxy(w, g - h)) / (2 * h), rtol=1e-7)


def test_pdma_slope_at_weight_1():
    """With the proxy: gamma * (1 - e) * e**(gamma - 1). Without: the steepest slope that any w < 1 has."""
    one, gamma = np.array([1.0]), np.array(0.5)
    dw, _ = retention_backward(one, gamma, np.array([0.0]), "pdma", 0.01)
    np.testing.assert_allclose(dw, -0.5 * 0.99 * 0.01**-0.5)
    dw, dgamma = retention_backward(one, gamma, np.array([0.0]), "pdma", 0.0)
    below = np.nextafter(one, 0)
    steepest, _ = retention_backward(below, gamma, retention_forward(below, gamma, "pdma"), "pdma", 0.0)
    assert dw == steepest
    assert dgamma == 0


def test_the_type_of_the_argument_names_every_rule():
    assert get_args(Update) == tuple(RULES)


@pytest.mark.parametrize("update", RULES)
def test_every_rule_keeps_all_of_what_is_not_written_and_has_true_slopes(update):
    rule = RULES[update]
    assert rule.name == update
    w, g, h = np.array([0.01, 0.4, 0.9]), np.array(max(rule.least_gamma, 0.0) + 0.8), 1e-6
    assert (rule.forward(np.zeros(1), g) == 1).all()
    dw, dgamma = rule.backward(w, g, rule.forward(w, g), 0.0)
    np.testing.assert_allclose(dw, (rule.forward(w + h, g) - rule.forward(w - h, g)) / (2 * h), rtol=1e-7)
    np.testing.assert_allclose(dgamma, (rule.forward(w, g + h) - rule.forward(w, g - h)) / (2 * h), rtol=1e-7)


@pytest.mark.parametrize("update", RULES)
def test_every_rule_is_the_one_that_the_dense_oracle_states(update):
    """One slot, one token: what is left of a mass of 1, beside what is written."""
    w, gamma = 0.3, 0.8
    logits = np.log(np.array([w, 1 - w])).reshape(1, 1, 1, 1, 2)
    state = RAMState(np.zeros((1, 1, 2, 1)), np.ones((1, 1, 2)))
    _, final = dense_ram_attention(logits, logits, np.ones((1, 1, 1, 1)), gamma, update=update, top_k=2, state=state)
    both = np.array([w, 1 - w])
    assert_close(final.mass.ravel(), RULES[update].forward(both, gamma) + both)


def test_the_dense_oracle_refuses_a_rule_that_it_does_not_state(extra_rule):
    x = np.zeros((1, 1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"^update must be 'pdma' or 'gsu'.* for the dense oracle, got 'extra'$"):
        dense_ram_attention(x, x, np.ones((1, 1, 1, 1)), update=extra_rule, top_k=1)


def test_a_rule_put_into_the_table_can_be_used_at_once(extra_rule):
    """By the NumPy backend, its backward, the checks and a model."""
    rng = np.random.default_rng(0)
    write, read = rng.normal(size=(2, 1, 5, 2, 2, 3))
    y, _, ctx = ram_attention_forward(
        write, read, rng.normal(size=(1, 5, 2, 4)), 0.7, update=extra_rule, top_k=2, backend="numpy"
    )
    assert_close(ctx.memory.alpha, np.exp(-(0.7 - 0.5) * ctx.memory.w))
    assert np.isfinite(ram_attention_backward(y, ctx).gamma)
    with pytest.raises(ValueError, match=r"^gamma must be at least 0.5 for update='extra', got 0.25$"):
        ram_attention_forward(write, read, y, 0.25, update=extra_rule, backend="numpy")
    with pytest.raises(ValueError, match=r"got a minimum of 0.25$"):
        ram_attention_forward(write, read, y, np.full((1, 5, 2), 0.25), update=extra_rule, backend="numpy")
    with pytest.raises(ValueError, match=r"^gamma must be 0.5 or more for update='extra', got 0.25$"):
        RAMNetConfig(update=extra_rule, gamma=0.25)
    config = RAMNetConfig(update=extra_rule, gamma=0.75, gamma_mode="learnable", heads=1)
    gamma, _ = gamma_forward(np.zeros((1, 1, 64)), {"gamma_modifier": np.array([-100.0])}, config)
    assert_close(gamma, np.array([[[0.5]]]))
    gamma, _ = gamma_forward(np.zeros((1, 1, 64)), {"gamma_modifier": np.zeros(1)}, config)
    assert_close(gamma, np.array([[[0.75]]]))


SMALL_W, LARGE_GAMMA = [1e-30, 3e-9, 1e-3, 0.5, 1.0, 0.0], [1e30, 1e8, 2e3, 17.0, 1e30, 1e30]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("proxy_eps", [0.0, 0.05])
def test_pdma_keeps_the_digits_of_a_small_weight_under_a_large_gamma(dtype, proxy_eps):
    """1 - w rounds to 1 for w = 1e-30, but (1 - 1e-30)**(1e30) is 1 / e. (Exact: by the logarithm, in float64.)"""
    w, g = np.array(SMALL_W, dtype), np.array(LARGE_GAMMA, dtype)
    lost = (1 - proxy_eps) * w.astype(np.float64)
    kept = [math.exp(b * math.log1p(-a)) if a < 1 else 0.0 for a, b in zip(lost, g.astype(np.float64), strict=True)]
    rtol = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    alpha = retention_forward(w, g, "pdma")
    if proxy_eps == 0:
        np.testing.assert_allclose(alpha, kept, rtol=rtol)
    dw, dgamma = retention_backward(w, g, alpha, "pdma", proxy_eps)
    with np.errstate(divide="ignore"):
        slopes = -g.astype(np.float64) * (1 - proxy_eps) * kept / np.maximum(1 - lost, 1e-30)
    np.testing.assert_allclose(dw[:4], slopes[:4], rtol=rtol)
    np.testing.assert_allclose(dgamma[:4], kept[:4] * np.log1p(-lost[:4]), rtol=rtol)
    assert [a.dtype for a in (alpha, dw, dgamma)] == [dtype] * 3


def test_a_small_gamma_gives_the_bits_of_the_power():
    w = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float32)
    for gamma in (0.0, 0.3, 1.0, 2.5, 16.0):
        np.testing.assert_array_equal(retention_forward(w, gamma, "pdma"), np.power(1 - w, np.float32(gamma)))


@pytest.mark.parametrize("update", RULES)
def test_nan_stays_nan_and_a_gamma_out_of_use_has_its_limit(update):
    """A GPU does not look for NaN: it must reach what it touches. (In CuPy arrays too, the rule is this one.)"""
    w, nan = np.array([0.0, 0.3, 1.0]), np.array(np.nan)
    alpha = retention_forward(w, nan, update)
    assert np.isnan(alpha[1:2]).all()
    assert all(np.isnan(slope[1]) for slope in retention_backward(w, nan, alpha, update, 0.0))
    assert retention_forward(w, np.array(1e4), update).tolist() == [1, 0, 0]
    if update == "gsu":
        assert retention_forward(w, np.array(-1e4), update).tolist() == [1, 1, 0]


@pytest.mark.parametrize("backend", ["numpy", "numba"])  # of Numba CUDA: tests/kernels/test_numba_cuda_agreement.py
@pytest.mark.parametrize("gamma", [-103.0, -95.0, -88.0, 72.0, 88.0, 90.0, 103.0])
def test_gsu_has_gradients_where_a_weight_is_0_or_1_and_the_slope_is_past_float32(gamma, backend):
    write_logits, read_logits = np.random.default_rng(0).standard_normal((2, 1, 6, 1, 2, 4), dtype=np.float32)
    write_logits[..., 0] += 120  # one slot has weight 1, the others 0, exactly
    values = np.full((1, 6, 1, 3), 100, dtype=np.float32)  # large adjoints: the slope must leave room for them
    y, _, ctx = ram_attention_forward(
        write_logits, read_logits, values, gamma, update="gsu", top_k=4, backend=backend, return_state=False
    )
    grads = ram_attention_backward(np.full_like(y, 100), ctx)
    assert all(np.isfinite(grad).all() for grad in grads[:4])


@pytest.mark.parametrize(("dtype", "gamma"), [(np.float32, 72.0), (np.float32, 85.0), (np.float64, 670.0)])
def test_gsu_slopes_below_the_steepest_are_the_true_ones(dtype, gamma):
    w = np.array([1e-20, 1e-3, 0.5, 1.0], dtype=dtype)
    for sign in (1, -1):
        at = w if sign > 0 else w[1:-1]
        slope, _ = retention_backward(at, dtype(sign * gamma), retention_forward(at, sign * gamma, "gsu"), "gsu", 0.0)
        wide, g = at.astype(np.longdouble), np.longdouble(sign * gamma)
        true = -np.exp(g) / ((1 - wide) + np.exp(g) * wide) ** 2
        np.testing.assert_allclose(slope, true.astype(dtype), rtol=1e-4)
