"""results.jsonl: whole lines, whatever happened before."""

import json

import pytest

from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.model.files import append_record
from tests.experiment.grids import TINY
from tests.model.test_files import file_size_limit


def record(name):
    return {
        "name": name, "grid": "g", "status": "finished", "date": "2026-01-01T10:01:00+00:00", "version": "1",
        "quick": False, "settings": {}, "accuracy": {"mean": 1.0}, "validation": {"mean": 1.0}, "steps": 1,
        "hardware": {"device": "cpu", "name": "a CPU", "numpy": "2", "python": "3"},
        "tokens_per_second": 1, "state_elements": 1, "epochs": 1.0, "seconds": 1,
    }  # fmt: skip


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, record("a"))
    with path.open("a") as file:
        file.write('{"name": "cut o')
    append_record(path, record("b"))
    append_record(path, record("c"))
    assert [r["name"] for r in read_records([path])] == ["a", "b", "c"]
    assert path.read_text().endswith(json.dumps(record("c")) + "\n")


def test_a_line_that_occurs_again_is_one_record(tmp_path):
    for name in ("first", "second"):
        append_record(tmp_path / name, record("a"))
        append_record(tmp_path / name, record(name))
    read = read_records([tmp_path / "first", tmp_path / "second", tmp_path / "first"])
    assert [r["name"] for r in read] == ["a", "first", "second"]


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results file at"):
        read_records([tmp_path / "none.jsonl"])


def test_the_run_of_a_record():
    run = read_grid(TINY, "tiny").points[0].base
    assert run_of({"settings": run.settings}) == run
    unknown = {**run.settings, "model": {**run.settings["model"], "later": 1}}
    assert run_of({"settings": unknown}) is None


@pytest.mark.parametrize(
    "line", ["5", "[]", '"text"', "[" * 100_000, "{}", json.dumps(record("x") | {"steps": "many"}), '{"name": "x"}']
)
def test_a_line_that_is_no_record_is_left_out(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n")
    append_record(path, record("a"))
    assert [r["name"] for r in read_records([path])] == ["a"]
    assert run_of(record("x") | {"settings": {"model": 5}}) is None


TEXT_SCORES = {name: {"mean": 0.5, "bits_per_byte": 2.0, "nats": 1.0} for name in ("accuracy", "validation")}


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": "../../elsewhere"},  # figures are files of its name
        {"grid": ""},
        {"accuracy": {}},
        {"accuracy": {"mean": "high"}},
        {"validation": {"mean": float("nan")}},
        {"hardware": {}},
        {"hardware": {"device": "gpu", "name": "a GPU", "numpy": "2", "python": "3"}},
        {"date": "yesterday"},
        {"calls": [{}]},
        {"calls": [5]},
        {"gpu": ["0"]},
        {"session": {}},
        {"by_position": []},
        {"by_position": {"windows": [""]}},
        {"by_position": {"windows": [{"end": 1000, "bits_per_byte": 2.0}]}},
        {"by_position": {"windows": [{"begin": 0, "end": 1000, "bits_per_byte": [2.0]}]}},
        {"by_position": {"windows": [], "carried": []}},  # of which a table has the bits of all
        {"slots": {}},
        {"slots": [{"layers": []}]},
        {"slots": [{"step": 1, "layers": [{"touched": 0.5}]}]},
        {"slots": [{"step": 1, "layers": [{"touched": None, "entropy": 1.0}]}]},
        {"slots": [{"step": 1, "layers": [3]}]},
        {"parameters": None},
        {"settings": {"search": "x"}},
        {"settings": {"task": "text"}, **TEXT_SCORES},  # whose tables have the parameters
        {"settings": {"task": "text"}, "parameters": 3, "validation": {"mean": 0.5}},
    ],
)
def test_a_record_with_a_part_that_tables_cannot_use_is_left_out(tmp_path, changes):
    path = tmp_path / "results.jsonl"
    append_record(path, record("a") | changes)
    assert read_records([path]) == []
    path.write_text(path.read_text().replace("{", '{"n": 1' + "0" * 5000 + ", ", 1))
    assert read_records([path]) == []


def test_runs_that_have_no_scores_are_records(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, record("a") | {"status": "diverged", "accuracy": {}, "validation": {}})
    append_record(path, record("b") | {"settings": {"search": True}, "accuracy": {}})
    tables = {
        "by_position": {"windows": [{"begin": 0, "end": None, "bits_per_byte": 2}]},
        "slots": [{"step": 1, "layers": [{}, {"touched": 1, "entropy": 0.5}]}],
        "gpu": None,
    }
    append_record(path, record("c") | {"settings": {"task": "text"}, "parameters": 3, **TEXT_SCORES, **tables})
    assert [r["name"] for r in read_records([path])] == ["a", "b", "c"]
    run = read_grid(TINY, "tiny").points[0].base
    for changes in ({"name": ["a"]}, {"seed": None}, {"seed": [0]}, {"search": []}, {"search": 0}):
        assert run_of({"settings": run.settings | changes}) is None, changes


def test_a_file_that_is_no_text_and_a_full_disk_are_said(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"r\.jsonl must hold JSON objects, a line each, got what is no UTF-8"):
        read_records([tmp_path / "r.jsonl"])
    path = tmp_path / "results.jsonl"
    append_record(path, record("a"))
    with (
        file_size_limit(path.stat().st_size + 10),
        pytest.raises(OSError, match="be written: File too large"),
    ):
        append_record(path, record("b"))
    append_record(path, record("c"))
    assert [r["name"] for r in read_records([path])] == ["a", "c"]
