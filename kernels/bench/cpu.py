"""Benchmark of the operation on this machine: every backend that can run here, through the public functions.

Each backend must first agree with the NumPy core on the inputs that it is then timed on. The timed call is that of
training: float32, K = 8, half of the heads with CAPE, ``return_state=False``. Argument checks are included, making the
inputs is not. The floor reads every input once and writes every output once, at the bandwidth of a copy measured in the
same run. GPU backends compute on CuPy arrays of the same numbers, called from Python and as replays of a CUDA graph;
their floor uses the bandwidth of the GPU's memory.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ramnet_np import __version__, ram_attention_backward, ram_attention_forward
from ramnet_np.backend import backends, load_backend
from ramnet_np.contract import Array
from ramnet_np.core.arrays import on_host

from . import gpu_timing

FORWARD, GRADIENT = 1e-5, 1e-4  # float32: |a - b| <= tolerance * (1 + |b|)


class Shape(NamedTuple):
    """The sizes of one call, named as in the paper."""

    B: int
    T: int
    H: int
    U: int
    P: int
    C: int

    def __str__(self) -> str:
        return "-".join(f"{axis}{size}" for axis, size in self._asdict().items())


SHAPES = (
    Shape(4, 256, 2, 5, 4, 64),
    Shape(1, 1024, 4, 5, 4, 64),
    Shape(4, 256, 2, 8, 4, 64),
    Shape(4, 256, 2, 4, 4, 32),
    Shape(32, 64, 2, 5, 4, 32),
)


@dataclass(frozen=True)
class BenchOptions:
    """Time the operation on every backend, with ratios between them and a memory-traffic floor."""

    backends: tuple[str, ...] = ()
    """Backends to time; by default all that can run here."""
    gamma: float = 1.0
    """How fast a slot forgets."""
    update: str = "pdma"
    """Update rule, pdma or gsu."""
    top_k: int = 8
    """Slots selected by each token, for writes and for reads."""
    seconds: float = 2.0
    """Seconds to repeat each measurement for (at least 5 repeats)."""
    quick: bool = False
    """Only the first shape, a quarter of a second per measurement."""
    out: Path | None = None
    """Append the raw results to this file, one JSON object per line."""


class Timing(NamedTuple):
    """Milliseconds per call, over ``repeats`` calls."""

    median: float
    p20: float
    p80: float
    repeats: int


def run_bench(options: BenchOptions) -> list[dict[str, Any]]:
    """Print a table for each shape and return its rows; see ``BenchOptions``."""
    names = options.backends or available()
    for name in names:
        load_backend(name)  # an unknown or missing backend raises here, before anything is timed
    if not 0 < options.seconds < math.inf:
        raise ValueError(f"seconds must be above 0 and finite, got {options.seconds}")
    seconds = 0.25 if options.quick else options.seconds
    shapes = SHAPES[:1] if options.quick else SHAPES
    bandwidths = [copy_bandwidth(), gpu_timing.copy_bandwidth() if any(map(on_gpu, names)) else 0.0]
    machine = describe_machine()
    print(
        f"{machine['device']}, {machine['threads']} threads; "
        f"copy bandwidth {bandwidths[0] / 1e9:.1f} GB/s (read + written)"
    )
    rows = []
    progress = tqdm(total=len(shapes) * len(names) * 2, desc="bench", unit="timing", disable=None, leave=False)
    with progress:
        for shape in shapes:
            inputs = draw(shape)
            for name in names:
                row: dict[str, Any] = {
                    "backend": name,
                    "shape": shape._asdict(),
                    "dtype": "float32",
                    "tokens": shape.B * shape.T,
                }
                row |= asdict(options) | {"out": None, "bandwidth": bandwidths[on_gpu(name)]} | machine
                forward, both = calls(inputs, name, options)
                check_against_core(inputs, name, options)
                graph: dict[str, Any] = {"backend": f"{name}, graph"}
                for key, call, gradients in (("forward", forward, False), ("forward+backward", both, True)):
                    if on_gpu(name):
                        graph[key] = timed(finished(gpu_timing.captured(call)), seconds)._asdict()
                        call = finished(call)
                    row[key] = timed(call, seconds)._asdict()
                    row[f"{key} floor"] = 1e3 * traffic(shape, gradients) / row["bandwidth"]
                    progress.update()
                rows += [row, row | graph] if on_gpu(name) else [row]
    for shape in shapes:
        print_table(shape, [row for row in rows if row["shape"] == shape._asdict()])
    if options.out is not None:
        append_jsonl(options.out, rows)
        print(f"\nraw results: {options.out}")
    return rows


def available() -> tuple[str, ...]:
    """The backends that can run here, on NumPy arrays or, with a GPU, on CuPy arrays."""
    found = backends()
    running = [name for name, status in found.items() if status.startswith("available")]
    return tuple(name for name in running if not on_gpu(name) or found["cupy"] == "available")


def on_gpu(name: str) -> bool:
    """Whether a backend computes on a GPU."""
    return load_backend(name).array_kind != "numpy"


def finished(call: Callable[[], Any]) -> Callable[[], None]:
    """A function that calls ``call`` and waits until the GPU has finished it."""
    import cupy

    def and_wait() -> None:
        call()
        cupy.cuda.get_current_stream().synchronize()

    return and_wait


def draw(shape: Shape, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random write logits, read logits, values and dy for a shape."""
    B, T, H, U, P, C = shape
    rng = np.random.default_rng(seed)
    sizes = ((B, T, H, U, P), (B, T, H, U, P), (B, T, H, C), (B, T, H, C))
    write, read, values, dy = (rng.normal(size=size).astype(np.float32) for size in sizes)
    return write, read, values, dy


def calls(inputs: tuple[np.ndarray, ...], name: str, options: BenchOptions) -> tuple[Callable, Callable]:
    """(forward, forward and backward) as functions without arguments."""
    if on_gpu(name):
        import cupy

        inputs = tuple(map(cupy.asarray, inputs))
    write, read, values, dy = inputs
    choices: dict[str, Any] = {
        "update": options.update,
        "top_k": options.top_k,
        "cape_heads": dy.shape[2] // 2,
        "return_state": False,
        "backend": name,
    }

    def forward() -> Any:
        return ram_attention_forward(write, read, values, options.gamma, **choices)

    def both() -> Any:
        y, _, ctx = forward()
        return y, ram_attention_backward(dy, ctx)

    return forward, both


def check_against_core(inputs: tuple[np.ndarray, ...], name: str, options: BenchOptions) -> None:
    """RuntimeError unless the backend's y and gradients of logits and values agree with the NumPy core's."""
    y, grads = calls(inputs, name, options)[1]()
    y, grads = on_host(y), type(grads)(*map(on_host, grads[:3]), None, None)
    y_core, grads_core = calls(inputs, "numpy", options)[1]()
    require_close(f"{name}: y", y, y_core, FORWARD)
    for field, grad, expected in zip(grads._fields[:3], grads, grads_core, strict=False):
        require_close(f"{name}: gradient of {field}", grad, expected, GRADIENT)


def require_close(what: str, actual: Array, expected: Array, tolerance: float) -> None:
    """RuntimeError, before anything is timed, if two results differ by more than rounding."""
    error = np.abs(actual - expected) / (1 + np.abs(expected))
    if not (error <= tolerance).all():
        raise RuntimeError(f"{what} is off by {error.max():.1e}, the limit is {tolerance:.0e}; no times are reported")


def timed(call: Callable[[], Any], seconds: float) -> Timing:
    """Repeat ``call`` for about ``seconds`` seconds, at least five times, after a warm-up of two calls."""
    call()
    call()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        took.append(1e3 * (time.perf_counter() - start))
    p20, median, p80 = np.percentile(took, [20, 50, 80]).tolist()
    return Timing(median, p20, p80, len(took))


def traffic(shape: Shape, gradients: bool) -> int:
    """Bytes to read every input once and write every output once; the backward reads the inputs and dy again."""
    B, T, H, U, P, C = shape
    logits, values = 2 * U * P, C
    inputs, outputs = logits + values, values
    if gradients:
        inputs, outputs = inputs + logits + 2 * values, outputs + logits + values
    return 4 * B * T * H * (inputs + outputs)


def copy_bandwidth(size: int = 1 << 26) -> float:
    """Bytes per second, read and written, of a copy of an array that is larger than the caches."""
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * size / float(np.median(times))


def describe_machine() -> dict[str, Any]:
    """Processor, threads, versions, date and command, for the record."""
    from importlib.util import find_spec

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions, threads = {"ramnet_np": __version__, "python": platform.python_version(), "numpy": np.__version__}, 1
    if find_spec("numba") is not None:
        import numba

        versions["numba"], threads = numba.__version__, numba.get_num_threads()
    return {
        "device": model or platform.processor() or platform.machine(),
        "threads": threads,
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def print_table(shape: Shape, rows: list[dict[str, Any]]) -> None:
    """Times of one shape: median milliseconds (20th to 80th percentile), how much faster than the slowest, tokens/s."""
    print(f"\n{shape}  (M = {shape.P**shape.U})")
    print(
        f"  {'':18} {'forward ms':>24}{'ratio':>8}{'forward+backward ms':>26}{'ratio':>8}{'tokens/s':>12}{'/floor':>8}"
    )
    slowest = {key: max(row[key]["median"] for row in rows) for key in ("forward", "forward+backward")}
    for row in rows:
        cells = ""
        for key, width in (("forward", 24), ("forward+backward", 26)):
            t = Timing(**row[key])
            cells += f"{f'{t.median:.2f} ({t.p20:.2f}-{t.p80:.2f})':>{width}}{f'{slowest[key] / t.median:.1f}x':>8}"
        both = row["forward+backward"]["median"]
        floors = f"{both / row['forward+backward floor']:.0f}x"
        print(f"  {row['backend']:18} {cells}{1e3 * row['tokens'] / both:>12,.0f}{floors:>8}")
    floor = rows[0]
    print(f"  {'floor':18} {floor['forward floor']:>24.3f}{'':8}{floor['forward+backward floor']:>26.3f}")


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append one JSON object per line; make the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, default=str) + "\n" for row in rows)
