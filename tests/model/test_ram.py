"""The RAM layer and the block: gradients under every option, against the operation called by hand, and bad calls."""

import numpy as np
import pytest

from ramnet_np import RAMState, decode_address, ram_attention_forward
from ramnet_np.core.retention import RULES
from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.block import block_backward, block_forward, block_parameters
from ramnet_np.model.mixers import CallOptions
from ramnet_np.model.mixers.ram import (
    ram_layer_addresses,
    ram_layer_backward,
    ram_layer_forward,
    ram_parameters,
)
from ramnet_np.model.parameters import shapes_of

SMALL = {"vocab": 9, "width": 6, "layers": 1, "heads": 2, "order": 2, "radix": 3, "channels": 4, "top_k": 4}
OPTIONS = {
    "paper": {},
    "value-bias": {"value_bias": True},
    "no-address-bias": {"address_bias": False},
    "no-scale": {"address_scale": False, "temperature": 0.8},
    "gamma-0": {"gamma": 0.0},
    "gamma-learnable": {"gamma": 0.6, "gamma_mode": "learnable"},
    "gamma-dynamic": {"gamma": 2.5, "gamma_mode": "dynamic"},
    "gsu": {"update": "gsu", "gamma": 0.4},
    "gsu-learnable": {"update": "gsu", "gamma": -0.5, "gamma_mode": "learnable"},
    "gsu-dynamic": {"update": "gsu", "gamma": 2.197, "gamma_mode": "dynamic"},
    "norm": {"output_norm": True},
    "gate": {"output_gate": True},
    "init-mass": {"init_mass": 0.7},
    "learned-slots": {"learned_slots": True},
    "learned-slots-mass": {"learned_slots": True, "init_mass": 0.7, "cape": 1, "update": "gsu"},
    "cape": {"cape": 1},
    "K-pair-renorm": {"top_k": (2, 9), "renorm": (True, False)},
    "mass-aware": {"mass_aware": True},
    "authors": {
        "update": "gsu", "gamma_mode": "dynamic", "output_gate": True, "output_norm": True, "mass_aware": True,
        "cape": 2, "renorm": True,
    },
}  # fmt: skip


def draw(parameters, seed=0, dtype=np.float64, scale=0.5):
    """Parameters away from their initial values, where scales and biases are all alike."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(dtype) for name, shape in shapes_of(parameters).items()}


def draw_x(B=2, T=5, D=6, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D)).astype(dtype)


def check_gradients(forward, backward, x, params):
    """Gradcheck of a function of x and named parameters; its backward must return exactly their gradients."""

    def with_names(x, *values):
        out, _, ctx = forward(x, dict(zip(params, values, strict=True)))
        return out, ctx

    def in_order(dout, ctx):
        dx, grads = backward(dout, ctx)
        assert grads.keys() == params.keys()
        return [dx, *(grads[name] for name in params)]

    gradcheck(with_names, in_order, {"x": x} | params, samples=12).raise_if_failed()


@pytest.mark.parametrize("name", OPTIONS)
def test_ram_layer_gradients(name):
    config = RAMNetConfig(**(SMALL | OPTIONS[name]))
    check_gradients(
        lambda x, params: ram_layer_forward(x, params, config),
        ram_layer_backward,
        draw_x(),
        draw(ram_parameters(config)),
    )


def test_ram_layer_gradients_with_mask_state_and_positions():
    config = RAMNetConfig(**SMALL, cape=1)
    rng = np.random.default_rng(5)
    state = RAMState(rng.normal(size=(2, 2, 9, 4)), rng.uniform(0.1, 1.0, (2, 2, 9)))
    options = CallOptions(
        positions=np.array([3, 4, 5, 9, 10]), mask=np.array([[1, 1, 0, 1, 1], [0, 1, 1, 1, 0]], dtype=bool)
    )
    check_gradients(
        lambda x, params: ram_layer_forward(x, params, config, state=state, options=options),
        ram_layer_backward,
        draw_x(),
        draw(ram_parameters(config)),
    )


def test_a_block_that_is_computed_again_asks_for_gradients_only_then(monkeypatch):
    asked = []

    def forward(*arrays, **settings):
        asked.append(settings["gradients"])
        return ram_attention_forward(*arrays, **settings)

    monkeypatch.setattr("ramnet_np.model.mixers.ram.ram_attention_forward", forward)
    config = RAMNetConfig(**SMALL)
    params = draw(block_parameters(config))
    out, _, ctx = block_forward(draw_x(), params, config, options=CallOptions(recompute="block"))
    block_backward(np.ones_like(out), ctx)
    assert asked == [False, True]


@pytest.mark.parametrize("fields", [{}, {"ffn": "gelu", "norm": "layernorm"}, {"ffn": "silu"}, {"ffn": "none"}])
def test_block_gradients(fields):
    config = RAMNetConfig(**SMALL, ffn_width=7, **fields)
    check_gradients(
        lambda x, params: block_forward(x, params, config), block_backward, draw_x(), draw(block_parameters(config))
    )


def test_ram_layer_is_the_operation_between_its_projections():
    config = RAMNetConfig(
        **SMALL, value_bias=True, output_gate=True, output_norm=True, gamma=1.5, gamma_mode="dynamic", cape=1
    )
    p, x = draw(ram_parameters(config)), draw_x()

    def logits(side):
        scale = np.exp(p[f"{side}_scale"])[:, :, None] / np.sqrt(2)
        return (x @ p[f"{side}_proj.weight"].T + p[f"{side}_proj.bias"]).reshape(2, 5, 2, 2, 3) * scale

    raw = x @ p["gamma_modifier.weight"].T + p["gamma_modifier.bias"]
    gamma = np.log1p(np.exp(np.log(np.expm1(1.5)) + raw))
    values = (x @ p["v_proj.weight"].T + p["v_proj.bias"]).reshape(2, 5, 2, 4)
    y, _, _ = ram_attention_forward(logits("w"), logits("r"), values, gamma, top_k=4, cape_heads=1)
    y = p["o_norm.weight"] * y / np.sqrt((y**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps)
    gate = 1 / (1 + np.exp(-(x @ p["o_gate.0.weight"].T + p["o_gate.0.bias"])))
    expected = (gate * y.reshape(2, 5, 8)) @ p["o_proj.weight"].T + p["o_proj.bias"]
    out, _, _ = ram_layer_forward(x, p, config)
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)

    accesses = ram_layer_addresses(x, p, config, 0, CallOptions())
    for name in ("write", "read"):
        expected_address = decode_address(logits(name[0]), 4, cape_heads=1)
        np.testing.assert_array_equal(accesses[name].index, expected_address.index)
        np.testing.assert_allclose(accesses[name].weight, expected_address.weight, rtol=1e-10)


@pytest.mark.parametrize("update", RULES)
@pytest.mark.parametrize("mode", ["learnable", "dynamic"])
def test_gamma_starts_at_its_constant(mode, update):
    fixed = RAMNetConfig(**SMALL, update=update, gamma=0.3)
    learned = RAMNetConfig(**SMALL, update=update, gamma=0.3, gamma_mode=mode)
    params = draw(ram_parameters(learned))
    params |= {name: np.zeros_like(p) for name, p in params.items() if name.startswith("gamma_modifier")}
    np.testing.assert_allclose(
        ram_layer_forward(draw_x(), params, learned)[0], ram_layer_forward(draw_x(), params, fixed)[0], rtol=1e-12
    )


def test_init_mass_of_one_slots_share_is_the_default():
    params = draw(ram_parameters(RAMNetConfig(**SMALL)))
    outs = [
        ram_layer_forward(draw_x(), params, RAMNetConfig(**SMALL, init_mass=mass))[0] for mass in (None, 1 / 9, 0.5)
    ]
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-12)
    assert np.abs(outs[0] - outs[2]).max() > 1e-3


@pytest.mark.parametrize("name", ["paper", "authors", "gamma-learnable"])
def test_ram_layer_keeps_float32(name):
    config = RAMNetConfig(**(SMALL | OPTIONS[name]))
    params = draw(ram_parameters(config), dtype=np.float32)
    options = CallOptions(return_state=True)
    out, state, ctx = ram_layer_forward(draw_x(dtype=np.float32), params, config, options=options)
    dx, grads = ram_layer_backward(out, ctx)
    assert {a.dtype for a in (out, *state, dx, *grads.values())} == {np.dtype(np.float32)}
    assert {n: g.shape for n, g in grads.items()} == shapes_of(ram_parameters(config))


def test_ram_layer_leaves_inputs_parameters_and_gradients_alone():
    config = RAMNetConfig(**(SMALL | OPTIONS["authors"]))
    x, params, dout = draw_x(), draw(block_parameters(config)), draw_x(seed=7)
    before = [x.copy(), dout.copy(), *(p.copy() for p in params.values())]
    _, _, ctx = block_forward(x, params, config)
    first, again = block_backward(dout, ctx), block_backward(dout, ctx)
    for kept, now in zip(before, [x, dout, *params.values()], strict=True):
        np.testing.assert_array_equal(kept, now)
    np.testing.assert_array_equal(first[0], again[0])
    for name in params:
        np.testing.assert_array_equal(first[1][name], again[1][name])
