"""The memory update, one step of the way after the other: `python -m ramnet_np.kernels.bench.walk`.

From the NumPy loop over tokens to the kernels of the backends, each step timed on the same addresses and values and
held to the first one's y. docs/numba-cuda.md walks along. Two of the steps, kernels that are slower than the
backend's, are here: the first that one would write, and the same with the state where it is quick to reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    for name, kernel in (
        ("Numba CUDA, a thread a channel", one_by_one),
        ("... with the state in shared memory", in_shared),
    ):
        step(name, contents_by(kernel(), write, read, values, memory), graph_ms)
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


def contents_by(kernel: Any, write: Address, read: Address, values: Any, memory: MemoryOptions) -> Callable[[], Any]:
    """y by a kernel of this file, behind the backend's own kernel of the masses, which leaves eta and weights."""
    import cupy
    from ramnet_np.kernels.numba_cuda import memory as numba_memory

    def call() -> Any:
        B, T, H, C = values.shape
        forward = numba_memory.masses_forward(write, read, values, 1.0, None, None, memory, None, memory.slots)
        W = forward.old_mass.shape[2]
        R = forward.rows.shape[2] - W
        return kernel(forward.rows, forward.coefs, values, B, T, H, C, forward.n_rows, W, R, cupy.empty_like(values))

    return call


def one_by_one() -> Callable[..., Any]:
    """The first kernel that one would write: the NumPy core's two lines, for one channel."""
    import cupy
    from numba import cuda, float32, int32, int64, types
    from ramnet_np.kernels.numba_cuda.launch import kernel

    numbers, places = types.CPointer(float32), types.CPointer(int32)

    @kernel(places, *[numbers] * 4, *[int32] * 6)
    def content(rows, coefs, values, slots, y, T, H, C, n_rows, W, R):
        """One thread a channel of a (batch, head), the state in device memory."""
        unit, c = int64(cuda.blockIdx.x), cuda.threadIdx.x
        b, h = unit // H, unit % H
        for t in range(T):
            at = ((b * T + t) * H + h) * C + c
            event = (unit * T + t) * (W + R)
            for k in range(W):
                s = (unit * (n_rows + W + R) + rows[event + k]) * C + c
                slots[s] += coefs[event + k] * (values[at] - slots[s])
            total = float32(0)
            for k in range(W, W + R):
                total += coefs[event + k] * slots[(unit * (n_rows + W + R) + rows[event + k]) * C + c]
            y[at] = total

    def launch(
        rows: Any, coefs: Any, values: Any, B: int, T: int, H: int, C: int, n_rows: int, W: int, R: int, y: Any
    ) -> Any:
        slots = cupy.zeros((B * H, n_rows + W + R, C), np.float32)
        stream = cupy.cuda.get_current_stream().ptr
        content(B * H, C, stream, rows, coefs, values, slots, y, T, H, C, n_rows, W, R)
        return y

    return launch


def in_shared() -> Callable[..., Any]:
    """The same with a slice of 16 channels of the state in shared memory."""
    import cupy
    from numba import cuda, float32, int32, int64, types, uint32
    from ramnet_np.kernels.numba_cuda.launch import kernel

    numbers, places = types.CPointer(float32), types.CPointer(int32)
    lanes = 16

    @kernel(places, *[numbers] * 3, *[int32] * 6)
    def content(rows, coefs, values, y, T, H, C, n_rows, W, R):
        """One thread a channel of a (batch, head) and slice."""
        slots = cuda.shared.array(0, float32)
        slices = C // lanes
        unit, own = int64(cuda.blockIdx.x) // slices, cuda.threadIdx.x
        c = cuda.blockIdx.x % slices * lanes + own
        b, h = unit // H, unit % H
        for row in range(n_rows + W + R):
            slots[uint32(row * lanes + own)] = float32(0)
        for t in range(T):
            at = ((b * T + t) * H + h) * C + c
            event = (unit * T + t) * (W + R)
            for k in range(W):
                s = uint32(rows[event + k] * lanes + own)
                slots[s] += coefs[event + k] * (values[at] - slots[s])
            total = float32(0)
            for k in range(W, W + R):
                total += coefs[event + k] * slots[uint32(rows[event + k] * lanes + own)]
            y[at] = total

    def launch(
        rows: Any, coefs: Any, values: Any, B: int, T: int, H: int, C: int, n_rows: int, W: int, R: int, y: Any
    ) -> Any:
        stream, size = cupy.cuda.get_current_stream().ptr, (n_rows + W + R) * lanes * 4
        content(B * H * (C // lanes), lanes, stream, rows, coefs, values, y, T, H, C, n_rows, W, R, shared=size)
        return y

    return launch


if __name__ == "__main__":
    main(tyro.cli(Options))
