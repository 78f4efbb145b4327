"""Generating text: tokens per second, what a token costs at each length of context, and where its time goes:

    python -m ramnet_np.kernels.bench.generation                                  # a text model of 10M parameters
    python -m ramnet_np.kernels.bench.generation --mixer softmax --context 100 1000 10000
    python -m ramnet_np.kernels.bench.generation --preset paper-340m --device gpu --dtype bfloat16 --batch 1 16

A context is a prompt of at most PROMPT tokens; behind it the position is set to the length asked for, and keys and
values, where a mixer has them, are repeated up to it. The floor reads every weight once at the bandwidth of a copy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import gpu_namespace, namespace_of
from ramnet_np.layers.linear import linear_forward
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model import RAMNet, RAMNetConfig, preset
from ramnet_np.model.config import MixerName
from ramnet_np.model.generation import Generation
from ramnet_np.model.layout import EMBEDDINGS
from ramnet_np.model.mixers import MIXERS
from ramnet_np.model.network import Device
from ramnet_np.model.sampling import Sampling, next_token
from ramnet_np.model.states import each_array

from . import gpu_timing
from .cpu import append_jsonl, copy_bandwidth, describe_machine

PROMPT = 512
TEXT_10M = RAMNetConfig(vocab=256, width=384, layers=6, heads=6, cape=(6, 0))  # 9.5 million parameters


@dataclass(frozen=True)
class Options:
    """Time the generation of tokens."""

    preset: str | None = None
    """The network; none: a text model of bytes with 10 million parameters."""
    mixer: MixerName = "ram"
    """What its layers remember with: ram, softmax, window, linear, delta ..."""
    layers: int | None = None
    """Fewer or more layers than the network has."""
    batch: tuple[int, ...] = (1,)
    """Sequences side by side."""
    context: tuple[int, ...] = (100,)
    """Tokens before those that are timed."""
    tokens: int = 200
    """Tokens that are timed, for each sequence."""
    temperature: float = 0.8
    """What the logits are divided by before a token is drawn; 0 takes the likeliest."""
    top_p: float = 0.9
    """Draw among the fewest likeliest tokens that have this share of the probability together."""
    device: Device = "cpu"
    """Where the model runs."""
    dtype: str = "float32"
    """What it computes in."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line and the parts for each batch and context."""
    config = TEXT_10M if options.preset is None else preset(options.preset)
    config = replace(config, mixer=options.mixer, layers=options.layers or config.layers)
    model = RAMNet(config).to(options.device, options.dtype)
    machine, bandwidth = _machine(options.device)
    print(f"{machine['device']}, {model.num_parameters():,} parameters, {options.dtype}")
    for batch in options.batch:
        for context in options.context:
            record = measure(model, batch, context, options)
            record["floor_ms"] = 1e3 * sum(p.nbytes for p in model.params.values()) / bandwidth
            print_record(record)
            if options.out is not None:
                append_jsonl(options.out, [record | {"bandwidth": bandwidth, **_told(options), **machine}])


def measure(model: RAMNet, batch: int, context: int, options: Options) -> dict[str, Any]:
    """Milliseconds a token, median and 20th to 80th percentile, and of its parts, each run by itself."""
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p)
    generation = _at(model, batch, context)
    for _ in range(5):
        generation.next(sampling)
    p20, median, p80 = _times(lambda: generation.next(sampling), options.tokens, options.device)
    parts = {name: _times(call, 20, options.device)[1] for name, call in _parts(model, generation, sampling).items()}
    return {
        "batch": batch,
        "context": context,
        "parameters": model.num_parameters(),
        "ms": median,
        "ms_p20": p20,
        "ms_p80": p80,
        "tokens_per_second": 1e3 * batch / median,
        "parts_ms": parts | {"all else": max(0.0, median - sum(parts.values()))},
    }


def print_record(record: dict[str, Any]) -> None:
    """Tokens per second, the time of a token and the floor; then the parts."""
    print(
        f"batch {record['batch']:>4}, context {record['context']:>9,}: {record['tokens_per_second']:>10,.0f} tokens/s, "
        f"{record['ms']:.2f} ms a token ({record['ms_p20']:.2f} to {record['ms_p80']:.2f}), "
        f"floor {record['floor_ms']:.2f} ms"
    )
    for name, ms in record["parts_ms"].items():
        print(f"  {name:<24} {ms:8.2f} ms")


def _at(model: RAMNet, batch: int, context: int) -> Generation:
    """Sequences that stand behind ``context`` tokens."""
    xp = namespace_of(model.params[EMBEDDINGS])
    rng = np.random.default_rng(0)
    ids = xp.asarray(rng.integers(0, model.config.vocab, (batch, min(PROMPT, context))))
    generation = Generation(model, ids)
    now = generation.standing()
    now.positions[:] = context
    if MIXERS[model.config.mixer].state_grows:
        often = -(-context // ids.shape[1])
        for stepper in now.steppers:
            stepper.state = each_array(lambda a: xp.tile(a, (1, often, 1, 1))[:, :context], stepper.state)
    return generation


def _parts(model: RAMNet, generation: Generation, sampling: Sampling) -> dict[str, Callable[[], Any]]:
    """The products with the weights and the choice of a token, by themselves."""
    matrices = [p for name, p in model.params.items() if p.ndim == 2 and name != EMBEDDINGS and "conv" not in name]
    matrices.append(model.head)
    now, xp = generation.standing(), namespace_of(model.head)
    rows = {w.shape[1]: xp.ones((generation.batch, w.shape[1]), dtype=w.dtype) for w in matrices}
    seeds = row_seeds(0, generation.batch, now.logits)
    return {
        "products with weights": lambda: [linear_forward(rows[w.shape[1]], w) for w in matrices],
        "choosing the token": lambda: next_token(now.logits, sampling, uniform(seeds, now.positions), now.seen),
    }


def _times(call: Callable[[], Any], repeats: int, device: Device) -> list[float]:
    """Milliseconds: the 20th percentile, the median and the 80th."""
    wait = gpu_namespace().cuda.Device().synchronize if device == "gpu" else lambda: None
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        wait()
        took.append(1e3 * (time.perf_counter() - start))
    return np.percentile(took, [20, 50, 80]).tolist()


def _machine(device: Device) -> tuple[dict[str, Any], float]:
    """What the records say of the machine, and its bandwidth in bytes a second."""
    machine = describe_machine() | {"command": " ".join(["python -m", __spec__.name, *sys.argv[1:]])}
    if device == "cpu":
        return machine, copy_bandwidth()
    cupy = gpu_namespace()
    machine["device"] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    machine["versions"] |= {"cupy": cupy.__version__, "cuda": cupy.cuda.runtime.runtimeGetVersion()}
    return machine, gpu_timing.copy_bandwidth()


def _told(options: Options) -> dict[str, Any]:
    """The options that a record repeats."""
    left_out = ("batch", "context", "out")
    return {name: value for name, value in asdict(options).items() if name not in left_out}


if __name__ == "__main__":
    main(tyro.cli(Options))
