"""Training on the GPU: tokens per second of associative recall, and where the time of a step goes. Started on purpose:

    python -m ramnet_np.kernels.bench.training                      # 2 layers, width 64, one head, 256 x 256 tokens
    python -m ramnet_np.kernels.bench.training --pairs 16 32 64 --out training.jsonl
    python -m ramnet_np.kernels.bench.training --model.ffn swiglu   # any setting of the model

A step is the training loop's own: host batch to pinned memory to device, forward, loss, backward, clipping, AdamW.
Steps are timed by the wall clock over many of them, batches drawn before; the loss is read once, at the end.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch
from ramnet_np.data.mqar import mqar_examples
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init

from .cpu import append_jsonl
from .gpu_timing import machine_record
from .parts import measure_parts, print_parts


@dataclass(frozen=True)
class Options:
    """Time training steps of associative recall on the GPU."""

    pairs: tuple[int, ...] = (64,)
    """Pairs in a sequence, so many labelled tokens; the task trains with 16, 32 and 64 at length 256."""
    batch: int = 256
    """Sequences of a step."""
    length: int = 256
    """Tokens of a sequence."""
    steps: int = 50
    """Steps that are timed together."""
    repeats: int = 5
    """Measurements, whose median counts."""
    parts: bool = True
    """Also list where the time goes."""
    model: RAMNetConfig = field(
        default_factory=lambda: RAMNetConfig(vocab=8192, heads=1, channels=32, cape=(1, 0), ffn="none")
    )
    """The network."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print tokens per second without and with graphs, and the table of parts."""
    machine = machine_record(gpu_namespace())
    print(f"{machine['device']}, {machine['versions']}, float32; {options.batch} x {options.length} tokens a step")
    for pairs in options.pairs:
        batches = draw_batches(pairs, options)
        record: dict[str, Any] = {"pairs": pairs, "batch": options.batch, "length": options.length}
        for name, graphs in (("launches", "off"), ("graph", "on")):
            milliseconds = measure(batches, graphs, options)
            speed = options.batch * options.length / milliseconds * 1e3
            record[name] = {"ms": milliseconds, "tokens/s": speed}
            print(f"{pairs:3} pairs, {name:9}{milliseconds:8.3f} ms a step {speed / 1e6:8.2f} million tokens/s")
        if options.parts:
            record["parts"] = measure_parts(new_trainer("off", options), batches, options.model.vocab)
            print_parts(record["parts"])
        if options.out is not None:
            append_jsonl(options.out, [record | {"model": asdict(options.model)} | machine])


def draw_batches(pairs: int, options: Options, count: int = 8) -> list[Batch]:
    """As many different batches."""
    examples = mqar_examples(pairs, options.length, count * options.batch, vocab=options.model.vocab)
    parts = zip(*(np.split(part, count) for part in examples), strict=True)
    return [Batch(ids, labels) for ids, labels in parts]


def new_trainer(graphs: Any, options: Options) -> GPUTrainer:
    """A trainer of a new model."""
    model = RAMNet(options.model, seed=0).to("gpu")
    config = TrainConfig(steps=options.steps * options.repeats, batch=options.batch, warmup=0)
    return GPUTrainer(model, config, adamw_init(model.params), graphs)


def measure(batches: list[Batch], graphs: str, options: Options) -> float:
    """Milliseconds of a step: the median of the repeats."""
    import cupy

    times = []
    with new_trainer(graphs, options) as trainer:
        for batch in batches[:3]:
            trainer.step(batch)
        trainer.report()
        for _ in range(options.repeats):
            started = time.perf_counter()
            for i in range(options.steps):
                trainer.step(batches[i % len(batches)])
            trainer.report()  # waits for the device
            times.append((time.perf_counter() - started) / options.steps)
    cupy.get_default_memory_pool().free_all_blocks()
    return 1e3 * float(np.median(times))


if __name__ == "__main__":
    main(tyro.cli(Options))
