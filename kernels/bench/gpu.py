"""The GPU backend beside the authors' package on one GPU, in one process. Started on purpose:

    python -m ramnet_np.kernels.bench.gpu                # ours alone
    pip install --pre ramnet-ops                         # needs torch; then the same command times both

Float32 (``--dtype bfloat16``: the authors' too), random data, half of the heads with CAPE, top-K without
renormalisation, no state given or returned. Times are medians of single calls between two events on the device, after
a warm-up; "graph" replays the same call captured as a CUDA graph, which leaves out Python. The floor is every input
read once and every output written once, at the bandwidth of a copy measured in the same run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward, ram_attention_step

from .cpu import Shape, append_jsonl, traffic

# name -> shape, K
SHAPES: dict[str, tuple[Shape, int]] = {
    "paper 340M": (Shape(16, 4096, 16, 5, 4, 64), 8),
    "quarter batch": (Shape(4, 4096, 16, 5, 4, 64), 8),
    "MQAR": (Shape(64, 256, 2, 5, 4, 64), 8),
    "MQAR wide": (Shape(256, 256, 4, 5, 4, 32), 8),
    "one long row": (Shape(1, 65536, 16, 5, 4, 64), 8),
    "many slots": (Shape(4, 4096, 16, 8, 4, 64), 8),
    "top-32": (Shape(4, 4096, 16, 5, 4, 64), 32),
}
GAMMA = 0.0  # of the gated sparse update, the authors' only one: there it is a moving average


@dataclass(frozen=True)
class Options:
    """Time the GPU backend on the shapes of language models and associative recall."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Which of them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of logits and values."""
    repeats: int = 20
    """Calls to take the median of."""
    peer: bool = True
    """Time the authors' package too, if it is installed."""
    kernels: bool = False
    """List every kernel's share of the paper's forward and backward instead."""
    out: Path | None = None
    """Append the raw results to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each shape and implementation."""
    import cupy

    if options.kernels:
        list_kernels(options)
        return
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    bandwidth = copy_bandwidth()
    machine = {
        "device": properties["name"].decode(),
        "versions": {"cupy": cupy.__version__, "cuda": cupy.cuda.runtime.runtimeGetVersion()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "bandwidth": bandwidth,
        "dtype": options.dtype,
    }
    peer = load_peer() if options.peer else None
    print(f"{machine['device']}, {machine['versions']}, {options.dtype}; copy {bandwidth / 1e12:.2f} TB/s")
    print(f"{'':14} {'':9}{'fwd ms':>9}{'fwd+bwd ms':>12}{'ratio':>14}{'graph ms':>16}{'/floor':>13}{'peak MiB':>10}")
    for name in options.shapes:
        shape, k = SHAPES[name]
        rows = {"ours": measure_ours(shape, k, options)}
        if peer is not None:
            rows["authors"] = measure_peer(peer, shape, k, options)
        for who, row in rows.items():
            floors = [1e3 * traffic(shape, g) * itemsize(options.dtype) / 4 / bandwidth for g in (False, True)]
            ratio = "" if len(rows) == 1 else "{:.1f}x {:.1f}x".format(*(rows["authors"][m] / row[m] for m in MEASURES))
            graph = f"{row['graph fwd']:.3f} {row['graph fwd+bwd']:.3f}" if "graph fwd" in row else ""
            over = "{:.1f}x {:.1f}x".format(*(row[m] / f for m, f in zip(MEASURES, floors, strict=True)))
            times = f"{row['fwd']:9.3f}{row['fwd+bwd']:12.3f}"
            print(f"{name:14} {who:9}{times}{ratio:>14}{graph:>16}{over:>13}{row['MiB']:10.0f}")
            if options.out is not None:
                append_jsonl(options.out, [{"shape": name, "implementation": who, **row, "floors": floors, **machine}])
    for batch in (1, 16, 256):
        row = measure_step(batch, options)
        print(f"one token, B {batch:<4} eager {1e3 * row['eager']:7.1f} us   graph {1e3 * row['graph']:7.1f} us")
        if options.out is not None:
            append_jsonl(options.out, [{"shape": f"one token, B {batch}", "implementation": "ours", **row, **machine}])


MEASURES = ("fwd", "fwd+bwd")


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return 4 if dtype == "float32" else 2


def draw(shape: Shape, dtype: str, seed: int = 0) -> list[Any]:
    """Write logits, read logits, values and dy on the device."""
    import cupy

    B, T, H, U, P, C = shape
    rng = cupy.random.default_rng(seed)
    sizes = ((B, T, H, U, P), (B, T, H, U, P), (B, T, H, C), (B, T, H, C))
    return [rng.standard_normal(size, dtype=np.float32).astype(gpu_dtype(dtype)) for size in sizes]


def gpu_dtype(name: str) -> Any:
    """The dtype of that name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def measure_ours(shape: Shape, k: int, options: Options) -> dict[str, float]:
    """Medians in ms, eager and from a graph, and the peak of the pool in MiB."""
    import cupy

    write, read, values, dy = draw(shape, options.dtype)

    def forward() -> Any:
        return ram_attention_forward(
            write, read, values, GAMMA, update="gsu", top_k=k, cape_heads=shape.H // 2, return_state=False
        )

    def both() -> Any:
        y, _, ctx = forward()
        return y, ram_attention_backward(dy, ctx)

    row = {"fwd": median_ms(forward, options.repeats), "fwd+bwd": median_ms(both, options.repeats)}
    row["MiB"] = peak_of_pool(both)
    for name, call in (("graph fwd", forward), ("graph fwd+bwd", both)):
        row[name] = median_ms(captured(call).launch, options.repeats)
    cupy.get_default_memory_pool().free_all_blocks()
    return row


def measure_step(batch: int, options: Options, heads: int = 16, channels: int = 64) -> dict[str, float]:
    """One token with the state in place: medians in ms."""
    import cupy

    write, read, values, _ = draw(Shape(batch, 1, heads, 5, 4, channels), options.dtype)
    state = RAMState.initial(batch, heads, 1024, channels, xp=cupy)
    positions = cupy.full((1,), 1000, dtype=np.int64)

    def step() -> Any:
        return ram_attention_step(
            write, read, values, GAMMA, update="gsu", cape_heads=heads // 2, state=state, positions=positions
        )

    return {"eager": median_ms(step, 100), "graph": median_ms(captured(step).launch, 100)}


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Milliseconds between two events around one call, on the current stream."""
    import cupy

    for _ in range(3):
        call()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(repeats):
        cupy.cuda.get_current_stream().synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end))
    return float(np.median(times))


def captured(call: Callable[[], Any]) -> Any:
    """The call as a CUDA graph; what it allocates stays alive with it."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        call()
        stream.synchronize()
        stream.begin_capture()
        kept = call()
        graph = stream.end_capture()

    class Replay:
        results = kept

        @staticmethod
        def launch() -> None:
            graph.launch(cupy.cuda.get_current_stream())

    return Replay


def peak_of_pool(call: Callable[[], Any]) -> float:
    """MiB that the call takes from CuPy's pool at most, the inputs included."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    call()
    return pool.total_bytes() / 2**20


def copy_bandwidth(size: int = 1 << 29) -> float:
    """Bytes a second, read and written, of a device-to-device copy."""
    import cupy

    source, target = cupy.zeros(size, np.uint8), cupy.zeros(size, np.uint8)
    milliseconds = median_ms(lambda: cupy.copyto(target, source), 20)
    return 2 * size / milliseconds * 1e3


def load_peer() -> Any:
    """The authors' operation, or None if it is not installed."""
    try:
        import torch  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ramnet_ops import random_access_memory_attention
    except ImportError as error:
        print(f"the authors' package is left out: {error}")
        return None
    return random_access_memory_attention


def measure_peer(peer: Any, shape: Shape, k: int, options: Options) -> dict[str, float]:
    """The same of the authors' CUDA kernels, through torch."""
    import torch

    arrays = [
        torch.from_dlpack(a.view(np.int16) if itemsize(options.dtype) == 2 else a) for a in draw(shape, options.dtype)
    ]
    if itemsize(options.dtype) == 2:
        arrays = [a.view(getattr(torch, options.dtype)) for a in arrays]
    *inputs, dy = arrays

    def attend(*leaves: Any) -> Any:
        return peer(*leaves, GAMMA, embed_num=shape.H // 2, top_k=k)[0]

    def forward() -> Any:
        with torch.no_grad():
            return attend(*inputs)

    def both() -> Any:
        leaves = [a.detach().requires_grad_() for a in inputs]
        attend(*leaves).backward(dy)
        return leaves

    def median(call: Callable[[], Any]) -> float:
        for _ in range(3):
            call()
        times = []
        for _ in range(options.repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return float(np.median(times))

    row = {"fwd": median(forward), "fwd+bwd": median(both)}
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    row["MiB"] = torch.cuda.max_memory_allocated() / 2**20 + sum(a.nbytes for a in arrays) / 2**20
    torch.cuda.empty_cache()
    return row


def list_kernels(options: Options) -> None:
    """Milliseconds of every kernel of one forward and backward, by timing each launch alone."""
    import cupy
    from ramnet_np.kernels.cuda import decode, memory

    times: dict[str, list[float]] = {}

    def timed(get_kernel: Callable[..., Any]) -> Callable[..., Any]:
        def get(specialisation: Any, name: str) -> Any:
            kernel = get_kernel(specialisation, name)

            def launch(*arguments: Any, **settings: Any) -> None:
                start, end = cupy.cuda.Event(), cupy.cuda.Event()
                start.record()
                kernel(*arguments, **settings)
                end.record()
                end.synchronize()
                times.setdefault(name, []).append(cupy.cuda.get_elapsed_time(start, end))

            return launch

        return get

    for name in options.shapes:
        shape, k = SHAPES[name]
        write, read, values, dy = draw(shape, options.dtype)
        originals = decode.get_kernel, memory.get_kernel
        for number in range(4):
            if number == 1:  # the first call compiles
                times.clear()
                decode.get_kernel, memory.get_kernel = map(timed, originals)
            _, _, ctx = ram_attention_forward(
                write, read, values, GAMMA, update="gsu", top_k=k, cape_heads=shape.H // 2, return_state=False
            )
            ram_attention_backward(dy, ctx)
        decode.get_kernel, memory.get_kernel = originals
        listed = "   ".join(f"{kernel} {np.median(t):.3f}" for kernel, t in times.items())
        print(f"{name}: {listed}")


if __name__ == "__main__":
    main(tyro.cli(Options))
