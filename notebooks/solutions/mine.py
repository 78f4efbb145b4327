"""The reference solution: everything that ``mine.py`` asks for. Try first; then compare.

Shapes: B sequences, T tokens, H heads, U digits of radix P, M = P**U slots, K of them selected, C channels.
"""

import numpy as np

from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.layers.norm import rmsnorm_backward, rmsnorm_forward
from ramnet_np.train.optim import adamw_update

PARAMETERS = ("write", "write_bias", "read", "read_bias", "value", "out")  # of one layer

# ---------------------------------------------------------------- notebook 2


def digit_softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def digits_of(slot, U, P):
    place = P ** np.arange(U)[:, None]  # digit 0 is the least significant
    return slot[..., None, :] // place % P


def product_softmax(logits, slot, renorm=False):
    p = digit_softmax(logits)
    digits = digits_of(slot, *logits.shape[-2:])
    weight = np.take_along_axis(p, digits, axis=-1).prod(axis=-2)
    if renorm:
        weight = weight / weight.sum(axis=-1, keepdims=True)
    return weight


# ---------------------------------------------------------------- notebook 3


def keep_best(score, slot, K):
    order = np.lexsort((slot, -score), axis=-1)[..., :K]  # by score; equal scores by slot
    score = np.take_along_axis(score, order, axis=-1)
    return score, np.take_along_axis(slot, order, axis=-1)


def beam(logits, K):
    score = logits - logits.max(axis=-1, keepdims=True)
    U, P = score.shape[-2:]
    first = np.broadcast_to(np.arange(P), (*score.shape[:-2], P))
    best, slot = keep_best(score[..., 0, :], first, K)
    for u in range(1, U):
        pairs = best[..., :, None] + score[..., u, None, :]  # (..., n, P)
        slots = slot[..., :, None] + np.arange(P) * P**u
        flat = (*pairs.shape[:-2], -1)
        best, slot = keep_best(pairs.reshape(flat), slots.reshape(flat), K)
    return slot


# ---------------------------------------------------------------- notebook 4


def cape(slot, position, M):
    return (slot - position) % M


# ---------------------------------------------------------------- notebook 5


def retention(w, gamma, update="pdma"):
    if update == "pdma":
        return (1 - w) ** gamma
    return (1 - w) / ((1 - w) + np.exp(gamma) * w)


def mass_aware(r, z, eps=1e-12):
    n = r * z
    return r.sum(axis=-1, keepdims=True) * n / (n.sum(axis=-1, keepdims=True) + eps)


def memory(
    write, w, read, r, v, gamma, M, *,
    update="pdma", aware=False, mask=None, state=None, eps=1e-12,
):  # fmt: skip
    B, T, H, C = v.shape
    s, z = np.zeros((B, H, M, C)), np.full((B, H, M), 1 / M)
    if state is not None:
        s, z = state[0].copy(), state[1].copy()
    if mask is not None:
        w, r = (np.where(mask[:, :, None, None], x, 0) for x in (w, r))
    gamma = np.broadcast_to(gamma, (B, T, H))
    b, h = np.arange(B)[:, None, None], np.arange(H)[:, None]
    y, before = np.empty_like(v), []
    for t in range(T):
        a = b, h, write[:, t]  # (B, H, K): where this token writes
        before.append((s[a], z[a]))
        alpha = retention(w[:, t], gamma[:, t, :, None], update)  # 1
        z[a] = alpha * z[a] + w[:, t]  # 2
        eta = w[:, t] / (z[a] + eps)  # 3
        s[a] += eta[..., None] * (v[:, t, :, None] - s[a])  # 4
        a = b, h, read[:, t]
        share = mass_aware(r[:, t], z[a], eps) if aware else r[:, t]
        y[:, t] = (share[..., None] * s[a]).sum(axis=-2)  # 5
    ctx = write, w, read, r, v, gamma, update, aware, mask, eps, before, s, z
    return y, (s, z), ctx


# ---------------------------------------------------------------- notebook 6


def product_softmax_backward(dweight, logits, slot, renorm=False):
    U, P = logits.shape[-2:]
    weight = product_softmax(logits, slot, renorm)
    g = dweight * weight  # dL / dlog weight
    if renorm:
        g = g - weight * g.sum(axis=-1, keepdims=True)
    hit = digits_of(slot, U, P)[..., None, :] == np.arange(P)[:, None]  # (..., U, P, K)
    pulled = (hit * g[..., None, None, :]).sum(axis=-1)
    return pulled - digit_softmax(logits) * g.sum(axis=-1)[..., None, None]


def retention_backward(w, gamma, update="pdma", proxy_eps=0.0):
    if update == "gsu":
        alpha, odds = retention(w, gamma, "gsu"), np.exp(gamma)
        return -odds / ((1 - w) + odds * w) ** 2, -alpha * (1 - alpha)
    kept = 1 - (1 - proxy_eps) * w
    above_0 = np.maximum(kept, np.finfo(w.dtype).epsneg)
    dw = -gamma * (1 - proxy_eps) * above_0 ** (gamma - 1)
    return dw, kept**gamma * np.log(above_0)


def mass_aware_backward(dshare, r, z, eps=1e-12):
    n, R = r * z, r.sum(axis=-1, keepdims=True)
    D = n.sum(axis=-1, keepdims=True) + eps
    dR = (dshare * n).sum(axis=-1, keepdims=True) / D
    dn = (dshare - dR) * R / D
    return dn * z + dR, dn * r


def memory_backward(dy, ctx, dstate=None, proxy_eps=0.0):
    write, w, read, r, v, gamma, update, aware, mask, eps, before, s, z = ctx
    s, z = s.copy(), z.copy()
    ds, dz = np.zeros_like(s), np.zeros_like(z)
    if dstate is not None:
        ds, dz = dstate[0].copy(), dstate[1].copy()
    dw, dr, dv = np.empty_like(w), np.empty_like(r), np.empty_like(v)
    dgamma = np.empty(v.shape[:3])
    if mask is not None:
        dy = np.where(mask[:, :, None, None], dy, 0)
    B, T, H, _ = v.shape
    b, h = np.arange(B)[:, None, None], np.arange(H)[:, None]
    for t in reversed(range(T)):
        a = b, h, read[:, t]  # 5: y = sum of share * s
        dshare = (s[a] * dy[:, t, :, None]).sum(axis=-1)
        if aware:
            share = mass_aware(r[:, t], z[a], eps)
            dr[:, t], dz_read = mass_aware_backward(dshare, r[:, t], z[a], eps)
            dz[a] += dz_read
        else:
            share, dr[:, t] = r[:, t], dshare
        ds[a] += share[..., None] * dy[:, t, :, None]
        a = b, h, write[:, t]
        s_old, z_old = before[t]
        g = gamma[:, t, :, None]
        eta = w[:, t] / (z[a] + eps)
        # 4: s = (1 - eta) s' + eta v
        deta = (ds[a] * (v[:, t, :, None] - s_old)).sum(axis=-1)
        dv[:, t] = (eta[..., None] * ds[a]).sum(axis=-2)
        ds[a] *= (1 - eta)[..., None]
        dw[:, t] = deta / (z[a] + eps)  # 3: eta = w / (z + eps)
        dz[a] -= deta * w[:, t] / (z[a] + eps) ** 2
        dw[:, t] += dz[a]  # 2: z = alpha z' + w
        dalpha = dz[a] * z_old
        dz[a] *= retention(w[:, t], g, update)
        slope_w, slope_gamma = retention_backward(w[:, t], g, update, proxy_eps)  # 1
        dw[:, t] += dalpha * slope_w
        dgamma[:, t] = (dalpha * slope_gamma).sum(axis=-1)
        s[a], z[a] = s_old, z_old  # the memory as it was before this token
    if mask is not None:
        dw, dr, dv = (np.where(mask[:, :, None, None], x, 0) for x in (dw, dr, dv))
    return dw, dr, dv, dgamma, (ds, dz)


# ---------------------------------------------------------------- notebook 9


def layer(x, params, *, K, tau=1.0, gamma=1.0, use_cape=False):
    logits = {}
    for side in ("write", "read"):
        logits[side] = (np.tensordot(x, params[side], 1) + params[side + "_bias"]) / tau
    U, P = logits["write"].shape[-2:]
    slot = {side: beam(k, K) for side, k in logits.items()}
    weight = {side: product_softmax(logits[side], slot[side]) for side in logits}
    t = np.arange(x.shape[1])[:, None, None]
    at = {side: cape(a, t, P**U) if use_cape else a for side, a in slot.items()}
    v = np.tensordot(x, params["value"], 1)
    write, read = ((at[side], weight[side]) for side in ("write", "read"))
    y, _, ctx = memory(*write, *read, v, gamma, P**U)
    return np.tensordot(y, params["out"], 2), (x, params, tau, logits, slot, y, ctx)


def layer_backward(dout, ctx):
    x, params, tau, logits, slot, y, memory_ctx = ctx
    grads = {"out": np.tensordot(y, dout, ([0, 1], [0, 1]))}
    dy = np.tensordot(dout, params["out"], ([2], [2]))
    dw, dr, dv, _, _ = memory_backward(dy, memory_ctx)
    grads["value"] = np.tensordot(x, dv, ([0, 1], [0, 1]))
    dx = np.tensordot(dv, params["value"], ([2, 3], [1, 2]))
    for side, dweight in (("write", dw), ("read", dr)):
        d = product_softmax_backward(dweight, logits[side], slot[side]) / tau
        grads[side] = np.tensordot(x, d, ([0, 1], [0, 1]))
        grads[side + "_bias"] = d.sum(axis=(0, 1))
        dx += np.tensordot(d, params[side], ([2, 3, 4], [1, 2, 3]))
    return dx, grads


def loss_and_gradients(params, ids, labels, layers):
    x, saved = params["embeddings"][ids], []
    for i, options in enumerate(layers):
        own = {name: params[f"{i}.{name}"] for name in PARAMETERS}
        normed, norm_ctx = rmsnorm_forward(x, params[f"{i}.norm"])
        out, ctx = layer(normed, own, **options)
        x = x + out
        saved.append((norm_ctx, ctx))
    last, norm_ctx = rmsnorm_forward(x, params["norm"])

    E = params["embeddings"]  # the same matrix reads the answer out
    logits = (last @ E.T).reshape(-1, len(E))
    loss, _, _, dlogits = cross_entropy_and_gradient(logits, labels.ravel())
    dlogits = dlogits.reshape(*ids.shape, -1)

    grads = {"embeddings": np.tensordot(dlogits, last, ([0, 1], [0, 1]))}
    dx, grads["norm"] = rmsnorm_backward(dlogits @ E, norm_ctx)
    for i in reversed(range(len(layers))):
        norm_ctx, ctx = saved[i]
        dnormed, own = layer_backward(dx, ctx)
        grads |= {f"{i}.{name}": g for name, g in own.items()}
        through_norm, grads[f"{i}.norm"] = rmsnorm_backward(dnormed, norm_ctx)
        dx = dx + through_norm
    np.add.at(grads["embeddings"], ids, dx)
    return float(loss), grads


def train_step(params, moments, ids, labels, rate, layers):
    loss, grads = loss_and_gradients(params, ids, labels, layers)
    return loss, adamw_update(params, grads, moments, rate)
