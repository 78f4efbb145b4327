"""The decays of mixers: gradients, far out logits, where they start."""

from functools import partial

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNetConfig, decay
from ramnet_np.model.channel_decay import channel_decay_backward, channel_decay_forward
from ramnet_np.model.decay import decay_backward, decay_forward, decay_parameters
from ramnet_np.model.parameters import init_parameters


def test_decay_gradients():
    rng = np.random.default_rng(0)
    names = {"a_proj.weight": (3, 5), "dt_bias": (3,), "A_log": (3,)}
    inputs = {"x": rng.normal(size=(2, 4, 5))} | {name: rng.normal(size=shape) for name, shape in names.items()}

    def forward(x, *params, outputs=slice(2)):
        *both, ctx = decay_forward(x, dict(zip(names, params, strict=True)))
        return tuple(both[outputs]), ctx

    def backward(douts, ctx):
        dx, grads = decay_backward(douts[0], ctx, dstep=douts[1] if len(douts) == 2 else None)
        return [dx, *(grads[name] for name in names)]

    gradcheck(forward, backward, inputs).raise_if_failed()
    gradcheck(partial(forward, outputs=slice(1)), backward, inputs).raise_if_failed()
    log_decay, _, ctx = decay_forward(inputs.pop("x"), inputs)
    with pytest.raises(ValueError, match=r"dstep must be float64 of shape \(2, 4, 3\), got"):
        decay_backward(log_decay, ctx, dstep=log_decay[0])
    with pytest.raises(ValueError, match=r"dlog_decay must be float64 of shape \(2, 4, 3\), got"):
        decay_backward(log_decay[..., :1], ctx)


def test_a_decay_of_far_out_logits_is_finite():
    params = {"a_proj.weight": np.eye(2, dtype=np.float32), "dt_bias": np.zeros(2, np.float32)}
    params["A_log"] = np.zeros(2, np.float32)
    log_decay, step, ctx = decay_forward(np.array([[[1000.0, -1000.0]]], np.float32), params)
    np.testing.assert_array_equal(log_decay, [[[-1000.0, 0.0]]])
    np.testing.assert_array_equal(step, [[[1000.0, 0.0]]])
    dx, grads = decay_backward(np.ones_like(log_decay), ctx)
    np.testing.assert_array_equal(dx, [[[-1.0, 0.0]]])
    assert {x.dtype for x in (log_decay, dx, *grads.values())} == {np.dtype(np.float32)}


def test_a_decay_starts_at_the_step_that_was_drawn(monkeypatch):
    """softplus(dt) lies in the range, also where softplus is far from an exponential."""
    monkeypatch.setattr(decay, "STEPS", (2.0, 3.0))
    config = RAMNetConfig(width=64, heads=64, mixer="delta", delta_gate=True)
    step = np.logaddexp(init_parameters(decay_parameters(config), seed=0, dtype=np.float64)["dt_bias"], 0)
    assert 2 <= step.min() * 1.001 < 2.1
    assert 2.9 < step.max() <= 3 * 1.001


def test_channel_decay_gradients():
    rng = np.random.default_rng(0)
    names = {"a_proj.0.weight": (16, 5), "a_proj.1.weight": (6, 16), "a_proj.1.bias": (6,)}
    inputs = {"x": rng.normal(size=(2, 4, 5))} | {name: rng.normal(size=shape) for name, shape in names.items()}

    def backward(dy, ctx):
        dx, grads = channel_decay_backward(dy, ctx)
        return [dx, *(grads[name] for name in names)]

    gradcheck(
        lambda x, *params: channel_decay_forward(x, dict(zip(names, params, strict=True))),
        backward,
        inputs,
        samples=40,
    ).raise_if_failed()
    log_decay, ctx = channel_decay_forward(inputs.pop("x"), inputs)
    with pytest.raises(ValueError, match=r"dlog_decay must be float64 of shape \(2, 4, 6\), got"):
        channel_decay_backward(log_decay[..., :1], ctx)


def test_a_channel_decay_of_far_out_logits_is_finite():
    params = {"a_proj.0.weight": np.eye(16, 2), "a_proj.1.weight": np.eye(2, 16), "a_proj.1.bias": np.zeros(2)}
    params = {name: p.astype(np.float32) for name, p in params.items()}
    log_decay, ctx = channel_decay_forward(np.array([[[-1600.0, 1600.0]]], np.float32), params)
    np.testing.assert_array_equal(log_decay, np.array([[[-100.0, 0.0]]], np.float32), strict=True)
    dx, grads = channel_decay_backward(np.ones_like(log_decay), ctx)
    np.testing.assert_array_equal(dx, np.array([[[0.0625, 0.0]]], np.float32), strict=True)
    assert {p.dtype for p in grads.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_rate_that_would_be_infinite_forgets_all_and_has_gradients(dtype):
    params = {"a_proj.weight": np.eye(1, dtype=dtype), "dt_bias": np.zeros(1, dtype), "A_log": np.full(1, 1e4, dtype)}
    log_decay, _, ctx = decay_forward(np.ones((1, 1, 1), dtype), params)
    assert np.exp(log_decay).item() == 0
    dx, grads = decay_backward(np.zeros_like(log_decay), ctx)
    assert all(array.item() == 0 for array in (dx, *grads.values()))
