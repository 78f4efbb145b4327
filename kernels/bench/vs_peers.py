"""The GPU backends and their peers on one GPU, in one process: `python -m ramnet_np.kernels.bench.vs_peers --help`."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from ramnet_np import RAMState, __version__, ram_attention_backward, ram_attention_forward, ram_attention_step

from .cpu import Shape, append_jsonl, require_close
from .gpu_peers import ATTENTION, load_authors, measure_attention, measure_authors
from .gpu_shapes import ALIKE, GAMMA, SHAPES, STEP, STEP_BATCHES, Dtype, draw, floors
from .gpu_timing import captured, copy_bandwidth, give_back_memory, kernel_ms, median_ms, peak_mib

MEASURES = ("fwd", "fwd+bwd")
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


@dataclass(frozen=True)
class Options:
    """Time the GPU backends and their peers on the shapes of language models and associative recall.

    Random data, half of the heads with CAPE, top-K without renormalisation, no state given or returned. A time is the
    median of single calls between two events on an idle device, after a warm-up, so it includes Python. The columns of
    the table:

      fwd, fwd+bwd  milliseconds per call: forward; forward and backward
      ratio         the authors' time divided by ours: how many times faster
      graph         our call as a replay of a CUDA graph: the same kernels without Python
      of floor      floor / time. The floor reads every input once and writes every output once, at the bandwidth of a
                    copy measured in the same run: 100% would be a kernel that does nothing but move data
      peak MiB      most memory in use during forward and backward, inputs included

    Then one token with the state in place, for B 1, 16 and 256. A peer is measured if it is installed:

      pip install --pre ramnet-ops     the authors' CUDA kernels; needs torch
      pip install torch                causal attention of the paper's size (scaled_dot_product_attention, bfloat16)

    To start with:

      python -m ramnet_np.kernels.bench.vs_peers
      python -m ramnet_np.kernels.bench.vs_peers --shapes MQAR "MQAR wide" --dtype float32 bfloat16 --no-peer
      python -m ramnet_np.kernels.bench.vs_peers --shapes "paper 340M" --kernels
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Shapes to time; "none" times only the one-token step."""
    dtype: tuple[Dtype, ...] = ("float32",)
    """Types of logits and values; bfloat16 needs ml_dtypes. Sums and state are always float32."""
    backends: tuple[Literal["cupy", "numba-cuda"], ...] = ("cupy", "numba-cuda")
    """Which of our GPU backends to time."""
    repeats: int = 20
    """Number of calls; the median counts."""
    peer: bool = True
    """Time the peers too, if they are installed."""
    kernels: bool = False
    """Instead, list the milliseconds of every kernel of our backends, each timed alone."""
    out: Path | None = None
    """Append the raw results to this file, one JSON object per line."""


def main(options: Options) -> None:
    """Print a line for each shape, type and implementation."""
    unknown = [name for name in options.shapes if name not in SHAPES and name != "none"]
    if unknown:
        raise SystemExit(f"--shapes takes {', '.join(map(repr, SHAPES))} or 'none', got {unknown[0]!r}")
    shapes = [name for name in options.shapes if name != "none"]
    machine = describe_gpu()
    bandwidth = machine["bandwidth"]
    print(f"{machine['device']}, {machine['versions']}; copy {bandwidth / 1e12:.2f} TB/s")
    if options.kernels:
        list_kernels(shapes, options)
        return
    authors, reason = find_authors() if options.peer else (None, None)
    if reason:
        print(f"the authors' package is left out: {reason}")
    print(HEADER)
    with tqdm(total=(len(shapes) + len(STEP_BATCHES)) * len(options.dtype), disable=None) as progress:

        def report(line: str, row: dict[str, Any]) -> None:
            progress.write(line)
            if options.out is not None:
                append_jsonl(options.out, [row | machine])

        for dtype in options.dtype:
            for name in shapes:
                progress.set_description(f"{name}, {dtype}")
                for row in measure_shape(name, dtype, authors, options):
                    report(format_row(row, floors(SHAPES[name][0], dtype, bandwidth)), row)
                progress.update()
        for dtype in options.dtype:
            for batch in STEP_BATCHES:
                progress.set_description(f"one token, B {batch}, {dtype}")
                for backend in options.backends:
                    row = measure_step(batch, dtype, backend)
                    times = f"eager {row['eager']:6.1f} us  graph {row['graph']:6.1f} us"
                    report(f"one token, B {batch:<4} {backend:10} {dtype:9} {times}", row)
                progress.update()


HEADER = (
    f"{'':14} {'':10} {'':9}{'fwd ms':>8}{'fwd+bwd':>9}{'ratio':>15}{'graph ms':>16}{'of floor':>11}{'peak MiB':>10}"
)


def format_row(row: dict[str, Any], floor: tuple[float, float]) -> str:
    """One line of the table under ``HEADER``.

    >>> row = {"shape": "MQAR", "implementation": "cupy", "dtype": "float32", "fwd": 0.1, "fwd+bwd": 0.25, "MiB": 90}
    >>> format_row(row, (0.01, 0.02)).split()
    ['MQAR', 'cupy', 'float32', '0.100', '0.250', '10%', '8%', '90']
    """
    ratio = "{:.2f}x {:.2f}x".format(*row["ratio"]) if "ratio" in row else ""
    graph = "{:.3f} {:.3f}".format(*(row[f"graph {m}"] for m in MEASURES)) if "graph fwd" in row else ""
    part = "{:.0%} {:.0%}".format(*(f / row[m] for m, f in zip(MEASURES, floor, strict=True)))
    if row["implementation"] == "attention":
        part = ""  # its inputs and outputs differ, so the floor does not apply
    return (
        f"{row['shape']:14} {row['implementation']:10} {row['dtype']:9}{row['fwd']:8.3f}{row['fwd+bwd']:9.3f}"
        f"{ratio:>15}{graph:>16}{part:>11}{row['MiB']:10.0f}"
    )


def measure_shape(name: str, dtype: Dtype, authors: Any, options: Options) -> list[dict[str, Any]]:
    """The rows of our backends and of the peers that are installed."""
    (shape, k), alike = SHAPES[name], name in ALIKE
    rows: list[dict[str, Any]] = []
    for backend in options.backends:
        check_against_core(shape, k, dtype, backend)
        give_back_memory()
        rows.append({"implementation": backend, **measure_ours(shape, k, dtype, options.repeats, backend, alike)})
        give_back_memory()
    if authors is not None:
        theirs = measure_authors(authors, shape, k, dtype, options.repeats, alike)
        for ours in rows:
            ours["ratio"] = [theirs[m] / ours[m] for m in MEASURES]
        rows.append({"implementation": "authors", **theirs})
    if options.peer and name in ATTENTION and has_torch():
        rows.append({"implementation": "attention", **measure_attention(name, options.repeats), "dtype": "bfloat16"})
    give_back_memory()
    return [{"shape": name, "dtype": dtype, **row} for row in rows]


def calls(shape: Shape, k: int, dtype: Dtype, backend: str, alike: bool = False) -> tuple[Any, Any]:
    """(forward, forward and backward) as functions without arguments."""
    write, read, values, dy = draw(shape, dtype, alike=alike)

    def forward(gradients: bool = False) -> Any:
        return ram_attention_forward(
            write, read, values, GAMMA, update="gsu", top_k=k, cape_heads=shape.H // 2, return_state=False,
            gradients=gradients, backend=backend,
        )  # fmt: skip

    def both() -> Any:
        y, _, ctx = forward(gradients=True)
        return y, ram_attention_backward(dy, ctx)

    return forward, both


def check_against_core(shape: Shape, k: int, dtype: Dtype, backend: str, tokens: int = 32) -> None:
    """RuntimeError unless y of a short sequence agrees with the NumPy core's on the same inputs."""
    import cupy

    write, read, values, _ = draw(shape._replace(B=1, T=min(tokens, shape.T)), dtype)
    given: dict[str, Any] = {"gamma": GAMMA, "update": "gsu", "top_k": k, "cape_heads": shape.H // 2}
    y, _, _ = ram_attention_forward(write, read, values, **given, return_state=False, backend=backend)
    y = cupy.asnumpy(y.astype(np.float32))
    on_cpu = [cupy.asnumpy(a.astype(np.float32)) for a in (write, read, values)]
    expected = ram_attention_forward(*on_cpu, **given, return_state=False, backend="numpy")[0]
    require_close(f"y of {shape}, {dtype}, {backend}", y, expected, TOLERANCE[dtype])


def measure_ours(
    shape: Shape, k: int, dtype: Dtype, repeats: int, backend: str, alike: bool = False
) -> dict[str, float]:
    """Medians in ms, from Python and from a graph, and the peak memory in MiB."""
    forward, both = calls(shape, k, dtype, backend, alike)
    row = {"fwd": median_ms(forward, repeats), "fwd+bwd": median_ms(both, repeats), "MiB": peak_mib(both)}
    for name, call in (("graph fwd", forward), ("graph fwd+bwd", both)):
        row[name] = median_ms(captured(call), repeats)
    return row


def measure_step(batch: int, dtype: Dtype, backend: str, repeats: int = 100) -> dict[str, Any]:
    """The one-token step with the state in place: medians in microseconds."""
    import cupy

    shape = STEP._replace(B=batch)
    write, read, values, _ = draw(shape, dtype)
    state = RAMState.initial(batch, shape.H, shape.P**shape.U, shape.C, xp=cupy)
    positions = cupy.full((1,), 1000, dtype=np.int64)

    def step() -> Any:
        return ram_attention_step(
            write, read, values, GAMMA, update="gsu", cape_heads=shape.H // 2, state=state, positions=positions,
            backend=backend,
        )  # fmt: skip

    eager, graph = (1e3 * median_ms(call, repeats) for call in (step, captured(step)))
    return {
        "shape": f"one token, B {batch}", "implementation": backend, "dtype": dtype, "eager": eager, "graph": graph,
    }  # fmt: skip


def list_kernels(shapes: list[str], options: Options) -> None:
    """Print the milliseconds of every kernel of one forward and backward."""
    for dtype, name, backend in itertools.product(options.dtype, shapes, options.backends):
        shape, k = SHAPES[name]
        times = kernel_ms(calls(shape, k, dtype, backend, name in ALIKE)[1])
        listed = "   ".join(f"{kernel} {ms:.3f}" for kernel, ms in times.items())
        print(f"{name}, {dtype}, {backend}: {listed}   total {sum(times.values()):.3f}")
        give_back_memory()


def describe_gpu() -> dict[str, Any]:
    """Device, versions, date, command and copy bandwidth, for the record."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return {
        "device": properties["name"].decode(),
        "versions": {
            "ramnet_np": __version__,
            "cupy": cupy.__version__,
            "cuda": cupy.cuda.runtime.runtimeGetVersion(),
            "driver": cupy.cuda.runtime.driverGetVersion(),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "bandwidth": copy_bandwidth(),
    }


def find_authors() -> tuple[Any, str | None]:
    """The authors' operation, or None and the reason why not."""
    try:
        return load_authors(), None
    except ImportError as error:
        return None, str(error)


def has_torch() -> bool:
    """Whether torch is installed with a GPU that it can use."""
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    main(tyro.cli(Options))
