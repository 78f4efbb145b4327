"""Reference cases of the layer and of a training step: ``ramnet_np``'s model with the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from course.same import same
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.mixers.interface import CallOptions
from ramnet_np.model.mixers.ram import ram_layer_backward, ram_layer_forward
from ramnet_np.train.optim import adamw_init, adamw_update

NUMPY = CallOptions(backend="numpy")
SIDES = {"write": "w_proj", "read": "r_proj"}


def config_of(**settings: Any) -> RAMNetConfig:
    return RAMNetConfig(width=8, heads=2, order=3, radix=2, channels=5, top_k=4, address_scale=False, **settings)


def theirs_to_mine(theirs: dict[str, np.ndarray], c: RAMNetConfig) -> dict[str, np.ndarray]:
    """The library's matrices of one layer (or their gradients), in the shapes of ``mine.layer``."""
    H, U, P, C, D = c.heads, c.order, c.radix, c.head_channels, c.width
    ours = {"value": theirs["v_proj.weight"].T.reshape(D, H, C), "out": theirs["o_proj.weight"].T.reshape(H, C, D)}
    for side, name in SIDES.items():
        ours[side] = theirs[f"{name}.weight"].T.reshape(D, H, U, P)
        ours[side + "_bias"] = theirs[f"{name}.bias"].reshape(H, U, P)
    return {name: array.copy() for name, array in ours.items()}


def of_layer(params: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    start = f"model.layers.{i}.attn."
    return {name.removeprefix(start): array for name, array in params.items() if name.startswith(start)}


def model_to_mine(params: dict[str, np.ndarray], c: RAMNetConfig) -> dict[str, np.ndarray]:
    """Those of a whole model without feed-forward networks."""
    ours = {"embeddings": params["model.embeddings.weight"].copy(), "norm": params["model.norm.weight"].copy()}
    for i in range(c.layers):
        ours[f"{i}.norm"] = params[f"model.layers.{i}.attn_norm.weight"].copy()
        ours |= {f"{i}.{name}": array for name, array in theirs_to_mine(of_layer(params, i), c).items()}
    return ours


def layer_case(cape: bool) -> tuple[Any, ...]:
    """x, dout, the arguments of ``mine.layer``, and what the library returns for it: out, dx, gradients."""
    c = config_of(cape=2 * cape, temperature=0.5, gamma=0.7)
    model = RAMNet(c, seed=4, dtype=np.float64)
    params = {name: 8 * array for name, array in of_layer(model.params, 0).items()}
    x, dout = np.random.default_rng(14).standard_normal((2, 2, 11, c.width))
    out, _, ctx = ram_layer_forward(x, params, c, options=NUMPY)
    dx, grads = ram_layer_backward(dout, ctx)
    options = {"K": c.top_k, "tau": 0.5, "gamma": 0.7, "use_cape": cape}
    return x, dout, theirs_to_mine(params, c), options, out, dx, theirs_to_mine(grads, c)


def layer(mine: Any) -> None:
    for cape in (False, True):
        x, _, params, options, out, _, _ = layer_case(cape)
        same(f"use_cape = {cape}: out", mine.layer(x, params, **options)[0], out)


def layer_backward(mine: Any) -> None:
    for cape in (False, True):
        x, dout, params, options, _, dx, grads = layer_case(cape)
        _, ctx = mine.layer(x, params, **options)
        got_dx, got = mine.layer_backward(dout, ctx)
        for name, expected in grads.items():
            same(f"use_cape = {cape}: gradient of {name}", got[name], expected)
        same(f"use_cape = {cape}: dx", got_dx, dx)


def train_step(mine: Any) -> None:
    c = config_of(vocab=12, layers=2, cape=(2, 0), temperature=0.5, ffn="none", tie_embeddings=True)
    model = RAMNet(c, seed=5, dtype=np.float64)
    for array in model.params.values():
        array *= 4
    params = model_to_mine(model.params, c)
    draws = np.random.default_rng(15)
    ids = draws.integers(c.vocab, size=(3, 10))
    labels = np.where(draws.random(ids.shape) < 0.5, ids, -100)
    layers = [{"K": c.top_k, "tau": 0.5, "use_cape": cape} for cape in (True, False)]
    moments, their_moments = adamw_init(params), adamw_init(model.params)
    for step in (1, 2):
        loss, their_grads = loss_and_gradients(model, ids, labels)
        their_moments = adamw_update(model.params, their_grads, their_moments, 1e-2)
        got, moments = mine.train_step(params, moments, ids, labels, 1e-2, layers)
        same(f"loss at step {step}", got, loss)
    for name, expected in model_to_mine(model.params, c).items():
        same(f"{name} after two steps", params[name], expected, rtol=1e-5, atol=1e-6)


def loss_and_gradients(model: RAMNet, ids: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    logits, ctx = model.forward(ids, backend="numpy")
    counts = labels >= 0
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    at_label = np.take_along_axis(p, np.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
    onehot = np.eye(logits.shape[-1])[np.where(counts, labels, 0)]
    dlogits = (p - onehot) * counts[..., None] / counts.sum()
    return -np.log(at_label[counts]).mean(), model.backward(dlogits, ctx)
