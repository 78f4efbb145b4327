"""Training a language model on 1, 2 and more GPUs of one host: tokens per second, and what the sum of gradients costs.

    python -m ramnet_np.kernels.bench.scaling                             # paper-340m, 8 x 4096 tokens a GPU; 1, 2 GPUs
    python -m ramnet_np.kernels.bench.scaling --gpus 1 2 4 8 --out scaling.jsonl
    srun --ntasks 16 --ntasks-per-node 8 python -m ramnet_np.kernels.bench.scaling --here

Every number of GPUs trains twice, from the same start on the same tokens: the runs must end in the same bits, and the
time of a step is the median of both. A third run exchanges nothing: what its step takes less is the exposed part of
communication, which the backward does not hide. In a fourth run every GPU trains a model of its own, at the same time:
what that takes less is the price of the buffer, and by it the GPUs themselves are compared. The slowest GPU counts.
NVLink multicast is off, as in training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.contract import Array
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch, Share
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.mixers.interface import Recompute
from ramnet_np.runs.launch import run_on_ranks, start
from ramnet_np.train.config import Precision, TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.ranks import ONE, OneRank, Ranks, of_every_rank
from ramnet_np.train.shards import own

from .cpu import append_jsonl
from .gpu_timing import machine_record


@dataclass(frozen=True)
class Options:
    """Time training steps of a language model on several GPUs."""

    gpus: tuple[int, ...] = (1, 2)
    """Numbers of GPUs, one after the other; the first is what the others are compared with."""
    preset: str = "paper-340m"
    """The network."""
    layers: int | None = None
    """Fewer or more layers than the preset has."""
    dtype: Precision = "bfloat16"
    """What the steps compute in."""
    batch: int = 8
    """Sequences of a step on each GPU."""
    length: int = 4096
    """Tokens of a sequence."""
    accumulate: int = 1
    """Parts of a GPU's sequences that are computed one after the other."""
    recompute: Recompute = "none"
    """What the backward computes again, to save memory: none, ffn, block."""
    shard_optimizer: bool = False
    """Share the optimiser's moments out over the GPUs."""
    steps: int = 20
    """Steps of a run."""
    timed: int = 12
    """The last so many of them are timed together; the first ones compile and capture."""
    timeout: float = 120.0
    """Seconds after which a rank that does not answer ends the measurement."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""
    here: bool = False
    """Measure in this process, as the rank that mpiexec, srun or this program made it."""

    def __post_init__(self) -> None:
        if not self.gpus or min(self.gpus) < 1:
            raise ValueError(f"gpus must be numbers of 1 or more, got {self.gpus}")
        if not 0 < self.timed < self.steps - 2:
            raise ValueError(f"timed must be from 1 to steps - 3 ({self.steps - 3}), got {self.timed}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch must be a multiple of accumulate ({self.accumulate}), got {self.batch}")


class Silent(OneRank):
    """A rank that computes as one of several and exchanges nothing."""

    def __init__(self, ranks: Ranks):
        self.rank, self.size, self.local_rank = ranks.rank, ranks.size, ranks.local_rank


def main(options: Options) -> None:
    """Print a line for each number of GPUs."""
    if options.here:
        run_on_ranks(None, "gpu", options.timeout, [], lambda ranks: measure_and_tell(options, ranks))
        return
    first = None
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder) / "scaling.jsonl"
        for size in options.gpus:
            command = [sys.executable, "-m", "ramnet_np.kernels.bench.scaling", *sys.argv[1:], "--here"]
            command += [] if options.out else ["--out", str(out)]
            alone = size == 1  # it needs no one that watches it
            status = subprocess.run(command).returncode if alone else start(size, "gpu", options.timeout, command)
            if status:
                raise SystemExit(status)
            record = json.loads(out.read_text(encoding="utf-8").splitlines()[-1])
            first = first or record
            print(f"{'':8}{record['tokens/s'] / first['tokens/s']:.2f} times {first['gpus']} GPU", flush=True)


def measure_and_tell(options: Options, ranks: Ranks) -> None:
    """Measure on all ranks; rank 0 prints a line and keeps the record."""
    record = measure(options, ranks)
    if ranks.rank > 0:
        return
    print(
        f"{ranks.size:3} GPU {record['tokens/s']:12,.0f} tokens/s {record['ms']:9.2f} ms a step, exposed communication "
        f"{record['exposed ms']:6.2f} ms (each GPU alone {max(record['ms alone']):.2f} ms a step), "
        f"{max(record['GiB']):.1f} GiB a GPU, two runs of {options.steps} steps "
        f"{'end in the same bits' if record['same bits'] else 'DIFFER'}; loss {record['loss']:.4f}",
        flush=True,
    )
    if options.out is not None:
        settings = {"preset": options.preset, "dtype": options.dtype, "batch": options.batch, "length": options.length}
        settings |= {"accumulate": options.accumulate, "shard_optimizer": options.shard_optimizer}
        settings |= {"steps": options.steps, "timed": options.timed}
        append_jsonl(options.out, [record | settings | machine_record(gpu_namespace())])


def measure(options: Options, ranks: Ranks) -> dict[str, Any]:
    """Two runs with the sum over ranks and one without."""
    config = preset(options.preset)
    config = config if options.layers is None else replace(config, layers=options.layers, cape=0)
    model = RAMNet(config, seed=0)  # in the memory of the host: where every run begins
    batches = own_batches(options, config.vocab, ranks)
    runs = [train(model, batches, options, ranks) for _ in range(2)]
    sums = {of_rank for run in runs for of_rank in of_every_rank(ranks, run["sum"])}
    seconds = float(np.median([run["seconds"] for run in runs]))
    others = [Silent(ranks), ONE] if ranks.size > 1 else []
    silent, alone = [train(model, batches, options, other)["seconds"] for other in others] or [seconds, seconds]
    together, silent, alone = (1e3 * of_every_rank(ranks, value) for value in (seconds, silent, alone))
    return {
        "gpus": ranks.size,
        "ms": together.max(),
        "ms of runs": [1e3 * run["seconds"] for run in runs],
        "tokens/s": 1e3 * ranks.size * options.batch * options.length / together.max(),
        "ms without sums": silent.tolist(),
        "ms alone": alone.tolist(),
        "exposed ms": together.max() - silent.max(),
        "GiB": of_every_rank(ranks, runs[0]["GiB"]).tolist(),
        "same bits": len(sums) == 1,
        "loss": runs[0]["loss"],
        "parameters": model.num_parameters(),
    }


def own_batches(options: Options, vocab: int, ranks: Ranks, count: int = 4) -> list[Batch]:
    """Random tokens for this rank, every one of them labelled with the next."""
    shape = (count, ranks.size * options.batch, options.length + 1)
    ids = np.random.default_rng(0).integers(vocab, size=shape, dtype=np.int32)
    own = [Share(ranks.rank, ranks.size).of(of_all) for of_all in ids]
    return [Batch(each[:, :-1].copy(), each[:, 1:].copy()) for each in own]


def train(model: RAMNet, batches: list[Batch], options: Options, ranks: Ranks) -> dict[str, Any]:
    """A run of a copy of ``model``: seconds of a step, GiB, the last loss, a checksum of the parameters."""
    import cupy

    config = TrainConfig(
        steps=10_000, batch=options.batch * ranks.size, accumulate=options.accumulate, warmup=100,
        dtype=options.dtype, recompute=options.recompute, shard_optimizer=options.shard_optimizer,
    )  # fmt: skip
    trained = model.to("gpu")
    state = adamw_init(own(trained.params, ranks) if options.shard_optimizer else trained.params)
    with GPUTrainer(trained, config, state, "on", ranks=ranks) as trainer:
        for i in range(options.steps):
            if i == options.steps - options.timed:
                trainer.report()  # waits for the device
                began = time.perf_counter()
            trainer.step(batches[i % len(batches)])
        loss = trainer.report().loss
        seconds = (time.perf_counter() - began) / options.timed
        free, total = cupy.cuda.runtime.memGetInfo()
    return {"seconds": seconds, "GiB": (total - free) / 2**30, "loss": loss, "sum": checksum(trained.params)}


def checksum(params: dict[str, Array]) -> int:
    """A number that differs where a bit of the parameters does."""
    found = 0
    for param in params.values():
        found = zlib.crc32(param.get(), found)
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
