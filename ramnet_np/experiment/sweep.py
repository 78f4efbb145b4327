"""Which runs a grid still wants, in which order, and how learning rates and variants are chosen.

By validation alone: the mean accuracy on held-out sequences of the TRAINING settings, or the bits a byte of windows of
held-out text. The test sets play no part. A run that diverged cannot be chosen. The rule is the same for every point:

1. **Search.** Every listed learning rate runs with the point's first seed and its own settings, the middle ones first.
   While the best is the lowest or the highest tried, the next one outwards (half or double) is tried too, within the
   grid's ``widest``. Where the grid has ``search_epochs``, these runs are so short.
2. **First results.** The best runs at full length with the first seed, then with the others.
3. **Variants.** Each variant is searched in the same way.
4. **Final.** The ``finalists`` best pairs of variant and rate run at full length with the first seed. While the best of
   these has the lowest or the highest rate tried for its variant, the next one outwards runs too. The best then runs
   with the other seeds, before the finalists of later points.

All points take step 1 before any takes step 2, and so on. So whenever a grid is stopped, as many points as possible
have a result. Where points have a ``place``, this holds for those of one place, and those of the lowest come first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import NamedTuple

from ramnet_np.experiment.grid import Grid
from ramnet_np.experiment.points import GridRun, Point
from ramnet_np.experiment.records import Record

SEARCH, FIRST, VARIANTS, FINAL = 0, 2, 4, 6  # the steps above; those but the last have two halves
STEP = 2.0  # between a rate and the next one outwards


class Choice(NamedTuple):
    """What a point chooses; compared by variant, then rate."""

    variant: str
    rate: float


class Asked(NamedTuple):
    """A run, and when its turn is: the lower, the earlier."""

    turn: tuple[int, int]
    run: GridRun


def score(record: Record) -> float | None:
    """What chooses, the higher the better: the mean accuracy, or minus the bits a byte; None for a run that diverged.

    >>> score({"status": "finished", "validation": {"mean": 0.5}})
    0.5
    >>> score({"status": "finished", "validation": {"mean": 0.5, "bits_per_byte": 2.0}})
    -2.0
    """
    validation = record["validation"]
    if record["status"] == "diverged":
        return None
    return -validation["bits_per_byte"] if "bits_per_byte" in validation else validation["mean"]


def best_of(scores: Mapping[Choice, float]) -> Choice:
    """The highest; of equals the middle one, which is least likely to lie at the end of a sweep.

    >>> best_of({Choice("", rate): 1.0 for rate in (1e-3, 2e-3, 4e-3)}).rate
    0.002
    """
    highest = max(scores.values())
    equals = sorted(choice for choice, value in scores.items() if value == highest)
    return equals[(len(equals) - 1) // 2]


def end_of(rate: float, tried: Iterable[float]) -> str:
    """Whether ``rate`` is the "lowest" or the "highest" of several rates; else "".

    >>> end_of(1e-2, [1e-3, 1e-2]), end_of(1e-2, [1e-2]), end_of(2e-3, [1e-3, 2e-3, 4e-3])
    ('highest', '', '')
    """
    rates = set(tried)
    if len(rates) < 2:
        return ""
    return "lowest" if rate == min(rates) else "highest" if rate == max(rates) else ""


def wanted_runs(grid: Grid, done: Mapping[str, Record], taken: Iterable[str] = ()) -> list[GridRun]:
    """Runs that could start now, in order: neither ``done`` nor ``taken`` (keys of runs that were started or failed).

    ``done``: records by the key of their run.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> grid = load_grid("mqar-order")
    >>> wanted_runs(grid, {})[0].name == grid.points[0].name
    True
    """
    asked = [(point.place, one.turn, one.run) for point in grid.points for one in asked_of(point, done)]
    skipped = {*done, *taken}
    runs = {run.key: run for _, _, run in sorted(asked, key=lambda one: one[:2])}
    return [run for key, run in runs.items() if key not in skipped]


def count_left(grid: Grid, done: Mapping[str, Record]) -> int:
    """How many runs the grid still wants, as far as one can tell: those included that wait for a choice.

    >>> from ramnet_np.experiment.grid import read_grid
    >>> text = "epochs = 1\\nseeds = [0, 1]\\nlearning_rates = [1e-3, 2e-3]\\npoints = [{ name = 'a' }]"
    >>> count_left(read_grid(text, "mine"), {})
    3
    """
    return sum(_left(point, done) for point in grid.points)


def _left(point: Point, done: Mapping[str, Record]) -> int:
    keys = {one.run.key for one in asked_of(point, done)}
    open_ones = len(keys - done.keys())
    short = point.searching != point.base
    least = len(point.variants) * len(point.learning_rates) + short * point.finalists + len(point.seeds) - 1
    return max(open_ones, least - len(keys & done.keys())) if open_ones else 0


def asked_of(point: Point, done: Mapping[str, Record]) -> Generator[Asked, None, None]:
    """What the search of a point asks for, as far as ``done`` tells; runs that are done too.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> point = load_grid("mqar-order").points[0]
    >>> len(list(asked_of(point, {}))) == len(point.learning_rates)
    True
    """
    own = yield from _search(point, [""], done, SEARCH)
    first = yield from _final(point, own, 1, {}, done, (FIRST, FIRST + 1))
    others = yield from _search(point, list(point.variants)[1:], done, VARIANTS)
    if own is not None and first is not None and others is not None:
        yield from _final(point, own | others, point.finalists, first, done, (FINAL, FINAL))


_Scores = dict[Choice, float | None]  # None: diverged
_Search = Generator[Asked, None, _Scores | None]


def _search(point: Point, variants: Iterable[str], done: Mapping[str, Record], turn: int) -> _Search:
    """Asks for every rate of some variants; returns their scores, None while it is not over."""
    scores: _Scores = {}
    over = True
    middle = (len(point.learning_rates) - 1) / 2
    for variant in variants:
        for i, rate in enumerate(point.learning_rates):
            yield Asked((turn, int(abs(i - middle))), point.search_run(rate, variant))
        of_variant = _done(point, [Choice(variant, rate) for rate in point.learning_rates], done)
        while of_variant and (further := _outwards(of_variant, of_variant, point.widest)):
            yield Asked((turn + 1, 0), point.search_run(further.rate, variant))
            of_variant = _done(point, [*of_variant, further], done)
        over = over and of_variant is not None
        scores |= of_variant or {}
    return scores if over else None


def _final(
    point: Point, scores: _Scores | None, finalists: int, before: _Scores, done: Mapping[str, Record],
    turns: tuple[int, int],
) -> _Search:  # fmt: skip
    """Asks for the runs at full length of the best ``scores``, and for the other seeds of the best of these.

    ``before``: such runs that have ended. ``turns``: of the first seed and of the others. Returns the scores of all of
    them, None while they are not over.
    """
    if scores is None:
        return None
    full, waiting = dict(before), False
    ranked = _whole(scores)
    while ranked and finalists:
        choice = best_of(ranked)
        del ranked[choice]
        run = point.run(point.seeds[0], choice.rate, choice.variant)
        yield Asked((turns[0], 0), run)
        if run.key in done:
            full[choice] = score(done[run.key])
            finalists -= full[choice] is not None  # one that diverged gives its place to the next
        else:
            waiting, finalists = True, finalists - 1
    if waiting:
        return None
    while further := _outwards(full, scores | full, point.widest):
        run = point.run(point.seeds[0], further.rate, further.variant)
        yield Asked((turns[0], 0), run)
        if run.key not in done:
            return None
        full[further] = score(done[run.key])
    if whole := _whole(full):
        best = best_of(whole)
        for number, seed in enumerate(point.seeds[1:]):
            yield Asked((turns[1], number), point.run(seed, best.rate, best.variant))
    return full


def _done(point: Point, choices: Iterable[Choice], done: Mapping[str, Record]) -> _Scores | None:
    """The scores of some runs of the search; None unless all of them are done."""
    records = {choice: done.get(point.search_run(choice.rate, choice.variant).key) for choice in choices}
    return None if None in records.values() else {choice: score(r) for choice, r in records.items() if r}


def _whole(scores: _Scores) -> dict[Choice, float]:
    """Without those that diverged."""
    return {choice: value for choice, value in scores.items() if value is not None}


def _outwards(scores: _Scores, tried: Iterable[Choice], widest: tuple[float, float] | None) -> Choice | None:
    """The best of ``scores`` with the next rate outwards, if it has the lowest or the highest of its variant's rates
    that were ``tried``; None where it has not, or where that rate is not within ``widest``."""
    whole = _whole(scores)
    if not whole or widest is None:
        return None
    best = best_of(whole)
    end = end_of(best.rate, [choice.rate for choice in tried if choice.variant == best.variant])
    rate = {"lowest": best.rate / STEP, "highest": best.rate * STEP, "": 0.0}[end]
    return Choice(best.variant, rate) if widest[0] <= rate <= widest[1] else None
