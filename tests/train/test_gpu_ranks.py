"""The sum over ranks in a GPU's step: between its graphs, and over two GPUs against one."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ramnet_np.data.batches import Batch
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train import gpu_trainer
from ramnet_np.train.checkpoint import latest_checkpoint, load_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.gradient_sum import GradientSum
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.nccl_ranks import NCCLRanks
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.ranks import ONE, OneRank, Place
from tests.runs.launch_case import rank_processes

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu


class OneOfTwo(OneRank):
    """The first of two ranks, the other of which has no labels: its share of every sum is 0."""

    size = 2


def needs_two_gpus() -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs, and this machine has one")


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_a_sum_over_ranks_is_part_of_the_step(graphs):
    config = RAMNetConfig(vocab=32, width=16, layers=1, order=2, top_k=4, ffn="none")
    ids = np.random.default_rng(0).integers(32, size=(4, 8))
    reports, params = [], []
    for ranks in (ONE, OneOfTwo()):
        model = RAMNet(config, seed=0).to("gpu")
        state = adamw_init(model.params)
        with GPUTrainer(model, TrainConfig(steps=4, batch=4, warmup=1), state, graphs, ranks=ranks) as trainer:
            for _ in range(4):
                trainer.step(Batch(ids, ids))
            reports.append(trainer.report())
            assert trainer.graphs == (graphs == "on")
        params.append({name: cupy.asnumpy(p) for name, p in model.params.items()})
    assert reports[1] == pytest.approx(reports[0], rel=1e-5)
    for name, param in params[0].items():
        np.testing.assert_allclose(params[1][name], param, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("graphs", ["on", "off"])
def test_sums_beside_the_backward(graphs, monkeypatch):
    """One rank, so that every sum is what it was: the streams part and meet again as with several ranks."""
    try:
        ranks = NCCLRanks(Place(0, 1, 0), {"MASTER_PORT": "29511"})
    except RuntimeError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        pytest.skip(f"NCCL is not installed: {error}")
    ranks.size = 2  # the trainer sums for several ranks only
    monkeypatch.setattr(gpu_trainer, "GradientSum", partial(GradientSum, bucket=100))
    config = RAMNetConfig(vocab=32, width=16, layers=3, order=2, top_k=4)
    ids = np.random.default_rng(0).integers(32, size=(4, 8))
    params = []
    for others in (OneOfTwo(), ranks, ranks):
        model = RAMNet(config, seed=0).to("gpu")
        settings = TrainConfig(steps=20, batch=4, warmup=1, accumulate=2)
        with GPUTrainer(model, settings, adamw_init(model.params), graphs, ranks=others) as trainer:
            for _ in range(20):
                trainer.step(Batch(ids, ids))
            trainer.report()
            assert trainer.graphs == (graphs == "on")
        params.append({name: cupy.asnumpy(p) for name, p in model.params.items()})
    for name, param in params[0].items():
        assert all(param.tobytes() == other[name].tobytes() for other in params[1:]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_agree_with_one_and_repeat(tmp_path, dtype):
    needs_two_gpus()
    command = [sys.executable, "-m", "ramnet_np.cli", "train", "mqar", "--preset", "demo", "--train.steps", "30"]
    command += ["--train.warmup", "5", "--train.dtype", dtype, "--train.log-every", "5"]
    command += ["--train.evaluate-every", "10", "--out"]
    runs = {"one": ["--device", "gpu"], "two": ["--gpus", "2"], "again": ["--gpus", "2"]}
    runs["shards"] = ["--gpus", "2", "--train.shard-optimizer"]
    for name, more in runs.items():
        subprocess.run([*command, str(tmp_path / name), *more], check=True, timeout=300, cwd=Path(__file__).parents[2])
    one, two, *others = (
        load_file(latest_checkpoint(tmp_path / name / "checkpoints") / "model.safetensors") for name in runs
    )
    assert all(two[name].tobytes() == again[name].tobytes() for again in others for name in two)
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"] for name in runs
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if dtype == "float32" else 1e-2)
    if dtype == "float32":
        for name, param in one.items():
            np.testing.assert_allclose(two[name], param, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (signal.SIGKILL, "rank 1: its process {} was killed or has crashed"),
        (signal.SIGSTOP, "rank 0: the other ranks have not answered for 10 s"),
    ],
)
def test_a_rank_of_a_gpu_that_dies_or_hangs_ends_all(tmp_path, fault, says):
    needs_two_gpus()
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ramnet_np.cli", "train", "mqar", "--preset", "demo", "--gpus", "2"]
    command += ["--train.steps", "1000000", "--train.evaluate-every", "1000000", "--train.checkpoint-every", "50"]
    command += ["--rank-timeout", "10", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while latest_checkpoint(out / "checkpoints") is None:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = rank_processes(out, "RANK")
        os.kill(ranks[1], fault)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 2
    assert says.format(ranks[1]) in errors
    assert not rank_processes(out, "RANK")
    assert load_checkpoint(latest_checkpoint(out / "checkpoints")).optimizer.step >= 50
