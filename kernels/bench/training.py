"""Training on the GPU: tokens per second of associative recall, and where the time of a step goes. Started on purpose:

    python -m ramnet_np.kernels.bench.training                      # 2 layers, width 64, one head, 256 x 256 tokens
    python -m ramnet_np.kernels.bench.training --pairs 16 32 64 --out training.jsonl
    python -m ramnet_np.kernels.bench.training --model.ffn swiglu   # any setting of the model

A step is the training loop's own: host batch to pinned memory to device, forward, loss, backward, clipping, AdamW.
Steps are timed by the wall clock over many of them, batches drawn before; the loss is read once, at the end. The parts
are timed by events around each call while the host has run ahead (a kernel that waits holds the GPU until a whole step
is queued), so that gaps between launches do not count; "between" is what no part covers: CuPy's elementwise operations.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np import backend
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch
from ramnet_np.data.mqar import mqar_examples
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init

from ..cuda.optimizer.adamw import DeviceAdamW
from .cpu import append_jsonl

WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""


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
    cupy = gpu_namespace()
    machine = {
        "device": cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        "versions": {"cupy": cupy.__version__, "cuda": cupy.cuda.runtime.runtimeGetVersion()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
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
            record["parts"] = measure_parts(batches, options)
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


def measure_parts(batches: list[Batch], options: Options) -> dict[str, dict[str, float]]:
    """Milliseconds and calls of every part of a step on the device; medians over eight steps."""
    import cupy

    wait = cupy.RawModule(code=WAIT, backend="nvrtc").get_function("wait")
    clock = _Clock()
    original, update = backend.load_backend("cupy"), DeviceAdamW.update
    backend._loaded["cupy"] = _timed_backend(original, clock, options.model.vocab)
    DeviceAdamW.update = clock.timed("adamw", update)  # type: ignore[method-assign]
    try:
        with new_trainer("off", options) as trainer:
            rounds = []
            for batch in batches[:2] + batches:
                wait((1,), (1,), (np.int64(60_000_000),))
                rounds.append(clock.measure(partial(trainer.step, batch)))
    finally:
        backend._loaded["cupy"] = original
        DeviceAdamW.update = update  # type: ignore[method-assign]
    rounds = rounds[2:]  # the first compile
    return {
        name: {"ms": float(np.median([r[name][0] for r in rounds])), "calls": rounds[0][name][1]} for name in rounds[0]
    }


def print_parts(parts: dict[str, dict[str, float]]) -> None:
    """The table, the longest part first."""
    whole = parts["step"]["ms"]
    for name, part in sorted(parts.items(), key=lambda item: -item[1]["ms"]):
        print(f"    {name:28}{part['ms']:8.3f} ms {part['ms'] / whole:7.1%}{part['calls']:6.0f} calls")


class _Clock:
    """Events around calls, read when a step is over."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any, Any]] = []

    def timed(self, name: str | Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        import cupy

        def call(*args: Any, **kwargs: Any) -> Any:
            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            result = function(*args, **kwargs)
            end.record()
            self._events.append((name if isinstance(name, str) else name(*args), start, end))
            return result

        return call

    def measure(self, step: Callable[[], None]) -> dict[str, tuple[float, int]]:
        """Milliseconds and number of the calls in ``step``, by name; "step" itself and what lies between."""
        import cupy

        self._events.clear()
        self.timed("step", step)()
        cupy.cuda.get_current_stream().synchronize()
        parts: dict[str, tuple[float, int]] = {}
        for name, start, end in self._events:
            total, calls = parts.get(name, (0.0, 0))
            parts[name] = total + cupy.cuda.get_elapsed_time(start, end), calls + 1
        covered = sum(ms for name, (ms, _) in parts.items() if name != "step")
        parts["between"] = parts["step"][0] - covered, 1
        return parts


def _timed_backend(original: Any, clock: _Clock, vocab: int) -> Any:
    """The backend with events around each of its functions."""

    def product(a: Any, b: Any, accumulate_into: Any = None) -> str:
        sizes = a.shape[0], a.shape[1], b.shape[1]
        kind = "head" if vocab in sizes else "tall" if a.shape[0] >= 4096 else "sum over tokens"
        return f"products, {kind}"

    layers = {
        name: clock.timed(product if name == "matrix_product" else name, function)
        for name, function in original.layers.items()
    }
    names = ("decode_forward", "decode_backward", "memory_forward", "memory_backward")
    return replace(original, layers=layers, **{name: clock.timed(name, getattr(original, name)) for name in names})


if __name__ == "__main__":
    main(tyro.cli(Options))
