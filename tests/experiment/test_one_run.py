"""One run and its record."""

import sys
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

import ramnet_np
from ramnet_np.data.mqar import MQARSettings, mqar_data, mqar_validation
from ramnet_np.experiment import one_run, tasks
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import checkpoints_of, run_one
from ramnet_np.model import RAMNet, state_elements
from ramnet_np.model.files import read_json
from tests.experiment.grids import TINY

A = read_grid(TINY, "tiny").points[0].run(0, 1e-2)


def test_a_record_has_what_a_reader_asks_for():
    told = []
    record = run_one(A, "cpu", told.append)
    assert (record["name"], record["status"], record["seed"], record["learning_rate"]) == ("a", "finished", 0, 1e-2)
    assert list(record["accuracy"]) == ["2 pairs, length 12", "3 pairs, length 20", "mean"]  # the test settings
    assert list(record["validation"]) == ["2 pairs, length 12", "3 pairs, length 16", "mean"]  # the training settings
    for accuracy in (record["accuracy"], record["validation"]):
        *each, mean = accuracy.values()
        assert mean == pytest.approx(np.mean(each))
    assert (record["steps"], record["epochs"], record["quick"]) == (16, 2.0, False)
    assert record["state_elements"] == state_elements(A.model) == 2 * 4 * 17
    assert record["settings"] == A.settings
    assert record["version"] == ramnet_np.__version__
    assert record["hardware"]["numpy"] == np.__version__
    assert record["tokens_per_second"] > 0
    assert record["seconds"] > 0
    assert [p.step for p in told] == [8, 16]  # measured twice
    assert told[-1].validation == record["validation"]["mean"]
    assert run_one(A, "cpu")["accuracy"] == record["accuracy"]  # the same bits again


def test_the_test_sets_are_measured_once_and_after_everything(monkeypatch):
    order = []

    def evaluate(model, held_out, tokens=None):
        order.append("test" if "3 pairs, length 20" in held_out else "validation")
        return {name: 1.0 for name in held_out} | {"mean": 1.0}

    monkeypatch.setattr(tasks, "evaluate", evaluate)
    run_one(A, "cpu")
    assert order == ["validation", "validation", "test"]
    order.clear()
    record = run_one(replace(A, train=replace(A.train, stop_at=0.999)), "cpu")
    assert order == ["validation", "test"]
    assert (record["status"], record["steps"], record["epochs"]) == ("reached stop_at", 8, 1.0)


def test_a_run_that_was_ended_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    measured = []

    def evaluate(model, held_out, tokens=None):
        measured.append({name: p.copy() for name, p in model.params.items()})
        return {name: 0.5 for name in held_out} | {"mean": 0.5}

    monkeypatch.setattr(tasks, "evaluate", evaluate)
    monkeypatch.setattr(one_run, "REPORT_EVERY", 3)
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)
    whole = run_one(A, "cpu")
    whole_params = measured[-1]
    assert "calls" not in whole

    def end_at(step):
        def on_progress(progress):
            if progress.step == step and progress.pace is not None:
                raise InterruptedError

        return on_progress

    for step in (6, 12):  # ended twice: it goes on from the reports before, at 3 and at 9
        with pytest.raises(InterruptedError):
            run_one(A, "cpu", end_at(step), tmp_path, f"until {step}")
    measured.clear()
    told = []
    record = run_one(A, "cpu", told.append, tmp_path, "last")
    assert [p.step for p in told] == [9, 12, 15, 16]
    assert told[0].pace is None
    for name, value in whole_params.items():
        np.testing.assert_array_equal(measured[-1][name], value, err_msg=name)
    for key in ("accuracy", "validation", "training", "steps", "epochs", "status"):
        assert record[key] == whole[key], key
    assert [call["session"] for call in record["calls"]] == ["until 6", "until 12", "last"]
    assert record["session"] == "last"
    other = replace(A, seed=1)  # has nothing to go on from
    run_one(other, "cpu", told.append, tmp_path)
    assert told[4].step == 3


def test_every_run_has_a_place_of_its_own_for_checkpoints(tmp_path):
    later = replace(A, train=replace(A.train, learning_rate=2e-2))
    places = [checkpoints_of(run, device, tmp_path) for run in (A, later) for device in ("cpu", "gpu")]
    assert len(set(places)) == 4
    odd = checkpoints_of(replace(A, name="../a b"), "cpu", tmp_path)
    assert odd.parent == places[0].parent


def test_a_damaged_checkpoint_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)
    whole = run_one(A, "cpu", out=tmp_path)
    [damaged] = tmp_path.rglob("training.json")
    assert damaged.parent.name == "step-00000008"  # after the last step there is only measuring left
    damaged.write_text("{")
    told = []
    record = run_one(A, "cpu", told.append, tmp_path)
    assert [p.step for p in told] == [8, 16]
    assert record["accuracy"] == whole["accuracy"]
    assert "calls" not in record


def test_a_run_that_diverges_has_a_record():
    record = run_one(replace(A, train=replace(A.train, learning_rate=1e30)), "cpu")
    assert record["status"] == "diverged"
    assert record["accuracy"] == {}
    assert record["steps"] < 16


def test_validation_is_neither_trained_nor_tested_on():
    train, test = mqar_data(A.data, seed=0)
    validation = mqar_validation(A.data, train, 50, seed=0)
    opening = 4
    seen = {row[:opening].tobytes() for row in train[0].ids}
    assert not seen & {row[:opening].tobytes() for row in validation[0].ids}
    as_many = mqar_validation(A.data, train, len(test[0].ids), seed=0)
    assert (as_many[0].ids != test[0].ids).any()  # another stream
    few = MQARSettings(vocab=8, train=((1, 8, 5),), test=((1, 8, 5),))  # of 12 lists of one pair 5 are trained on
    few_train = mqar_data(few)[0]
    [held_out] = mqar_validation(few, few_train, 100)
    assert not {row[:2].tobytes() for row in few_train[0].ids} & {row[:2].tobytes() for row in held_out.ids}
    again = mqar_validation(A.data, train, 50, seed=0)
    np.testing.assert_array_equal(validation[1].ids, again[1].ids)
    assert (mqar_validation(A.data, train, 50, seed=1)[1].ids != again[1].ids).any()


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_of_models_that_are_kept_at_the_same_time_the_better_one_stays(monkeypatch, tmp_path):
    """While the first one is being saved, a better one ends: it waits, or the files of both would mix."""
    save, threads = RAMNet.save_pretrained, []

    def keep(rate, mean):
        run = read_grid(TINY, "tiny").points[0].run(0, rate)
        trained = SimpleNamespace(validation={"mean": mean})
        one_run._keep(RAMNet(run.model, seed=round(10 * mean)), run, trained, None, tmp_path)

    def slow_save(model, folder):
        if not threads:
            threads.append(Thread(target=keep, args=(2e-2, 0.9)))
            threads[0].start()
            threads[0].join(0.3)
        save(model, folder)

    monkeypatch.setattr(RAMNet, "save_pretrained", slow_save)
    keep(1e-2, 0.5)
    threads[0].join()
    [folder] = (tmp_path / "models").iterdir()
    assert read_json(folder / "run.json")["measured"] == {"mean": 0.9}
    model = RAMNet.from_pretrained(folder)
    for name, parameter in RAMNet(A.model, seed=9).params.items():
        np.testing.assert_array_equal(model.params[name], parameter, err_msg=name)
