"""What is kept of runs that fail: by planted errors, in processes and with a stand-in for them."""

import json
import platform
import re
from dataclasses import replace

import numpy as np
import pytest

import ramnet_np
from ramnet_np.cli import main
from ramnet_np.experiment import failures, runner
from ramnet_np.experiment.failures import Failure, failure_of, report_of
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.points import run_from
from ramnet_np.experiment.runner import Options, run_experiment
from ramnet_np.model.files import WriteError
from tests.experiment.grids import TINY
from tests.experiment.test_runner import StandIn, done

A, B = (point.base for point in read_grid(TINY, "tiny").points)


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def error_of(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever it raises is the matter of the test
        call()
    return caught.value


def failing(*names, why="MemoryError: no room", trace="Traceback: no room\n"):
    """A pool whose runs of these points fail."""
    return StandIn(lambda run: ("failed", run, Failure(why, trace)) if run.name in names else done(run))


def run_with(monkeypatch, pool, grid, **options):
    monkeypatch.setattr(runner, "WorkerPool", pool)
    said = []
    options = Options(out=grid.parent / "out", grid=grid, **options)
    return run_experiment("x", options, log=said.append, progress=False), said


def test_two_runs_side_by_side_that_fail_leave_a_text_each(monkeypatch, grid, capsys):
    """In processes: NumPy refuses their seeds."""
    broken = [replace(A, seed=-1), replace(B, seed=-2)]
    monkeypatch.setattr(runner, "wanted_runs", lambda grid, done, taken: [r for r in broken if r.key not in taken])
    out = grid.parent / "out"
    command = ["experiment", "mqar-order", "--grid", str(grid), "--side-by-side", "2", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(f"2 failed; in {out / 'results.jsonl'}, {out / 'failed'}")
    assert len(list((out / "failed").iterdir())) == 2
    for run in broken:
        path = report_of(run, out)
        [line] = [line for line in printed.splitlines() if run.label in line]
        assert line.endswith(f" (see {path})")
        text = path.read_text()
        first, rest = text.split("\n", 1)
        assert line == f"{run.label}: failed, and is left out: {first.removeprefix(f'{run.label}: ')} (see {path})"
        assert re.search(r"^at 20\d\d-\d\d-\d\dT[^ ]*, after step 0 of 16 or later$", rest, re.MULTILINE)
        for words in (
            f"ramnet_np {ramnet_np.__version__}\n", f"\nhost {platform.node()}\n", "\ndevice cpu\n",
            f"\nnumpy {np.__version__}\n", "\nTraceback (most recent call last):\n", ", in run_one\n",
        ):  # fmt: skip
            assert words in rest
        assert run_from(json.loads(rest.partition("\nsettings ")[2])) == run


def test_the_sentence_and_the_summary_name_the_one_text(monkeypatch, grid, capsys):
    monkeypatch.setattr(runner, "WorkerPool", failing("b"))
    out = grid.parent / "out"
    with pytest.raises(SystemExit):
        main(["experiment", "mqar-order", "--grid", str(grid), "--out", str(out)])
    path = report_of(B, out)
    printed = capsys.readouterr().out
    assert f"{B.label}: failed, and is left out: MemoryError: no room (see {path})\n" in printed
    assert f"\n3 finished now, 1 left, 1 failed; in {out / 'results.jsonl'}, {path}\n" in printed
    text = path.read_text()
    assert text.startswith(f"{B.label}: MemoryError: no room\n")
    assert ", after step 1 of 16 or later\n" in text  # as the stand-in reports
    assert "\n\nTraceback: no room\n\nsettings {" in text


def test_a_later_failure_replaces_the_text_and_a_result_removes_it(monkeypatch, grid):
    first, _ = run_with(monkeypatch, failing("a", "b"), grid)
    assert (first.failed, len(first.reports)) == (3, 3)
    second, _ = run_with(monkeypatch, failing("b", why="ValueError: another"), grid)
    [report] = second.reports
    assert report.parent.is_dir()
    assert [path.name for path in report.parent.iterdir()] == [report.name]  # those of "a" are gone
    assert "ValueError: another" in report.read_text()
    assert "no room" not in report.read_text().splitlines()[0]
    third, _ = run_with(monkeypatch, StandIn(done), grid)
    assert (third.finished, third.failed, third.reports) == (1, 0, ())
    assert not report.parent.exists()


def test_a_text_that_cannot_be_written_does_not_hide_the_error(monkeypatch, grid):
    (grid.parent / "out").mkdir()
    (grid.parent / "out" / "failed").write_text("a file of someone's")
    outcome, said = run_with(monkeypatch, failing("b"), grid)
    assert (outcome.finished, outcome.failed, outcome.reports) == (3, 1, ())
    [line] = [line for line in said if "failed, and" in line]
    assert line.startswith(f"{B.label}: failed, and is left out: MemoryError: no room (no file has its traceback, as ")
    assert "failed" in line.rpartition("as ")[2]
    assert (grid.parent / "out" / "failed").read_text() == "a file of someone's"


def test_neither_does_a_full_disk(monkeypatch, grid):
    def full(path, text):
        raise WriteError(f"{str(path)!r} could not be written: No space left on device")

    monkeypatch.setattr(failures, "write_text", full)
    outcome, said = run_with(monkeypatch, failing("b"), grid)
    assert (outcome.finished, outcome.failed, outcome.reports) == (3, 1, ())
    [line] = [line for line in said if "failed, and" in line]
    assert "left out: MemoryError: no room (no file" in line
    assert line.endswith("could not be written: No space left on device)")


def test_a_gpu_that_does_not_answer_any_more_costs_its_name_alone(monkeypatch):
    def lost(device):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(failures, "hardware", lost)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    failure = failure_of(error_of(lambda: [][0]), "gpu")
    assert failure.why == "IndexError: list index out of range"
    assert failure.place == {"host": platform.node(), "gpu": "3"}
    assert "in error_of" in failure.traceback
    assert "gpu" not in failure_of(ValueError("x"), "cpu").place


def test_an_error_of_many_lines_is_one_line_on_the_terminal():
    failure = failure_of(RuntimeError("no kernel:\n  line 1\n\n  line 2"), "cpu")
    assert failure.why == "RuntimeError: no kernel: line 1 line 2"
    assert "  line 1\n" in failure.traceback


def test_runs_have_texts_of_their_own(tmp_path):
    rate = replace(A, train=replace(A.train, learning_rate=5e-3))
    assert len({report_of(run, tmp_path) for run in (A, rate, replace(A, seed=1), B, replace(A, name="../a"))}) == 5
    assert report_of(replace(A, name="../a"), tmp_path).parent == tmp_path / "failed"
