"""The CUDA sources compile without a GPU: every default specialisation, by NVRTC as with CuPy, for two GPUs."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.defaults import DEFAULT_SPECIALISATIONS
from ramnet_np.kernels.cuda.runtime.module import (
    FOLDER,
    Launch,
    Specialisation,
    decode_specialisation,
    get_kernel,
    struct,
    sum_dtype,
    type_name,
)
from ramnet_np.kernels.cuda.step.step import _plan as step_plan

from ramnet_np.contract import DecodeOptions, MemoryOptions

ARCHITECTURES = ("80", "90")


def label(specialisation: Specialisation) -> str:
    return "-".join([specialisation.source, *(str(value) for _, value in specialisation.defines)])


def compiler_log(specialisation: Specialisation, architecture: str) -> str:
    """What NVRTC, which CuPy uses too, says of a specialisation: registers and spills of each kernel."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")  # comes with numba-cuda; there is none for macOS
    options = *specialisation.options, "-ftz=true", f"-arch=sm_{architecture}", "--ptxas-options=-v"
    checks = "\n".join(struct.layout_checks() for struct in specialisation.params)
    text = (FOLDER / specialisation.source).read_bytes() + f"\n{checks}\n".encode()
    _, program = nvrtc.nvrtcCreateProgram(text, specialisation.source.encode(), 0, None, None)
    [result] = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()
    return log.decode()


@pytest.mark.parametrize("specialisation", DEFAULT_SPECIALISATIONS, ids=label)
def test_default_specialisations_compile_into_registers(specialisation):
    in_source = re.findall(
        r"__global__ void (?:__launch_bounds__\((?:[^()]|\([^()]*\))*\) )?(\w+)\(",
        (FOLDER / specialisation.source).read_text(),
    )
    assert set(specialisation.kernels) <= set(in_source)
    # what must stay in registers does; a few words around the slow path of pow may not, nor those that the reverse pass
    # over contents and its passes over rows in device memory give up so that three blocks share a multiprocessor
    in_double = ("ELEMENT", "double") in specialisation.defines
    words = {
        "memory/content.cu": 96,
        "memory/conflicts.cu": 16,
        "memory/mass_forward.cu": 16,
        "memory/mass_backward.cu": 24,
        "memory/mass_aware.cu": 8,
        "step/step.cu": 16,
    }
    allowed = 64 if in_double and specialisation.source == "step/step.cu" else words.get(specialisation.source, 0)
    for architecture in ARCHITECTURES:
        log = compiler_log(specialisation, architecture)
        assert "warning" not in log
        for kernel in specialisation.kernels:
            assert f"entry function '{kernel}' for 'sm_{architecture}'" in log
        spills = re.findall(r"(\d+) bytes spill stores", log)
        assert len(spills) >= len(specialisation.kernels)
        assert max(map(int, spills)) <= allowed, log


def test_the_decoder_of_the_language_model_is_a_default():
    for logit in ("float", "double", "float16", "bfloat16"):
        assert decode_specialisation(logit, 5, 4, 8) in DEFAULT_SPECIALISATIONS


@pytest.mark.parametrize(("logit", "limit"), [("float", 32), ("bfloat16", 32), ("double", 16)])
def test_decode_specialisation_goes_to_registers_up_to_a_limit(logit, limit):
    assert decode_specialisation(logit, 2, limit, limit).kernels == ("decode_forward", "decode_backward")
    for radix, top_k in ((limit + 1, 8), (4, limit + 1)):
        specialisation = decode_specialisation(logit, 6, radix, top_k)
        assert specialisation.kernels == ("decode_forward_any", "decode_backward_any")
        assert dict(specialisation.defines) == {"LOGIT": logit}


def test_type_names_and_the_dtype_of_sums():
    assert [type_name(d) for d in (np.float16, np.float32, np.float64)] == ["float16", "float", "double"]
    assert [sum_dtype(d) for d in (np.float16, np.float32, np.float64)] == [np.float32, np.float32, np.float64]
    with pytest.raises(TypeError, match="the GPU kernels take float32, float64, float16, bfloat16, got int32"):
        type_name(np.int32)


def fake_cupy(monkeypatch, log: str | None) -> list:
    """A stand-in for CuPy that lists what it is asked to compile; with a ``log``, its compiler fails."""

    class CompileException(Exception):
        pass

    class RawModule:
        def __init__(self, code, options, backend):
            assert backend == "nvrtc"
            compiled.append((code, options))

        def compile(self):
            if log is not None:
                raise CompileException(log)

        def get_function(self, name):
            return SimpleNamespace(name=name, shared_size_bytes=8)

    compiled: list = []
    cuda = SimpleNamespace(
        Device=lambda device: SimpleNamespace(attributes={"MaxSharedMemoryPerBlockOptin": 100}),
        runtime=SimpleNamespace(getDevice=lambda: 0),
        compiler=SimpleNamespace(CompileException=CompileException),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=RawModule, cuda=cuda))
    return compiled


def test_get_kernel_compiles_once(monkeypatch):
    compiled = fake_cupy(monkeypatch, None)
    specialisation = Specialisation("address/decode.cu", ("a", "b"), (("TEST", "once"),))
    kernels = [get_kernel(specialisation, name) for name in ("a", "b", "a")]
    assert [kernel.name for kernel in kernels] == ["a", "b", "a"]
    assert {kernel.max_dynamic_shared_size_bytes for kernel in kernels} == {92}
    [(code, options)] = compiled
    assert code.startswith((FOLDER / "address" / "decode.cu").read_text())
    assert options == ("-std=c++17", f"-I{FOLDER}", "-DTEST=once")
    with pytest.raises(ValueError, match=r"decode\.cu holds a, b, not c"):
        get_kernel(specialisation, "c")


def test_a_launch_passes_its_constants_last_and_keeps_a_kernel_for_each_device(monkeypatch):
    fake_cupy(monkeypatch, None)
    cupy = sys.modules["cupy"]
    specialisation = Specialisation("address/decode.cu", ("a",), (("TEST", "launch"),))
    asked, launched = [], []

    def get(specialisation, name):
        device = cupy.cuda.runtime.getDevice()
        asked.append((name, device))
        return lambda *arguments, **settings: launched.append((device, arguments, settings))

    monkeypatch.setattr("ramnet_np.kernels.cuda.runtime.module.get_kernel", get)
    launch = Launch(specialisation, "a", (3, 2), 64, constants=(7, 8), shared=100)
    for device in (0, 0, 1, 0):
        cupy.cuda.runtime.getDevice = lambda device=device: device
        launch("x", "y")
    assert asked == [("a", 0), ("a", 1)]
    assert [device for device, *_ in launched] == [0, 0, 1, 0]
    assert launched[0][1:] == (((3, 2), (64,), ("x", "y", 7, 8)), {"shared_mem": 100})


def test_a_struct_is_laid_out_as_in_c():
    one = struct(first=np.int32(1), wide=np.int64(2), half=np.float32(0.5), last=np.uint32(3))
    assert {name: offset for name, (_, offset) in one.dtype.fields.items()} == {
        "first": 0, "wide": 8, "half": 16, "last": 20,
    }  # fmt: skip
    assert one.dtype.itemsize == 24
    assert one.tolist() == (1, 2, 0.5, 3)


def test_the_constants_of_a_step_are_in_the_kernels_order():
    text = (FOLDER / "step" / "step.cu").read_text()
    declared = re.search(r"struct Call \{(.*?)\};", text, re.DOTALL)[1]
    names = re.findall(r"(\w+)[,;]", re.sub("//.*", "", declared))
    options = MemoryOptions(slots=16), DecodeOptions(2, 2, False, False, 0)
    for dtype in (np.float32, np.float64):
        [constants] = step_plan((1, 1, 1, 2, 4), 4, np.dtype(dtype), 1.0, 0, options[1], options[0]).constants
        assert list(constants.dtype.names) == names


def test_get_kernel_says_what_did_not_compile(monkeypatch):
    fake_cupy(monkeypatch, "a note\ndecode.cu(3): error: LOGIT must be defined\nanother error")
    with pytest.raises(RuntimeError) as failure:
        get_kernel(Specialisation("address/decode.cu", ("a", "b"), (("TEST", "failure"),)), "a")
    assert str(failure.value) == (
        f"address/decode.cu (a, b) could not be compiled with -std=c++17 -I{FOLDER} -DTEST=failure: "
        "decode.cu(3): error: LOGIT must be defined"
    )
