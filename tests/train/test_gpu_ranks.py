"""The sum over ranks in a GPU's step: within its graph, and over two GPUs against one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from ramnet_np.data.batches import Batch
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.ranks import ONE, OneRank

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu


class OneOfTwo(OneRank):
    """The first of two ranks, the other of which has no labels: its share of every sum is 0."""

    size = 2


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_gpus_agree_with_one_and_repeat(tmp_path, dtype):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs, and this machine has one")
    command = [sys.executable, "-m", "ramnet_np.cli", "train", "mqar", "--preset", "demo", "--train.steps", "30"]
    command += ["--train.warmup", "5", "--train.dtype", dtype, "--train.log-every", "5"]
    command += ["--train.evaluate-every", "10", "--out"]
    runs = {"one": ["--device", "gpu"], "two": ["--gpus", "2"], "again": ["--gpus", "2"]}
    for name, more in runs.items():
        subprocess.run([*command, str(tmp_path / name), *more], check=True, timeout=300, cwd=Path(__file__).parents[2])
    one, two, again = (
        load_file(latest_checkpoint(tmp_path / name / "checkpoints") / "model.safetensors") for name in runs
    )
    assert all(two[name].tobytes() == again[name].tobytes() for name in two)
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"] for name in runs
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if dtype == "float32" else 1e-2)
    if dtype == "float32":
        for name, param in one.items():
            np.testing.assert_allclose(two[name], param, atol=1e-3, err_msg=name)
