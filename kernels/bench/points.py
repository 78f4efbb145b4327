"""The models of a grid on text, one after another and each alone: a step's time and memory, and a token's time:

    python -m ramnet_np.kernels.bench.points --text tokens --out docs/results/language-speed.jsonl     # all of a grid
    python -m ramnet_np.kernels.bench.points --text tokens --only 'ram-*' --steps 20

A step is that of the grid's run, with its batch and dtype, from the first step of the training on. A token is generated
for one text behind as many tokens as a window has, in bfloat16 on a GPU. The tokens/s of the runs themselves do not
compare models, as such runs share a GPU. So let nothing else run on it here.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ramnet_np.data.corpus import read_corpus
from ramnet_np.experiment.grid import load_grid
from ramnet_np.experiment.points import GridRun
from ramnet_np.experiment.tasks import task_data
from ramnet_np.model import RAMNet
from ramnet_np.model.network import Device
from ramnet_np.model.sampling import Sampling
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.steps import trainer_for

from . import generation
from .cpu import append_jsonl
from .gpu_timing import give_back_memory
from .language_model import gib_in_use, time_steps

WRITTEN = 5  # tokens before those that are timed


@dataclass(frozen=True)
class Options:
    """Time the models of a grid on text."""

    grid: str = "language-rivals"
    """The grid, or a file with one."""
    only: tuple[str, ...] = ("*",)
    """Points whose name matches; a star stands for anything."""
    text: Path | None = None
    """What the grid reads: a folder of tokens or of .txt files, or a file; none: a text that is made here."""
    device: Device = "gpu"
    """Where the models run."""
    steps: int = 7
    """Steps that are timed together."""
    repeats: int = 3
    """Measurements, whose median counts."""
    tokens: int = 100
    """Tokens that are generated."""
    quick: bool = False
    """The grid's reduced form, to see that everything works."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print and keep a line for each point."""
    corpus = None if options.text is None else read_corpus(options.text, argument="text")
    source = Path(options.grid) if Path(options.grid).is_file() else options.grid
    grid = load_grid(source, quick=options.quick, corpus=corpus).only(*options.only)
    command = " ".join(["python -m", __spec__.name, *sys.argv[1:]])
    for point in grid.points:
        machine = generation.machine_of(options.device) | {"command": command}
        record = {"point": point.name, "grid": point.grid, "quick": options.quick, **measure(point.base, options)}
        print_line(record)
        if options.out is not None:
            append_jsonl(options.out, [record | machine])


def print_line(record: dict[str, Any]) -> None:
    """The numbers of one model."""
    step = f"{record['ms']:9.1f} ms a step{record['tokens/s']:11,.0f} tokens/s"
    memory = f"{record['GiB']:7.1f} GiB" if "GiB" in record else ""
    print(
        f"{record['point']:24}{record['parameters'] / 1e6:6.1f} M{step}{memory}{record['token_ms']:8.3f} ms a token",
        flush=True,
    )


def measure(run: GridRun, options: Options) -> dict[str, Any]:
    """The step and the token of one model."""
    on_gpu = options.device == "gpu"
    if on_gpu:
        gc.collect()  # the graphs of the model before
        give_back_memory()
    model = RAMNet(run.model, seed=run.seed).to(options.device)
    batches = task_data(run, options.device, options.text).batches
    with trainer_for(model, run.train, adamw_init(model.params)) as trainer:
        record = time_steps(trainer, batches.batch, options.steps, options.repeats)
        if on_gpu:
            record["GiB"] = gib_in_use()
    train, data = run.train, run.data
    about = {"batch": train.batch, "length": data.length, "dtype": train.dtype}  # type: ignore[union-attr]
    return record | about | {"token_ms": token_ms(run, options)}


def token_ms(run: GridRun, options: Options) -> float:
    """Median milliseconds of a token of one text."""
    dtype = "bfloat16" if options.device == "gpu" else "float32"
    model = RAMNet(run.model, seed=run.seed).to(options.device, dtype)
    behind = generation.standing_at(model, 1, run.data.length, "auto", run.data.length)  # type: ignore[union-attr]
    sampling = Sampling(temperature=0.8)
    for _ in range(WRITTEN):
        behind.next(sampling)
    timing = generation.Options(device=options.device, tokens=options.tokens)
    return generation.token_times(lambda: behind.next(sampling), timing)[2]


if __name__ == "__main__":
    main(tyro.cli(Options))
