"""Learned slots: the state that a layer starts from, its gradient on every backend, and in training and generation."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="safetensors is not installed")
pytest.importorskip("tqdm", reason="tqdm is not installed")

from ramnet_np import RAMState, use_backend
from ramnet_np.data.text import TextSettings
from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.text import TextRun
from ramnet_np.train.optim import has_weight_decay

CONFIG = RAMNetConfig(
    vocab=32, width=32, layers=2, heads=2, order=2, radix=4, top_k=4, cape=(1, 0), learned_slots=True, ffn="none",
    update="gsu", gamma_mode="dynamic",
)  # fmt: skip
IDS = np.random.default_rng(0).integers(32, size=(3, 12))


def model_of(config=CONFIG, dtype=np.float64):
    model = RAMNet(config, seed=0, dtype=dtype)
    rng = np.random.default_rng(1)
    for p in model.params.values():
        p += (0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return model


def gradients(model, ids=IDS):
    logits, ctx = model.forward(ids)
    found = cross_entropy_and_gradient(logits.reshape(-1, logits.shape[-1]), ids.ravel())
    return found.loss, model.backward(found.dlogits.reshape(logits.shape), ctx)


def test_it_starts_as_the_empty_memory_and_is_the_state_that_is_learned():
    plain = RAMNet(replace(CONFIG, learned_slots=False), seed=0, dtype=np.float64)
    fresh = RAMNet(CONFIG, params={**RAMNet(CONFIG, seed=0, dtype=np.float64).params, **plain.params})
    np.testing.assert_allclose(fresh.forward(IDS)[0], plain.forward(IDS)[0], rtol=1e-12)
    model, M = model_of(), CONFIG.slots
    without = RAMNet(plain.config, params={name: model.params[name] for name in plain.params})
    state = [
        RAMState(
            np.tile(model.params[f"model.layers.{i}.attn.slots_bias"], (3, 1, 1, 1)),
            np.tile(np.exp(model.params[f"model.layers.{i}.attn.mass_scale"]) / M, (3, 1, 1)),
        )
        for i in range(2)
    ]
    given = without.forward(IDS, state=state, positions=np.arange(12))[0]
    np.testing.assert_allclose(model.forward(IDS)[0], given, rtol=1e-12)


def test_pieces_and_steps_go_on_from_it():
    model = model_of()
    whole = model.forward(IDS)[0]
    _, state = model.forward_with_state(IDS[:, :7], positions=np.arange(7))
    np.testing.assert_allclose(model.step(IDS[:, 7:8], state, np.array([7]))[:, 0], whole[:, 7], rtol=1e-9)


def test_packed_sequences_each_begin_with_it():
    model = model_of()
    packed = model.forward(IDS.reshape(1, -1), cu_seqlens=[0, 12, 24, 36])[0]
    np.testing.assert_allclose(packed.reshape(3, 12, -1), model.forward(IDS)[0], rtol=1e-9)


def check_backend(name, model, rtol):
    with use_backend("numpy"):
        loss, wanted = gradients(model_of(dtype=np.float64))
    with use_backend(name):
        found_loss, found = gradients(*model)
    assert float(found_loss) == pytest.approx(float(loss), rel=rtol)
    assert any("slots_bias" in key for key in wanted)
    for key, value in wanted.items():
        got = found[key].get() if hasattr(found[key], "get") else found[key]
        np.testing.assert_allclose(got, value, rtol=rtol, atol=rtol * max(1e-9, np.abs(value).max()), err_msg=key)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_gradients_on_a_cpu(name):
    check_backend(name, (model_of(),), 1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cupy", "numba-cuda"])
def test_gradients_on_a_gpu(name):
    import cupy

    check_backend(name, (model_of().to("gpu"), cupy.asarray(IDS)), 1e-7)


@pytest.mark.gpu
def test_gradients_in_16_bits_are_float32():
    import cupy

    loss, wanted = gradients(model_of(dtype=np.float32))
    found_loss, found = gradients(model_of(dtype=np.float32).to("gpu", "bfloat16"), cupy.asarray(IDS))
    assert float(found_loss) == pytest.approx(float(loss), rel=0.05)
    for key, value in wanted.items():
        if key.endswith(("slots_bias", "mass_scale")):
            assert found[key].dtype == np.float32
            distance = np.linalg.norm(found[key].get() - value)
            assert distance < 0.2 * np.linalg.norm(value), key


def test_neither_parameter_decays():
    decayed = [name for name, p in model_of().params.items() if has_weight_decay(name, p)]
    assert not any(name.endswith(("slots_bias", "mass_scale")) for name in decayed)
    assert any(name.endswith("v_proj.weight") for name in decayed)


def test_it_is_saved_and_is_not_carried(tmp_path):
    model = model_of(dtype=np.float32)
    model.save_pretrained(tmp_path)
    again = RAMNet.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.forward(IDS)[0], model.forward(IDS)[0])
    with pytest.raises(ValueError, match="learned_slots must be False for a state without parameters"):
        model.initial_state(1)
    with pytest.raises(ValueError, match=r"model.learned_slots must be False with data.carry_state"):
        TextRun(model=replace(CONFIG, vocab=256), data=TextSettings(carry_state=True))
