"""From records to results: one for each point, with the learning rate that validation chose and all its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ramnet_np.experiment.grid import GridRun
from ramnet_np.experiment.records import Record, run_of
from ramnet_np.model.mixers import MIXERS


@dataclass(frozen=True)
class Result:
    """A point of a grid, as far as it has run."""

    grid: str
    name: str
    run: GridRun  # one of its runs, for the settings
    state: int  # elements
    learning_rate: float  # chosen by validation
    rates: int  # how many were tried
    accuracies: tuple[float, ...]  # of every seed with that rate that did not diverge: mean of the test settings
    by_setting: dict[str, float]  # mean over those seeds
    epochs: float  # most of those runs
    tokens_per_second: int  # fewest of those runs

    @property
    def kind(self) -> str:
        """Which model it is, as tables and figures name it."""
        return MIXERS[self.run.model.mixer].variant(self.run.model).label

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return sum(self.accuracies) / len(self.accuracies)


def collect(records: Sequence[Record]) -> list[Result]:
    """A result for each point of each grid, in the order in which they first occur.

    Where a point was run under several settings (a grid file was changed), those of the newest record count. The
    learning rate is chosen as :mod:`~ramnet_np.experiment.sweep` says, by validation with the seed that tried most
    rates, the lowest of equals. Points of which every run diverged have no result, nor have runs of settings that this
    version does not know. Results of ``--quick`` count only where there are no others.

    >>> collect([])
    []
    """
    known = [(record, run) for record in records if (run := run_of(record)) is not None]
    if any(not run.quick for _, run in known):
        known = [(record, run) for record, run in known if not run.quick]
    points: dict[tuple[str, str], list[tuple[Record, GridRun]]] = {}
    for record, run in known:
        points.setdefault((record["grid"], run.name), []).append((record, run))
    results = []
    for (grid, name), runs in points.items():
        _, newest = max(runs, key=lambda pair: pair[0]["date"])
        whole = [(record, run) for record, run in runs if _shared(run) == _shared(newest)]
        if result := _result(grid, name, whole):
            results.append(result)
    return results


def _shared(run: GridRun) -> GridRun:
    """What all runs of a point have in common."""
    return replace(run, seed=0, train=replace(run.train, learning_rate=1.0))


def _result(grid: str, name: str, runs: Sequence[tuple[Record, GridRun]]) -> Result | None:
    """The result of the runs of one point under the same settings."""
    tried: dict[int, dict[float, Record]] = {}
    for record, run in runs:
        tried.setdefault(run.seed, {})[run.train.learning_rate] = record
    swept = max(sorted(tried), key=lambda seed: len(tried[seed]))
    whole = {rate: r for rate, r in tried[swept].items() if r["status"] != "diverged"}
    if not whole:
        return None
    rate = max(sorted(whole), key=lambda rate: whole[rate]["validation"]["mean"])
    kept = [r for seed in sorted(tried) if (r := tried[seed].get(rate)) and r["status"] != "diverged"]
    settings = kept[0]["accuracy"]
    return Result(
        grid=grid,
        name=name,
        run=runs[0][1],
        state=kept[0]["state_elements"],
        learning_rate=rate,
        rates=len(tried[swept]),
        accuracies=tuple(r["accuracy"]["mean"] for r in kept),
        by_setting={s: sum(r["accuracy"][s] for r in kept) / len(kept) for s in settings if s != "mean"},
        epochs=max(r["epochs"] for r in kept),
        tokens_per_second=min(r["tokens_per_second"] for r in kept),
    )


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
