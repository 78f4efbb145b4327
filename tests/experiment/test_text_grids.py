"""Grids of runs on text: their runs and records, that a run goes on to the same bits, and what the grids hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ramnet_np.cli import main
from ramnet_np.data.corpus import read_corpus
from ramnet_np.data.text import read_data
from ramnet_np.experiment import one_run
from ramnet_np.experiment.grid import GRIDS, load_grid, read_grid
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.points import run_from
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.experiment.summary import collect
from ramnet_np.experiment.sweep import score
from ramnet_np.experiment.tasks import task_data
from ramnet_np.model import RAMNet
from ramnet_np.model.count import count
from ramnet_np.runs.text import load_text_model
from ramnet_np.train.text_loss import documents_loss, windows_loss

RESULTS = Path(__file__).parents[2] / "docs/results"

TINY = """
task = "text"
epochs = 1
seeds = [0]
learning_rates = [3e-3]
evaluations = 2

[model]
width = 8
layers = 2
heads = 1
order = 2
radix = 2
top_k = 2
ffn = "none"

[data]
length = 16
held_out = ["z*"]
held_out_sequences = 4

[train]
batch = 2
warmup = 2

[[points]]
name = "plain"

[[points]]
name = "carried"
data = { carry_state = true }

[[points]]
name = "hybrid"
model = { hybrid = "window", hybrid_every = 2, window = 4 }

[[points]]
name = "softmax"
model = { mixer = "softmax" }

[quick]
epochs = 0.5
"""
POINT = """
[[points]]
name = "a"
variants.wide = { top_k = 4 }
"""


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path)


def write_texts(parent):
    folder = parent / "texts"
    folder.mkdir()
    for name, often in (("a", 30), ("b", 20), ("z1", 12), ("z2", 9)):
        (folder / f"{name}.txt").write_text(f"Tom {name} has a fox. " * often)
    return folder


def points(texts):
    grid = read_grid(TINY, "tiny", corpus=read_corpus(texts))
    return {point.name: point.base for point in grid.points}


def test_a_pass_is_over_the_text_to_train_on(texts):
    run = points(texts)["plain"]
    size = sum((texts / f"{name}.txt").stat().st_size for name in "ab")
    assert run.train.steps == round(size / (2 * 16))
    assert (run.task, run.model.vocab, run.corpus) == ("text", 256, read_corpus(texts).sha256)
    assert run_from(json.loads(json.dumps(run.settings))) == run
    assert read_grid(TINY, "tiny", epochs=2, corpus=read_corpus(texts)).points[0].base.train.steps == round(size / 16)


@pytest.mark.parametrize("name", ["plain", "carried", "hybrid", "softmax"])
def test_the_record_of_a_run(texts, name, tmp_path):
    run = points(texts)[name]
    record = run_one(run, "cpu", out=tmp_path, text=texts, keep_model=True)
    assert record["status"] == "finished"
    assert run_of(json.loads(json.dumps(record))) == run
    assert score(record) == -record["validation"]["bits_per_byte"]
    model = load_text_model(tmp_path / "models" / f"{name}-seed0")
    data = read_data(replace(run.data, path=texts), run.train.batch)
    windows = documents_loss(model, data.corpus, data.aside, 16, carry=False)
    assert record["accuracy"]["bits_per_byte"] == pytest.approx(windows.loss.bits_per_byte, rel=1e-5)
    assert record["by_position"]["windows"][0]["tokens"] == windows.loss.tokens
    assert ("carried" in record["by_position"]) == (name != "softmax")
    if name in ("plain", "hybrid"):
        found = windows_loss(model, next(iter(data.held_out().values())))
        assert record["validation"]["bits_per_byte"] == pytest.approx(found.bits_per_byte, rel=1e-5)
    if name != "softmax":
        carried = documents_loss(model, data.corpus, data.aside, 16).loss.bits_per_byte
        assert record["accuracy"]["carried bits_per_byte"] == pytest.approx(carried, rel=1e-5)
        assert [use["step"] for use in record["slots"]] == [round(run.train.steps / 2), run.train.steps]
        assert [bool(layer) for layer in record["slots"][0]["layers"]] == [True, name != "hybrid"]


@pytest.mark.parametrize("name", ["plain", "carried"])
def test_a_run_that_was_ended_goes_on_to_the_same_bits(texts, name, tmp_path, monkeypatch):
    run = points(texts)[name]
    monkeypatch.setattr(one_run, "REPORT_EVERY", 3)
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)
    whole = run_one(run, "cpu", out=tmp_path / "whole", text=texts, keep_model=True)

    def stop_at(step):
        def stop(progress):
            if progress.step == step and progress.pace is not None:
                raise InterruptedError

        return stop

    half = round(run.train.steps / 2)  # where validation is measured first, which is reported too
    for step in (9, half + 3, half + 6):
        with pytest.raises(InterruptedError):
            run_one(run, "cpu", stop_at(step - step % 3), tmp_path / "parts", text=texts)
    told = []
    again = run_one(run, "cpu", told.append, tmp_path / "parts", text=texts, keep_model=True)
    assert told[0].step > half
    assert told[0].pace is None
    for what in ("validation", "accuracy", "slots"):
        assert again[what] == whole[what], what
    assert [list(call) for call in again["calls"]] == [["session", "gpu", "date", "seconds"]] * 4
    models = [RAMNet.from_pretrained(tmp_path / way / "models" / f"{name}-seed0") for way in ("whole", "parts")]
    for key, value in models[0].params.items():
        np.testing.assert_array_equal(models[1].params[key], value, err_msg=key)


def test_of_runs_that_differ_in_the_rate_the_better_model_is_kept(texts, tmp_path):
    [whole] = read_grid(TINY.split("[[points]]")[0] + POINT, "tiny", corpus=read_corpus(texts)).points
    runs = [whole.run(0, rate) for rate in (1e-3, 3e-2, 1e-4)] + [whole.run(0, 1e-4, "wide")]
    measured = [run_one(run, "cpu", out=tmp_path, text=texts, keep_model=True)["validation"] for run in runs]
    assert measured[1]["bits_per_byte"] < measured[0]["bits_per_byte"] < measured[2]["bits_per_byte"]
    for folder, number in (("a-seed0", 1), ("a-wide-seed0", 3)):
        kept = json.loads((tmp_path / "models" / folder / "run.json").read_text())
        assert kept == {**runs[number].settings, "measured": measured[number]}
    longer = replace(runs[2], epochs=2.0)  # other settings are another run
    run_one(longer, "cpu", out=tmp_path, text=texts, keep_model=True)
    assert json.loads((tmp_path / "models" / "a-seed0" / "run.json").read_text())["epochs"] == 2.0


def test_a_large_checkpoint_is_not_saved_early(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(one_run, "REPORT_EVERY", 3)
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    run, saved = points(texts)["carried"], []
    monkeypatch.setattr(one_run, "save_checkpoint", lambda folder, checkpoint: saved.append(checkpoint))
    for bytes_a_second in (1e15, 1e-9):
        monkeypatch.setattr(one_run, "BYTES_A_SECOND", bytes_a_second)
        saved.clear()
        run_one(run, "cpu", out=tmp_path, text=texts)
        assert bool(saved) == (bytes_a_second > 1)


def test_a_checkpoint_is_saved_before_the_test(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(one_run, "REPORT_EVERY", 5)
    run, saved = points(texts)["plain"], []
    monkeypatch.setattr(one_run, "save_checkpoint", lambda folder, checkpoint: saved.append(checkpoint.optimizer.step))
    for one, steps in ((run, [run.train.steps - run.train.steps % 5]), (replace(run, search=True), [])):
        saved.clear()
        run_one(one, "cpu", out=tmp_path, text=texts)
        assert saved == steps
    monkeypatch.setattr(one_run, "BYTES_A_SECOND", 1e-9)  # too slow a disk
    run_one(run, "cpu", out=tmp_path, text=texts)
    assert not saved


def test_a_changed_text_is_no_text_of_the_grid(texts):
    run = points(texts)["plain"]
    other = texts.with_name("other")
    other.mkdir()
    (other / "a.txt").write_text("Another text. " * 50)
    (other / "z.txt").write_text("And its end. " * 50)
    with pytest.raises(ValueError, match="text must be what the grid was read with"):
        task_data(run, "cpu", other)


def test_the_command(texts, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(TINY)
    command = ["experiment", "language-rivals", "--grid", str(tmp_path / "mine.toml"), "--quick", "--only", "plain"]
    assert main([*command, "--text", str(texts), "--out", str(tmp_path / "out"), "--keep-models"]) == 0
    assert "plain, seed 0, learning rate 0.003: bits a byte " in capsys.readouterr().out
    [record] = read_records([tmp_path / "out" / "results.jsonl"])
    assert record["settings"]["data"]["path"] is None
    assert (tmp_path / "out" / "models" / "plain-seed0" / "run.json").is_file()
    assert main([*command, "--text", str(tmp_path / "none")]) == 2
    assert "text must be a file or a folder, got" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith("language")])
def test_grids_on_text(name):
    for point in load_grid(name).points:
        assert point.base.train.dtype == "bfloat16"
        assert (point.base.train.batch, point.base.data.length) == (16, 2048)
    assert all(point.base.train.dtype == "float32" for point in load_grid(name, quick=True).points)


def test_rivals_are_of_equal_size():
    for point in load_grid("language-rivals").points:
        [size] = [int(part[:-1]) for part in point.name.split("-") if part[:-1].isdigit()]
        assert list(point.variants) == [""]
        parameters = sum(row.parameters for row in count(replace(point.base.model, vocab=8192)))
        assert parameters == pytest.approx(size * 1e6, rel=0.01), point.name


def test_longer_trainings_change_the_passes_alone():
    """Each has the model of its rival, and the rate that is in the tables of docs/results/language.md."""
    rivals = {point.name: point.base for point in load_grid("language-rivals").points}
    chosen = {result.name: result.chosen.rate for result in collect(read_records([RESULTS / "language.jsonl"]))}
    for point in load_grid("language-long").points:
        name = point.name.removesuffix("-long")
        long, short = point.base, rivals[name]
        assert point.learning_rates == (chosen[name],)
        assert (long.model, long.data, long.seed) == (short.model, short.data, short.seed)
        assert (long.epochs, short.epochs) == (8, 2)
        train = replace(short.train, steps=long.train.steps, learning_rate=chosen[name])
        assert long.train == train


def test_the_recipe_changes_one_thing_a_point():
    base, *others = load_grid("language-recipe").points
    for point in others:
        ours, theirs = vars(base.base.model), vars(point.base.model)
        changed = {name for name in ours if ours[name] != theirs[name]}
        together = (
            {"order", "radix"},
            {"heads", "cape"},
            {"update", "gamma"},
            {"output_norm", "output_gate"},
            {"temperature", "address_prior"},
        )
        assert len(changed) == 1 or changed in together, point.name
        assert (point.base.data, point.base.train) == (base.base.data, base.base.train)
