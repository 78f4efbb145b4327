"""Time, memory and bandwidth on the GPU, and the time of each kernel of a call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np


def machine_record(cupy: Any) -> dict[str, Any]:
    """What a record of a measurement says of where and when it was made."""
    return {
        "device": cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        "versions": {"cupy": cupy.__version__, "cuda": cupy.cuda.runtime.runtimeGetVersion()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds between two events around one call, on the current stream, after a warm-up.

    The device is idle before each call. So if Python takes longer than the kernels, the result is Python's time.
    """
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


def captured(call: Callable[[], Any]) -> Callable[[], None]:
    """A function that replays the call as a CUDA graph. It keeps the memory that the call allocated."""
    import cupy

    stream, before = cupy.cuda.Stream(non_blocking=True), cupy.cuda.get_current_stream().record()
    with stream:
        stream.wait_event(before)  # the call may need what the current stream is still writing
        call()
        stream.synchronize()
        stream.begin_capture()
        results = call()
        graph = stream.end_capture()

    def replay(kept: Any = results) -> None:
        graph.launch(cupy.cuda.get_current_stream())

    return replay


def peak_mib(call: Callable[[], Any]) -> float:
    """The most MiB in use during the call, including memory in use before it.

    It counts what CuPy's pool gives out and takes back. So memory that the pool keeps from earlier calls does not
    count, nor does the way it divides its blocks.
    """
    import cupy

    class Count(cupy.cuda.MemoryHook):
        name = "peak"
        used = peak = cupy.get_default_memory_pool().used_bytes()

        def malloc_postprocess(self, **given: Any) -> None:
            self.used += given["mem_size"]
            self.peak = max(self.peak, self.used)

        def free_postprocess(self, **given: Any) -> None:
            self.used -= given["mem_size"]

    with Count() as count:
        call()
    return count.peak / 2**20


def give_back_memory() -> None:
    """Return the free memory of CuPy's pool to the device, so a measurement starts as in a new process."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()


def copy_bandwidth(size: int = 1 << 29) -> float:
    """Bytes per second, read and written, of a device-to-device copy."""
    import cupy

    source, target = cupy.zeros(size, np.uint8), cupy.zeros(size, np.uint8)
    milliseconds = median_ms(lambda: cupy.copyto(target, source), 20)
    return 2 * size / milliseconds * 1e3


def kernel_ms(call: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Milliseconds of every kernel of a call, each launch timed alone; several launches of one kernel add up."""
    call()  # compiles
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        times: dict[str, float] = {}
        with _timed_launches(times):
            call()
        runs.append(times)
    return {name: float(np.median([run[name] for run in runs])) for name in runs[0]}


@contextmanager
def _timed_launches(times: dict[str, float]) -> Iterator[None]:
    """Within this block every launch waits until its kernel ends, and adds its milliseconds to ``times``."""
    from ramnet_np.kernels.cuda.runtime import module

    def timed(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        def launched(*arguments: Any, **settings: Any) -> None:
            import cupy

            start, end = cupy.cuda.Event(), cupy.cuda.Event()
            start.record()
            launch(*arguments, **settings)
            end.record()
            end.synchronize()
            times[name] = times.get(name, 0) + cupy.cuda.get_elapsed_time(start, end)

        return launched

    get_kernel, call = module.get_kernel, module.Launch.__call__
    numba_launch: Any = sys.modules.get("ramnet_np.kernels.numba_cuda.launch")
    loaded: list[Any] = [m for name, m in sys.modules.items() if name.startswith("ramnet_np.kernels.cuda.")]
    users = [m for m in loaded if m is not module and getattr(m, "get_kernel", None) is get_kernel]
    try:
        for user in users:
            user.get_kernel = lambda specialisation, name: timed(name, get_kernel(specialisation, name))
        module.Launch.__call__ = lambda launch, *a: timed(launch.name, call)(launch, *a)
        if numba_launch:
            numba_call = numba_launch.Kernel.__call__
            numba_launch.Kernel.__call__ = lambda kernel, *a, **s: timed(kernel.name, numba_call)(kernel, *a, **s)
        yield
    finally:
        for user in users:
            user.get_kernel = get_kernel
        module.Launch.__call__ = call
        if numba_launch:
            numba_launch.Kernel.__call__ = numba_call
