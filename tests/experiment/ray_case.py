"""A grid on a Ray cluster of two CPUs, which this program starts: ``python -m tests.experiment.ray_case FOLDER``.

A program of its own, since Ray leaves threads and processes of its own behind it.
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.ray_pool import RayPool
from ramnet_np.experiment.records import Record, read_records
from ramnet_np.experiment.runner import Options, run_experiment
from tests.experiment.grids import TINY


def of(records: list[Record]) -> list[str]:
    """What of the records does not depend on where and when the runs ran."""
    same = ("name", "grid", "status", "settings", "validation", "accuracy", "steps")
    return sorted(json.dumps({name: record[name] for name in same}, sort_keys=True) for record in records)


def check_results(folder: Path) -> None:
    """Those of one host; a second call has nothing to do."""
    grid = folder / "tiny.toml"
    grid.write_text(TINY)
    here = Options(out=folder / "here", grid=grid, only=("a",), side_by_side=2)
    there = replace(here, out=folder / "there", ray=())
    ended = [
        run_experiment("x", options, log=lambda words: None, progress=False)[1:4] for options in (here, there, there)
    ]
    assert ended == [(3, 0, 0), (3, 0, 0), (0, 0, 0)], ended
    ours, theirs = (read_records([options.out / "results.jsonl"]) for options in (here, there) if options.out)
    assert of(ours) == of(theirs)
    assert len({record["session"] for record in theirs}) == 1
    assert not list((folder / "there" / "unfinished").glob("*"))


def check_faults(folder: Path) -> None:
    """A process that dies gives its run back and is replaced; a run that fails is told of."""
    first, second = (point.base for point in read_grid(TINY, "tiny").points)
    broken = replace(second, seed=-1)
    seen: list[Any] = []
    with RayPool(None, "cpu", 2, folder, "now") as pool:
        assert pool.free == pool.size == 2
        pool.start(first)
        next(actor for actor in pool._actors if actor.running).end()
        while pool.running:
            seen += pool.events(1.0)
        assert [(event.kind, event.run) for event in seen if event.kind != "progress"] == [("died", first)]
        assert pool.free == pool.size == 2
        for run in (first, broken):
            pool.start(run)
        while pool.running:
            seen += pool.events(1.0)
    ends = {event.run.key: event for event in seen if event.kind in ("done", "failed")}
    assert ends[first.key].what["status"] == "finished"
    assert ends[broken.key].kind == "failed"
    assert "seed" in ends[broken.key].what.why


def check_own_cluster(folder: Path) -> None:
    """Where there is none, the pool starts one and ends it; signals stay with the program."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with RayPool(None, "cpu", 1, folder, "now") as pool:
        assert pool.size == 1
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert not ray.is_initialized()
    signal.signal(signal.SIGTERM, handler)


if __name__ == "__main__":
    check_own_cluster(Path(sys.argv[1]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    check_results(Path(sys.argv[1]))
    check_faults(Path(sys.argv[1]))
    ray.shutdown()
