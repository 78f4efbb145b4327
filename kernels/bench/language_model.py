"""Training a language model on the GPU: tokens per second, memory, where a step's time goes, and peers in the same run:

    python -m ramnet_np.kernels.bench.language_model                        # paper-340m, 8 x 4096 random tokens a step
    python -m ramnet_np.kernels.bench.language_model --dtypes bfloat16 --batch 16 --parts
    python -m ramnet_np.kernels.bench.language_model --peers                # also models in PyTorch, if it is there

A step is the training loop's own: host batch to device, forward, loss, backward, clipping, AdamW, as one CUDA graph.
The share of the peak counts 6 operations for each parameter and token, as is usual, against 989 T/s (H100, bfloat16).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.mixers.interface import Recompute
from ramnet_np.train.config import Precision, TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer, Graphs
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import Trainer

from .cpu import append_jsonl
from .gpu_timing import give_back_memory, machine_record
from .parts import measure_parts, print_parts

WARM = 3  # steps before those that are timed
PEAK = 989e12  # of an H100 in bfloat16, operations a second


@dataclass(frozen=True)
class Options:
    """Time training steps of a language model on the GPU."""

    preset: str = "paper-340m"
    """The network."""
    mixer: str = "ram"
    """What its layers are: ram, softmax, window, linear, delta ..."""
    layers: int | None = None
    """Fewer or more layers than the preset has."""
    dtypes: tuple[Precision, ...] = ("bfloat16", "float32")
    """What the steps compute in."""
    batch: int = 8
    """Sequences of a step."""
    length: int = 4096
    """Tokens of a sequence."""
    recompute: Recompute = "none"
    """What the backward computes again, to save memory: none, ffn, block."""
    steps: int = 8
    """Steps that are timed together."""
    repeats: int = 3
    """Measurements, whose median counts."""
    parts: bool = False
    """Also list where the time goes."""
    peers: bool = False
    """Also time a Transformer in PyTorch, eager and compiled, and the authors' package: what is installed of them."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each dtype and peer, and the tables of parts."""
    machine = machine_record(gpu_namespace())
    print(f"{machine['device']}, {machine['versions']}; {options.batch} x {options.length} tokens a step")
    for dtype in options.dtypes:
        record = measure(dtype, options)
        print_line(f"{options.preset}, {options.mixer}, {dtype}", record)
        if options.parts:
            record["parts"] = measure_parts(new_trainer(dtype, "off", options), batches(options), vocab(options), 500)
            print_parts(record["parts"])
        keep(options, record | {"dtype": dtype, "options": asdict(options) | {"out": None}} | machine)
    if options.peers:
        measure_peers(options, machine)


def keep(options: Options, record: dict[str, Any]) -> None:
    """Append a record to the file, if there is one, before the next is measured."""
    if options.out is not None:
        append_jsonl(options.out, [record])


def print_line(name: str, record: dict[str, Any]) -> None:
    """Milliseconds, tokens a second, share of the peak and memory of one way to train."""
    share = 6 * record["parameters"] * record["tokens/s"] / PEAK
    print(
        f"{name:44}{record['parameters'] / 1e6:6.0f} M{record['ms']:9.1f} ms{record['tokens/s']:10,.0f} tokens/s"
        f"{share:7.1%}{record['GiB']:7.1f} GiB   loss {record['loss']:.3f}",
        flush=True,
    )


def vocab(options: Options) -> int:
    """Tokens that the model knows."""
    return preset(options.preset).vocab


def batches(options: Options, count: int = 4) -> list[Batch]:
    """Random tokens, every one of them labelled with the next."""
    ids = np.random.default_rng(0).integers(vocab(options), size=(count, options.batch, options.length + 1))
    return [Batch(each[:, :-1].astype(np.int32), each[:, 1:].astype(np.int32)) for each in ids]


def new_trainer(dtype: Precision, graphs: Graphs, options: Options) -> GPUTrainer:
    """A trainer of a new model."""
    config = replace(preset(options.preset), mixer=options.mixer)  # type: ignore[arg-type]
    config = config if options.layers is None else replace(config, layers=options.layers, cape=0)
    model = RAMNet(config, seed=0).to("gpu")
    training = TrainConfig(steps=10_000, batch=options.batch, warmup=100, dtype=dtype, recompute=options.recompute)
    return GPUTrainer(model, training, adamw_init(model.params), graphs)


def measure(dtype: Precision, options: Options) -> dict[str, Any]:
    """How our own step does: median milliseconds, tokens per second, GiB, and the loss after all steps."""
    data = batches(options)
    with new_trainer(dtype, "on", options) as trainer:
        record = time_steps(trainer, lambda i: data[i % len(data)], options.steps, options.repeats)
        record["GiB"] = gib_in_use()
    give_back_memory()
    return record


def time_steps(trainer: Trainer, batch: Callable[[int], Batch], steps: int, repeats: int) -> dict[str, Any]:
    """The median of ``repeats`` times of so many steps, and the loss after them all; ``batch(i)``: that of step i."""
    times = []
    for i in range(WARM):
        trainer.step(batch(i))
    trainer.report()
    for _ in range(repeats):
        started, tokens = time.perf_counter(), 0
        for i in range(trainer.state.step, trainer.state.step + steps):
            trainer.step(one := batch(i))
            tokens += one.ids.size
        loss = trainer.report().loss  # waits for the device
        times.append((time.perf_counter() - started) / steps)
    seconds = float(np.median(times))
    return {
        "ms": 1e3 * seconds,
        "tokens/s": tokens / steps / seconds,
        "loss": loss,
        "parameters": trainer.model.num_parameters(),
    }


def gib_in_use() -> float:
    """How much of the GPU's memory this and other programs use."""
    free, total = gpu_namespace().cuda.runtime.memGetInfo()
    return (total - free) / 2**30


def measure_peers(options: Options, machine: dict[str, Any]) -> None:
    """Time every peer of ``language_peers.py`` in its own process. What is not installed is reported."""
    for peer in ("transformer-eager", "transformer-compiled", "authors"):
        command = [sys.executable, "-m", "ramnet_np.kernels.bench.language_peers", peer]
        done = subprocess.run(
            [*command, str(options.batch), str(options.length), str(options.steps)], capture_output=True, text=True
        )
        if done.returncode:
            print(f"{peer}: not timed ({(done.stderr.strip().splitlines() or ['no word'])[-1]})", flush=True)
            continue
        record = json.loads(done.stdout.strip().splitlines()[-1])
        print_line(peer, record)
        keep(options, record | {"peer": peer} | machine)


if __name__ == "__main__":
    main(tyro.cli(Options))
