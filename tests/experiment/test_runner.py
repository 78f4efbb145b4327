"""A grid from start to end: in processes, and with a stand-in for them where what matters is what is done with runs."""

import json
import os
import signal

import pytest

from ramnet_np.cli import main
from ramnet_np.experiment import runner
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import Progress
from ramnet_np.experiment.records import append_record, read_records, run_of
from ramnet_np.experiment.runner import Options, run_experiment
from ramnet_np.experiment.workers import Event, Team
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
    assert all(0 <= r["accuracy"]["mean"] <= 1 for r in records)
    before = (out / "results.jsonl").read_bytes()
    assert main(command) == 0
    assert "0 finished now, 0 left, 0 failed" in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == before


def test_what_the_command_refuses(capsys, grid):
    for arguments, message in (
        ([], "experiment must be one of mqar-order, mqar-state, mqar-ablations, plot, got 'nothing'"),
        (["mqar"], "experiment must be one of mqar-order, mqar-state, mqar-ablations, plot, got 'mqar'"),
        (["mqar-order", "--grid", "no.toml"], "grid must be a file or one of"),
        (["mqar-order", "--side-by-side", "0", "--grid", str(grid)], "side_by_side must be at least 1, got 0"),
        (["plot", "no.jsonl"], "no results file at no.jsonl"),
    ):
        assert main(["experiment", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_minutes must be above 0, got 0"):
        Options(max_minutes=0)
    with pytest.raises(ValueError, match="epochs must be above 0, got -1"):
        Options(epochs=-1)


def test_processes_that_end_are_replaced(grid):
    runs = [p.run(p.seeds[0], rate) for p in read_grid(TINY, "tiny").points for rate in p.learning_rates]
    ended = []
    with Team("cpu", (), 1) as team:
        team.start(runs[0])
        [member] = team._members
        os.kill(member._process.pid, signal.SIGKILL)
        while team.running:
            ended += [(event.kind, event.run) for event in team.events(1)]
        assert ended == [("lost", runs[0])]
        assert team.free == 1
        team.start(runs[1])
        while team.running:
            ended += [(event.kind, event.run) for event in team.events(1) if event.kind != "progress"]
    assert ended[1:] == [("done", runs[1])]


def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch):
    def seen(gpus):
        return [member._environment["CUDA_VISIBLE_DEVICES"] for member in Team("gpu", gpus, 4)._members]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert seen((0, 1)) == ["0", "1"]
    assert Team("gpu", (0, 1), 4).free == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert seen((1,)) == ["5"]
    with pytest.raises(ValueError, match="gpus must be below 2, as CUDA_VISIBLE_DEVICES leaves so many, got 2"):
        seen((2,))
    for gpus in ((), (-1,)):
        with pytest.raises(ValueError, match=r"gpus must be numbers from 0 on, got \["):
            seen(gpus)


class StandIn:
    """A team that needs no processes: each look ends the oldest run, as ``outcome(run)`` says."""

    def __init__(self, outcome, room=2):
        self.outcome, self.room, self.running, self.started = outcome, room, [], []

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.running = []

    @property
    def free(self):
        return self.room - len(self.running)

    def start(self, run):
        self.running.append(run)
        self.started.append(run)

    def events(self, seconds):
        for run in list(self.running):
            yield Event("progress", run, Progress(1, 0.1, None))
        run = self.running.pop(0)
        yield Event(*self.outcome(run))


def done(run, accuracy=0.5, seconds=1.0):
    return "done", run, {
        "name": run.name, "status": "finished", "settings": run.settings, "accuracy": {"mean": accuracy},
        "validation": {"mean": run.train.learning_rate}, "steps": 16, "epochs": 2.0, "seconds": seconds,
        "tokens_per_second": 1, "quick": False,
    }  # fmt: skip


def started(team):
    return [(run.name, run.seed, run.train.learning_rate) for run in team.started]


def run_with(monkeypatch, team, grid, **options):
    monkeypatch.setattr(runner, "Team", team)
    said = []
    outcome = run_experiment("x", Options(out=grid.parent, grid=grid, **options), say=said.append, progress=False)
    return outcome, said


def test_the_sweep_then_the_other_seeds(monkeypatch, grid):
    team = StandIn(done)
    outcome, said = run_with(monkeypatch, team, grid)
    assert started(team) == [("a", 0, 1e-3), ("a", 0, 1e-2), ("b", 5, 3e-3), ("a", 1, 1e-2)]
    assert outcome[1:] == (4, 0, 0, False)
    assert len(said) == 5
    assert said[1].startswith("a, seed 0, learning rate 0.001: accuracy 0.500 (validation 0.001), 2 epochs, 1 s")


def test_runs_with_a_record_are_skipped(monkeypatch, grid):
    a = read_grid(TINY, "tiny").points[0]
    _, _, record = done(a.run(0, 1e-2))
    append_record(grid.parent / "results.jsonl", record)
    _, _, other = done(a.run(0, 1e-3))
    other["settings"]["model"]["width"] = 8  # of other settings: no reason to skip
    append_record(grid.parent / "results.jsonl", other)
    team = StandIn(done)
    run_with(monkeypatch, team, grid)
    assert started(team) == [("a", 0, 1e-3), ("b", 5, 3e-3), ("a", 1, 1e-2)]


def test_ctrl_c_leaves_what_is_finished(monkeypatch, grid):
    def interrupted(run):
        if run.name == "b":
            raise KeyboardInterrupt
        return done(run)

    outcome, said = run_with(monkeypatch, StandIn(interrupted), grid)
    assert outcome[1:] == (2, 2, 0, True)
    assert said[-1] == "interrupted: 2 runs left; the same command goes on with them"
    names = [r["name"] for r in read_records([outcome.results])]
    assert names == ["a", "a"]
    team = StandIn(done)
    run_with(monkeypatch, team, grid)
    assert started(team) == [("b", 5, 3e-3), ("a", 1, 1e-2)]


def test_a_failed_run_does_not_stop_the_others(monkeypatch, grid):
    team = StandIn(lambda run: ("failed", run, "MemoryError: no room") if run.name == "b" else done(run))
    outcome, said = run_with(monkeypatch, team, grid)
    assert outcome[1:] == (3, 1, 1, False)
    assert "b, seed 5, learning rate 0.003: failed, and is left out: MemoryError: no room" in said
    assert said[-1] == "1 run left, of which 1 failed; the same command tries again"
    assert started(team).count(("b", 5, 3e-3)) == 1


def test_a_run_whose_process_ends_is_tried_twice(monkeypatch, grid):
    team = StandIn(lambda run: ("lost", run, None) if run.name == "b" else done(run))
    outcome, said = run_with(monkeypatch, team, grid)
    assert outcome[1:] == (3, 1, 1, False)
    assert "b, seed 5, learning rate 0.003: failed, and is left out: its process ended 2 times" in said
    assert started(team).count(("b", 5, 3e-3)) == 2


def test_no_run_is_started_that_would_not_end_in_time(monkeypatch, grid):
    now = [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now[0])

    def takes_30_seconds(run):
        now[0] += 30
        return done(run, seconds=30.0)

    team = StandIn(takes_30_seconds, room=1)
    outcome, said = run_with(monkeypatch, team, grid, max_minutes=1.3)
    # 78 seconds: at 0 and 30 there is time, at 60 there is not for 33 more
    assert started(team) == [("a", 0, 1e-3), ("a", 0, 1e-2)]
    assert said[-1] == "time is up: 2 runs left; the same command goes on with them"
    assert outcome[1:] == (2, 2, 0, False)
    # what is known from the records counts before anything has run
    team = StandIn(takes_30_seconds, room=1)
    now[0] = 0.0
    run_with(monkeypatch, team, grid, max_minutes=0.5)
    assert started(team) == []


def test_records_are_whole_json(monkeypatch, grid):
    outcome, _ = run_with(monkeypatch, StandIn(done), grid)
    for line in outcome.results.read_text().splitlines():
        record = json.loads(line)
        assert record["grid"] == "tiny"
        assert record["session"]
        assert run_of(record).name == record["name"]
