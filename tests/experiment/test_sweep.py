"""Which runs come next, and by what the learning rate is chosen."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.experiment.grid import GRIDS, Grid, load_grid, read_grid, together
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.experiment.sweep import asked_of, count_left, wanted_runs
from tests.experiment.grids import TINY

GRID = read_grid(TINY, "tiny")
A, B = GRID.points
LOW, HIGH = A.learning_rates


def record(run, validation, test, status="finished"):
    return {"status": status, "validation": {"mean": validation}, "accuracy": {"mean": test}, "name": run.name}


def asked(point, done):
    """The runs that a point wants next: (variant, rate, seed, whether it is a short one)."""
    return [told(run) for run in wanted_runs(Grid("g", "", (point,), False), done)]


def told(run):
    return run.variant, run.train.learning_rate, run.seed, run.search


def searched(point, scores, longest=100):
    """Run all that a point asks for; ``scores``: validation by (variant, rate, short), None: it diverges. In order."""
    done, order = {}, []
    grid = Grid("g", "", (point,), False)
    while runs := wanted_runs(grid, done):
        run = runs[0]
        left = count_left(grid, done)
        assert left >= len(runs)
        order.append(told(run))
        value = scores(run.variant, run.train.learning_rate, run.search)
        done[run.key] = record(run, value, test=0.0, status="diverged" if value is None else "finished")
        assert len(order) < longest
    assert count_left(grid, done) == 0
    return order


def test_validation_chooses_and_the_test_sets_do_not():
    low, high = A.run(0, LOW), A.run(0, HIGH)
    done = {low.key: record(low, validation=0.9, test=0.1)}
    assert asked(A, done) == [("", HIGH, 0, False)]  # the sweep is not over
    done[high.key] = record(high, validation=0.8, test=1.0)
    assert asked(A, done) == [("", LOW, 1, False)]
    done[high.key] = record(high, validation=0.95, test=0.0)
    assert asked(A, done) == [("", HIGH, 1, False)]
    done[high.key] = record(high, validation=0.9, test=1.0)
    assert asked(A, done) == [("", LOW, 1, False)]  # of equals the middle one, of two the lower


def test_what_diverged_is_not_chosen():
    low, high = A.run(0, LOW), A.run(0, HIGH)
    done = {low.key: record(low, 0.1, 0.1), high.key: record(high, 0.9, 0.9, "diverged")}
    assert asked(A, done) == [("", LOW, 1, False)]
    done[low.key]["status"] = "diverged"
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


def test_points_of_an_earlier_pattern_take_all_their_steps_first():
    done, order = {}, []
    grid = GRID.only("b", "a")
    while runs := wanted_runs(grid, done):
        order.append((runs[0].name, runs[0].seed))
        done[runs[0].key] = record(runs[0], validation=0.5, test=0.0)
    assert order == [("b", 5), ("a", 0), ("a", 0), ("a", 1)]
    [first] = [run for run in wanted_runs(GRID.only("a", "b"), {}) if run.name == "b"]
    assert wanted_runs(GRID.only("a", "b"), {})[-1] == first  # it fills what the search of a leaves free


def test_several_workers_get_as_many_finalists_as_the_grid_has():
    """And not the next best too, as long as those are on their way."""
    point, done = point_of(SEARCHED), {}
    for rate, value in ((2e-3, 1.0), (1e-3, 0.5), (4e-3, 0.75)):
        done[point.search_run(rate, "").key] = record(point.search_run(rate, ""), value, test=0.0)
    assert asked(point, done) == [("", 2e-3, 0, False)]  # a result comes first
    for seed in point.seeds:
        done[point.run(seed, 2e-3, "").key] = record(point.run(seed, 2e-3, ""), 1.0, test=0.0)
    assert asked(point, done) == [("", 4e-3, 0, False)]


def test_runs_on_their_way_are_not_started_again():
    first, *others = wanted_runs(GRID, {})
    assert wanted_runs(GRID, {}, [first.key]) == others


SEARCHED = """
search_epochs = 1
finalists = 2
widest = [5e-4, 1e-1]
"""


def point_of(text, rates="[1e-3, 2e-3, 4e-3]", more=""):
    shared = TINY.replace("[1e-3, 1e-2]", rates).replace('name = "a"', f'name = "a"\n{more}')
    return read_grid(text + shared, "tiny").points[0]


def test_middle_rates_come_first():
    order = [rate for _, rate, _, _ in asked(point_of("", "[1e-3, 2e-3, 3e-3, 4e-3, 5e-3]"), {})]
    assert order == [3e-3, 2e-3, 4e-3, 1e-3, 5e-3]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (2e-3, [1e-3, 2e-3, 4e-3]),
        (1.5e-2, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2]),
        (1.0, [1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2]),  # as far as the grid allows
        (1e-6, [5e-4, 1e-3, 2e-3, 4e-3]),
    ],
)
def test_a_sweep_goes_on_while_the_best_is_at_an_end(best, tried):
    """At the length of the search; at full length the best of it and the next best, with the best then its seeds."""
    point = point_of(SEARCHED)
    order = searched(point, lambda variant, rate, short: -abs(math.log(rate / best)))
    assert sorted(rate for _, rate, _, short in order if short) == tried
    nearest, second = sorted(tried, key=lambda rate: abs(math.log(rate / best)))[:2]
    assert [one for one in order if not one[3]] == [
        ("", nearest, 0, False), ("", nearest, 1, False), ("", second, 0, False),
    ]  # fmt: skip
    assert [rate for _, rate, _, short in searched(point_of(SEARCHED.replace("widest", "#")), lambda *_: 0.5)][:3] == [
        2e-3, 1e-3, 4e-3,
    ]  # fmt: skip


def test_equal_rates_choose_the_middle_one_and_do_not_go_on():
    order = searched(point_of(SEARCHED), lambda *_: 1.0)
    assert [rate for _, rate, _, short in order if short] == [2e-3, 1e-3, 4e-3]
    assert order[3:5] == [("", 2e-3, 0, False), ("", 2e-3, 1, False)]


def test_a_rate_that_wins_at_full_length_is_not_at_an_end_either():
    def scores(variant, rate, short):
        return -abs(math.log(rate / 2.1e-3)) if short else rate

    order = searched(point_of(SEARCHED), scores)
    full = [(rate, seed) for _, rate, seed, short in order if not short]
    assert full == [(2e-3, 0), (2e-3, 1), (4e-3, 0), *((r, 0) for r in (8e-3, 1.6e-2, 3.2e-2, 6.4e-2)), (6.4e-2, 1)]


def test_variants_come_last_and_the_best_has_all_seeds():
    def scores(variant, rate, short):
        return {"": 0.5, "good": 0.9, "bad": 0.4}[variant] - abs(math.log(rate / 2e-3)) / 100

    more = "variants = { bad = { top_k = 1 }, good = { radix = 4 } }"
    order = searched(point_of(SEARCHED, more=more), scores)
    short, full = [one[:2] for one in order if one[3]], [one[:3] for one in order if not one[3]]
    assert short == [(variant, rate) for variant in ("", "bad", "good") for rate in (2e-3, 1e-3, 4e-3)][:3] + [
        (variant, rate) for rates in ((2e-3,), (1e-3, 4e-3)) for variant in ("bad", "good") for rate in rates
    ]
    assert order.index(("", 2e-3, 1, False)) < order.index(("bad", 2e-3, 0, True))  # a result before variants
    assert full[:2] == [("", 2e-3, 0), ("", 2e-3, 1)]
    assert sorted(full[2:4]) == [("good", 1e-3, 0), ("good", 2e-3, 0)]
    assert full[4:] == [("good", 2e-3, 1)]


def test_in_the_last_step_a_point_has_all_seeds_before_the_next_point_begins():
    text = SEARCHED.replace("widest", "#") + TINY.replace("learning_rate = 3e-3\nseeds = [5]\n", "")
    grid, done, order = read_grid(text, "tiny"), {}, []
    while runs := wanted_runs(grid, done):
        run = runs[0]
        order.append((run.name, run.seed, run.train.learning_rate, run.search))
        value = run.train.learning_rate if run.search else -run.train.learning_rate
        done[run.key] = record(run, value, test=0.0)
    first, last = (LOW, HIGH)[::-1]
    assert order[4:] == [
        ("a", 0, first, False), ("b", 0, first, False), ("a", 1, first, False), ("b", 1, first, False),
        ("a", 0, last, False), ("a", 1, last, False), ("b", 0, last, False), ("b", 1, last, False),
    ]  # fmt: skip


def test_in_the_last_step_a_point_goes_outwards_before_the_next_point_begins():
    text = SEARCHED + TINY.replace("[1e-3, 1e-2]", "[1e-3, 2e-3, 4e-3]").replace(
        "learning_rate = 3e-3\nseeds = [5]\n", ""
    )
    grid, done, order = read_grid(text, "tiny"), {}, []
    while runs := wanted_runs(grid, done):
        run = runs[0]
        order.append((run.name, run.seed, run.train.learning_rate, run.search))
        rate = run.train.learning_rate
        value = -abs(math.log(rate / 2.1e-3)) if run.search else min(rate, 8e-3)
        done[run.key] = record(run, value, test=0.0)
    last = [one[:3] for one in order if not one[3]][4:]
    assert last == [(name, *run) for name in "ab" for run in ((0, 4e-3), (0, 8e-3), (0, 1.6e-2), (1, 8e-3))]


def test_a_finalist_that_diverges_gives_its_place_to_the_next():
    def scores(variant, rate, short):
        return None if rate == 2e-3 and not short else -abs(math.log(rate / 2.2e-3))

    order = searched(point_of(SEARCHED), scores)
    full = [(rate, seed) for _, rate, seed, short in order if not short]
    # 2e-3 diverges; then 4e-3 and 1e-3 are the best, and 8e-3 is the next one outwards
    assert full == [(2e-3, 0), (4e-3, 0), (8e-3, 0), (4e-3, 1), (1e-3, 0)]
    assert searched(point_of(SEARCHED), lambda *_: None)[3:] == []


RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
NOVELS = {True: (60_445_819, 256), False: (16_255_008, 8192)}  # as bytes or not: tokens to train on, number of pieces


def like_the_novels(records):
    """A corpus as that of the records is, without its texts; None for records of runs on no text."""
    sums = {record["settings"].get("corpus") for record in records} - {None, ""}
    if not sums:
        return None
    [sha256] = sums
    tokens, vocab = NOVELS[bytes_ := of_bytes(records[0]["grid"])]
    sizes = ("train/one", tokens), ("valid/one", 4096)
    documents = tuple(Document(name, np.zeros(0), 0, size) for name, size in sizes)
    held_out = () if bytes_ else ("valid/one",)  # a folder of text does not say, and the grid does
    return Corpus(documents, np.dtype(np.uint16), SimpleNamespace(vocab=vocab), sha256, held_out)


def of_bytes(grid):
    return grid == "language-bytes"


@pytest.mark.parametrize(("results", "bytes_"), [("mqar", False), ("language", False), ("language", True)])
def test_the_grids_go_on_from_the_published_results(results, bytes_):
    """A change of settings, or of the fields that settings have, would make every run start anew. Records without the
    field "search" are older than the search: no run of a grid is skipped for them."""
    records = [one for one in read_records([RESULTS / f"{results}.jsonl"]) if of_bytes(one["grid"]) == bytes_]
    assert len(records) > 1
    done = {run_of(record).key: record for record in records}
    ours = {key for key, record in done.items() if "search" in record["settings"]}
    corpus = like_the_novels(records)
    grids = [name for name in GRIDS if of_bytes(name) == bytes_ or not corpus]
    grid = together([load_grid(name, corpus=corpus) for name in grids])
    asked_for = {one.run.key for point in grid.points for one in asked_of(point, {key: done[key] for key in ours})}
    assert ours <= asked_for
