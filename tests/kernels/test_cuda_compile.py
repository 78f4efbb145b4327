"""The CUDA sources compile without a GPU: every default specialisation, by NVRTC as with CuPy, for an H100; for an A100
those that differ in more than sizes."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.address.decode import DECODE_PARAMS, MAX_HELD, MAX_SELECTED, decode_specialisation
from ramnet_np.kernels.cuda.defaults import DEFAULT_SPECIALISATIONS
from ramnet_np.kernels.cuda.runtime.module import FOLDER, Launch, Specialisation, get_kernel, sum_dtype, type_name
from ramnet_np.kernels.cuda.runtime.params import INT, LONG, POINTER, ParamStruct
from ramnet_np.kernels.cuda.step.step import step_specialisation

H100, A100 = "90", "80"


def label(specialisation: Specialisation) -> str:
    return "-".join([specialisation.source, *(str(value) for _, value in specialisation.defines)])


def compile_source(specialisation: Specialisation, architecture: str, code: str | None = None) -> tuple[bool, str]:
    """Whether NVRTC, which CuPy uses too, compiles a specialisation, and its log: registers and spills, or errors.

    ``code``: in place of the text of its source.
    """
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")  # comes with numba-cuda-mlir; there is none for macOS
    options = *specialisation.options, "-ftz=true", f"-arch=sm_{architecture}", "--ptxas-options=-v"
    checks = "\n".join(struct.layout_checks() for struct in specialisation.params)
    text = (FOLDER / specialisation.source).read_text(encoding="utf-8") if code is None else code
    _, program = nvrtc.nvrtcCreateProgram(f"{text}\n{checks}\n".encode(), specialisation.source.encode(), 0, None, None)
    [result] = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    return result == nvrtc.nvrtcResult.NVRTC_SUCCESS, log.decode()


def ptx_of(specialisation: Specialisation) -> str:
    """What NVRTC hands to the assembler, for an H100."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    options = *specialisation.options, f"-arch=compute_{H100}"
    text = (FOLDER / specialisation.source).read_text(encoding="utf-8")
    _, program = nvrtc.nvrtcCreateProgram(text.encode(), specialisation.source.encode(), 0, None, None)
    nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    _, size = nvrtc.nvrtcGetPTXSize(program)
    ptx = bytearray(size)
    nvrtc.nvrtcGetPTX(program, ptx)
    nvrtc.nvrtcDestroyProgram(program)
    return ptx.decode()


def without_sizes(specialisation: Specialisation) -> tuple:
    """Types, rules and what is on or off: on these it depends which instructions a kernel has."""
    defines = [
        (name, value if value in (0, 1) or isinstance(value, str) else "n") for name, value in specialisation.defines
    ]
    return specialisation.source, specialisation.kernels, tuple(defines)


FOR_BOTH = set({without_sizes(s): s for s in reversed(DEFAULT_SPECIALISATIONS)}.values())  # the first of each kind


@pytest.mark.parametrize("specialisation", DEFAULT_SPECIALISATIONS, ids=label)
def test_default_specialisations_compile_into_registers(specialisation):
    in_source = re.findall(
        r"__global__ void (?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\(",
        (FOLDER / specialisation.source).read_text(),
    )
    assert set(specialisation.kernels) <= set(in_source)
    # what must stay in registers does; a few bytes around the slow path of pow may not, nor those that the backward
    # passes over contents and those over rows in device memory give up so that three blocks share a multiprocessor
    in_double = ("ELEMENT", "double") in specialisation.defines
    spilled_bytes = {
        "layers/flash_attention.cu": 48,
        "memory/content.cu": 96,
        "memory/couplings_backward.cu": 32,
        "memory/dense_content.cu": 16,
        "memory/dense_content_backward.cu": 16,
        "memory/dense_couplings_backward.cu": 16,
        "memory/conflicts.cu": 16,
        "memory/mass_forward.cu": 16,
        "memory/mass_backward.cu": 24,
        "memory/mass_aware.cu": 8,
        "memory/plain.cu": 8,
        "sparse/rows.cu": 8,
        "step/step.cu": 16,
    }
    allowed = (
        64 if in_double and specialisation.source == "step/step.cu" else spilled_bytes.get(specialisation.source, 0)
    )
    for architecture in (H100, A100) if specialisation in FOR_BOTH else (H100,):
        compiled, log = compile_source(specialisation, architecture)
        assert compiled, log
        assert "warning" not in log
        for kernel in specialisation.kernels:
            assert f"entry function '{kernel}' for 'sm_{architecture}'" in log
        spills = re.findall(r"(\d+) bytes spill stores", log)
        assert len(spills) >= len(specialisation.kernels)
        assert max(map(int, spills)) <= allowed, log


def included(name: str) -> set[str]:
    """A source and all that it includes."""
    names = re.findall(r'#include "([^"]*)"', (FOLDER / name).read_text())
    return {name}.union(*map(included, names))


def test_kernels_that_overlap_read_what_launches_write_by_plain_loads():
    # the compiler may move a load of the read-only path to before wait_for_launch_before
    texts = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("*.cu*")}
    overlapping = [name for name, text in texts.items() if name.endswith(".cu") and "wait_for_launch_before();" in text]
    assert {"step/step.cu", "layers/norm.cu", "layers/sampling.cu", "layers/few_rows.cu"} <= set(overlapping)
    users = {name for source in overlapping for name in included(source) if "load_read_only(" in texts[name]}
    assert users == {"runtime/common.cuh", "layers/few_rows.cuh"}  # which defines it, and which reads weights by it


def test_the_decoder_of_the_language_model_is_a_default():
    for logit in ("float", "double", "float16", "bfloat16"):
        assert decode_specialisation(logit, 5, 4, 8) in DEFAULT_SPECIALISATIONS


@pytest.mark.parametrize(("logit", "limit"), [("float", 32), ("bfloat16", 32), ("double", 16)])
def test_decode_specialisation_goes_to_registers_up_to_a_limit(logit, limit):
    assert decode_specialisation(logit, 2, limit, limit).kernels == ("decode_forward", "decode_backward")
    for radix, top_k in ((limit + 1, 8), (4, limit + 1)):
        specialisation = decode_specialisation(logit, 6, radix, top_k)
        assert specialisation.kernels == ("decode_forward_generic", "decode_backward_generic")
        constants = {"MAX_SELECTED": MAX_SELECTED, "MAX_HELD": MAX_HELD}
        assert dict(specialisation.defines) == {"ELEMENT": logit, **constants}


@pytest.mark.parametrize(
    ("specialisation", "member"),
    [
        (decode_specialisation("float", 5, 4, 8), "both_sides"),
        (decode_specialisation("float", 5, 4, 64), "capacity"),
        (step_specialisation("float", 5, 4, 8, 8, 64, "pdma"), "eps"),
        (step_specialisation("double", 5, 4, 8, 65, 64, "pdma"), "eps"),
    ],
    ids=["decode", "decode_generic", "step", "step_plain"],
)
def test_parameters_that_differ_between_python_and_cuda_do_not_compile(specialisation, member):
    [params] = specialisation.params
    members = {name: params.dtype[name] for name in params.members}
    wider = ParamStruct(params.name, **{**members, member: np.dtype((np.float64, 2))})
    swapped = ParamStruct(params.name, **dict([*list(members.items())[1::-1], *list(members.items())[2:]]))
    for wrong in (wider, swapped):
        compiled, log = compile_source(specialisation._replace(params=(wrong,)), "90")
        assert not compiled
        assert f"{params.name}" in log


def unguarded(specialisation: Specialisation, code: str | None = None) -> list[str]:
    """Definitions that can be left out without an #error that names them; such an error ends a compilation at once."""
    found = []
    for left_out, (name, _) in enumerate(specialisation.defines):
        defines = specialisation.defines[:left_out] + specialisation.defines[left_out + 1 :]
        compiled, log = compile_source(specialisation._replace(defines=defines, params=()), "90", code)
        error = re.search(r"#error .*", log)
        if compiled or error is None or not re.search(rf"\b{name}\b", error[0]):
            found.append(name)
    return found


# one specialisation of every source and set of definitions
DEFINED = {(s.source, tuple(dict(s.defines))): s for s in reversed(DEFAULT_SPECIALISATIONS)}


@pytest.mark.parametrize("specialisation", DEFINED.values(), ids=lambda s: f"{s.source}-{s.defines[0][0]}")
def test_a_definition_that_is_left_out_is_named(specialisation):
    assert unguarded(specialisation) == []


MEMORY = [s for s in DEFINED.values() if s.source.startswith("memory/")]


@pytest.mark.parametrize("specialisation", MEMORY, ids=lambda s: s.source)
def test_accesses_of_the_memory_name_the_kind_of_memory(specialisation):
    # one that does not asks at run time which it is, and takes longer: an address that came through asm can become such
    accesses = re.findall(r"^\s*(?:@\S+\s+)?((?:ld|st|atom|red)\.[\w.:]+)", ptx_of(specialisation), re.MULTILINE)
    assert len(accesses) > 10
    kinds = {"global", "shared", "param", "const", "local"}
    assert [a for a in accesses if not kinds & set(re.split(r"\.|::", a))] == []


def test_a_definition_without_a_guard_is_found():
    specialisation = decode_specialisation("float", 5, 4, 8)
    code = (FOLDER / specialisation.source).read_text(encoding="utf-8")
    assert unguarded(specialisation, code.replace("|| !defined(TOP_K)", "")) == ["TOP_K"]
    assert unguarded(specialisation, code.replace("RADIX, TOP_K and", "RADIX and")) == ["TOP_K"]


def test_every_source_has_a_default():
    sources = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.cu")}
    assert {specialisation.source for specialisation in DEFAULT_SPECIALISATIONS} == sources


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


def test_a_launch_keeps_a_kernel_for_each_device(monkeypatch):
    fake_cupy(monkeypatch, None)
    cupy = sys.modules["cupy"]
    specialisation = Specialisation("address/decode.cu", ("a",), (("TEST", "launch"),))
    asked, launched = [], []

    def get(specialisation, name):
        device = cupy.cuda.runtime.getDevice()
        asked.append((name, device))
        return lambda *arguments, **settings: launched.append((device, arguments, settings))

    monkeypatch.setattr("ramnet_np.kernels.cuda.runtime.module.get_kernel", get)
    launch = Launch(specialisation, "a", (3, 2), 64, shared=100)
    for device in (0, 0, 1, 0):
        cupy.cuda.runtime.getDevice = lambda device=device: device
        launch("x", "y")
    assert asked == [("a", 0), ("a", 1)]
    assert [device for device, *_ in launched] == [0, 0, 1, 0]
    assert launched[0][1:] == (((3, 2), (64,), ("x", "y")), {"shared_mem": 100})


def test_parameters_are_laid_out_as_in_c():
    params = ParamStruct("Params", at=POINTER, first=INT, wide=LONG, half=np.dtype(np.float32), last=INT)
    one = params(at=2**63 + 1, first=1, wide=2, half=0.5, last=3)
    assert {name: offset for name, (_, offset) in one.dtype.fields.items()} == {
        "at": 0, "first": 8, "wide": 16, "half": 24, "last": 28,
    }  # fmt: skip
    assert one.dtype.itemsize == 32
    assert one.tolist() == (2**63 + 1, 1, 2, 0.5, 3)


def test_pointers_are_filled_into_constants_as_a_whole_call_would():
    constants = {name: number for number, name in enumerate(DECODE_PARAMS.members[11:])}
    pointers = [2**63 + number for number in range(11)]
    whole = DECODE_PARAMS(**dict(zip(DECODE_PARAMS.members, pointers, strict=False)), **constants)
    fill = DECODE_PARAMS.partial(**constants)
    assert fill(*pointers).tolist() == whole.tolist()
    assert fill(*pointers[::-1]).tolist()[:11] == tuple(pointers[::-1])  # nothing is kept from the call before
    with pytest.raises(TypeError, match=r"DecodeParams\.partial needs all but the pointers at its start; got rows"):
        DECODE_PARAMS.partial(rows=1)


def test_get_kernel_says_what_did_not_compile(monkeypatch):
    fake_cupy(monkeypatch, "a note\ndecode.cu(3): error: LOGIT must be defined\nanother error")
    with pytest.raises(RuntimeError) as failure:
        get_kernel(Specialisation("address/decode.cu", ("a", "b"), (("TEST", "failure"),)), "a")
    assert str(failure.value) == (
        f"address/decode.cu (a, b) could not be compiled with -std=c++17 -I{FOLDER} -DTEST=failure: "
        "decode.cu(3): error: LOGIT must be defined"
    )
