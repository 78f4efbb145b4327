"""Every Numba CUDA kernel compiles to PTX without a GPU, into registers; and how launches are packed."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numba import cuda, float32, float64, int32, int64, types
from ramnet_np.kernels.numba_cuda import launch
from ramnet_np.kernels.numba_cuda.content_kernels import content_kernels
from ramnet_np.kernels.numba_cuda.copy_kernels import gather_kernel, total_kernel
from ramnet_np.kernels.numba_cuda.decode_kernels import decode_kernels
from ramnet_np.kernels.numba_cuda.decode_small_kernels import small_decode_kernels
from ramnet_np.kernels.numba_cuda.launch import Kernel
from ramnet_np.kernels.numba_cuda.layout import GROUPS, LANES
from ramnet_np.kernels.numba_cuda.mass_backward_kernels import mass_backward_kernels
from ramnet_np.kernels.numba_cuda.mass_kernels import mass_kernels
from ramnet_np.kernels.numba_cuda.renumber_kernels import clear, enter, look_up
from ramnet_np.kernels.numba_cuda.step_kernels import step_kernel

GPU = (9, 0)


def every_kernel():
    for number in (float32, float64):
        for in_shared in (True, False):
            where = f"{number}-{'shared' if in_shared else 'device'}"
            for kernels in (
                mass_kernels(number, in_shared, 8, 16, True),
                mass_backward_kernels(number, in_shared, 8, 16, True),
            ):
                yield from ((f"{kernel.name}-{where}", kernel) for kernel in vars(kernels).values())
            for lanes in LANES:
                kernels = content_kernels(number, in_shared, lanes, GROUPS[lanes], 8, 16, 6)
                yield from ((f"{kernel.name}-{lanes}-{where}", kernel) for kernel in vars(kernels).values())
        yield from ((f"{kernel.name}-{number}", kernel) for kernel in vars(decode_kernels(number)).values())
        for K, P in ((1, 2), (8, 4), (5, 3), (8, 8)):
            kernels = small_decode_kernels(number, K, P)
            yield from ((f"{kernel.name}-small-{K}-{P}-{number}", kernel) for kernel in vars(kernels).values())
        yield f"step-{number}", step_kernel(number)
        yield f"total-{number}", total_kernel(number)
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
    assert "__local_depot" not in ptx  # arrays of an octet are unrolled: none is left in local memory
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
