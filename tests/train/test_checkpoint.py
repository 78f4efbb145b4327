"""A checkpoint folder is whole or absent, and says which file is damaged."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.checkpoint import (
    Checkpoint,
    checkpoint_step,
    checkpoints_in,
    latest_checkpoint,
    load_checkpoint,
    require_same_settings,
    restore,
    save_checkpoint,
)
from ramnet_np.train.optim import adamw_init
from tests.model.test_files import file_size_limit

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


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="asks Linux which file is flushed")
def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """The names in the new folder are flushed before it is renamed, and its own name after that."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (done.append(os.readlink(f"/proc/self/fd/{n}")), fsync(n)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append((str(a), str(b))), replace(a, b)))
    path = save_checkpoint(tmp_path, example(7))
    (new,) = [pair[0] for pair in done if isinstance(pair, tuple) and pair[1] == str(path)]
    renamed = done.index((new, str(path)))
    assert done[renamed - 1] == new
    assert str(tmp_path) in done[renamed:]


def steps_in(folder):
    return [checkpoint_step(path) for path in checkpoints_in(folder)]


def test_save_checkpoint_keeps_the_newest_two_and_the_best(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    kept = []
    for step, accuracy in ((1, None), (2, 0.5), (3, 0.9), (4, 0.7), (5, 0.6), (6, 0.9), (7, None), (8, 0.1), (9, 0.1)):
        save_checkpoint(tmp_path, example(step)._replace(accuracy=accuracy))
        kept.append(steps_in(tmp_path))
    assert kept == [[1], [1, 2], [2, 3], [3, 4], [3, 4, 5], [5, 6], [6, 7], [6, 7, 8], [6, 8, 9]]
    assert latest_checkpoint(tmp_path).name == "step-00000009"
    assert load_checkpoint(tmp_path / "step-00000006").accuracy == 0.9
    assert len(list(tmp_path.iterdir())) == 3


def test_save_checkpoint_leaves_what_is_not_ours(tmp_path):
    """Folders and files whose names begin as a checkpoint's do, and folders that hold none."""
    copy = save_checkpoint(tmp_path, example(1)).rename(tmp_path / "step-00000001-good")
    (tmp_path / "step-notes.txt").write_text("mine")
    (tmp_path / "step-00000002").write_text("a file")
    (tmp_path / "step-٣").mkdir()  # a digit, but none of ours
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "mine").touch()
    elsewhere = save_checkpoint(tmp_path / "elsewhere", example(4))
    (tmp_path / "step-00000004").symlink_to(elsewhere)
    before = sorted(tmp_path.iterdir())
    for step in (6, 7, 8, 9):
        save_checkpoint(tmp_path, example(step))
    assert steps_in(tmp_path) == [3, 4, 8, 9]
    assert set(before) < set(tmp_path.iterdir())
    assert (tmp_path / "step-00000003" / "mine").exists()
    for kept in (copy, elsewhere):
        load_checkpoint(kept)


def test_save_checkpoint_removes_what_killed_runs_left(tmp_path):
    for name in (".step-00000007.partial", ".step-00000003.removed", ".step-00000004.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").touch()
    (tmp_path / ".step-good.partial").mkdir()
    save_checkpoint(tmp_path, example(5))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000005", ".step-good.partial"}


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_a_whole_checkpoint_is_there_at_every_instant(tmp_path, monkeypatch, at):
    """The program is killed at the ``at``-th rename of a folder while the only checkpoint is saved once more."""
    save_checkpoint(tmp_path, example(5))
    other = example(5)._replace(best=0.75)
    replace, count = os.replace, []

    def killed(a, b):
        if Path(a).is_dir():
            count.append(b)
            if len(count) == at + 1:
                raise KeyboardInterrupt
        return replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        if at < 3:
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(tmp_path, other)
        else:
            save_checkpoint(tmp_path, other)
    assert load_checkpoint(latest_checkpoint(tmp_path)).best == (0.25 if at < 2 else 0.75)
    save_checkpoint(tmp_path, other)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert load_checkpoint(latest_checkpoint(tmp_path)).best == 0.75


@pytest.mark.parametrize("when", ["while it is written", "before its rename"])
def test_older_checkpoints_are_there_until_the_new_one_is(tmp_path, monkeypatch, when):
    """Also those that the new one makes too many: one that fails takes no other with it."""
    for step, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2)):
        save_checkpoint(tmp_path, example(step)._replace(accuracy=accuracy))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert steps_in(tmp_path) == [1, 2, 3]

    def killed(*_):
        raise KeyboardInterrupt

    where = "_write" if when == "while it is written" else "_rename"
    with monkeypatch.context() as patch:
        patch.setattr(f"ramnet_np.train.checkpoint.{where}", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, example(4))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    save_checkpoint(tmp_path, example(4))
    assert steps_in(tmp_path) == [1, 3, 4]


@pytest.mark.parametrize("limit", [100, 1500, 6000, 20_000])
def test_a_full_disk_leaves_the_old_checkpoints(tmp_path, limit):
    """Whichever file does not fit: the model, the moments, training.json (which is made long), config.json."""
    old = [save_checkpoint(tmp_path, example(step)) for step in (3, 4)]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    long = example(5)._replace(settings={"long": "x" * 40_000})
    with file_size_limit(limit), pytest.raises(OSError, match=r"could not be written: .*File too large") as refused:
        save_checkpoint(tmp_path, long)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == old
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    save_checkpoint(tmp_path, long)
    assert steps_in(tmp_path) == [4, 5]


def test_save_checkpoint_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    old = save_checkpoint(tmp_path, example(3))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for where in ("ramnet_np.train.checkpoint.save_file", "ramnet_np.train.checkpoint.write_text", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(OSError, match=r"could not be written: No space left on device$"):
                save_checkpoint(tmp_path, example(4))
        assert list(tmp_path.iterdir()) == [old]
    load_checkpoint(old)


def test_the_files_of_a_checkpoint_have_the_umasks_mode(tmp_path):
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, example(3))
    finally:
        os.umask(before)
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == dict.fromkeys(
        ("model.safetensors", "config.json", "optimizer.safetensors", "training.json"), 0o640
    )


def test_load_checkpoint_damaged(tmp_path):
    path = save_checkpoint(tmp_path, example(3))
    good = (path / "optimizer.safetensors").read_bytes()
    (path / "optimizer.safetensors").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"optimizer\.safetensors' is damaged"):
        load_checkpoint(path)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"optimizer\.safetensors' is missing"):
        load_checkpoint(path)
    moments = load_file(save_checkpoint(tmp_path / "other", example(3)) / "optimizer.safetensors")
    next(iter(moments.values())).flat[0] = np.nan
    save_file(moments, path / "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors' must hold finite moments"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format must be 1, which this version can read, got 99"),
        ({"format": None}, "format must be 1, which this version can read, got None"),
        ({"step": -5}, "step must be a whole number of 0 or more, got -5"),
        ({"step": 3.0}, "step must be a whole number of 0 or more, got 3.0"),
        ({"step": float("inf")}, "it holds Infinity"),
        ({"step": "1e999"}, "step must be a whole number of 0 or more, got inf"),
        ({"step": True}, "step must be a whole number of 0 or more, got True"),
        ({"best": float("nan")}, "it holds NaN"),
        ({"best": 7}, "best must be an accuracy from 0 to 1, got 7"),
        ({"accuracy": "high"}, "accuracy must be an accuracy from 0 to 1 or null, got 'high'"),
        ({"settings": [1]}, r"settings must be an object, got \[1\]"),
        ({"calls": 5}, "calls must be a list, got 5"),
    ],
)
def test_training_json_that_holds_what_no_run_wrote(tmp_path, change, message):
    path = save_checkpoint(tmp_path, example(3))
    text = json.dumps(json.loads((path / "training.json").read_text()) | change).replace('"1e999"', "1e999")
    (path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=rf"training\.json' is damaged or .*{message}"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"[]", b"", b'{"step": 3}'])
def test_training_json_that_is_none(tmp_path, content):
    path = save_checkpoint(tmp_path, example(3))
    (path / "training.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"training\.json'"):
        load_checkpoint(path)


def damage(path, name):
    if name == "gone":
        (path / "config.json").unlink()
    else:
        (path / name).write_bytes((path / name).read_bytes()[:40])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "training.json", "config.json", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, name):
    for step in (3, 4):
        newest = save_checkpoint(tmp_path, example(step))
    damage(newest, name)
    said = []
    restored = restore(example(9).model, tmp_path, example(3).settings, said.append)
    assert restored.optimizer.step == 3
    [word] = said
    assert f"{newest.name}/{'config.json' if name == 'gone' else name}" in word
    assert f"the run goes on from step 3, and the damaged folder is now {tmp_path}/step-00000004-damaged" in word
    assert steps_in(tmp_path) == [3]
    assert (tmp_path / "step-00000004-damaged").is_dir()
    damage(save_checkpoint(tmp_path, example(4)), name)
    restore(example(9).model, tmp_path, example(3).settings, said.append)
    assert (tmp_path / "step-00000004-damaged-2").is_dir()


def test_where_all_checkpoints_are_damaged_nothing_is_changed(tmp_path):
    for step in (3, 4):
        damage(save_checkpoint(tmp_path, example(step)), "training.json")
    with pytest.raises(ValueError, match=r"step-00000004/training\.json' is damaged"):
        restore(example(9).model, tmp_path, example(3).settings)
    assert steps_in(tmp_path) == [3, 4]


def test_other_settings_are_no_damage(tmp_path):
    for step in (3, 4):
        newest = save_checkpoint(tmp_path, example(step))
    damage(newest, "training.json")
    with pytest.raises(ValueError, match="seed must be 3 as in the checkpoint that is resumed, got 4"):
        restore(example(9).model, tmp_path, example(3).settings | {"seed": 4})
    assert steps_in(tmp_path) == [3, 4]


def test_load_checkpoint_of_another_model(tmp_path):
    path = save_checkpoint(tmp_path / "a", example(3))
    other = example(3)
    name = "model.embeddings.weight"
    other.optimizer.mean[name] = np.zeros((5, 5), np.float32)
    odd = save_checkpoint(tmp_path / "b", other)
    (path / "optimizer.safetensors").write_bytes((odd / "optimizer.safetensors").read_bytes())
    with pytest.raises(ValueError, match=rf"must hold two moments of '{name}' with shape \(12, 16\)"):
        load_checkpoint(path)


def test_a_setting_that_an_older_run_did_not_know_has_its_default():
    now = {"seed": 0, "model": {"width": 8, "gate_activation": "sigmoid"}, "train": {"steps": 5}}
    older = {"seed": 0, "model": {"width": 8}, "train": {"steps": 5}}
    require_same_settings(now, older)
    with pytest.raises(ValueError, match=r"^model.gate_activation must be 'sigmoid' as in the checkpoint"):
        require_same_settings(now | {"model": {"width": 8, "gate_activation": "silu"}}, older)
    with pytest.raises(ValueError, match=r"^data must be None as in the checkpoint"):  # no setting of model or training
        require_same_settings(now | {"data": 1}, older)
