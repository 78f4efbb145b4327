"""From records to results: one for each point, with the rate and variant that validation chose, and all its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.records import Record, run_of
from ramnet_np.experiment.sweep import Choice, best_of, end_of, score
from ramnet_np.experiment.tasks import figure
from ramnet_np.model.mixers import MIXERS

_Pair = tuple[Record, GridRun]


@dataclass(frozen=True)
class Result:
    """A point of a grid, as far as it has run."""

    grid: str
    name: str
    run: GridRun  # one of those chosen
    settings: Mapping[str, Any]  # of it, as recorded: without those that the library got later
    state: int  # elements
    chosen: Choice  # by validation at full length
    searched: Mapping[
        Choice, float | None
    ]  # all that the first seed tried: validation of the short runs; None: diverged
    finals: Mapping[Choice, float | None]  # the same of the runs at full length
    accuracies: tuple[float, ...]  # of every seed of those chosen that did not diverge: mean of the test settings,
    # or bits a byte of text
    by_setting: dict[str, float]  # mean over those seeds
    records: tuple[Record, ...]  # of those runs
    epochs: float  # most of those runs
    tokens_per_second: int  # fewest of those runs

    @property
    def kind(self) -> str:
        """Which model it is, as tables and figures name it."""
        model = self.run.model
        label = MIXERS[model.mixer].variant(model).label
        return label if model.hybrid is None else f"{label} with {MIXERS[model.hybrid].variants[0].label}"

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that were tried with the chosen variant."""
        tried = {*self.searched, *self.finals}
        return tuple(sorted({choice.rate for choice in tried if choice.variant == self.chosen.variant}))

    @property
    def end(self) -> str:
        """Whether the chosen rate is the "lowest" or the "highest" of them; else ""."""
        return end_of(self.chosen.rate, self.rates)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants that were tried, the point's own settings, "", first."""
        return tuple(sorted({choice.variant for choice in (*self.searched, *self.finals)}))


def collect(records: Sequence[Record]) -> list[Result]:
    """A result for each point of each grid, in the order in which they first occur.

    Rate and variant are chosen as :mod:`~ramnet_np.experiment.sweep` says: the best validation at full length, with the
    seed that tried most. Where a point was run under several settings (a grid file was changed), those of the newest
    record count. Points without a run at full length that did not diverge have no result, nor have runs of settings
    that this version does not know. Results of ``--quick`` count only where there are no others.

    >>> collect([])
    []
    """
    known = [(record, run) for record in records if (run := run_of(record)) is not None]
    if any(not run.quick for _, run in known):
        known = [(record, run) for record, run in known if not run.quick]
    points: dict[tuple[str, str], list[_Pair]] = {}
    for record, run in known:
        points.setdefault((record["grid"], run.name), []).append((record, run))
    found = (_result(grid, name, runs) for (grid, name), runs in points.items())
    return [result for result in found if result]


def _current(runs: Sequence[_Pair]) -> list[_Pair]:
    """Those with the settings of the newest: but for the model, of which those of the newest of each variant."""
    if not runs:
        return []
    oldest_first = sorted(runs, key=lambda pair: pair[0]["date"])
    newest = _but_model(oldest_first[-1][1])
    same = [pair for pair in oldest_first if _but_model(pair[1]) == newest]
    models = {run.variant: run.model for _, run in same}
    return [pair for pair in same if pair[1].model == models[pair[1].variant]]


def _but_model(run: GridRun) -> dict[str, Any]:
    """What the runs of one length of a point have in common."""
    return {**vars(replace(run, seed=0, variant="", train=replace(run.train, learning_rate=1.0))), "model": None}


def _result(grid: str, name: str, runs: Sequence[_Pair]) -> Result | None:
    """The result of the runs of one point."""
    tried: dict[int, dict[Choice, _Pair]] = {}
    for record, run in _current([pair for pair in runs if not pair[1].search]):
        tried.setdefault(run.seed, {})[_choice(run)] = record, run
    if not tried:
        return None
    swept = max(sorted(tried), key=lambda seed: len(tried[seed]))
    finals = {choice: score(record) for choice, (record, _) in tried[swept].items()}
    whole = {choice: value for choice, value in finals.items() if value is not None}
    if not whole:
        return None
    chosen = best_of(whole)
    of_seeds = [tried[seed][chosen][0] for seed in sorted(tried) if chosen in tried[seed]]
    kept = [record for record in of_seeds if record["status"] != "diverged"]
    settings = kept[0]["accuracy"]
    return Result(
        grid=grid,
        name=name,
        run=tried[swept][chosen][1],
        settings=tried[swept][chosen][0]["settings"],
        state=kept[0]["state_elements"],
        chosen=chosen,
        searched={_choice(run): score(r) for r, run in _current([pair for pair in runs if pair[1].search])},
        finals=finals,
        accuracies=tuple(figure(r["accuracy"]) for r in kept),
        by_setting={s: sum(r["accuracy"][s] for r in kept) / len(kept) for s in settings if s != "mean"},
        records=tuple(kept),
        epochs=max(r["epochs"] for r in kept),
        tokens_per_second=min(r["tokens_per_second"] for r in kept),
    )


def _choice(run: GridRun) -> Choice:
    return Choice(run.variant, run.train.learning_rate)


def gpu_minutes(records: Sequence[Record]) -> float:
    """Minutes in which a GPU had a run: runs side by side on one GPU count once, those on two GPUs twice.

    A run lasted from ``date`` minus ``seconds`` to ``date``, or each of its ``calls`` did; runs of one ``session`` and
    ``gpu`` shared that GPU. What was spent on runs that never ended has no record and does not count.

    >>> one = {"hardware": {"device": "gpu"}, "session": "a", "gpu": "0", "seconds": 60.0}
    >>> dates = "2026-01-01T10:01:00+00:00", "2026-01-01T10:01:30+00:00"
    >>> gpu_minutes([one | {"date": date} for date in dates])
    1.5
    """
    spans: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if record["hardware"]["device"] != "gpu":
            continue
        for call in record.get("calls", [record]):
            end = datetime.fromisoformat(call["date"]).timestamp()
            where = call.get("session", ""), call.get("gpu", "")
            spans.setdefault(where, []).append((end - call["seconds"], end))
    total = 0.0
    for runs in spans.values():
        reached = float("-inf")
        for start, end in sorted(runs):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
    return total / 60
