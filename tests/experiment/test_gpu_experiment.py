"""Runs side by side on a GPU: batches gathered there, threads that capture at the same time. Needs a GPU."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.data.gpu_dataset import GPUDataset, GPUDatasets
from ramnet_np.data.mqar import mqar_data
from ramnet_np.experiment import one_run
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.records import read_records
from ramnet_np.experiment.runner import Options, run_experiment
from ramnet_np.model import RAMNet
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init
from tests.experiment.grids import TINY

pytestmark = pytest.mark.gpu


def longer(run, epochs=20):
    return replace(run, train=replace(run.train, steps=epochs * 8))


def trained(run, on_gpu, graphs):
    sets = [Batch(*examples) for examples in mqar_data(run.data, run.seed)[0]]
    source = shuffled = ShuffledSets(sets, {}, run.train.batch, run.seed)
    if on_gpu:
        source = GPUDatasets(shuffled, [GPUDataset(examples, run.data.vocab) for examples in sets])
    model = RAMNet(run.model, seed=run.seed).to("gpu")
    reports = []
    with GPUTrainer(model, run.train, adamw_init(model.params), graphs, log=pytest.fail) as trainer:
        for step in range(run.train.steps):
            trainer.step(source.batch(step))
            reports.append(trainer.report())
    return reports, {name: p.get() for name, p in model.params.items()}


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_batches_gathered_on_the_gpu_give_the_bits_of_batches_copied_there(graphs):
    run = read_grid(TINY, "tiny").points[0].base
    copied_reports, copied = trained(run, False, "off")
    reports, params = trained(run, True, graphs)
    assert reports == copied_reports
    for name, value in copied.items():
        np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_runs_in_threads_give_the_bits_of_runs_alone():
    """Different models capture, train and are measured at the same time, several times over."""
    points = read_grid(TINY, "tiny").points
    runs = [longer(points[i % 2].run(seed, 3e-3)) for i, seed in enumerate([0, 1, 0, 5])]

    def result(run):
        record = run_one(run, "gpu")
        return record["status"], record["accuracy"], record["validation"], record["training"]

    alone = [result(run) for run in runs]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            assert list(threads.map(result, runs)) == alone


def test_a_grid_on_the_gpu(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    options = Options(out=tmp_path, device="gpu", side_by_side=3, grid=tmp_path / "tiny.toml")
    outcome = run_experiment("tiny", options, progress=False)
    assert outcome[1:5] == (4, 0, 0, None)
    assert {r["hardware"]["device"] for r in read_records([outcome.results])} == {"gpu"}


def test_a_run_that_was_ended_goes_on_to_the_same_bits(monkeypatch, tmp_path):
    run = longer(read_grid(TINY, "tiny").points[0].run(0, 3e-3))
    whole = run_one(run, "gpu")
    monkeypatch.setattr(one_run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(one_run, "SAVE_SHARE", 1e9)

    def end(progress):
        if progress.step == 150:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_one(run, "gpu", end, tmp_path)
    told = []
    record = run_one(run, "gpu", told.append, tmp_path)
    assert told[0].step == 100
    for key in ("status", "accuracy", "validation", "training", "steps"):
        assert record[key] == whole[key], key


def test_a_run_that_diverges_on_the_gpu_has_a_record():
    run = read_grid(TINY, "tiny").points[0].run(0, 1e30)
    assert run_one(longer(run), "gpu")["status"] == "diverged"
