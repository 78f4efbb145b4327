"""Hybrids: some layers have another mixer, everything that looks at a layer knows which."""

from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.model import RAMNet, RAMNetConfig, count, state_elements
from ramnet_np.model.generation import Generation
from ramnet_np.model.settled import settled

CONFIG = RAMNetConfig(
    vocab=16, width=16, layers=4, heads=2, order=2, radix=4, top_k=4, cape=(2, 2, 2, 2), hybrid="window",
    hybrid_every=2, window=4,
)  # fmt: skip
IDS = np.random.default_rng(0).integers(16, size=(2, 11))


def test_layers_have_the_parameters_and_states_of_their_mixers():
    model = RAMNet(CONFIG, seed=0)
    slotted = [any(f"layers.{i}.attn.w_proj" in name for name in model.params) for i in range(4)]
    assert slotted == [True, False, True, False]
    of = {mixer: replace(CONFIG, hybrid=None, mixer=mixer) for mixer in ("ram", "window")}
    assert 2 * state_elements(CONFIG) == sum(map(state_elements, of.values()))
    assert sum(row.parameters for row in count(CONFIG)) == model.num_parameters()
    assert "state" in repr(model)
    assert [sorted(layer) for layer in model.trace(IDS)] == [["read", "write"], [], ["read", "write"], []]


@pytest.mark.parametrize("settings", [{}, {"short_conv": 3}, {"mixer": "delta"}, {"hybrid": "softmax"}], ids=str)
def test_pieces_steps_and_generation_equal_the_whole(settings):
    model = RAMNet(replace(CONFIG, init_std=0.2, **settings), seed=0, dtype=np.float64)
    whole = model.forward(IDS)[0]
    _, state = model.forward_with_state(IDS[:, :6], positions=np.arange(6))
    logits, state = model.forward_with_state(IDS[:, 6:9], state, positions=np.arange(6, 9))
    np.testing.assert_allclose(logits, whole[:, 6:9], rtol=1e-9, atol=1e-12)
    for t in (9, 10):
        np.testing.assert_allclose(model.step(IDS[:, t : t + 1], state, np.array([t]))[:, 0], whole[:, t], rtol=1e-9)
    assert (settled(model).forward(IDS)[0] == whole).all()
    longer = model.generate(IDS, 3)
    np.testing.assert_array_equal(longer[:, 11], whole[:, -1].argmax(axis=-1))
    assert Generation(model, IDS).batch == 2


def test_a_hybrid_is_saved(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    model = RAMNet(CONFIG, seed=0)
    model.save_pretrained(tmp_path)
    again = RAMNet.from_pretrained(tmp_path)
    assert again.config == CONFIG
    np.testing.assert_array_equal(again.forward(IDS)[0], model.forward(IDS)[0])


def test_what_a_hybrid_refuses():
    with pytest.raises(ValueError, match="hybrid must be one of"):
        replace(CONFIG, hybrid="other")
    with pytest.raises(ValueError, match="hybrid_every must be at least 1, got 0"):
        replace(CONFIG, hybrid_every=0)
    with pytest.raises(ValueError, match="key_channels must be even for mixer='window'"):
        replace(CONFIG, key_channels=3)  # a setting of the other mixer
    model = RAMNet(CONFIG, seed=0)
    with pytest.raises(ValueError, match="mask must be None for a hybrid"):
        model.forward(IDS, mask=np.ones(IDS.shape, bool))
    with pytest.raises(ValueError, match="cu_seqlens must be None for a hybrid"):
        model.forward(IDS[:1], cu_seqlens=[0, 5, 11])
    with pytest.raises(ValueError, match="mixer must be one of"):
        model.initial_state(1)
