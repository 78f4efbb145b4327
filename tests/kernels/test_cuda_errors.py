"""What the GPU backend says when something is missing: one sentence with what to do. CuPy is a stand-in here."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from ramnet_np.kernels.cuda.address.decode import plan_decode
from ramnet_np.kernels.cuda.runtime import errors
from ramnet_np.kernels.cuda.runtime.errors import import_cupy
from ramnet_np.kernels.cuda.runtime.module import Specialisation, get_kernel
from ramnet_np.kernels.gpu_errors import explain_out_of_memory

from ramnet_np import backends
from ramnet_np.backend import load_backend, why_unavailable


class CUDARuntimeError(RuntimeError):
    pass


class CompileException(Exception):
    pass


def stand_in(count=1, driver=13000, built_for=13020, compile_error=None):
    """A module ``cupy`` whose CUDA answers as told; an exception as an answer is raised."""

    def answer(value):
        def call():
            if isinstance(value, Exception):
                raise value
            return value

        return call

    class RawModule:
        def __init__(self, code, options, backend):
            pass

        def compile(self):
            if compile_error is not None:
                raise compile_error

    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.RawModule = RawModule
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=answer(count),
            driverGetVersion=answer(driver),
            runtimeGetVersion=answer(built_for),
            getDevice=answer(0),
        ),
        compiler=SimpleNamespace(CompileException=CompileException),
    )
    return cupy


def sentence(kind, call):
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


INSUFFICIENT = CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime")
NO_DEVICE = CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"count": INSUFFICIENT, "driver": 0}, "CuPy 14.2.0 finds no NVIDIA driver; it needs an NVIDIA GPU and its"),
        ({"count": INSUFFICIENT, "driver": INSUFFICIENT}, "CuPy 14.2.0 finds no NVIDIA driver"),
        (
            {"count": INSUFFICIENT, "driver": 12040},
            "the NVIDIA driver serves CUDA 12.4, too old for CuPy 14.2.0 with CUDA 13.2: update the driver or install "
            "the CuPy for it, cupy-cuda13x for driver 580 and later, cupy-cuda12x before",
        ),
        ({"count": NO_DEVICE}, "finds no NVIDIA GPU (cudaErrorNoDevice: no CUDA-capable device is detected); see what"),
        ({"count": 0}, "CuPy 14.2.0 finds no NVIDIA GPU; see what nvidia-smi lists and what CUDA_VISIBLE_DEVICES"),
    ],
    ids=["no driver", "driver not asked", "driver too old", "no GPU", "none visible"],
)
def test_no_gpu(monkeypatch, answers, expected):
    monkeypatch.setitem(sys.modules, "cupy", stand_in(**answers))
    assert expected in sentence(ImportError, import_cupy)


def test_a_gpu_that_works_is_no_error(monkeypatch):
    cupy = stand_in()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert import_cupy() is cupy


def test_cupy_for_another_cuda(monkeypatch):
    """As CuPy does it: pages of advice around the loader's line."""

    def fails(name):
        advice = "\n=====\nFailed to import CuPy.\n\nOriginal error:\n  ImportError: libcudart.so.13\n=====\n"
        try:
            raise OSError("libcudart.so.13: cannot open shared object file")
        except OSError as error:
            raise ImportError(advice) from error

    monkeypatch.setattr(errors.importlib, "import_module", fails)
    text = sentence(ImportError, import_cupy)
    assert text.startswith("CuPy is installed but does not import (libcudart.so.13: cannot open shared object file)")
    assert "cupy-cuda13x for driver 580 and later" in text


def test_cupy_not_installed(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cupy" else find_spec(name))
    expected = "needs cupy, not installed (pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before"
    assert why_unavailable("cupy").startswith(expected)


def test_the_reason_reaches_the_list_of_backends_and_the_call(monkeypatch):
    """Through the public functions, with an installed CuPy that finds no GPU."""
    cupy = stand_in(count=NO_DEVICE)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delitem(sys.modules, "ramnet_np.kernels.cuda.backend", raising=False)
    monkeypatch.setattr("ramnet_np.backend._loaded", {})
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "cupy" else find_spec(name))
    assert "could not be loaded: CuPy 14.2.0 finds no NVIDIA GPU" in backends()["cupy"]
    assert sentence(RuntimeError, lambda: load_backend("cupy")).startswith("backend 'cupy' could not be loaded: CuPy")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError('Failure finding "libnvrtc.so.13": No such file: libnvrtc.so.13\n'),
            "address/decode.cu (a) could not be compiled, as NVRTC, CUDA's compiler at run time, does not load "
            "(Failure finding \"libnvrtc.so.13\": No such file: libnvrtc.so.13): pip install 'cupy-cuda13x[ctk]', or "
            "install the CUDA 13 toolkit",
        ),
        (
            RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX was compiled with another toolchain."),
            "address/decode.cu (a) was compiled but not loaded (CUDA_ERROR_UNSUPPORTED_PTX_VERSION: the provided PTX "
            "was compiled with another toolchain): the driver may be older than NVRTC; update it, or install the NVRTC "
            "of its CUDA",
        ),
        (
            RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
            "address/decode.cu (a) could not be loaded: an earlier error has lost the GPU for this process "
            "(cudaErrorIllegalAddress): start a new one",
        ),
        (
            RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
            "address/decode.cu (a) could not be loaded: an earlier error has lost the GPU for this process "
            "(CUDA_ERROR_LAUNCH_FAILED): start a new one",
        ),
    ],
    ids=["NVRTC missing", "driver refuses", "GPU lost", "GPU lost, as the driver says it"],
)
def test_no_kernel(monkeypatch, error, expected):
    monkeypatch.setitem(sys.modules, "cupy", stand_in(compile_error=error))
    specialisation = Specialisation("address/decode.cu", ("a",), (("TEST", str(error)[:20]),))
    assert sentence(RuntimeError, lambda: get_kernel(specialisation, "a")) == expected


def test_out_of_memory_says_where_how_much_and_what_to_reduce():
    class OutOfMemoryError(MemoryError):  # as CuPy's
        pass

    @explain_out_of_memory("reduce B")
    def memory_forward():
        raise OutOfMemoryError("Out of memory allocating 1,000 bytes (allocated so far: 2,000 bytes).")

    assert sentence(MemoryError, memory_forward) == (
        "the GPU ran out of memory in memory_forward, allocating 1,000 bytes (allocated so far: 2,000 bytes); reduce B"
    )


@pytest.mark.gpu
def test_out_of_memory_in_a_call_leaves_the_state_alone():
    import cupy
    import numpy as np

    from ramnet_np import RAMState, ram_attention_forward, ram_attention_step

    logits = cupy.zeros((64, 128, 2, 5, 4), np.float32)
    values = cupy.zeros((64, 128, 2, 64), np.float32)
    state = RAMState.initial(64, 2, 1024, 64, xp=cupy)
    token = [a[:, :1].copy() for a in (logits, logits, values)]

    def fails(size):
        raise cupy.cuda.memory.OutOfMemoryError(size, 0, 0)

    with cupy.cuda.using_allocator(fails):
        text = sentence(MemoryError, lambda: ram_attention_forward(logits, logits, values))
        assert "ran out of memory in decode_forward, allocating 2,097,152 bytes" in text
        assert "reduce B or T" in text
        assert "in step, allocating" in sentence(MemoryError, lambda: ram_attention_step(*token, state=state))
    assert not state.slots.any()
    assert (state.mass == np.float32(1 / 1024)).all()


def test_a_top_k_that_no_memory_could_sort_is_refused():
    import numpy as np

    def plan():
        plan_decode(
            (1, 1, 1, 4, 200), np.dtype(np.float32), 200**4 // 4, renorms=(False,), cape_heads=0, strides=(0, 0)
        )

    text = sentence(ValueError, plan)
    assert text.startswith("top_k = 400000000 of P**U = 200**4 slots needs ")
    assert text.endswith("choose a smaller top_k")
