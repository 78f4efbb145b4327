"""The formulas of docs/mathematics.md on other mixers, in plain loops, against the functions named below them."""

import numpy as np
import pytest

from ramnet_np.layers import (
    delta_rule,
    feature_map,
    gated_linear_attention,
    linear_attention,
    norm,
    rotary,
    short_conv,
    softmax_attention,
    triangular,
)
from ramnet_np.model.channel_decay import channel_decay_backward, channel_decay_forward
from ramnet_np.model.decay import decay_backward, decay_forward

close = np.testing.assert_allclose


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def mixer_arrays(rng, T=9, d=4, channels=3):
    """q, k, v and the gradient of y of one head: what the functions take, and the same as matrices."""
    arrays = [rng.normal(size=(1, T, 1, width)) for width in (d, d, channels, channels)]
    return arrays, [a[0, :, 0] for a in arrays]


def test_short_convolution(rng):
    x, omega, y_bar = rng.normal(size=(1, 7, 1)), rng.normal(size=(1, 3)), rng.normal(size=(1, 7, 1))
    y, ctx = short_conv.short_conv_forward(x, omega)
    dx, domega = short_conv.short_conv_backward(y_bar, ctx)
    w = 3

    def at(a, t):
        return a[0, t, 0] if 0 <= t < 7 else 0.0

    for t in range(7):
        assert y[0, t, 0] == pytest.approx(sum(omega[0, w - 1 - i] * at(x, t - i) for i in range(w)))
        assert dx[0, t, 0] == pytest.approx(sum(omega[0, w - 1 - i] * at(y_bar, t + i) for i in range(w)))
    for i in range(w):
        assert domega[0, w - 1 - i] == pytest.approx(sum(at(y_bar, t) * at(x, t - i) for t in range(7)))


def test_rotary_positions(rng):
    x, y_bar = rng.normal(size=(2, 1, 5, 1, 6))
    y, ctx = rotary.rotary_forward(x)
    dx = rotary.rotary_backward(y_bar, ctx)
    turn = np.exp(1j * np.arange(5)[:, None] * 10000.0 ** (-2 * np.arange(3) / 6))
    for given, computed, factor in ((x, y, turn), (y_bar, dx, turn.conj())):
        z = (given[0, :, 0, :3] + 1j * given[0, :, 0, 3:]) * factor
        close(computed[0, :, 0], np.concatenate([z.real, z.imag], axis=1), atol=1e-12)


@pytest.mark.parametrize("window", [None, 3])
def test_softmax_attention(rng, window):
    (q, k, v, dy), (Q, K_, V, Y_bar) = mixer_arrays(rng)
    T, d = Q.shape
    seen = np.array([[s <= t and (window is None or t - window < s) for s in range(T)] for t in range(T)])
    e = np.exp(Q @ K_.T / np.sqrt(d)) * seen
    p = e / e.sum(axis=1, keepdims=True)
    y, ctx = softmax_attention.softmax_attention_forward(q, k, v, window)
    close(y[0, :, 0], p @ V, atol=1e-14)
    close(ctx.log_sums[0].ravel(), np.log(e.sum(axis=1)))
    p_bar = Y_bar @ V.T
    x_bar = p * (p_bar - (p * p_bar).sum(axis=1, keepdims=True))
    grads = softmax_attention.softmax_attention_backward(dy, ctx)
    close(grads.v[0, :, 0], p.T @ Y_bar)
    close(grads.q[0, :, 0], x_bar @ K_ / np.sqrt(d), atol=1e-14)
    close(grads.k[0, :, 0], x_bar.T @ Q / np.sqrt(d), atol=1e-14)


def test_linear_attention(rng):
    (q, k, v, dy), (Q, K_, V, Y_bar) = mixer_arrays(rng)
    T, d = Q.shape

    def phi(x):
        return np.where(x > 0, x + 1, np.exp(x))

    S, z, S_t, z_t, n, Y = np.zeros((d, 3)), np.zeros(d), [], [], [], []
    for t in range(T):
        S, z = S + np.outer(phi(K_[t]), V[t]), z + phi(K_[t])
        S_t.append(S)
        z_t.append(z)
        n.append(z @ phi(Q[t]) + 1e-6)
        Y.append(S.T @ phi(Q[t]) / n[t])
    y, _, ctx = linear_attention.linear_attention_forward(q, k, v)
    close(y[0, :, 0], Y)
    grads = linear_attention.linear_attention_backward(dy, ctx)
    S_bar, z_bar = np.zeros((d, 3)), np.zeros(d)
    for t in reversed(range(T)):
        u_bar = Y_bar[t] / n[t]
        n_bar = -u_bar @ Y[t]
        S_bar, z_bar = S_bar + np.outer(phi(Q[t]), u_bar), z_bar + n_bar * phi(Q[t])
        close(grads.v[0, t, 0], S_bar.T @ phi(K_[t]))
        close(grads.k[0, t, 0], (S_bar @ V[t] + z_bar) * np.minimum(phi(K_[t]), 1), atol=1e-12)
        close(grads.q[0, t, 0], (S_t[t] @ u_bar + n_bar * z_t[t]) * np.minimum(phi(Q[t]), 1), atol=1e-12)


def test_feature_maps(rng):
    x, bar = rng.normal(size=(2, 7))
    s = 1 / (1 + np.exp(-x))
    elu = np.where(x > 0, x + 1, np.exp(x))
    rows = {
        "elu": (elu, bar * np.minimum(elu, 1)),
        "relu": (np.maximum(x, 0), np.where(x > 0, bar, 0)),
        "silu": (x * s, bar * s * (1 + x * (1 - s))),
        "identity": (x, bar),
    }
    assert rows.keys() == feature_map.FEATURE_MAPS.keys()
    for name, (phi, x_bar) in rows.items():
        y, ctx = feature_map.FEATURE_MAPS[name].forward(x)
        close(y, phi)
        close(feature_map.FEATURE_MAPS[name].backward(bar, ctx), x_bar)


@pytest.mark.parametrize("rates", [1, 4])
def test_gated_linear_attention(rng, rates):
    """The recurrence, forward and backward; one chunk by the runs of the page, from a given state."""
    (q, k, v, dy), (Q, K_, V, Y_bar) = mixer_arrays(rng, T=8)
    log_a = -rng.uniform(0, 0.5, (1, 8, 1, rates))
    a = np.broadcast_to(np.exp(log_a[0, :, 0]), Q.shape)
    M = rng.normal(size=(4, 3))
    y, state, ctx = gated_linear_attention.gated_linear_attention_forward(q, k, v, log_a, M[None, None])
    S = [M]
    for t in range(8):
        S.append(np.diag(a[t]) @ S[t] + np.outer(K_[t], V[t]))
        close(y[0, t, 0], S[t + 1].T @ Q[t])
    close(state[0, 0], S[8])
    grads = gated_linear_attention.gated_linear_attention_backward(dy, ctx)
    S_bar, log_a_bar = np.zeros(M.shape), np.zeros(Q.shape)
    for t in reversed(range(8)):
        S_bar = (np.diag(a[t + 1]) @ S_bar if t < 7 else S_bar) + np.outer(Q[t], Y_bar[t])
        close(grads.q[0, t, 0], S[t + 1] @ Y_bar[t])
        close(grads.k[0, t, 0], S_bar @ V[t])
        close(grads.v[0, t, 0], S_bar.T @ K_[t])
        log_a_bar[t] = a[t] * (S[t] * S_bar).sum(axis=1)
    close(grads.log_decay[0, :, 0], log_a_bar if rates == 4 else log_a_bar.sum(axis=1, keepdims=True), atol=1e-12)

    Y = (Q * K_).sum(axis=1, keepdims=True) * V
    iota, o, length = np.log(a), np.zeros(Q.shape), 1
    while length < 8:
        pairs = [(slice(e, e + length), slice(e + length, e + 2 * length)) for e in range(0, 8, 2 * length)]
        for E, L in pairs:
            Y[L] += (np.exp(iota[L]) * Q[L]) @ (np.exp(o[E]) * K_[E]).T @ V[E]
            iota[L] += np.log(a)[E].sum(axis=0)
            o[E] += np.log(a)[L].sum(axis=0)
        length *= 2
    close(Y + (np.exp(iota) * Q) @ M, y[0, :, 0])
    close(np.diag(np.exp(iota[7])) @ M + (np.exp(o) * K_).T @ V, state[0, 0])


def test_channel_decay(rng):
    W_0, W_1, b = rng.normal(size=(16, 4)), rng.normal(size=(6, 16)), rng.normal(size=6)
    x, bar = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 6))
    params = {"a_proj.0.weight": W_0, "a_proj.1.weight": W_1, "a_proj.1.bias": b}
    log_a, ctx = channel_decay_forward(x, params)
    logit = x @ W_0.T @ W_1.T + b
    close(log_a, -np.log(1 + np.exp(-logit)) / 16)
    dx, grads = channel_decay_backward(bar, ctx)
    l_bar = bar / (1 + np.exp(logit)) / 16
    close(grads["a_proj.1.bias"], l_bar[0].sum(axis=0))
    close(dx, l_bar @ W_1 @ W_0)


def test_delta_rule(rng):
    """The recurrence; one chunk by the matrices of the page, forward and backward, from a given state."""
    (q, k, v, dy), _ = mixer_arrays(rng, T=8)
    k_unit, k_ctx = norm.l2norm_forward(k)
    close(k_unit, k / np.sqrt((k**2).sum(-1, keepdims=True) + 1e-6))
    bar = rng.normal(size=k.shape)
    along = (bar * k_unit).sum(-1, keepdims=True)
    close(norm.l2norm_backward(bar, k_ctx), (bar - along * k_unit) / np.sqrt((k**2).sum(-1, keepdims=True) + 1e-6))
    b, log_a = rng.uniform(0.1, 1, (1, 8, 1)), -rng.uniform(0, 0.5, (1, 8, 1))
    M = rng.normal(size=(4, 3))
    y, state, ctx = delta_rule.delta_rule_forward(q, k_unit, v, b, log_a, M[None, None])
    Q, K_, V, Y_bar = (a[0, :, 0] for a in (q, k_unit, v, dy))
    b, a = b.ravel(), np.exp(log_a.ravel())
    S = M.T
    for t in range(8):
        S = a[t] * S @ (np.eye(4) - b[t] * np.outer(K_[t], K_[t])) + b[t] * np.outer(V[t], K_[t])
        close(y[0, t, 0], S @ Q[t])
    close(state[0, 0], S.T)

    g = np.cumprod(a)
    ratio = g[:, None] / g
    A, P_ = np.tril(K_ @ K_.T * ratio, -1), np.tril(Q @ K_.T * ratio)
    D_b, D_g, D_end = np.diag(b), np.diag(g), np.diag(g[-1] / g)
    R = np.linalg.inv(np.eye(8) + D_b @ A)
    close(triangular.unit_lower_inverse(D_b @ A), R, atol=1e-14)
    U_ = R @ D_b @ (V - D_g @ K_ @ M)
    close(D_g @ Q @ M + P_ @ U_, y[0, :, 0])
    close(g[-1] * M + K_.T @ D_end @ U_, state[0, 0])

    X = D_b @ np.concatenate([V, -D_g @ K_], axis=1)
    U_bar = P_.T @ Y_bar  # one chunk: nothing comes from a next one
    Z_bar = np.concatenate([U_bar, U_bar @ M.T], axis=1)
    X_bar, L_bar = R.T @ Z_bar, -np.tril(R.T @ Z_bar @ (R @ X).T, -1)
    P_bar = np.tril(Y_bar @ U_.T)
    K_K, Q_K = D_b @ L_bar * ratio, P_bar * ratio
    grads = delta_rule.delta_rule_backward(dy, ctx)
    close(grads.v[0, :, 0], D_b @ X_bar[:, :3], atol=1e-12)
    close(grads.q[0, :, 0], D_g @ Y_bar @ M.T + Q_K @ K_, atol=1e-12)
    close(grads.k[0, :, 0], -D_b @ D_g @ X_bar[:, 3:] + Q_K.T @ Q + (K_K + K_K.T) @ K_, atol=1e-12)
    b_bar = (X_bar * (X / b[:, None])).sum(axis=1) + (L_bar * A).sum(axis=1)
    close(grads.beta.ravel(), b_bar, atol=1e-12)
    F = L_bar * (D_b @ A) + P_bar * P_
    log_g_bar = F.sum(axis=1) - F.sum(axis=0) + (X_bar[:, 3:] * X[:, 3:]).sum(axis=1)
    log_g_bar += (D_g @ Y_bar @ M.T * Q).sum(axis=1)
    close(grads.log_decay.ravel(), log_g_bar[::-1].cumsum()[::-1], atol=1e-12)


def test_decay(rng):
    params = {"a_proj.weight": rng.normal(size=(2, 4)), "dt_bias": rng.normal(size=2), "A_log": rng.normal(size=2)}
    x, bar = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 2))
    log_a, step, ctx = decay_forward(x, params)
    logit = x @ params["a_proj.weight"].T + params["dt_bias"]
    expected = -np.exp(params["A_log"]) * np.log(1 + np.exp(logit))
    close(log_a, expected)
    close(step, np.log(1 + np.exp(logit)))
    step_bar = rng.normal(size=step.shape)
    _, grads = decay_backward(bar, ctx, dstep=step_bar)
    close(grads["dt_bias"], ((step_bar - bar * np.exp(params["A_log"])) / (1 + np.exp(-logit)))[0].sum(axis=0))
    close(grads["A_log"], (bar * expected)[0].sum(axis=0))
