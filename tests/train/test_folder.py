"""One run at a time in a folder, and an old run that is lost only to a whole new one."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ramnet_np.model import RAMNet
from ramnet_np.train import loop
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.folder import held_folder
from ramnet_np.train.metrics import read_metrics
from tests.train.test_loop import CONFIG, MODEL, Interrupting, next_token_data, run

HOLD = """
import sys, time
from pathlib import Path
from ramnet_np.train.folder import held_folder

with held_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """Another program that holds the folder ``tmp_path``/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_programs_do_not_write_to_one_folder_and_a_dead_one_holds_none(tmp_path, held):
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ValueError, match=rf"no other run writes to, but process {held.pid} on .* holds"):
            run(tmp_path / "run", **options)
    assert set(os.listdir(tmp_path / "run")) == {".lock"}
    held.send_signal(signal.SIGKILL)
    held.wait()
    assert (tmp_path / "run" / ".lock").exists()
    assert run(tmp_path / "run").status == "finished"
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_runs_of_one_program_do_not_either(tmp_path):
    class Second(Interrupting):
        def batch(self, step):
            if step == 3:
                with pytest.raises(ValueError, match=rf"but process {os.getpid()} on .* holds"):
                    run(tmp_path, overwrite=True)
            return self.data.batch(step)

    assert run(tmp_path, data=Second(next_token_data(), 0)).status == "finished"


def test_the_lock_goes_with_the_block(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), held_folder(tmp_path):
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


class Failing:
    """A data set whose batch for ``at`` cannot be made."""

    def __init__(self, data, at):
        self.data, self.at = data, at

    def batch(self, step):
        if step == self.at:
            raise RuntimeError("no batch")
        return self.data.batch(step)

    def held_out(self):
        return self.data.held_out()


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_run_that_is_overwritten_is_there_until_the_new_one_has_a_checkpoint(tmp_path, at):
    """Checkpoints come at step 5: a new run that ends before leaves the old one as it was."""
    run(tmp_path, settings={"run": "old"})
    before = files_of(tmp_path)
    with pytest.raises(RuntimeError, match="no batch"):
        run(tmp_path, settings={"run": "new"}, overwrite=True, data=Failing(next_token_data(), at))
    assert files_of(tmp_path) == before
    with pytest.raises(RuntimeError, match="no batch"):
        run(tmp_path, settings={"run": "new"}, overwrite=True, data=Failing(next_token_data(), 5))
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000005"]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 5
    assert not [path for path in tmp_path.rglob(".*")]
    assert run(tmp_path, settings={"run": "new"}, resume=True).step == 12


def test_a_run_whose_replacement_was_killed_is_found_again(tmp_path, monkeypatch):
    whole = run(tmp_path, settings={"run": "old"})
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("ramnet_np.train.folder.RunFolder.put_back", lambda self: None)  # a killed program does nothing
        with pytest.raises(RuntimeError, match="no batch"):
            run(tmp_path, settings={"run": "new"}, overwrite=True, data=Failing(next_token_data(), 3))
    assert latest_checkpoint(tmp_path / "checkpoints") is None
    with pytest.raises(ValueError, match="holds a run at step 12"):
        run(tmp_path)
    assert files_of(tmp_path) == before
    assert run(tmp_path, settings={"run": "old"}, resume=True).accuracy == whole.accuracy


def test_overwriting_leaves_what_is_not_of_the_run(tmp_path):
    result = run(tmp_path)
    good = result.checkpoint.with_name("step-00000012-good")
    result.checkpoint.rename(good)
    (tmp_path / "notes.txt").write_text("mine")
    run(tmp_path, overwrite=True)
    assert good.is_dir()
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metrics.jsonl",
            b"my own numbers\n",
            r"line 1 of .*metrics\.jsonl must be a JSON object, got 'my own n",
        ),
        ("metrics.jsonl", b'{"loss": 3}\n', r"line 1 of .*metrics\.jsonl must be a record of a step"),
        ("metrics.jsonl", b"\xff\xfe", r"metrics\.jsonl must hold JSON objects, a line each, got what is no UTF-8"),
        ("metrics.jsonl", None, r"metrics\.jsonl' must be a file of metrics, got a folder"),
        ("checkpoints", b"", r"checkpoints' must be a folder of checkpoints, got a file"),
    ],
)
def test_what_only_has_the_name_of_ours_is_left_alone(tmp_path, name, content, message):
    if content is None:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_bytes(content)
    before = files_of(tmp_path)
    for overwrite in (False, True):  # no checkpoint says that a run is here to overwrite
        with pytest.raises(ValueError, match=message):
            run(tmp_path, data=Failing(next_token_data(), 0), overwrite=overwrite)
    assert files_of(tmp_path) == before


def test_nothing_is_made_where_nothing_can_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume: no checkpoint below"):
        run(tmp_path / "a slip of the pen", resume=True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="out must name a folder, got an empty name"):
        run("")
    with pytest.raises(ValueError, match="resume and overwrite must not both be set"):
        run(tmp_path, resume=True, overwrite=True)


def test_a_run_without_its_metrics_is_resumed(tmp_path):
    run(tmp_path, data=Interrupting(next_token_data(), at=7))
    (tmp_path / "metrics.jsonl").unlink()
    assert run(tmp_path, resume=True).status == "finished"
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["step"] == 9


def test_more_steps_follow_the_schedule_of_the_longer_run(tmp_path, capsys):
    """The rate from there on is that of a run of so many steps; everything before stays."""
    first = run(tmp_path, settings={"train": {"steps": 12}})
    before = read_metrics(first.metrics)
    longer = replace(CONFIG, steps=20)
    result = run(tmp_path, config=longer, settings={"train": {"steps": 20}}, resume=True)
    assert "train.steps grows from 12 to 20: from step 12 on the learning rate is that of a run of 20 steps" in (
        capsys.readouterr().out
    )
    assert (result.status, result.step) == ("finished", 20)
    records = read_metrics(result.metrics)
    assert records[: len(before)] == before
    rates = {r["step"]: r["learning_rate"] for r in records if r["kind"] == "train"}
    assert rates[12] == CONFIG.learning_rate_floor
    assert rates[13] == loop.learning_rate(longer, 12) > rates[14] > rates[20] == CONFIG.learning_rate_floor
    with pytest.raises(ValueError, match=r"train\.steps must be 20 as in the checkpoint .*, or more, got 15"):
        run(tmp_path, config=replace(CONFIG, steps=15), settings={"train": {"steps": 15}}, resume=True)


def test_a_damaged_newest_checkpoint_is_no_obstacle_to_the_same_bits(tmp_path, capsys):
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", data=Interrupting(next_token_data(), at=7))  # steps 5 and 8 are saved
    newest = latest_checkpoint(tmp_path / "parts" / "checkpoints")
    (newest / "optimizer.safetensors").write_bytes(b"cut off")
    resumed = run(tmp_path / "parts", resume=True)
    assert "the run goes on from step 5" in capsys.readouterr().out
    for name, param in whole.model.params.items():
        np.testing.assert_array_equal(param, resumed.model.params[name])
    steps = [r["step"] for r in read_metrics(resumed.metrics) if r["kind"] == "train"]
    assert steps == list(range(1, 13))


def test_a_step_that_saves_and_is_interrupted_is_saved_once(tmp_path, monkeypatch):
    saved = []
    save = loop.RunFolder.save
    monkeypatch.setattr(loop.RunFolder, "save", lambda self, c: (saved.append(c.optimizer.step), save(self, c)))
    assert run(tmp_path, data=Interrupting(next_token_data(), at=4)).status == "interrupted"
    assert saved == [5]


def test_a_full_disk_ends_a_run_in_one_sentence(tmp_path, monkeypatch):
    """Once for the metrics, once for a checkpoint; what was saved stays, and the run goes on from there."""
    whole = run(tmp_path / "whole")
    out, write = tmp_path / "run", Path.write_text

    def full(self, *args, **kwargs):
        if "00000010" in str(self):
            raise OSError(28, "No space left on device", str(self))
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="could not be written: No space left on device; the last good") as refused:
            run(out)
    assert str(refused.value).startswith("training stopped after step 10: ")
    assert str(refused.value).endswith(f"the last good checkpoint is {out}/checkpoints/step-00000005")
    assert os.listdir(out / "checkpoints") == ["step-00000005"]

    class Full:
        def __getattr__(self, name):
            return lambda *_: 3  # bytes that still went onto the disk

    with monkeypatch.context() as patch:
        begin = loop.MetricsWriter.__init__

        def cut(self, path, resume_step=None):
            begin(self, path, resume_step)
            self._file.close()
            self._file = Full()

        patch.setattr(loop.MetricsWriter, "__init__", cut)
        with pytest.raises(OSError, match=r"after step 6: .*metrics\.jsonl' could not be written: No space left"):
            run(out, resume=True)
    resumed = run(out, resume=True)
    for name, param in whole.model.params.items():
        np.testing.assert_array_equal(param, resumed.model.params[name])


def test_the_best_checkpoint_is_that_of_the_best_measurement(tmp_path, monkeypatch):
    accuracies = iter([0.2, 0.9, 0.3, 0.4, 0.5, 0.6])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: {"mean": next(accuracies)})
    config = replace(CONFIG, evaluate_every=2, checkpoint_every=2)
    run(tmp_path, config=config, model=RAMNet(MODEL, seed=0))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000004", "step-00000010", "step-00000012"]
