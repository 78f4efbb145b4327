"""A sparse memory in tiers on a GPU: one token, generation and a long prompt, by the share of rows on the GPU:

    python -m ramnet_np.kernels.bench.tiers                            # the memory of 27 layers, then preset paper-340m
    python -m ramnet_np.kernels.bench.tiers --parts generation --model runs/text --prompt-file book.txt

"memory" steps the memories of all layers, with random addresses into slots that were all written, as one CUDA graph. A
token's rows are then on the GPU with the probability that is the share of all rows there. "generation" is a model that
writes, from a trained one's addresses if a model is given; its rows are those that the prompt wrote. "prefill" reads a
long prompt. The dense state of all slots stands beside each. "space" opens memories of 2**26 slots a head. "rows"
finds, stores and inserts a million rows at once, as benchmarks of tables on a GPU do.

With ``--disk FOLDER``, rows stand there that neither the GPU nor the host has room for: half of all. They, and those of
a Python dictionary, which stands beside "memory", need the host for each layer, so they run without a CUDA graph.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from ramnet_np.contract import MemoryTiers, RAMState
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.core.attention import ram_attention_step
from ramnet_np.core.row_format import row_format
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.model.states import arrays_of

from ..cuda.sparse.rows import row_bytes
from .cpu import append_jsonl
from .dictionary_rows import DictionaryRows
from .gpu_timing import captured, machine_record, median_ms

Part = Literal["memory", "generation", "prefill", "space", "rows"]
GREEDY = Sampling()
EAGER_TOKENS = 16


@dataclass(frozen=True)
class Options:
    """Time a sparse memory against the share of its rows on the GPU."""

    parts: tuple[Part, ...] = ("memory", "generation", "prefill", "space", "rows")
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
    model_order: int = 5
    """Digits of 4 values of that paper-340m: 4**5 slots a head, as it is, or more."""
    prompt_file: Path | None = None
    """A text for that model; none: random tokens."""
    dtype: str = "bfloat16"
    """What the model computes in."""
    prompt: int = 8192
    """Tokens that are read before tokens are timed."""
    sequences: int = 1
    """Sequences that are written at once in "generation"."""
    long_prompt: int = 65536
    """Tokens of "prefill"."""
    tokens: int = 256
    """Tokens that are timed."""
    table: int = 25
    """Rows that are there in the part "rows", as a power of 2."""
    rows: Literal["bfloat16"] | None = None
    """How contents are kept in rows; none: in float32."""
    disk: Path | None = None
    """A folder for half of the rows."""
    out: Path | None = None
    """Append the results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each part and share."""
    cupy = gpu_namespace()
    machine = machine_record(cupy) | {"command": " ".join(["python -m", __spec__.name, *sys.argv[1:]])}
    print(f"{machine['device']}, {machine['versions']}, {machine['date']}")
    timed: dict[str, Callable[[Options], Any]] = {
        "memory": memory, "generation": generation, "prefill": prefill, "space": space, "rows": rows,
    }  # fmt: skip
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
    dense_us, bus = None, bus_gb_per_s()
    beside = ("dictionary",) if options.disk is None else ("dictionary", "half on disk")
    for share in ("dense", *options.shares, *beside):
        states = [_full(share, (1, H, P**U, C), options) for _ in range(options.layers)]
        by_graph = share not in beside
        us = 1e3 * (_replay_ms(trace, values, states) if by_graph else _eager_ms(trace, values, states))
        dense_us = dense_us or us
        record = {"part": "memory", "rows": options.rows or "float32", "share": share, "us a token": us}
        if isinstance(share, float):
            asked = (1 - share) * options.layers * H * 24  # 8 rows written: there and back; 8 read
            moved = asked * _row_bytes(C, options)
            record |= {"GB/s over the bus": moved / us / 1e3, "of copies": bus}
        yield record | {"times dense": us / dense_us}
        del states
        cupy.get_default_memory_pool().free_all_blocks()


def bus_gb_per_s() -> float:
    """GB/s of one large copy from pinned memory of the host to the GPU."""
    cupy, size = gpu_namespace(), 2**28
    pinned, there = cupy.cuda.alloc_pinned_memory(size), cupy.empty(size, np.uint8)
    return size / 1e6 / median_ms(lambda: there.data.copy_from_host_async(pinned.ptr, size), 10)


def _full(share: float | str, shape: tuple[int, int, int, int], options: Options, room: int = 0) -> Any:
    """A state of which every slot was written; ``share``: of rows on the GPU, or another kind of state.

    ``room``: of a sparse one with one head, for so many slots more, which were not written.
    """
    cupy, (B, H, M, C) = gpu_namespace(), shape
    if share == "dense":
        return RAMState(cupy.ones(shape, np.float32), cupy.ones((B, H, M), np.float32))
    rows, tiers = B * H * M, MemoryTiers(rows=options.rows)
    size = _row_bytes(C, options)
    if share == "half on disk":
        tiers = tiers._replace(gpu=rows // 4 * size, host=rows // 4 * size, disk=options.disk)
    elif isinstance(share, float) and share != 1:
        tiers = tiers._replace(gpu=int(share * rows) * size)
    state = SparseRAMState((B, H, M + room, C), np.float32, cupy, tiers=tiers)
    if share == "dictionary":
        state.rows = DictionaryRows(state.format.initial(state.initial_mass), cupy)
    order = np.arange(rows)
    if share != "half on disk":
        np.random.default_rng(1).shuffle(order)  # which rows are on the GPU is left to chance
    for start in range(0, rows, 2**16):
        keys = cupy.asarray(order[start : start + 2**16])
        state.scatter(keys, cupy.ones((keys.size, C + 1), np.float32))
    return state


def _row_bytes(channels: int, options: Options) -> int:
    return row_bytes(row_format(channels, np.float32, options.rows).initial(0))


def _eager_ms(trace: Any, values: Any, states: list[Any]) -> float:
    """Milliseconds of a token without a graph, the median over some of the trace."""
    cupy, times = gpu_namespace(), []
    for own in trace[:EAGER_TOKENS]:
        cupy.cuda.get_current_stream().synchronize()
        start = time.perf_counter()
        for logits, state in zip(own, states, strict=True):
            ram_attention_step(logits[0], logits[1], values, state=state)
        cupy.cuda.get_current_stream().synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


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
    model, prompts = _model_and_prompts(options, options.sequences, options.prompt)
    dense, written = None, 0
    shares: list[float | str] = ["dense", *options.shares, *(["half on disk"] if options.disk else [])]
    for share in shares:
        tiers = None if share == "dense" else _tiers(model, share, written, options)
        generated = Generation(model, prompts, graphs="on", memory=tiers)
        steps, median, text = _steps_per_second(generated, options.tokens)
        rate, median = steps * options.sequences, median * options.sequences
        dense = dense or (rate, median, text)
        record = {"part": "generation", "rows": options.rows or "float32", "share": share, "tokens/s": rate}
        record["tokens/s of the median tenth"] = median
        if tiers is not None:
            states = _sparse(generated)
            written = written or sum(state.written for state in states)
            on_host, on_disk = (
                sum(getattr(state.rows, name) for state in states) for name in ("host_nbytes", "disk_nbytes")
            )
            record |= {"of dense": rate / dense[0], "median of dense": median / dense[1]}
            record["same tokens"] = bool((text == dense[2]).all())
            record |= {"hit rate": _hit_rate(generated), "slots": sum(state.written for state in states)}
            record |= {
                "GPU MB": sum(state.nbytes for state in states) / 1e6,
                "host MB": on_host / 1e6,
                "disk MB": on_disk / 1e6,
            }
        yield record


def prefill(options: Options) -> Any:
    """Seconds for a long prompt, dense, with all rows on the GPU, and with none."""
    model, prompts = _model_and_prompts(options, 1, options.long_prompt)
    cupy, kept = gpu_namespace(), MemoryTiers(rows=options.rows)
    for name, tiers in (("dense", None), (1.0, kept), (0.0, kept._replace(gpu=0))):
        seconds = []
        for _ in range(2):  # the first compiles
            start = time.perf_counter()
            Generation(model, prompts, memory=tiers)
            cupy.cuda.Device().synchronize()
            seconds.append(time.perf_counter() - start)
        record = {"part": "prefill", "rows": options.rows or "float32", "share": name, "s": seconds[-1]}
        yield record | {"tokens/s": options.long_prompt / seconds[-1]}


def space(options: Options) -> Any:
    """Memories of 2**26 slots a head, all layers at once: what they take after some tokens."""
    cupy, (H, C) = gpu_namespace(), (options.heads, options.channels)
    shape, rng = (1, H, 4**13, C), np.random.default_rng(0)
    states = [
        SparseRAMState(shape, np.float32, cupy, tiers=MemoryTiers(rows=options.rows)) for _ in range(options.layers)
    ]
    values = cupy.asarray(rng.standard_normal((1, 1, H, C), np.float32))
    for _ in range(options.tokens):
        for state in states:
            write, read = cupy.asarray(3 * rng.standard_normal((2, 1, 1, H, 13, 4), np.float32))
            ram_attention_step(write, read, values, state=state)
    written, used = (sum(getattr(state, name) for state in states) for name in ("written", "nbytes"))
    dense = options.layers * H * 4**13 * (C + 1) * 4
    record = {
        "part": "space",
        "rows": options.rows or "float32",
        "slots": options.layers * H * 4**13,
        "written": written,
    }
    yield record | {"GPU MB": used / 1e6, "bytes a written slot": used / written, "dense TB": dense / 1e12}


def rows(options: Options) -> Any:
    """A million rows at random found, stored again, and inserted, beside 2**table that are there: 10**9 rows a second.

    Inserted ones are new to the table; they go to the GPU only where it may hold all.
    """
    cupy, C, count, asked = gpu_namespace(), options.channels, 2**options.table, 2 ** min(20, options.table)
    keys = cupy.asarray(np.random.default_rng(0).permutation(count)[:asked])
    bus = bus_gb_per_s()
    for share in options.shares:
        state = _full(share, (1, 1, count, C), options, room=16 * asked)
        fresh = iter(count + cupy.arange(16 * asked).reshape(16, asked))
        found = state.rows.gather(keys)
        gather_ms = median_ms(partial(state.rows.gather, keys), 10)
        scatter_ms = median_ms(partial(state.rows.scatter, keys, found), 10)
        insert_ms = median_ms(partial(_insert, state, fresh, found), 10)
        record = {"part": "rows", "rows": options.rows or "float32", "share": share, "there": count, "at once": asked}
        record |= {"bytes": found[0].nbytes, "G found/s": asked / gather_ms / 1e6}
        record |= {"G stored/s": asked / scatter_ms / 1e6, "G inserted/s": asked / insert_ms / 1e6}
        yield record | {"GB/s of copies": bus}
        del state, found, fresh
        cupy.get_default_memory_pool().free_all_blocks()


def _insert(state: SparseRAMState, fresh: Iterator[Any], rows: Any) -> None:
    state.rows.scatter(next(fresh), rows)


def _model_and_prompts(options: Options, count: int, length: int) -> tuple[RAMNet, list[Any]]:
    cupy = gpu_namespace()
    if options.model is None:
        model = RAMNet(replace(preset("paper-340m"), order=options.model_order))
        ids = np.random.default_rng(0).integers(0, model.config.vocab, (count, length))
    else:
        from ramnet_np.runs.text import load_codec, load_text_model

        model, codec = load_text_model(options.model), load_codec(options.model)
        ids = np.random.default_rng(0).integers(0, model.config.vocab, (count, length))
        if options.prompt_file is not None:
            ids = np.resize(codec.encode(options.prompt_file.read_text(encoding="utf-8")), (count, length))
    return model.to("gpu", options.dtype), list(cupy.asarray(ids))


def _tiers(model: RAMNet, share: float | str, written: int, options: Options) -> MemoryTiers:
    """Tiers for a model whose prompt wrote so many slots."""
    kept, C = MemoryTiers(rows=options.rows), model.config.head_channels
    row = _row_bytes(C, options)
    if share == "half on disk":
        return kept._replace(gpu=written // 4 * row, host=written // 4 * row, disk=options.disk)
    return kept if share == 1 or not written else kept._replace(gpu=int(float(share) * written) * row)


def _steps_per_second(generated: Generation, count: int) -> tuple[float, float, np.ndarray]:
    """Steps a second over all of them, the same for the median tenth, and the tokens.

    The host goes ahead, as in use. Memories grow in some tenths, which takes long; the median leaves these out.
    """
    cupy, text, seconds = gpu_namespace(), [], []
    for _ in range(16):
        generated.next(GREEDY)
    parts = np.array_split(np.arange(count), min(10, count))
    for part in parts:
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        text += [generated.next(GREEDY) for _ in part]
        cupy.cuda.Device().synchronize()
        seconds.append(time.perf_counter() - start)
    median = np.median([len(part) / s for part, s in zip(parts, seconds, strict=True)])
    return count / sum(seconds), float(median), cupy.stack(text).get()


def _hit_rate(generated: Generation, count: int = 32) -> float:
    """The share of a token's rows that is on the GPU. Each row counts once for a token."""
    found = asked = 0
    states = [state.up for state in _sparse(generated)]
    for _ in range(count):
        before = [state.listing()[1].max(initial=0) for state in states]
        time.sleep(0.005)  # rows remember when they were asked for in milliseconds
        generated.next(GREEDY)
        gpu_namespace().cuda.Device().synchronize()
        for state, latest in zip(states, before, strict=True):
            rows = np.nonzero(state.listing()[1] > latest)[0]
            found, asked = found + (rows < state.rows_on_gpu).sum(), asked + rows.size
    return float(found / asked)


def _sparse(generated: Generation) -> list[SparseRAMState]:
    states = arrays_of([stepper.state for stepper in generated.standing().steppers])
    return [state for state in states if isinstance(state, SparseRAMState)]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Options))
