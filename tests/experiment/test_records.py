"""results.jsonl: whole lines, whatever happened before."""

import pytest

from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.records import append_record, read_records, run_of
from tests.experiment.grids import TINY


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    path = tmp_path / "results.jsonl"
    append_record(path, {"name": "a"})
    with path.open("a") as file:
        file.write('{"name": "cut o')
    append_record(path, {"name": "b"})
    append_record(path, {"name": "c"})
    assert [r["name"] for r in read_records([path])] == ["a", "b", "c"]
    assert path.read_text().endswith('{"name": "c"}\n')


def test_a_line_that_occurs_again_is_one_record(tmp_path):
    for name in ("first", "second"):
        append_record(tmp_path / name, {"name": "a"})
        append_record(tmp_path / name, {"name": name})
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
