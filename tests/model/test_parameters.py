import numpy as np
import pytest

from ramnet_np.model import RAMNetConfig, preset
from ramnet_np.model.address import address_prior
from ramnet_np.model.layout import model_parameters, parameter_shapes
from ramnet_np.model.mixers.ram import ram_parameters
from ramnet_np.model.parameters import init_parameters, shapes_of

AUTHORS = RAMNetConfig(
    vocab=32, width=8, layers=1, heads=2, order=3, radix=4, update="gsu", gamma_mode="dynamic", output_gate=True,
    output_norm=True, tie_embeddings=False, ffn_width=12,
)  # fmt: skip


def test_names_and_shapes_are_the_authors():
    assert parameter_shapes(AUTHORS) == {
        "model.embeddings.weight": (32, 8),
        "model.layers.0.attn_norm.weight": (8,),
        "model.layers.0.attn.r_proj.weight": (24, 8),
        "model.layers.0.attn.r_proj.bias": (24,),
        "model.layers.0.attn.r_scale": (2, 3),
        "model.layers.0.attn.w_proj.weight": (24, 8),
        "model.layers.0.attn.w_proj.bias": (24,),
        "model.layers.0.attn.w_scale": (2, 3),
        "model.layers.0.attn.v_proj.weight": (8, 8),
        "model.layers.0.attn.o_proj.weight": (8, 8),
        "model.layers.0.attn.gamma_modifier.weight": (2, 8),
        "model.layers.0.attn.gamma_modifier.bias": (2,),
        "model.layers.0.attn.o_norm.weight": (4,),
        "model.layers.0.attn.o_gate.0.weight": (8, 8),
        "model.layers.0.attn.o_gate.0.bias": (8,),
        "model.layers.0.mlp_norm.weight": (8,),
        "model.layers.0.mlp.gate_proj.weight": (12, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 12),
        "model.norm.weight": (8,),
        "lm_head.weight": (32, 8),
    }


@pytest.mark.parametrize(
    ("fields", "added", "gone"),
    [
        ({"value_bias": True}, {"v_proj.bias": (6,), "o_proj.bias": (8,)}, set()),
        ({"gamma_mode": "learnable"}, {"gamma_modifier": (2,)}, set()),
        ({"address_bias": False}, {}, {"r_proj.bias", "w_proj.bias"}),
        ({"address_scale": False}, {}, {"r_scale", "w_scale"}),
    ],
)
def test_options_add_and_remove_parameters(fields, added, gone):
    base = {"width": 8, "heads": 2, "channels": 3}
    plain, changed = (shapes_of(ram_parameters(RAMNetConfig(**base, **more))) for more in ({}, fields))
    assert {name: shape for name, shape in changed.items() if name not in plain} == added
    assert plain.keys() - changed.keys() == gone


def test_initial_values():
    config = RAMNetConfig(
        vocab=512, width=64, layers=1, heads=3, order=4, radix=5, gamma_mode="learnable", value_bias=True,
        output_gate=True, output_norm=True, norm="layernorm", init_std=0.05,
    )  # fmt: skip
    params = init_parameters(model_parameters(config), seed=3, dtype=np.float32)
    assert {p.dtype for p in params.values()} == {np.dtype(np.float32)}
    drawn = [n for n in params if n.endswith(".weight") and "norm" not in n]
    assert len(drawn) == 9
    for name in drawn:
        values = params[name]
        spread = 4 / np.sqrt(values.size)  # four standard errors, relative to the standard deviation
        assert abs(values.std() / 0.05 - 1) < spread, name
        assert abs(values.mean() / 0.05) < spread, name
    attn = "model.layers.0.attn."
    prior = np.linspace(0, 1.5, 4)[:, None] * np.linspace(-1, 1, 5)
    for side in ("r", "w"):
        for head in params[f"{attn}{side}_proj.bias"].reshape(3, 4, 5):
            np.testing.assert_allclose(head, prior, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(params[f"{attn}o_gate.0.bias"], 3)
    for name in ("r_scale", "w_scale", "gamma_modifier", "v_proj.bias", "o_proj.bias"):
        np.testing.assert_array_equal(params[attn + name], 0)
    for name in (f"{attn}o_norm", "model.norm", "model.layers.0.attn_norm", "model.layers.0.mlp_norm"):
        np.testing.assert_array_equal(params[f"{name}.weight"], 1)
    np.testing.assert_array_equal(params["model.norm.bias"], 0)


def test_seed_decides_the_values_in_either_dtype():
    config = preset("mqar-demo")
    parameters = model_parameters(config)
    first, again, wide = (init_parameters(parameters, 0, dtype) for dtype in (np.float32, np.float32, np.float64))
    other = init_parameters(parameters, 1, np.float32)
    for name in parameters:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name].astype(np.float64), wide[name])
    assert (first["model.embeddings.weight"] != other["model.embeddings.weight"]).any()


def test_the_prior_of_cape_heads_alone():
    config = RAMNetConfig(vocab=8, width=8, layers=2, heads=2, order=3, radix=4, cape=(1, 0), address_prior="cape")
    params = init_parameters(model_parameters(config), seed=0, dtype=np.float32)
    first, second = (params[f"model.layers.{i}.attn.w_proj.bias"].reshape(2, 3, 4) for i in range(2))
    np.testing.assert_array_equal(first[0], address_prior(config))
    assert not first[1].any()
    assert not second.any()
