"""A checkpoint folder is whole or absent, and says which file is damaged."""

import json

import numpy as np
import pytest

from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train import checkpoint as module
from ramnet_np.train.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from ramnet_np.train.optim import adamw_init

MODEL = RAMNetConfig(vocab=12, width=16, layers=1, heads=2, order=2, radix=3, top_k=3)


def example(step):
    model = RAMNet(MODEL, seed=step)
    state = adamw_init(model.params)
    rng = np.random.default_rng(step)
    for moments in (state.mean, state.square):
        for name, m in moments.items():
            m[...] = rng.standard_normal(m.shape)
            assert name in model.params
    return Checkpoint(model, state._replace(step=step), {"seed": 3, "train": {"steps": 50}}, 0.25)


def test_checkpoint_round_trip(tmp_path):
    saved = example(7)
    path = save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(path)
    assert path.name == "step-00000007"
    assert (loaded.optimizer.step, loaded.settings, loaded.best) == (7, saved.settings, 0.25)
    for name, param in saved.model.params.items():
        np.testing.assert_array_equal(loaded.model.params[name], param)
        np.testing.assert_array_equal(loaded.optimizer.mean[name], saved.optimizer.mean[name])
        np.testing.assert_array_equal(loaded.optimizer.square[name], saved.optimizer.square[name])
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def test_save_checkpoint_keeps_the_newest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (3, 12, 5):
        save_checkpoint(tmp_path, example(step))
        assert [f.name for f in tmp_path.iterdir()] == [f"step-{step:08d}"]


def test_save_checkpoint_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    old = save_checkpoint(tmp_path, example(3))

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(tmp_path, example(4))
    assert latest_checkpoint(tmp_path) == old
    load_checkpoint(old)
    save_checkpoint(tmp_path, example(4))  # and what it left behind is in nobody's way
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000004"]


def test_load_checkpoint_damaged(tmp_path):
    path = save_checkpoint(tmp_path, example(3))
    good = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"optimizer\.safetensors is damaged"):
        load_checkpoint(path)
    (path / "optimizer.safetensors").write_bytes(good)
    (path / "training.json").write_text(json.dumps({"step": 3}))
    with pytest.raises(ValueError, match=r"training\.json is damaged or no training state"):
        load_checkpoint(path)


def test_load_checkpoint_of_another_model(tmp_path):
    path = save_checkpoint(tmp_path / "a", example(3))
    other = example(3)
    name = "model.embeddings.weight"
    other.optimizer.mean[name] = np.zeros((5, 5), np.float32)
    odd = save_checkpoint(tmp_path / "b", other)
    (path / "optimizer.safetensors").write_bytes((odd / "optimizer.safetensors").read_bytes())
    with pytest.raises(ValueError, match=rf"must hold two moments of '{name}' with shape \(12, 16\)"):
        load_checkpoint(path)
