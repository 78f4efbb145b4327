"""Generating text: tokens per second, what a token costs at each length of context, and where its time goes:

    python -m ramnet_np.kernels.bench.generation                                  # a text model of 10M parameters
    python -m ramnet_np.kernels.bench.generation --mixer softmax --context 100 1000 10000
    python -m ramnet_np.kernels.bench.generation --preset paper-340m --device gpu --dtype bfloat16 --graphs on off \
        --batch 1 16 64 256 --context 1000 --authors
    python -m ramnet_np.kernels.bench.generation --preset paper-340m --device gpu --dtype bfloat16 \
        --context 1000 16000 256000 --transformer

A context is a prompt of at most ``--prompt`` tokens; behind it the position is set to the length asked for, and keys
and values, where a mixer has them, are repeated up to it. The floor reads every weight once at the bandwidth of a copy.
On a GPU the host goes ahead as it does in use, so a time is that of many tokens divided by their number; the parts are
timed as CUDA graphs of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import gpu_namespace, namespace_of
from ramnet_np.core.cuda_graph import Graphs
from ramnet_np.layers.linear import linear_forward
from ramnet_np.layers.uniform import row_seeds, uniform
from ramnet_np.model import RAMNet, RAMNetConfig, preset
from ramnet_np.model.config import MixerName
from ramnet_np.model.count import state_elements
from ramnet_np.model.generation import Generation
from ramnet_np.model.layout import EMBEDDINGS
from ramnet_np.model.mixers import MIXERS
from ramnet_np.model.network import Device
from ramnet_np.model.sampling import Sampling, next_token
from ramnet_np.model.settled import Weights
from ramnet_np.model.states import arrays_of, each_array

from . import gpu_timing
from .cpu import append_jsonl, copy_bandwidth, describe_machine

ROUNDS = 5  # of tokens, on a GPU
PEER_TOKENS = 24  # in a round, and what the authors' package writes beyond as many
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
    prompt: int = 512
    """How many of them are read; a million take a while."""
    tokens: int = 200
    """Tokens that are timed, for each sequence."""
    graphs: tuple[Graphs, ...] = ("auto",)
    """On a GPU: with CUDA graphs (on), without (off), or both in turn."""
    authors: bool = False
    """Also time the authors' package on the GPU, if it is installed (PyPI ramnet with ramnet-ops)."""
    transformer: bool = False
    """Also time a Transformer of 341M parameters on the GPU behind each context, if PyTorch is installed."""
    temperature: float = 0.8
    """What the logits are divided by before a token is drawn; 0 takes the likeliest."""
    top_p: float = 0.9
    """Draw among the fewest likeliest tokens that have this share of the probability together."""
    device: Device = "cpu"
    """Where the model runs."""
    dtype: str = "float32"
    """What it computes in; bfloat16 on a CPU: what its matrices are held in, see ``ramnet-np generate --help``."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line and the parts for each batch and context."""
    config = TEXT_10M if options.preset is None else preset(options.preset)
    layers = options.layers or config.layers
    cape = config.cape[:layers] if isinstance(config.cape, tuple) else config.cape
    config = replace(config, mixer=options.mixer, layers=layers, cape=cape)
    weights: Weights | None = "bfloat16" if (options.device, options.dtype) == ("cpu", "bfloat16") else None
    model = RAMNet(config).to(options.device, "float32" if weights else options.dtype)
    machine = machine_of(options.device) | {"command": " ".join(["python -m", __spec__.name, *sys.argv[1:]])}
    bandwidth = gpu_timing.copy_bandwidth() if options.device == "gpu" else copy_bandwidth()
    print(f"{machine['device']}, {model.num_parameters():,} parameters, {options.dtype}")
    for batch, context, graphs in itertools.product(options.batch, options.context, options.graphs):
        if options.device == "gpu":
            gpu_timing.give_back_memory()
        generation = standing_at(model, batch, context, graphs, options.prompt, weights)
        record = measure(generation, context, graphs, options)
        record["floor_ms"] = 1e3 * record["weights_bytes"] / bandwidth
        print_record(record)
        _keep(record | {"bandwidth": bandwidth, **_told(options), **machine}, options)
    if options.authors or options.transformer:
        gpu_timing.give_back_memory()
    if options.authors:
        _time_peer("authors", (min(options.prompt, *options.context),), options, machine)
    if options.transformer:
        _time_peer("transformer", options.context, options, machine)


def measure(generation: Generation, context: int, graphs: Graphs, options: Options) -> dict[str, Any]:
    """Milliseconds a token, median, 20th to 80th percentile and least, and of its parts, each run by itself."""
    model, batch = generation.model, generation.batch
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p)
    for _ in range(5):
        generation.next(sampling)
    least, p20, median, p80 = token_times(lambda: generation.next(sampling), options)
    parts = {name: _part_time(call, options.device) for name, call in _parts(generation, sampling).items()}
    itemsize = model.head.dtype.itemsize
    softmax = state_elements(replace(model.config, mixer="softmax", cape=0), context)
    return {
        "batch": batch,
        "context": context,
        "graphs": graphs,
        "parameters": model.num_parameters(),
        "weights_bytes": sum(p.nbytes for p in _read_by_a_token(generation).values()),
        "ms": median,
        "ms_p20": p20,
        "ms_p80": p80,
        "ms_least": least,
        "tokens_per_second": 1e3 * batch / median,
        "parts_ms": parts | {"all else": max(0.0, median - sum(parts.values()))},
        "state_bytes": sum(a.nbytes for stepper in generation.standing().steppers for a in arrays_of(stepper.state)),
        "keys_and_values_bytes": batch * softmax * itemsize,
    }


def print_record(record: dict[str, Any]) -> None:
    """Tokens per second, the time of a token and the floor; then the parts, and what the layers remember."""
    print(
        f"batch {record['batch']:>4}, context {record['context']:>9,}, graphs {record['graphs']}: "
        f"{record['tokens_per_second']:>10,.0f} tokens/s, {record['ms']:.3f} ms a token "
        f"({record['ms_p20']:.3f} to {record['ms_p80']:.3f}, least {record['ms_least']:.3f}), "
        f"floor {record['floor_ms']:.3f} ms",
        flush=True,
    )
    for name, ms in record["parts_ms"].items():
        print(f"  {name:<24} {ms:8.3f} ms")
    state, softmax = record["state_bytes"] / 2**20, record["keys_and_values_bytes"] / 2**20
    print(f"  {'state':<24} {state:8,.1f} MiB; keys and values of softmax attention {softmax:,.1f} MiB", flush=True)


def _time_peer(peer: str, lengths: Sequence[int], options: Options, machine: dict[str, Any]) -> None:
    """How another program generates, in its own process; a line says why where it does not, or not to the end."""
    sizes = [",".join(map(str, each)) for each in (options.batch, lengths, (PEER_TOKENS,))]
    command = [sys.executable, "-m", "ramnet_np.kernels.bench.language_peers", f"{peer}-generate", *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            record: dict[str, Any] = json.loads(line)
            behind = f", context {record['context']:>9,}" if "context" in record else ""
            rate = f"{1e3 * record['batch'] / record['ms']:,.0f} tokens/s, {record['ms']:.3f} ms a token"
            print(f"batch {record['batch']:>4}{behind}, {peer}: {rate}", flush=True)
            _keep(record | {"peer": peer, **machine}, options)
    if done.returncode:
        print(f"{peer}: not timed further ({(done.stderr.strip().splitlines() or ['no word'])[-1]})", flush=True)


def standing_at(
    model: RAMNet, batch: int, context: int, graphs: Graphs, prompt: int, weights: Weights | None = None
) -> Generation:
    """Sequences that stand behind ``context`` tokens."""
    xp = namespace_of(model.params[EMBEDDINGS])
    rng = np.random.default_rng(0)
    ids = xp.asarray(rng.integers(0, model.config.vocab, (batch, min(prompt, context))))
    generation = Generation(model, ids, graphs=graphs, weights=weights)
    now = generation.standing()
    now.positions[:] = context
    if MIXERS[model.config.mixer].state_grows:
        often = -(-context // ids.shape[1])
        for stepper in now.steppers:
            stepper.state = each_array(lambda a: xp.tile(a, (1, often, 1, 1))[:, :context], stepper.state)
    return generation


def _read_by_a_token(generation: Generation) -> dict[str, Any]:
    """The parameters that every token reads, in the form in which it reads them: all but embeddings of their own."""
    model = generation.standing().steppers[0].model
    return {name: p for name, p in model.params.items() if name != EMBEDDINGS or model.config.tie_embeddings}


def _parts(generation: Generation, sampling: Sampling) -> dict[str, Callable[[], Any]]:
    """The products with the weights and the choice of a token, by themselves."""
    matrices = [p for name, p in _read_by_a_token(generation).items() if p.ndim == 2 and "conv" not in name]
    now = generation.standing()
    xp = namespace_of(now.logits)
    rows = {w.shape[1]: xp.ones((generation.batch, w.shape[1]), dtype=now.logits.dtype) for w in matrices}
    seeds = row_seeds(0, generation.batch, now.logits)
    return {
        "products with weights": lambda: [linear_forward(rows[w.shape[1]], w) for w in matrices],
        "choosing the token": lambda: next_token(now.logits, sampling, uniform(seeds, now.positions), now.seen),
    }


def token_times(call: Callable[[], Any], options: Options) -> list[float]:
    """Milliseconds of a token, as :func:`_times` has them; of rounds of many tokens on a GPU."""
    if options.device == "cpu":
        return _times(call, options.tokens)

    def several(count: int = max(1, options.tokens // ROUNDS)) -> None:
        for _ in range(count):
            call()
        gpu_namespace().cuda.Device().synchronize()

    return [ms / max(1, options.tokens // ROUNDS) for ms in _times(several, ROUNDS)]


def _part_time(call: Callable[[], Any], device: Device) -> float:
    """Milliseconds of a part: the median."""
    if device == "gpu":
        return gpu_timing.median_ms(gpu_timing.captured(call), 20)
    return _times(call, 20)[2]


def _times(call: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds: the least, the 20th percentile, the median and the 80th."""
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - start))
    return np.percentile(took, [0, 20, 50, 80]).tolist()


def _keep(record: dict[str, Any], options: Options) -> None:
    if options.out is not None:
        append_jsonl(options.out, [record])


def machine_of(device: Device) -> dict[str, Any]:
    """What a record says of where and when it was made."""
    machine = describe_machine()
    if device == "cpu":
        machine["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None  # of other programs, too
        return machine
    cupy = gpu_namespace()
    machine["device"] = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    machine["versions"] |= {"cupy": cupy.__version__, "cuda": cupy.cuda.runtime.runtimeGetVersion()}
    return machine


def _told(options: Options) -> dict[str, Any]:
    """The options that a record repeats."""
    left_out = ("batch", "context", "graphs", "authors", "transformer", "out")
    return {name: value for name, value in asdict(options).items() if name not in left_out}


if __name__ == "__main__":
    main(tyro.cli(Options))
