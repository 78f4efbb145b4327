"""A grid on a Ray cluster, here one of two CPUs that the test starts."""

import json
from dataclasses import replace

import pytest

from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.ray_pool import RayPool
from ramnet_np.experiment.records import read_records
from ramnet_np.experiment.runner import Options, run_experiment
from tests.experiment.grids import TINY

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ramnet-np[ray]'")


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def of(records):
    """What of the records does not depend on where and when the runs ran."""
    same = ("name", "grid", "status", "settings", "validation", "accuracy", "steps")
    return sorted(json.dumps({name: record[name] for name in same}, sort_keys=True) for record in records)


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_cluster_has_the_results_of_one_host(cluster, grid, tmp_path):
    here = Options(out=tmp_path / "here", grid=grid, only="a", side_by_side=2)
    there = replace(here, out=tmp_path / "there", ray=())
    words = []
    for options in (here, there, there):
        run_experiment("x", options, log=words.append, progress=False)
    ours, theirs = (read_records([folder / "results.jsonl"]) for folder in (here.out, there.out))
    assert len(ours) == 3
    assert of(ours) == of(theirs)
    assert len({record["session"] for record in theirs}) == 1
    assert not list((there.out / "unfinished").glob("*"))


def test_a_process_that_dies_and_a_run_that_fails(cluster, tmp_path):
    first, second = (point.base for point in read_grid(TINY, "tiny").points)
    broken = replace(second, seed=-1)
    with RayPool(None, "cpu", 2, tmp_path, "now") as pool:
        assert pool.free == 2
        pool.start(first)
        next(actor for actor in pool._actors if actor.running).end()
        seen = []
        while pool.running:
            seen += pool.events(1.0)
        assert [(event.kind, event.run) for event in seen if event.kind != "progress"] == [("died", first)]
        assert pool.free == 2
        for run in (first, broken):
            pool.start(run)
        while pool.running:
            seen += pool.events(1.0)
    ends = {event.run.key: event for event in seen if event.kind in ("done", "failed")}
    assert ends[first.key].what["status"] == "finished"
    assert ends[broken.key].kind == "failed"


def test_wrong_options_and_a_cluster_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="ray must have one address or none, and no gpus beside it, got gpus"):
        Options(device="gpu", gpus=(0,), ray=())
    with pytest.raises(ValueError, match="got 2 addresses"):
        Options(ray=("a", "b"))
