"""Every Numba CUDA kernel compiles without a GPU, into registers; and how launches are packed."""

import gc
import re
import sys
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba_cuda_mlir", reason="there is no numba-cuda-mlir for macOS")
from cuda.pathfinder import DynamicLibNotFoundError
from ramnet_np.kernels.numba_cuda import launch, plain_contents, plain_masses
from ramnet_np.kernels.numba_cuda.compiler import COMPILER, float32, float64, int32, int64, types
from ramnet_np.kernels.numba_cuda.content_backward import content_backward_kernel, content_recompute_kernel
from ramnet_np.kernels.numba_cuda.content_forward import content_forward_kernel
from ramnet_np.kernels.numba_cuda.copy_kernels import gather_kernel, total_kernel
from ramnet_np.kernels.numba_cuda.cubins import compiled
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


WIDE, MIDDLE, NARROW = LANES
# lanes, and whether the state is in shared memory: neither changes what the other does, so a pair comes once or twice
CONTENTS = {
    float32: ((WIDE, True), (WIDE, False), (MIDDLE, True), (NARROW, False)),
    float64: ((WIDE, True), (MIDDLE, False), (NARROW, True)),
}
SMALL = {float32: ((1, 2), (8, 4), (5, 3), (8, 8)), float64: ((5, 3), (8, 8))}  # K, P


def fast_kernels(number):
    W, R = 8, 16
    for rule in RULES:
        yield f"{rule}-", mass_prepare_kernel(number, rule, W, R)
        yield f"{rule}-", mass_backward_prepare_kernel(number, rule, W, R, True)
        yield f"{rule}-", mass_backward_finish_kernel(number, rule, W)
        if number is float32 or rule == "pdma":  # the functions of a rule are in the kernels above too
            yield f"{rule}-", step_kernel(number, rule)
    yield "", mass_finish_kernel(number, W, R, True)
    for in_shared in (True, False):
        where = "shared-" if in_shared else "device-"
        yield where, mass_scan_kernel(number, in_shared, W, R, True)
        yield where, mass_backward_scan_kernel(number, in_shared, W, R, True)
    for lanes, in_shared in CONTENTS[number]:
        for make in (content_forward_kernel, content_recompute_kernel, content_backward_kernel):
            variant = f"{lanes}-{'shared' if in_shared else 'device'}-"
            yield variant, make(number, in_shared, lanes, GROUPS[lanes], W, R, 6)
    for K, P in SMALL[number]:
        for make in (small_decode_forward_kernel, small_decode_backward_kernel):
            yield f"small-{K}-{P}-", make(number, K, P)


def other_kernels(number):
    for rule in RULES:
        yield f"{rule}-", plain_masses.plain_masses_kernel(number, rule)
        yield f"{rule}-", plain_masses.plain_masses_backward_kernel(number, rule)
    yield "", plain_contents.plain_contents_kernel(number)
    yield "", plain_contents.plain_contents_in_shared_kernel(number, 16)
    yield "", plain_contents.plain_recompute_kernel(number)
    yield "", plain_contents.plain_contents_backward_kernel(number)
    yield "", decode_forward_kernel(number)
    yield "", decode_backward_kernel(number)
    yield "", total_kernel(number)


def every_kernel():
    for number in (float32, float64):
        for variant, kernel in (*fast_kernels(number), *other_kernels(number)):
            yield f"{kernel.name}-{variant}{number}", kernel
    yield from ((kernel.name, kernel) for kernel in (clear, enter, look_up))
    yield "gather", gather_kernel(np.dtype(np.float16), np.dtype(np.float32))


@pytest.fixture
def for_an_h100(monkeypatch):
    """What the compiler believes the current device to be."""
    monkeypatch.setattr("numba_cuda_mlir.tools._cached_cc", GPU)
    gc.disable()  # it takes a tenth of the time
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("name", "kernel"), list(every_kernel()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_kernel_compiles_into_registers(name, kernel, for_an_h100):
    made = compiled(kernel.function, kernel.signature, kernel.most_threads)
    assert made.cubin.startswith(b"\x7fELF")
    assert ".target sm_90" in made.ptx
    [entry] = re.findall(rf"^\.visible \.entry {made.func_name}\((.*?)^}}", made.ptx, re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"\.param", entry.partition("{")[0])) == len(kernel._values)
    assert not re.search(r"\bld\.(local|[busf]\d)", entry)  # small arrays are registers: none is read from memory
    assert "_Z" not in "".join(re.findall(r"\bcall[^;]*;", entry))  # no function of ours is left as a call
    assert not re.search(r"\b(atom|red)\.\S*\.f(16|32|64)", entry)
    asked = re.sub(r"__numba_cuda_mlir_error_code;\s+atom\.\S+", "", entry)  # of the compiler: a range with step 0
    assert name == "enter" or not re.search(r"\b(atom|red)\.", asked)
    if name.endswith("float32"):
        assert not re.search(r"\.f64\b", entry)


def test_arguments_are_packed_as_the_driver_reads_them(monkeypatch):
    """Each in 8 bytes behind its address: pointers, and numbers by their low bytes."""
    launched = []
    driver = SimpleNamespace(
        cuCtxGetDevice=lambda: (0, 3),
        cuLaunchKernel=lambda *arguments: (launched.append(arguments), (0,))[1],
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    pointer = types.CPointer(float32)
    kernel = Kernel(lambda *_: None, (pointer, int32, int64, float32, float64, pointer))
    kernel._on_device[3] = "function"
    array = SimpleNamespace(data=None, __cuda_array_interface__={"data": (0x7000, False)})
    kernel(2, 64, 77, SimpleNamespace(data=SimpleNamespace(ptr=0x5000)), -2, -3, 1.5, 2.5, array, shared=1024)
    [arguments] = launched
    assert arguments[:9] == ("function", 2, 1, 1, 64, 1, 1, 1024, 77)
    raw = np.frombuffer(kernel._values, np.uint64)
    assert raw[[0, 5]].tolist() == [0x5000, 0x7000]
    assert (raw[1:2].view(np.int32)[0], raw[2:3].view(np.int64)[0]) == (-2, -3)
    assert (raw[3:4].view(np.float32)[0], raw[4:5].view(np.float64)[0]) == (1.5, 2.5)
    assert list(kernel._addresses) == [raw.ctypes.data + 8 * i for i in range(6)]
    kernel(0, 64, 77, None, 0, 0, 0.0, 0.0, array)  # an empty grid is no launch
    assert len(launched) == 1


class Pair(NamedTuple):
    first: Any
    second: Any


def test_a_record_is_packed_as_its_fields(monkeypatch):
    driver = SimpleNamespace(cuCtxGetDevice=lambda: (0, 3), cuLaunchKernel=lambda *_: (0,))
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    mixed, same = record(Pair, first=types.CPointer(float32), second=int32), record(Pair, first=int32, second=int32)
    kernel = Kernel(lambda *_: None, (int32, mixed, same))
    kernel._on_device[3] = "function"
    kernel(1, 1, 0, 2, Pair(None, -3), Pair(4, -5))
    raw = np.frombuffer(kernel._values, np.uint64)
    assert raw.view(np.int32)[::2].tolist() == [2, 0, -3, 4, -5]
    with pytest.raises(ValueError, match="zip"):
        kernel(1, 1, 0, 2, Pair(None, -3), 4)


@pytest.fixture
def one_gpu(monkeypatch):
    """A driver that knows of one GPU, an H100, and can do nothing with it."""
    names = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"
    driver = SimpleNamespace(
        cuCtxGetDevice=lambda: (0, 0),
        cuDeviceGetAttribute=lambda attribute, device: (0, dict(zip(names, GPU, strict=True))[attribute]),
        CUdevice_attribute=SimpleNamespace(**dict(zip(names, names, strict=True))),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))


def test_what_does_not_compile_is_said_in_one_sentence(one_gpu, for_an_h100):
    def broken(n):
        return n.nothing

    expected = rf"^the kernel broken could not be compiled by {COMPILER} under NumPy {np.__version__} \(.+\)$"
    with pytest.raises(RuntimeError, match=expected):
        Kernel(broken, (int32,))(1, 1, 0, 5)


def test_a_missing_library_is_said_with_where_it_comes_from(one_gpu, monkeypatch):
    def missing(*arguments):
        raise DynamicLibNotFoundError('Failure finding "libnvrtc.so.13": No such file\n  listdir("/usr/lib"):')

    monkeypatch.setattr(launch, "cubin_of", missing)
    expected = (
        r"""\(Failure finding "libnvrtc.so.13": No such file\); pip install 'ramnet-np\[cuda13\]' brings NVIDIA's"""
    )
    with pytest.raises(RuntimeError, match=expected):
        Kernel(lambda n: None, (int32,))(1, 1, 0, 5)


def test_a_failing_launch_says_why(monkeypatch):
    driver = SimpleNamespace(cuCtxGetDevice=lambda: (0, 0), cuLaunchKernel=lambda *_: (launch_error,))
    launch_error = type("Error", (int,), {"name": "CUDA_ERROR_INVALID_VALUE"})(1)
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(driver=driver))
    kernel = Kernel(lambda *_: None, (int32,))
    kernel._on_device[0] = "function"
    with pytest.raises(RuntimeError, match="CUDA: CUDA_ERROR_INVALID_VALUE"):
        kernel(1, 1, 0, 5)
