"""Which runs come next, and by what the learning rate is chosen."""

from pathlib import Path

import pytest

from ramnet_np.experiment.grid import load_grid, read_grid
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.experiment.sweep import chosen_rate, count_left, wanted_runs
from tests.experiment.grids import TINY

GRID = read_grid(TINY, "tiny")
A, B = GRID.points
LOW, HIGH = A.learning_rates


def record(run, validation, test, status="finished"):
    return {"status": status, "validation": {"mean": validation}, "accuracy": {"mean": test}, "name": run.name}


def test_validation_chooses_and_the_test_sets_do_not():
    low, high = A.run(0, LOW), A.run(0, HIGH)
    done = {low.key: record(low, validation=0.9, test=0.1)}
    assert chosen_rate(A, done) is None  # the sweep is not over
    done[high.key] = record(high, validation=0.8, test=1.0)
    assert chosen_rate(A, done) == LOW
    done[high.key] = record(high, validation=0.95, test=0.0)
    assert chosen_rate(A, done) == HIGH
    done[high.key] = record(high, validation=0.9, test=1.0)
    assert chosen_rate(A, done) == LOW  # of equals the first


def test_what_diverged_is_not_chosen():
    low, high = A.run(0, LOW), A.run(0, HIGH)
    done = {low.key: record(low, 0.1, 0.1), high.key: record(high, 0.9, 0.9, "diverged")}
    assert chosen_rate(A, done) == LOW
    done[low.key]["status"] = "diverged"
    assert chosen_rate(A, done) is None
    assert [run.name for run in wanted_runs(GRID, done)] == ["b"]  # no rate, so no further seed
    assert count_left(GRID, done) == 1


def test_first_seeds_of_all_points_come_before_second_ones():
    done = {}
    order = []
    while runs := wanted_runs(GRID, done):
        assert count_left(GRID, done) == 4 - len(order)
        run = runs[0]
        order.append((run.name, run.seed, run.train.learning_rate))
        done[run.key] = record(run, validation=run.train.learning_rate, test=0.0)
    assert order == [("a", 0, LOW), ("a", 0, HIGH), ("b", 5, 3e-3), ("a", 1, HIGH)]
    assert count_left(GRID, done) == 0


def test_runs_on_their_way_are_not_started_again():
    first, *others = wanted_runs(GRID, {})
    assert wanted_runs(GRID, {}, [first.key]) == others


RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"


@pytest.mark.parametrize("results", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_grids_go_on_from_the_published_results(results):
    """A change of settings, or of the fields that settings have, would make every run start anew."""
    grid = load_grid(results.stem)
    done = {run_of(record).key: record for record in read_records([results])}
    assert len(done) > 1
    assert count_left(grid, done) == count_left(grid, {}) - len(done)
