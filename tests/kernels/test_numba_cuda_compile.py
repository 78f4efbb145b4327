"""Every Numba CUDA kernel compiles to PTX without a GPU, into registers; and how launches are packed."""

import re
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda import launch, plain
from ramnet_np.kernels.numba_cuda.compiler import cuda, float32, float64, int32, int64, types
from ramnet_np.kernels.numba_cuda.content_backward import content_backward_kernel, content_recompute_kernel
from ramnet_np.kernels.numba_cuda.content_forward import content_forward_kernel
from ramnet_np.kernels.numba_cuda.copy_kernels import gather_kernel, total_kernel
from ramnet_np.kernels.numba_cuda.decode_generic import decode_backward_kernel, decode_forward_kernel
from ramnet_np.kernels.numba_cuda.decode_small import small_decode_backward_kernel, small_decode_forward_kernel
from ramnet_np.kernels.numba_cuda.launch import Kernel, record
from ramnet_np.kernels.numba_cuda.layout import GROUPS, LANES
from ramnet_np.kernels.numba_cuda.mass_backward import (
    mass_backward_finish_kernel,
    mass_backward_prepare_kernel,
    mass_backward_scan_kernel,
)
from ramnet_np.kernels.numba_cuda.mass_forward import mass_finish_kernel, mass_prepare_kernel, mass_scan_kernel
from ramnet_np.kernels.numba_cuda.renumber_kernels import clear, enter, look_up
from ramnet_np.kernels.numba_cuda.retention import RULES
from ramnet_np.kernels.numba_cuda.step_kernel import step_kernel

GPU = (9, 0)


def fast_kernels(number):
    W, R = 8, 16
    for rule in RULES:
        yield f"{rule}-", mass_prepare_kernel(number, rule, W, R)
        yield f"{rule}-", mass_backward_prepare_kernel(number, rule, W, R, True)
        yield f"{rule}-", mass_backward_finish_kernel(number, rule, W)
        yield f"{rule}-", step_kernel(number, rule)
    yield "", mass_finish_kernel(number, W, R, True)
    for in_shared in (True, False):
        where = "shared-" if in_shared else "device-"
        yield where, mass_scan_kernel(number, in_shared, W, R, True)
        yield where, mass_backward_scan_kernel(number, in_shared, W, R, True)
        for lanes in LANES:
            for make in (content_forward_kernel, content_recompute_kernel, content_backward_kernel):
                yield f"{lanes}-{where}", make(number, in_shared, lanes, GROUPS[lanes], W, R, 6)
    for K, P in ((1, 2), (8, 4), (5, 3), (8, 8)):
        for make in (small_decode_forward_kernel, small_decode_backward_kernel):
            yield f"small-{K}-{P}-", make(number, K, P)


def other_kernels(number):
    for rule in RULES:
        yield f"{rule}-", plain.plain_masses_kernel(number, rule)
        yield f"{rule}-", plain.plain_masses_backward_kernel(number, rule)
    yield "", plain.plain_contents_kernel(number)
    yield "", plain.plain_contents_in_shared_kernel(number, 16)
    yield "", plain.plain_recompute_kernel(number)
    yield "", plain.plain_contents_backward_kernel(number)
    yield "", decode_forward_kernel(number)
    yield "", decode_backward_kernel(number)
    yield "", total_kernel(number)


def every_kernel():
    for number in (float32, float64):
        for variant, kernel in (*fast_kernels(number), *other_kernels(number)):
            yield f"{kernel.name}-{variant}{number}", kernel
    yield from ((kernel.name, kernel) for kernel in (clear, enter, look_up))
    yield "gather", gather_kernel(np.dtype(np.float16), np.dtype(np.float32))


@pytest.mark.parametrize(
    ("name", "kernel"), list(every_kernel()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_kernel_compiles_into_registers(name, kernel, monkeypatch):
    # what a kernel calls is compiled for the device in the machine: for the one that is asked for, where there is none
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: SimpleNamespace(compute_capability=GPU))
    ptx, result = cuda.compile(
        kernel.function,
        kernel.signature,
        device=False,
        abi="numba",
        cc=GPU,
        output="ptx",
        launch_bounds=kernel.most_threads,
    )
    assert result == types.void
    assert ".target sm_90" in ptx
    assert ptx.count(".visible .entry") == 1
    assert "__local_depot" not in ptx  # loops over small arrays are unrolled: none is left in local memory
    assert not re.search(r"\b(atom|red)\.\S*\.f(16|32|64)", ptx)
    assert name in ("enter",) or not re.search(r"\b(atom|red)\.", ptx)


def test_arguments_are_packed_as_the_driver_reads_them(monkeypatch):
    """Each in 8 bytes behind its address: pointers, numbers by their low bytes, an array as Numba takes it apart."""
    launched = []
    driver = SimpleNamespace(
        cuCtxGetDevice=lambda: (0, 3),
        cuLaunchKernel=lambda *arguments: (launched.append(arguments), (0,))[1],
    )
    monkeypatch.setattr(launch, "SIMULATED", False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    kernel = Kernel(
        lambda *_: None, (types.CPointer(float32), int32, int64, float32, float64, types.Array(int32, 1, "C"))
    )
    kernel._on_device[3] = "function"
    array = SimpleNamespace(
        size=5, dtype=np.dtype(np.int32), data=None, __cuda_array_interface__={"data": (0x7000, False)}
    )
    kernel(2, 64, 77, SimpleNamespace(data=SimpleNamespace(ptr=0x5000)), -2, -3, 1.5, 2.5, array, shared=1024)
    [arguments] = launched
    assert arguments[:9] == ("function", 2, 1, 1, 64, 1, 1, 1024, 77)
    raw = np.frombuffer(kernel._values, np.uint64)
    assert raw[[0, 5, 6, 7, 8, 9, 10, 11]].tolist() == [0x5000, 0, 0, 5, 4, 0x7000, 5, 4]
    assert (raw[1:2].view(np.int32)[0], raw[2:3].view(np.int64)[0]) == (-2, -3)
    assert (raw[3:4].view(np.float32)[0], raw[4:5].view(np.float64)[0]) == (1.5, 2.5)
    assert list(kernel._addresses) == [raw.ctypes.data + 8 * i for i in range(12)]
    kernel(0, 64, 77, None, 0, 0, 0.0, 0.0, array)  # an empty grid is no launch
    assert len(launched) == 1


class Pair(NamedTuple):
    first: Any
    second: Any


def test_a_record_is_packed_as_its_fields(monkeypatch):
    driver = SimpleNamespace(cuCtxGetDevice=lambda: (0, 3), cuLaunchKernel=lambda *_: (0,))
    monkeypatch.setattr(launch, "SIMULATED", False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    mixed, same = record(Pair, first=types.CPointer(float32), second=int32), record(Pair, first=int32, second=int32)
    kernel = Kernel(lambda *_: None, (int32, mixed, same))
    kernel._on_device[3] = "function"
    kernel(1, 1, 0, 2, Pair(None, -3), Pair(4, -5))
    raw = np.frombuffer(kernel._values, np.uint64)
    assert raw.view(np.int32)[::2].tolist() == [2, 0, -3, 4, -5]
    with pytest.raises(ValueError, match="zip"):
        kernel(1, 1, 0, 2, Pair(None, -3), 4)


def test_what_does_not_compile_is_said_in_one_sentence(monkeypatch):
    """Here for want of a driver, or where there is one for want of sense in the kernel."""
    monkeypatch.setattr(launch, "SIMULATED", False)
    driver = SimpleNamespace(cuCtxGetDevice=lambda: (0, 0))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))

    def broken(n):
        return n.nothing

    with pytest.raises(
        RuntimeError, match=r"the kernel broken could not be compiled for this GPU \(.+\); what Numba needs"
    ):
        Kernel(broken, (int32,))(1, 1, 0, 5)


def test_a_failing_launch_says_why(monkeypatch):
    driver = SimpleNamespace(cuCtxGetDevice=lambda: (0, 0), cuLaunchKernel=lambda *_: (launch_error,))
    launch_error = type("Error", (int,), {"name": "CUDA_ERROR_INVALID_VALUE"})(1)
    monkeypatch.setattr(launch, "SIMULATED", False)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    kernel = Kernel(lambda *_: None, (int32,))
    kernel._on_device[0] = "function"
    with pytest.raises(RuntimeError, match="CUDA: CUDA_ERROR_INVALID_VALUE"):
        kernel(1, 1, 0, 5)
