"""The memory update, one step of the way after the other: `python -m ramnet_np.kernels.bench.walk`.

From the NumPy loop over tokens to the kernels of the backends, each step timed on the same addresses and values and
held to the first one's y. docs/numba-cuda.md walks along. Two of the steps are kernels of numba_cuda/plain_contents.py:
the first that one would write, and the same with the state where it is quick to reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tyro

from ramnet_np.backend import load_backend
from ramnet_np.contract import Address, MemoryOptions

from .cpu import require_close
from .gpu_shapes import SHAPES, draw
from .gpu_timing import captured, give_back_memory, median_ms
from .vs_peers import describe_gpu


@dataclass(frozen=True)
class Options:
    """Time the memory update (write and read of a whole sequence, forward) as NumPy, Numba and CUDA C++ have it.

    The addresses are given: nothing is decoded. GPU steps are replays of a CUDA graph, medians of 10; steps on the CPU
    are the fastest of 3 calls.
    """

    shape: str = "MQAR"
    """A shape of the GPU benchmark."""
    cpu: bool = True
    """Take the steps on the CPU too, and NumPy's loop on CuPy arrays; at the paper's size each takes seconds."""


def main(options: Options) -> None:
    """Print a line for each step."""
    import cupy
    from ramnet_np.kernels.numba_cuda.memory_plain import contents_in_device_memory, contents_in_shared

    if options.shape not in SHAPES:
        raise SystemExit(f"--shape takes {', '.join(map(repr, SHAPES))}, got {options.shape!r}")
    shape, k = SHAPES[options.shape]
    machine = describe_gpu()
    print(f"{machine['device']}, {machine['versions']}, {machine['date'][:10]}; {options.shape} {shape}, K {k}")
    write_logits, read_logits, values, _ = draw(shape, "float32")
    decode = load_backend("cupy").decode_forward
    sides = decode((write_logits, read_logits), (k, k), (False, False), 0, None)
    write, read = (Address(*side[:2]) for side in sides)
    memory = MemoryOptions(slots=shape.P**shape.U)
    rows: list[tuple[str, float]] = []
    expected: Any = None

    def step(name: str, call: Callable[[], Any], measure: Callable[[Callable[[], Any]], float]) -> None:
        nonlocal expected
        y = call()
        y = cupy.asnumpy(y)
        if expected is None:
            expected = y
        require_close(name, y, expected, 1e-4)
        rows.append((name, measure(call)))
        print(f"{name:52} {rows[-1][1]:12.3f} ms   {rows[0][1] / rows[-1][1]:10.1f} x", flush=True)
        give_back_memory()

    def update(backend: str, write: Address, read: Address, values: Any) -> Callable[[], Any]:
        return lambda: load_backend(backend).memory_forward(write, read, values, 1.0, None, None, memory, False)[0]

    if options.cpu:
        host_write, host_read = (Address(*map(cupy.asnumpy, side)) for side in (write, read))
        host_values = cupy.asnumpy(values)
        step("NumPy, a loop over tokens", update("numpy", host_write, host_read, host_values), fastest_ms)
        step("Numba on the CPU", update("numba", host_write, host_read, host_values), fastest_ms)
        step("NumPy's loop on CuPy arrays", update("numpy", write, read, values), lambda call: median_ms(call, 3))
    for name, contents in (
        ("Numba CUDA, a thread a channel", contents_in_device_memory),
        ("... with the state in shared memory", contents_in_shared),
    ):
        step(name, contents_by(contents, write, read, values, memory), graph_ms)
    step("... groups of threads, tiles ahead: numba-cuda", update("numba-cuda", write, read, values), graph_ms)
    step("CUDA C++, whole chunks: the backend cupy", update("cupy", write, read, values), graph_ms)


def graph_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of a replay."""
    return median_ms(captured(call), 10)


def fastest_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of the fastest of 3 calls; the first one, which compiles, was made before."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def contents_by(
    contents: Callable[..., Any], write: Address, read: Address, values: Any, memory: MemoryOptions
) -> Callable[[], Any]:
    """y by a plain kernel of the contents, behind the backend's fast kernels of the masses.

    Those leave eta and weights, so what changes from one step to the next is the contents alone.
    """
    from ramnet_np.kernels.numba_cuda import memory_fast
    from ramnet_np.kernels.numba_cuda.context import new_context

    def call() -> Any:
        widths = memory_fast.widths(write.index.shape[3], read.index.shape[3])
        ctx = new_context(write, read, values, 1.0, None, None, memory, memory.slots, widths)
        memory_fast.masses_forward(ctx, None)
        return contents(ctx, None)

    return call


if __name__ == "__main__":
    main(tyro.cli(Options))
