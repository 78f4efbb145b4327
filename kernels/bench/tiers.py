"""A sparse memory in tiers on a GPU: one token, generation and a long prompt, by the share of rows on the GPU:

    python -m ramnet_np.kernels.bench.tiers                            # the memory of 27 layers, then preset paper-340m
    python -m ramnet_np.kernels.bench.tiers --parts generation --model runs/text --prompt-file book.txt

"memory" steps the memories of all layers, with random addresses into slots that were all written, as one CUDA graph. A
token's rows are then on the GPU with the probability that is the share of all rows there. "generation" is a model that
writes, from a trained one's addresses if a model is given; its rows are those that the prompt wrote. "prefill" reads a
long prompt. The dense state of all slots stands beside each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from ramnet_np.contract import MemoryTiers, RAMState
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.core.attention import ram_attention_step
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.states import arrays_of

from .cpu import append_jsonl
from .gpu_timing import captured, machine_record

Part = Literal["memory", "generation", "prefill"]
GREEDY = Sampling()


@dataclass(frozen=True)
class Options:
    """Time a sparse memory against the share of its rows on the GPU."""

    parts: tuple[Part, ...] = ("memory", "generation", "prefill")
    """What is timed."""
    shares: tuple[float, ...] = (1.0, 0.5, 0.1, 0.01, 0.0)
    """Shares of the rows that the GPU holds, one after the other."""
    layers: int = 27
    """Memories in the part "memory"."""
    heads: int = 16
    """Heads of each memory."""
    channels: int = 64
    """Channels of a slot."""
    order: int = 7
    """Digits of 4 values: 4**order slots a head."""
    model: Path | None = None
    """A folder with a trained model; none: paper-340m as it starts."""
    prompt_file: Path | None = None
    """A text for that model; none: random tokens."""
    dtype: str = "bfloat16"
    """What the model computes in."""
    prompt: int = 8192
    """Tokens that are read before tokens are timed."""
    long_prompt: int = 65536
    """Tokens of "prefill"."""
    tokens: int = 256
    """Tokens that are timed."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each part and share."""
    cupy = gpu_namespace()
    machine = machine_record(cupy) | {"command": " ".join(["python -m", __spec__.name, *sys.argv[1:]])}
    print(f"{machine['device']}, {machine['versions']}, {machine['date']}")
    timed: dict[str, Callable[[Options], Any]] = {"memory": memory, "generation": generation, "prefill": prefill}
    for part in options.parts:
        for record in timed[part](options):
            print(", ".join(f"{name} {_shown(value)}" for name, value in record.items()), flush=True)
            if options.out is not None:
                append_jsonl(options.out, [record | machine])


def memory(options: Options) -> Any:
    """One token of all layers' memories: microseconds, dense and by share; bytes from and to the host."""
    cupy, (H, U, P, C) = gpu_namespace(), (options.heads, options.order, 4, options.channels)
    rng = np.random.default_rng(0)
    trace = cupy.asarray(3 * rng.standard_normal((options.tokens, options.layers, 2, 1, 1, H, U, P), np.float32))
    values = cupy.asarray(rng.standard_normal((1, 1, H, C), np.float32))
    dense_ms = None
    for share in (None, *options.shares):
        states = [_full(share, (1, H, P**U, C)) for _ in range(options.layers)]
        ms = _replay_ms(trace, values, states)
        dense_ms = dense_ms or ms
        record = {"part": "memory", "share": "dense" if share is None else share, "us a token": 1e3 * ms}
        if share is not None:
            moved = (1 - share) * options.layers * H * 24 * (C + 1) * 4  # 8 rows written: there and back; 8 read
            record |= {"times dense": ms / dense_ms, "GB/s over the bus": moved / ms / 1e6}
        yield record
        del states
        cupy.get_default_memory_pool().free_all_blocks()


def _full(share: float | None, shape: tuple[int, int, int, int]) -> Any:
    """A state of which every slot was written."""
    cupy, (B, H, M, C) = gpu_namespace(), shape
    if share is None:
        return RAMState(cupy.ones(shape, np.float32), cupy.ones((B, H, M), np.float32))
    rows = B * H * M
    tiers = MemoryTiers() if share == 1 else MemoryTiers(gpu=int(share * rows) * (4 * C + 16))
    state = SparseRAMState(shape, np.float32, cupy, tiers=tiers)
    order = cupy.asarray(np.random.default_rng(1).permutation(rows))  # which rows are on the GPU is left to chance
    for start in range(0, rows, 2**16):
        keys = order[start : start + 2**16]
        state.scatter(keys, cupy.ones((keys.size, C + 1), np.float32))
    return state


def _replay_ms(trace: Any, values: Any, states: list[Any]) -> float:
    """Milliseconds of a token, the median over the trace, each a graph's launch with its own addresses."""
    cupy = gpu_namespace()
    logits, times = trace[0].copy(), []

    def token() -> None:
        for own, state in zip(logits, states, strict=True):
            ram_attention_step(own[0], own[1], values, state=state)

    replay = captured(token)

    for own in trace:
        logits[...] = own
        for state in states:
            if isinstance(state, SparseRAMState):
                state.rows.prepare()
        cupy.cuda.get_current_stream().synchronize()
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end))
    return float(np.median(times))


def generation(options: Options) -> Any:
    """Tokens per second of a model that writes behind a prompt, dense and by share."""
    model, prompt = _model_and_prompt(options, options.prompt)
    dense, written = None, None
    for share in (None, *options.shares):
        tiers = None if share is None else _tiers(model, share, written)
        generated = Generation(model, prompt, graphs="on", memory=tiers)
        rate, text = _tokens_per_second(generated, options.tokens)
        dense = dense or (rate, text)
        record = {"part": "generation", "share": "dense" if share is None else share, "tokens/s": rate}
        if share is not None:
            states = _sparse(generated)
            written = written or sum(state.written for state in states)
            on_host = sum(state.rows.host_nbytes for state in states)
            on_gpu = sum(state.nbytes for state in states)
            record |= {"of dense": rate / dense[0], "same tokens": bool((text == dense[1]).all())}
            record |= {"slots": sum(s.written for s in states), "GPU MB": on_gpu / 1e6, "host MB": on_host / 1e6}
        yield record


def prefill(options: Options) -> Any:
    """Seconds for a long prompt, dense, with all rows on the GPU, and with none."""
    model, prompt = _model_and_prompt(options, options.long_prompt)
    cupy = gpu_namespace()
    for name, tiers in (("dense", None), (1.0, MemoryTiers()), (0.0, MemoryTiers(gpu=0))):
        seconds = []
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            Generation(model, prompt, memory=tiers)
            cupy.cuda.Device().synchronize()
            seconds.append(time.perf_counter() - start)
        yield {"part": "prefill", "share": name, "s": seconds[-1], "tokens/s": options.long_prompt / seconds[-1]}


def _model_and_prompt(options: Options, length: int) -> tuple[RAMNet, list[Any]]:
    cupy = gpu_namespace()
    if options.model is None:
        model = RAMNet(preset("paper-340m"))
        ids = np.random.default_rng(0).integers(0, model.config.vocab, length)
    else:
        from ramnet_np.runs.text import load_codec, load_text_model

        model, codec = load_text_model(options.model), load_codec(options.model)
        ids = np.random.default_rng(0).integers(0, model.config.vocab, length)
        if options.prompt_file is not None:
            ids = np.resize(codec.encode(options.prompt_file.read_text(encoding="utf-8")), length)
    return model.to("gpu", options.dtype), [cupy.asarray(ids)]


def _tiers(model: RAMNet, share: float, written: int | None) -> MemoryTiers:
    if share == 1 or written is None:
        return MemoryTiers()
    return MemoryTiers(gpu=int(share * written) * (4 * model.config.head_channels + 16))


def _tokens_per_second(generated: Generation, count: int) -> tuple[float, np.ndarray]:
    """The host goes ahead, as in use: the time of many tokens divided by their number, after some."""
    cupy, text = gpu_namespace(), []
    for _ in range(16):
        generated.next(GREEDY)
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(count):
        text.append(generated.next(GREEDY))
    cupy.cuda.Device().synchronize()
    return count / (time.perf_counter() - start), cupy.stack(text).get()


def _sparse(generated: Generation) -> list[SparseRAMState]:
    states = arrays_of([stepper.state for stepper in generated.standing().steppers])
    return [state for state in states if isinstance(state, SparseRAMState)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Options))
