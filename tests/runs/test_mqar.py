"""One run from settings to a folder of results, and the demo built on it."""

from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.mqar import IGNORED, Examples, MQARSettings
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.demo import DEMO, fresh_sequence, recall_table, run_demo
from ramnet_np.runs.mqar import MQARRun, run_mqar
from ramnet_np.runs.presets import MQAR_RUNS
from ramnet_np.train.loop import TrainConfig
from ramnet_np.train.metrics import read_metrics

SMALL = MQARRun(
    model=RAMNetConfig(vocab=32, width=16, layers=2, heads=2, order=2, radix=4, top_k=4, cape=(2, 0), ffn="none"),
    data=MQARSettings(vocab=32, train=((2, 12, 40), (3, 16, 40)), test=((2, 12, 10), (3, 16, 10))),
    train=TrainConfig(steps=6, batch=8, warmup=2, log_every=2, evaluate_every=3, checkpoint_every=4),
)


def test_run_mqar_leaves_a_folder_of_results(tmp_path):
    result = run_mqar(replace(SMALL, out=tmp_path), progress=False)
    assert result.step == 6
    assert set(result.accuracy) == {"2 pairs, length 12", "3 pairs, length 16", "mean"}
    assert {f.name for f in tmp_path.iterdir()} == {"metrics.jsonl", "checkpoints", "curves.png", "trace.png"}
    for picture in ("curves.png", "trace.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    saved = RAMNet.from_pretrained(result.checkpoint)
    for name, param in result.model.params.items():
        np.testing.assert_array_equal(saved.params[name], param)


def test_run_mqar_follows_its_seed_and_resumes(tmp_path):
    first = run_mqar(replace(SMALL, out=tmp_path / "a"), progress=False)
    again = run_mqar(replace(SMALL, out=tmp_path / "b"), progress=False)
    other = run_mqar(replace(SMALL, out=tmp_path / "c", seed=1), progress=False)
    for name, param in first.model.params.items():
        np.testing.assert_array_equal(again.model.params[name], param)
    assert read_metrics(first.metrics)[0]["loss"] != read_metrics(other.metrics)[0]["loss"]
    resumed = run_mqar(replace(SMALL, out=tmp_path / "a", resume=True), progress=False)
    assert resumed.accuracy == first.accuracy
    with pytest.raises(ValueError, match=r"model\.top_k must be 4 as in the checkpoint .* got 3"):
        run_mqar(replace(SMALL, model=replace(SMALL.model, top_k=3), out=tmp_path / "a", resume=True), progress=False)


def test_run_mqar_asks_for_the_folder_first(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"out must be a folder that can be written to, got .*taken"):
        run_mqar(replace(SMALL, out=tmp_path / "taken"), progress=False)


def test_run_mqar_on_a_named_backend(tmp_path):
    assert run_mqar(replace(SMALL, out=tmp_path, backend="numpy"), progress=False).step == 6
    with pytest.raises(ValueError, match="backend must be one of"):
        run_mqar(replace(SMALL, out=tmp_path / "b", backend="abacus"), progress=False)


def test_mqar_run_bad_input():
    with pytest.raises(ValueError, match=r"model\.vocab must be at least data\.vocab \(32\), got 16"):
        replace(SMALL, model=replace(SMALL.model, vocab=16))
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        replace(SMALL, seed=-1)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"out": ""}, ValueError, "out must name a folder, got ''"),
        ({"out": None}, TypeError, "out must be a path, got None"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
        ({"device": "tpu"}, ValueError, "device must be one of 'cpu', 'gpu', got 'tpu'"),
        ({"graph": "yes"}, ValueError, "graph must be one of 'auto', 'on', 'off', got 'yes'"),
    ],
)
def test_run_settings_are_checked_before_anything_else(changes, error, words):
    with pytest.raises(error, match=words):
        replace(SMALL, **changes)


def test_a_run_that_cannot_fit_is_refused_before_there_is_any_data(tmp_path, monkeypatch):
    monkeypatch.setattr("ramnet_np.runs.mqar.mqar_data", lambda *_: pytest.fail("the data was made"))
    huge = replace(SMALL, model=replace(SMALL.model, width=2**28, channels=4), out=tmp_path / "run")
    with pytest.raises(MemoryError, match=r"training a model of this size on this data needs at least .* GB left"):
        run_mqar(huge, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_fail_cost_no_run(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("ramnet_np.plot.training_curves", fail)
    assert run_mqar(replace(SMALL, out=tmp_path), progress=False).status == "finished"
    assert capsys.readouterr().err == f"{tmp_path / 'curves.png'} could not be drawn: no font\n"
    assert (tmp_path / "trace.png").exists()


def test_a_users_picture_is_not_drawn_over(tmp_path):
    (tmp_path / "trace.png").write_text("mine")
    with pytest.raises(ValueError, match=r"out must be a new folder, but .* holds 'trace.png' and no run"):
        run_mqar(replace(SMALL, out=tmp_path), progress=False)
    assert (tmp_path / "trace.png").read_text() == "mine"
    run_mqar(replace(SMALL, out=tmp_path, overwrite=True), progress=False)


def test_long_runs_say_so_before_they_start(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ramnet_np.runs.mqar.mqar_data", stop)
    for run, is_long in ((MQARRun(), True), (MQAR_RUNS["demo"], False)):
        with pytest.raises(KeyboardInterrupt):
            run_mqar(replace(run, out=tmp_path))
        said = capsys.readouterr().err
        assert said.endswith("preparing data and model\n")
        assert ("on a CPU of two cores; --device gpu takes minutes; --preset demo" in said) == is_long


def test_fresh_sequence_is_new_and_follows_the_seed():
    one, same, other = (fresh_sequence(DEMO.data, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.ids, same.ids)
    assert (one.ids != other.ids).any()
    assert one.ids.shape == (1, DEMO.data.test[0][1])


def test_recall_table_marks_right_and_wrong():
    class Oracle:
        """Knows the labels, and gets the second one asked wrong."""

        def __init__(self, sequence):
            self.wanted = sequence.labels[sequence.labels != IGNORED]

        def forward(self, ids, select):
            answers = self.wanted.copy()
            answers[1] = (answers[1] + 1) % 256
            return np.eye(256)[answers], None

    sequence = fresh_sequence(DEMO.data, seed=0)
    table = recall_table(Oracle(sequence), Examples(*sequence)).splitlines()
    pairs = DEMO.data.test[0][0]
    marks = [line.split()[3] for line in table[2:-1]]
    assert marks == ["✓", "✗", *["✓"] * (pairs - 2)]
    assert table[3].endswith(f"wrong, it was {Oracle(sequence).wanted[1]}")
    assert table[-1] == f"{pairs - 1} of {pairs} right"
    shown = dict(zip(sequence.ids[0, : 2 * pairs : 2], sequence.ids[0, 1 : 2 * pairs : 2], strict=True))
    for line in table[2:-1]:
        key = int(line.split()[1])
        assert f"{key}→{shown[key]}" in table[0]


def test_run_demo_twice_into_the_same_folder(tmp_path, monkeypatch):
    from ramnet_np.runs import demo

    monkeypatch.setattr(demo, "DEMO", replace(SMALL, overwrite=True))
    for _ in range(2):
        said = []
        result = run_demo(tmp_path, progress=False, log=said.append)
        assert result.step == 6
    text = "\n".join(said)
    for part in ("held-out accuracy", "a new sequence shows", "of 2 right", "curves.png"):
        assert part in text
