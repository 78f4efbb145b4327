"""A grid from start to end: in processes, and with a stand-in for them where what matters is what is done with runs."""

import io
import json
import signal
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from ramnet_np.cli import main
from ramnet_np.experiment import one_run, runner
from ramnet_np.experiment.failures import Failure
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import Progress, checkpoints_of, run_one
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.experiment.runner import Options, run_experiment
from ramnet_np.experiment.workers import Event
from ramnet_np.model.files import append_record
from ramnet_np.train.folder import held_folder
from tests.experiment.grids import TINY


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_quick_grid_from_the_command_and_again(grid, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["experiment", "mqar-order", "--grid", str(grid), "--quick", "--side-by-side", "2", "--out", str(out)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "quick: a reduced grid, to see that everything works; its figures say nothing about the paper's" in printed
    assert f"2 finished now, 0 left, 0 failed; in {out}/results.jsonl" in printed
    records = read_records([out / "results.jsonl"])
    assert sorted((r["name"], r["seed"], r["learning_rate"], r["quick"]) for r in records) == [
        ("a", 0, 1e-3, True), ("a", 0, 1e-2, True),
    ]  # fmt: skip
    assert {r["grid"] for r in records} == {"tiny"}
    assert len({r["session"] for r in records} - {""}) == 1
    assert all(0 <= r["accuracy"]["mean"] <= 1 for r in records)
    before = (out / "results.jsonl").read_bytes()
    assert main(command) == 0
    assert "0 finished now, 0 left, 0 failed" in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_status(monkeypatch, grid, capfd, number, status):
    def interrupted(run):
        signal.raise_signal(number)
        return done(run)

    monkeypatch.setattr(runner, "WorkerPool", StandIn(interrupted))
    command = ["experiment", "mqar-order", "--grid", str(grid), "--out", str(grid.parent / "out")]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == status
    out, err = capfd.readouterr()
    assert "stopping: runs that have ended keep their results, the others their last checkpoints\n" in err
    assert "interrupted: 3 runs left; the same command goes on with them" in out
    assert len(read_records([grid.parent / "out" / "results.jsonl"])) == 1


def test_two_programs_do_not_write_to_one_folder_of_results(monkeypatch, grid):
    monkeypatch.setattr(runner, "WorkerPool", StandIn(done))
    options = Options(out=grid.parent / "out", grid=grid)
    with held_folder(grid.parent / "out"), pytest.raises(ValueError, match="out must be a folder that no other run"):
        run_experiment("x", options, log=print, progress=False)
    (grid.parent / "file").touch()
    with pytest.raises(OSError, match=r"out must be a folder that can be written to, got .*file"):
        run_experiment("x", replace(options, out=grid.parent / "file"), log=print, progress=False)
    (grid.parent / "out" / "results.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"results\.jsonl' must be a file of results, got a folder"):
        run_experiment("x", options, log=print, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_minutes": float("inf")}, "max_minutes must be between"),
        ({"epochs": float("nan")}, "epochs must be between"),
        ({"side_by_side": 0}, "side_by_side must be between 1 and 256, got 0"),
        ({"only": "m256-*"}, r"only must be a tuple of patterns, .* got the string 'm256-\*'"),
        ({"side_by_side": 10**9}, "side_by_side must be between 1 and 256, got 1000000000"),
        ({"gpus": (-1,)}, "gpus must be at least 0, got -1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Options(**options)


def test_what_the_command_refuses(capsys):
    for arguments, message in (
        ([], ", language-bytes, plot, got 'nothing'"),
        (["mqar"], "experiment must be one of mqar-order, "),
        (["mqar-order", "--grid", "no.toml"], "grid must be a file or one of"),
        (["plot", "no.jsonl"], "no results file at no.jsonl"),
    ):
        assert main(["experiment", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"max_minutes must be between 1e-30 and .*, got 0"):
        Options(max_minutes=0)
    with pytest.raises(ValueError, match=r"epochs must be between 1e-30 and .*, got -1"):
        Options(epochs=-1)


class StandIn:
    """A pool that needs no processes: each call of ``events`` ends the oldest run, as ``outcome(run)`` says."""

    def __init__(self, outcome, capacity=2, pace=0.0):
        self.outcome, self.capacity, self.pace, self.running, self.started = outcome, capacity, pace, [], []

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.running = []

    @property
    def free(self):
        return self.capacity - len(self.running)

    def start(self, run):
        self.running.append(run)
        self.started.append(run)

    def events(self, seconds):
        for run in list(self.running):
            yield Event("progress", run, Progress(1, 0.1, None, self.pace))
        run = self.running.pop(0)
        yield Event(*self.outcome(run))


def done(run, accuracy=0.5, seconds=1.0):
    return "done", run, {
        "name": run.name, "status": "finished", "settings": run.settings, "accuracy": {"mean": accuracy},
        "validation": {"mean": run.train.learning_rate}, "steps": 16, "epochs": 2.0, "seconds": seconds,
        "tokens_per_second": 1, "quick": False, "date": "2026-01-01T10:01:00+00:00", "version": "1",
        "hardware": {"device": "cpu", "name": "a CPU", "numpy": "2", "python": "3"}, "state_elements": 1,
    }  # fmt: skip


def recorded(run, **more):
    return {"grid": "tiny", **done(run, **more)[2]}


def started(pool):
    return [(run.name, run.seed, run.train.learning_rate) for run in pool.started]


def run_with(monkeypatch, pool, grid, **options):
    monkeypatch.setattr(runner, "WorkerPool", pool)
    said = []
    outcome = run_experiment("x", Options(out=grid.parent, grid=grid, **options), log=said.append, progress=False)
    return outcome, said


def test_the_sweep_then_the_other_seeds(monkeypatch, grid):
    pool = StandIn(done)
    outcome, said = run_with(monkeypatch, pool, grid)
    assert started(pool) == [("a", 0, 1e-3), ("a", 0, 1e-2), ("b", 5, 3e-3), ("a", 1, 1e-2)]
    assert outcome[1:5] == (4, 0, 0, None)
    assert len(said) == 5
    assert said[1].startswith("a, seed 0, learning rate 0.001: accuracy 0.500, validation 0.001, 2 epochs, 1 s")


@pytest.mark.parametrize(("ray", "address"), [((), None), (("10.0.0.1:6379",), "10.0.0.1:6379")])
def test_a_cluster_is_asked_for_by_its_address(monkeypatch, grid, ray, address):
    pool, given = StandIn(done), []
    monkeypatch.setattr(runner, "RayPool", lambda *arguments: given.append(arguments) or pool)
    monkeypatch.setattr(runner, "WorkerPool", None)
    run_experiment("x", Options(out=grid.parent, grid=grid, ray=ray, side_by_side=3), log=str, progress=False)
    [(first, device, side_by_side, out, invocation, text, keep)] = given
    assert (first, device, side_by_side, out, text, keep) == (address, "cpu", 3, grid.parent, None, False)
    assert datetime.fromisoformat(invocation)


def test_runs_with_a_record_are_skipped(monkeypatch, grid):
    a = read_grid(TINY, "tiny").points[0]
    record = recorded(a.run(0, 1e-2))
    append_record(grid.parent / "results.jsonl", record)
    other = recorded(a.run(0, 1e-3))
    other["settings"]["model"]["width"] = 8  # of other settings: no reason to skip
    append_record(grid.parent / "results.jsonl", other)
    pool = StandIn(done)
    run_with(monkeypatch, pool, grid)
    assert started(pool) == [("a", 0, 1e-3), ("b", 5, 3e-3), ("a", 1, 1e-2)]


def test_ctrl_c_leaves_what_is_finished(monkeypatch, grid):
    def interrupted(run):
        if run.name == "b":
            signal.raise_signal(signal.SIGINT)  # while its record is on the way
        return done(run)

    outcome, said = run_with(monkeypatch, StandIn(interrupted), grid)
    assert outcome[1:5] == (3, 1, 0, signal.SIGINT)
    assert said[-2:] == [
        "a, seed 1, learning rate 0.01: stopped at step 1 of 16, to go on from step 0",
        "interrupted: 1 run left; the same command goes on with it",
    ]
    assert [r["name"] for r in read_records([outcome.results])] == ["a", "a", "b"]
    pool = StandIn(done)
    run_with(monkeypatch, pool, grid)
    assert started(pool) == [("a", 1, 1e-2)]


def test_a_failed_run_does_not_stop_the_others(monkeypatch, grid):
    pool = StandIn(lambda run: ("failed", run, Failure("MemoryError: no room")) if run.name == "b" else done(run))
    outcome, said = run_with(monkeypatch, pool, grid)
    assert outcome[1:5] == (3, 1, 1, None)
    [report] = outcome.reports
    assert f"b, seed 5, learning rate 0.003: failed, and is left out: MemoryError: no room (see {report})" in said
    assert said[-1] == "1 run left, of which 1 failed; the same command tries again"
    assert started(pool).count(("b", 5, 3e-3)) == 1


def test_a_run_whose_process_ends_is_tried_twice(monkeypatch, grid):
    pool = StandIn(lambda run: ("died", run, None) if run.name == "b" else done(run))
    outcome, said = run_with(monkeypatch, pool, grid)
    assert outcome[1:5] == (3, 1, 1, None)
    [report] = outcome.reports
    assert f"b, seed 5, learning rate 0.003: failed, and is left out: its process ended 2 times (see {report})" in said
    assert "no traceback: the process ended without one" in report.read_text()
    assert started(pool).count(("b", 5, 3e-3)) == 2


SLOW_AND_FAST = """
[[points]]
name = "slow"
learning_rate = 1e-3

[[points]]
name = "unknown"
learning_rate = 1e-3

[[points]]
name = "window"
learning_rate = 1e-3
model = { mixer = "window", window = 4 }
"""


class Clock:
    """What run_experiment takes for the time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(runner.time, "perf_counter", lambda: self.now)

    def takes(self, seconds):
        def outcome(run):
            self.now += seconds
            return done(run, seconds=seconds)

        return outcome


@pytest.mark.parametrize(("seconds", "shown"), [(1.0, 1), (10.0, 2), (30.0, 4)])
def test_the_bar_says_how_far_runs_are_every_twenty_seconds_into_a_file(monkeypatch, grid, seconds, shown):
    clock, words = Clock(monkeypatch), []
    clock.now = 1000.0
    monkeypatch.setattr(runner.sys, "stderr", io.StringIO())
    monkeypatch.setattr(runner.tqdm, "set_postfix_str", lambda bar, text, refresh: words.append(text))
    run_with(monkeypatch, StandIn(clock.takes(seconds), capacity=1), grid)
    assert len(words) == shown
    assert words[0] == ""  # of a run that has just ended, none is left


def slow_and_fast(path, seeds="[0]"):
    shared = TINY[: TINY.index("[[points]]")].replace("seeds = [0, 1]", f"seeds = {seeds}")
    path.write_text(shared + SLOW_AND_FAST)
    return read_grid(path.read_text(), "tiny").points


def test_runs_that_would_end_in_time_come_first(monkeypatch, grid):
    slow, _, window = slow_and_fast(grid)
    clock = Clock(monkeypatch)
    results = grid.parent / "results.jsonl"
    for seed in (7, 8):  # not wanted: but known to take so long
        append_record(results, recorded(slow.run(seed, 1e-3), seconds=100.0))
    append_record(results, recorded(window.run(7, 1e-3), seconds=10.0))
    pool = StandIn(clock.takes(10.0), capacity=1)
    outcome, said = run_with(monkeypatch, pool, grid, max_minutes=0.4)
    # 24 seconds: there is time for the window; then for none, and the first one begins
    assert [run.name for run in pool.started] == ["window", "slow", "unknown"]
    assert outcome[1:5] == (3, 0, 0, None)
    assert not [line for line in said if "time is up" in line]


def test_the_pace_of_a_point_that_has_not_run(monkeypatch, grid):
    """That of the median point of its mixer, of runs that have not ended too; else of all points."""
    slow, unknown, window = (point.base for point in slow_and_fast(grid))
    work = runner._GridWork(read_grid(grid.read_text(), "tiny"), {}, Options(), grid.parent / "r.jsonl", print, 0.0)
    assert work._expected(unknown) == 0.0
    work.on_progress(window, Progress(4, 0.0, None, 1.0))
    assert work._expected(unknown) == 16 * 1.0
    work.on_progress(slow, Progress(2, 0.0, None, 9.0))
    assert work._expected(unknown) == 16 * 9.0
    work.on_progress(slow, Progress(4, 0.0, None, 8.0))
    work.on_progress(replace(slow, name="x"), Progress(4, 0.0, None, 2.0))
    work.on_progress(replace(slow, name="y"), Progress(4, 0.0, None, 3.0))
    assert work._expected(unknown) == 16 * 3.0
    work.on_done(slow, done(slow, seconds=16.0)[2])
    work.on_progress(replace(slow, seed=1), Progress(1, 0.0, None, 50.0))  # the first steps are slow
    assert work._expected(slow) == 16.0  # as a whole run took
    (checkpoints_of(slow, "cpu", grid.parent) / "step-00000012").mkdir(parents=True)
    assert work._expected(slow) == 4.0  # what is left of it


def test_when_time_is_up_it_is_said_how_far_runs_are(monkeypatch, grid):
    clock = Clock(monkeypatch)
    pool = StandIn(clock.takes(30.0), capacity=2)
    outcome, said = run_with(monkeypatch, pool, grid, max_minutes=0.9)
    assert started(pool) == [("a", 0, 1e-3), ("a", 0, 1e-2), ("b", 5, 3e-3)]
    assert outcome[1:5] == (2, 2, 0, None)
    assert said[-2:] == [
        "b, seed 5, learning rate 0.003: stopped at step 1 of 16, to go on from step 0",
        "time is up: 2 runs left; the same command goes on with them",
    ]


def test_a_seed_that_waits_for_a_failed_one_is_not_for_want_of_time(monkeypatch, grid):
    pool = StandIn(lambda run: ("failed", run, Failure("MemoryError: no room")) if run.name == "a" else done(run))
    outcome, said = run_with(monkeypatch, pool, grid, max_minutes=10)
    assert outcome[1:5] == (1, 3, 2, None)
    assert said[-1] == "3 runs left, of which 2 failed; the same command tries again"


def test_an_unfinished_run_goes_on(monkeypatch, grid):
    """From the checkpoint of a call that was ended, in another process, to a record that says so."""
    out = grid.parent / "out"
    run = read_grid(TINY, "tiny").points[1].run(5, 3e-3)
    whole = run_one(run, "cpu")
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)

    def end(progress):
        if progress.step == 16:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_one(run, "cpu", end, out, "before")
    assert checkpoints_of(run, "cpu", out).is_dir()
    said = []
    options = Options(out=out, grid=grid, only=("b",))
    outcome = run_experiment("x", options, log=said.append, progress=False)
    assert f"{run.label}: goes on from step 8 of 16" in said
    [record] = read_records([outcome.results])
    assert record["accuracy"] == whole["accuracy"]
    assert [call["session"] for call in record["calls"]] == ["before", record["session"]]
    assert record["session"] != "before"
    assert record["seconds"] == pytest.approx(sum(call["seconds"] for call in record["calls"]))
    assert not checkpoints_of(run, "cpu", out).exists()


def test_runs_of_other_files_are_skipped(monkeypatch, grid):
    a, b = read_grid(TINY, "tiny").points
    append_record(grid.parent / "earlier.jsonl", recorded(a.run(0, 1e-2)))
    append_record(grid.parent / "b.jsonl", recorded(b.run(5, 3e-3)))
    pool = StandIn(done)
    outcome, _ = run_with(monkeypatch, pool, grid, also=(grid.parent / "earlier.jsonl", grid.parent / "b.jsonl"))
    assert started(pool) == [("a", 0, 1e-3), ("a", 1, 1e-2)]
    assert len(read_records([outcome.results])) == 2
    with pytest.raises(FileNotFoundError, match="no results file at"):
        run_with(monkeypatch, pool, grid, also=(Path("none.jsonl"),))
    (grid.parent / "of something else.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"^also must be files of records, .* got none in '.*something else\.jsonl'$"):
        run_with(monkeypatch, pool, grid, also=(grid.parent / "b.jsonl", grid.parent / "of something else.jsonl"))


def test_records_are_whole_json(monkeypatch, grid):
    outcome, _ = run_with(monkeypatch, StandIn(done), grid)
    for line in outcome.results.read_text().splitlines():
        record = json.loads(line)
        assert record["grid"] == "tiny"
        assert run_of(record).name == record["name"]
