"""Where the time of a training step on the GPU goes: events around every call of a layer, of the operation, of AdamW.

They are read while the host has run ahead (a kernel that waits holds the GPU until a whole step is queued), so that
gaps between launches do not count; "between" is what no part covers: CuPy's elementwise operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ramnet_np import backend
from ramnet_np.train.gpu_trainer import GPUTrainer

from ..cuda.optimizer.adamw import DeviceAdamW

WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
    long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""


Parts = dict[str, dict[str, float]]


def measure_parts(
    trainer: AbstractContextManager[GPUTrainer], batches: Sequence[Any], vocab: int, wait_ms: float = 60
) -> Parts:
    """Milliseconds and calls of every part of a step on the device; medians over the batches.

    ``trainer``: of steps that are no graphs; ``wait_ms``: how long the host needs to queue a step.
    """
    import cupy

    wait = cupy.RawModule(code=WAIT, backend="nvrtc").get_function("wait")
    clock = _Clock()
    original, update = backend.load_backend("cupy"), DeviceAdamW.update
    backend._loaded["cupy"] = _timed_backend(original, clock, vocab)
    DeviceAdamW.update = clock.timed("adamw", update)  # type: ignore[method-assign]
    try:
        with trainer as entered:
            rounds = []
            for batch in [*batches[:2], *batches]:
                wait((1,), (1,), (np.int64(wait_ms * 1e6),))
                rounds.append(clock.measure(partial(entered.step, batch)))
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
        sizes = *a.shape, *b.shape
        kind = "head" if vocab in sizes else "of weights" if a.shape[0] == b.shape[0] else "of tokens"
        return f"products, {kind}"

    layers = {
        name: clock.timed(product if name in ("matrix_product", "weight_product") else name, function)
        for name, function in original.layers.items()
    }
    names = ("decode_forward", "decode_backward", "memory_forward", "memory_backward")
    return replace(original, layers=layers, **{name: clock.timed(name, getattr(original, name)) for name in names})
