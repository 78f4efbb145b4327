"""The formulas of docs/mathematics.md, in plain loops as they stand there, against the functions named below them."""

import math

import numpy as np
import pytest

from ramnet_np.contract import Address, MemoryOptions, RAMState
from ramnet_np.core import decoder, memory, product_softmax, retention, topk
from ramnet_np.core.mass_aware import mass_aware_backward, mass_aware_forward
from ramnet_np.data.mqar import gap_distribution
from ramnet_np.layers import activation, embedding, gate, loss, mlp, norm
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.address import address_backward, address_forward
from ramnet_np.model.gamma import gamma_backward, gamma_forward
from ramnet_np.train.optim import adamw_init, adamw_update, clip_by_global_norm
from ramnet_np.train.schedule import cosine_with_warmup

U, P, K, C = 3, 3, 4, 2
M = P**U
close = np.testing.assert_allclose


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def digit(a, u):
    return a // P**u % P


def sigma(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("renorm", [False, True])
def test_decoder(rng, renorm):
    k = rng.normal(size=(1, 1, 1, U, P))
    index, weight, ctx = decoder.decode_forward(k, K, renorm, 0, np.zeros((1, 1), int))
    p = np.exp(k[0, 0, 0]) / np.exp(k[0, 0, 0]).sum(axis=1, keepdims=True)
    rho = np.array([math.prod(p[u, digit(a, u)] for u in range(U)) for a in range(M)])
    kept = sorted(range(M), key=lambda a: -rho[a])[:K]
    w = rho[kept] / (rho[kept].sum() if renorm else 1)
    assert rho.sum() == pytest.approx(1)
    assert index.ravel().tolist() == kept
    close(weight.ravel(), w)

    w_bar = rng.normal(size=K)
    g = w_bar * w - (w * (w_bar * w).sum() if renorm else 0)
    k_bar = [[sum(g[j] * ((digit(kept[j], u) == i) - p[u, i]) for j in range(K)) for i in range(P)] for u in range(U)]
    computed = decoder.decode_backward(w_bar.reshape(1, 1, 1, K), ctx)[0, 0, 0]
    close(computed, k_bar, atol=1e-15)
    close(computed.sum(axis=1), 0, atol=1e-15)
    assert product_softmax.digits_of(np.array([14]), U, P)[:, 0].tolist() == [digit(14, u) for u in range(U)]


def test_pairs_that_can_be_kept():
    i, j = topk.staircase(K, P, K)
    assert {*zip(i.tolist(), j.tolist(), strict=True)} == {
        (i, j) for i in range(K) for j in range(P) if (i + 1) * (j + 1) <= K
    }


@pytest.mark.parametrize(("update", "gamma"), [("pdma", 0.4), ("pdma", 2.5), ("gsu", -1.2), ("gsu", 0.8)])
def test_retention(update, gamma):
    w = np.linspace(0.01, 0.95, 9)
    alpha = retention.retention_forward(w, gamma, update)
    slopes = retention.retention_backward(w, gamma, alpha, update, 0.0)
    if update == "pdma":
        close(alpha, (1 - w) ** gamma)
        close(slopes, [-gamma * (1 - w) ** (gamma - 1), (1 - w) ** gamma * np.log(1 - w)], rtol=1e-12)
        e = 0.05
        beta = 1 - (1 - e) * w
        close(beta, e + (1 - e) * (1 - w))
        proxy = retention.retention_backward(w, gamma, alpha, update, e)
        close(proxy, [-gamma * (1 - e) * beta ** (gamma - 1), beta**gamma * np.log(beta)], rtol=1e-12)
    if update == "gsu":
        total = (1 - w) + np.exp(gamma) * w
        close(alpha, (1 - w) / total)
        close(alpha, sigma(-np.log(w / (1 - w)) - gamma))
        close(slopes, [-np.exp(gamma) / total**2, -alpha * (1 - alpha)], rtol=1e-12)


@pytest.mark.parametrize("mass_aware", [False, True])
@pytest.mark.parametrize("update", retention.RULES)
def test_memory(rng, update, mass_aware):
    """Forward and backward of the recurrence, one head, slot by slot."""
    T, eps = 6, 1e-3
    # few slots, so that tokens meet in them
    slots = np.array([rng.permutation(7)[:K] for _ in range(2 * T)], np.int32).reshape(2, 1, T, 1, K)
    write, read = (Address(index, rng.uniform(0.05, 0.4, (1, T, 1, K))) for index in slots)
    v, gamma = rng.normal(size=(1, T, 1, C)), rng.uniform(0.3, 2, (1, T, 1))
    state = RAMState(rng.normal(size=(1, 1, M, C)), rng.uniform(0.2, 1, (1, 1, M)))
    y_bar = rng.normal(size=(1, T, 1, C))
    final_bar = RAMState(rng.normal(size=(1, 1, M, C)), rng.normal(size=(1, 1, M)))
    options = MemoryOptions(M, update, mass_aware, eps, 0.0)
    y, final, ctx = memory.memory_forward(write, read, v, gamma, None, state, options, True)
    grads = memory.memory_backward(y_bar, final_bar, ctx)

    s, z = [state.slots[0, 0].copy()], [state.mass[0, 0].copy()]
    alpha, eta = np.zeros((T, M)), np.zeros((T, M))
    for t in range(T):
        s_t, z_t = s[-1].copy(), z[-1].copy()
        for a, w in zip(write.index[0, t, 0], write.weight[0, t, 0], strict=True):
            alpha[t, a] = retention.retention_forward(w, gamma[0, t, 0], update)
            z_t[a] = alpha[t, a] * z_t[a] + w
            eta[t, a] = w / (z_t[a] + eps)
            s_t[a] = s_t[a] + eta[t, a] * (v[0, t, 0] - s_t[a])
        s.append(s_t)
        z.append(z_t)
    close(final.slots[0, 0], s[-1])
    close(final.mass[0, 0], z[-1])

    s_bar, z_bar = final_bar.slots[0, 0].copy(), final_bar.mass[0, 0].copy()
    for t in reversed(range(T)):
        r, slots = read.weight[0, t, 0], read.index[0, t, 0]
        used = r
        if mass_aware:
            n = r * z[t + 1][slots]
            R, D = r.sum(), n.sum() + eps
            used = R * n / D
        close(y[0, t, 0], sum(used[i] * s[t + 1][a] for i, a in enumerate(slots)))
        r_bar = np.array([y_bar[0, t, 0] @ s[t + 1][a] for a in slots])
        for i, a in enumerate(slots):
            s_bar[a] += used[i] * y_bar[0, t, 0]
        if mass_aware:
            R_bar = (r_bar * n).sum() / D
            n_bar = (r_bar - R_bar) * R / D
            r_bar = n_bar * z[t + 1][slots] + R_bar
            for i, a in enumerate(slots):
                z_bar[a] += n_bar[i] * r[i]
        close(grads.read_weight[0, t, 0], r_bar)

        v_bar, gamma_bar = np.zeros(C), 0.0
        for i, a in enumerate(write.index[0, t, 0]):
            w = write.weight[0, t, 0, i]
            eta_bar = s_bar[a] @ (v[0, t, 0] - s[t][a])
            v_bar += eta[t, a] * s_bar[a]
            s_bar[a] = (1 - eta[t, a]) * s_bar[a]
            w_bar = eta_bar / (z[t + 1][a] + eps)
            z_bar[a] -= eta_bar * w / (z[t + 1][a] + eps) ** 2
            slope_w, slope_gamma = retention.retention_backward(
                np.array(w), np.array(gamma[0, t, 0]), alpha[t, a], update, 0.0
            )
            alpha_bar = z_bar[a] * z[t][a]
            w_bar += z_bar[a] + alpha_bar * slope_w
            gamma_bar += alpha_bar * slope_gamma
            z_bar[a] = alpha[t, a] * z_bar[a]
            assert grads.write_weight[0, t, 0, i] == pytest.approx(w_bar, rel=1e-9)
        close(grads.values[0, t, 0], v_bar)
        assert grads.gamma[0, t, 0] == pytest.approx(gamma_bar, rel=1e-9)
    close(grads.state.slots[0, 0], s_bar)
    close(grads.state.mass[0, 0], z_bar)


def test_paper_sums_and_contents(rng):
    """s = S / z, by the paper's eq. 7 and by the recurrence of contents."""
    S, z, s = np.zeros(C), 1 / M, np.zeros(C)
    for w, v in zip(rng.uniform(0, 1, 20), rng.normal(size=(20, C)), strict=True):
        alpha = (1 - w) ** 0.7
        S, z = alpha * S + w * v, alpha * z + w
        s = s + w / z * (v - s)
        close(s, S / z)


def test_mass_aware(rng):
    r, z, r_bar = rng.uniform(size=(3, K))
    n, D = r * z, (r * z).sum() + 1e-3
    close(mass_aware_forward(r, z, 1e-3), r.sum() * n / D)
    R_bar = (r_bar * n).sum() / D
    n_bar = (r_bar - R_bar) * r.sum() / D
    close(mass_aware_backward(r_bar, r, z, 1e-3), (n_bar * z + R_bar, n_bar * r))


def test_norms(rng):
    x, y_bar = rng.normal(size=(2, 4, 5))
    g, b = rng.normal(size=(2, 5))
    for kind, centred in (("rmsnorm", x), ("layernorm", x - x.mean(axis=1, keepdims=True))):
        scale = ((centred**2).mean(axis=1, keepdims=True) + 1e-6) ** -0.5
        n, n_bar = scale * centred, g * y_bar
        x_bar = n_bar - n * (n_bar * n).mean(axis=1, keepdims=True)
        if kind == "layernorm":
            x_bar = x_bar - n_bar.mean(axis=1, keepdims=True)
            y, ctx = norm.layernorm_forward(x, g, b)
            grads = norm.layernorm_backward(y_bar, ctx)
            close(y, g * n + b)
            close(grads.bias, y_bar.sum(axis=0))
        else:
            y, ctx = norm.rmsnorm_forward(x, g)
            grads = norm.rmsnorm_backward(y_bar, ctx)
            close(y, g * n)
        close(grads.x, scale * x_bar)
        close(grads.weight, (y_bar * n).sum(axis=0))


def test_activations_and_gate(rng):
    x, b, y_bar = rng.normal(size=(3, 9))
    cdf = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x])
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    table = {
        "sigmoid": (sigma(x), sigma(x) * (1 - sigma(x))),
        "relu": (np.maximum(x, 0), x > 0),
        "silu": (x * sigma(x), sigma(x) * (1 + x * (1 - sigma(x)))),
        "gelu": (x * cdf, cdf + x * density),
    }
    for name, (value, slope) in table.items():
        forward, backward = activation.ACTIVATIONS[name]
        y, ctx = forward(x)
        close(y, value)
        close(backward(y_bar, ctx), y_bar * slope)
    for silu in (False, True):
        value, slope = table["silu" if silu else "sigmoid"]
        y, ctx = gate.gate_forward(x, b, silu=silu)
        close(y, value * b)
        close(gate.gate_backward(y_bar, ctx), (y_bar * b * slope, y_bar * value))


def test_swiglu(rng):
    X, Y_bar = rng.normal(size=(2, 4, 3))
    (G, V), out = rng.normal(size=(2, 5, 3)), rng.normal(size=(3, 5))
    A, E = X @ G.T, X @ V.T
    Z = A * sigma(A) * E
    Y, ctx = mlp.swiglu_forward(X, G, V, out)
    close(Y, Z @ out.T)
    Z_bar = Y_bar @ out
    A_bar, E_bar = Z_bar * E * sigma(A) * (1 + A * (1 - sigma(A))), Z_bar * A * sigma(A)
    grads = mlp.swiglu_backward(Y_bar, ctx)
    close(grads.x, A_bar @ G + E_bar @ V)
    close(grads.gate, A_bar.T @ X)
    close(grads.up, E_bar.T @ X)
    close(grads.down, Y_bar.T @ Z)


def test_address_projection(rng):
    config = RAMNetConfig(width=4, heads=2, order=U, radix=P, temperature=1.7)
    rows = 2 * U * P
    params = {"w_proj.weight": rng.normal(size=(rows, 4)), "w_proj.bias": rng.normal(size=rows)}
    params["w_scale"] = rng.normal(size=(2, U))
    x, k_bar = rng.normal(size=(1, 3, 4)), rng.normal(size=(1, 3, 2, U, P))
    factor = np.repeat(np.exp(params["w_scale"]).ravel() / 1.7, P)
    W, b = factor[:, None] * params["w_proj.weight"], factor * params["w_proj.bias"]
    k, ctx = address_forward(x, params, "w", config)
    close(k.reshape(3, -1), x[0] @ W.T + b)
    dx, grads = address_backward(k_bar, ctx, "w")
    W_bar, b_bar = k_bar.reshape(3, -1).T @ x[0], k_bar.reshape(3, -1).sum(axis=0)
    close(dx[0], k_bar.reshape(3, -1) @ W)
    close(grads["w_proj.weight"], factor[:, None] * W_bar)
    close(grads["w_proj.bias"], factor * b_bar)
    close(grads["w_scale"].ravel(), ((W_bar * W).sum(axis=1) + b_bar * b).reshape(-1, P).sum(axis=1))


@pytest.mark.parametrize("update", ["pdma", "gsu"])
def test_learned_forgetting(rng, update):
    config = RAMNetConfig(width=4, heads=2, update=update, gamma=0.6, gamma_mode="learnable")
    m, bar = rng.normal(size=2), rng.normal(size=(1, 3, 2))
    gamma, ctx = gamma_forward(np.zeros((1, 3, 4)), {"gamma_modifier": m}, config)
    inner = np.log(np.exp(0.6) - 1) + m
    close(gamma[0, 0], 0.6 + m if update == "gsu" else np.log(1 + np.exp(inner)))
    slope = 1 if update == "gsu" else sigma(inner)
    close(gamma_backward(bar, ctx)[1]["gamma_modifier"], bar[0].sum(axis=0) * slope)


def test_embedding_and_loss(rng):
    E, ids = rng.normal(size=(4, 3)), np.array([2, 0, 2])
    y, ctx = embedding.embedding_forward(ids, E)
    y_bar = rng.normal(size=y.shape)
    close(y, E[ids])
    close(embedding.embedding_backward(y_bar, ctx), [y_bar[1], np.zeros(3), y_bar[0] + y_bar[2], np.zeros(3)])

    x, labels = rng.normal(size=(3, 5)), np.array([1, -100, 4])
    p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    value, ctx = loss.cross_entropy_forward(x, labels)
    assert value == pytest.approx(-(np.log(p[0, 1]) + np.log(p[2, 4])) / 2)
    onehot = np.eye(5)[[1, 0, 4]]
    close(loss.cross_entropy_backward(1.0, ctx), (p - onehot) / 2 * np.array([[1], [0], [1]]))


def test_learning(rng):
    g1, g2 = rng.normal(size=(2, 2, 3))
    clipped = {"x": g1.copy()}
    clip_by_global_norm(clipped, 0.5)
    close(clipped["x"], g1 * min(1, 0.5 / np.linalg.norm(g1)))

    theta, rate, decay, b1, b2 = rng.normal(size=(2, 3)), 0.01, 0.1, 0.9, 0.95
    params, expected, m, u = {"w": theta.copy()}, theta.copy(), 0, 0
    state = adamw_init(params)
    for i, g in enumerate((g1, g2), start=1):
        state = adamw_update(params, {"w": g}, state, rate, beta1=b1, beta2=b2, weight_decay=decay)
        m, u = b1 * m + (1 - b1) * g, b2 * u + (1 - b2) * g**2
        expected = expected - rate * decay * expected - rate * (m / (1 - b1**i)) / (np.sqrt(u / (1 - b2**i)) + 1e-8)
        close(params["w"], expected)

    high, low, warm, end = 1.0, 0.1, 3, 10
    for i in range(1, end + 1):
        by_page = (
            high * i / warm
            if i <= warm
            else low + (high - low) / 2 * (1 + math.cos(math.pi * (i - warm) / (end - warm)))
        )
        assert cosine_with_warmup(i - 1, peak=high, floor=low, warmup=warm, total=end) == pytest.approx(by_page)


def test_recall_task():
    a, N, T = 0.3, 3, 17
    S = (T - 2 * N) // 2
    close(
        gap_distribution(T, N, a), [(g + 1) ** (a - 1) / sum(i ** (a - 1) for i in range(1, S + 1)) for g in range(S)]
    )
