"""Which compiler makes the Numba CUDA kernels, the error where there is none, and the cache of compiled kernels."""

import os
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numba
import pytest

pytest.importorskip("numba_cuda_mlir", reason="there is no numba-cuda-mlir for macOS")
from ramnet_np.kernels.numba_cuda import cubins
from ramnet_np.kernels.numba_cuda.compiler import COMPILER, float32
from ramnet_np.kernels.numba_cuda.mass_forward import mass_prepare_kernel
from ramnet_np.kernels.numba_cuda.retention import RULES

STATUS = "from ramnet_np import backends; print(backends()['numba-cuda'])"


def python(code, **environment):
    """What a new process prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_compiler_is_named_where_there_is_a_gpu():
    found = "from numba_cuda_mlir import cuda; cuda.is_available = lambda: True;"
    assert python(found + STATUS) == f"available, compiled by {COMPILER}"


def test_the_simulator_is_named_and_needs_no_compiler():
    status = python("import sys; sys.modules['numba_cuda_mlir'] = None;" + STATUS, NUMBA_ENABLE_CUDASIM="1")
    assert status == f"available, run by the simulator of Numba {numba.__version__}"


def test_without_the_compiler_it_is_said_what_to_install():
    """Also where its predecessor is installed. The message names drivers only to tell the two extras apart."""
    status = python("import sys; sys.modules['numba_cuda_mlir'] = None;" + STATUS)
    assert status == (
        "could not be loaded: numba-cuda-mlir, which compiles its kernels, is not installed "
        "(pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before 580)"
    )


def test_without_a_gpu_that_is_said():
    missing = "from numba_cuda_mlir import cuda; cuda.is_available = lambda: False;"
    expected = f"could not be loaded: {COMPILER} finds no NVIDIA GPU or driver that it can use"
    assert python(missing + STATUS) == expected


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """Names of the kernels that are compiled, in a cache of the test's own."""
    names = []

    def compiled(function, signature, most_threads):
        names.append(function.__name__)
        return SimpleNamespace(func_name=f"_Z{function.__name__}", cubin=b"\x7fELF\n of " + str(signature).encode())

    monkeypatch.setattr(cubins, "compiled", compiled)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return names


def cubin(kernel, capability=(9, 0)):
    return cubins.cubin_of(kernel.function, kernel.signature, kernel.most_threads, capability)


def test_a_compiled_kernel_is_found_again(compilations, tmp_path):
    kernel = mass_prepare_kernel(float32, "pdma", 8, 8)
    first = cubin(kernel)
    assert first[0] == "_Zmass_prepare"
    assert cubin(kernel) == first
    assert compilations == ["mass_prepare"]
    [kept] = (tmp_path / "cache").iterdir()
    assert kept.name.startswith("mass_prepare-")
    kept.write_bytes(kept.read_bytes()[:-1])  # a damaged one is compiled again
    assert cubin(kernel) == first
    assert cubin(kernel) == first
    assert len(compilations) == 2


def test_what_a_kernel_is_made_of_decides_what_it_is_called(compilations, monkeypatch):
    """Sizes, rule, GPU, compiler, and the functions and numbers that it calls, in its closure and its module."""
    cubin(mass_prepare_kernel(float32, "pdma", 8, 8))
    cubin(mass_prepare_kernel(float32, "pdma", 8, 16))
    cubin(mass_prepare_kernel(float32, "gsu", 8, 8))
    cubin(mass_prepare_kernel(float32, "pdma", 8, 8), (8, 0))
    assert len(compilations) == 4
    with monkeypatch.context() as patch:
        patch.setattr("ramnet_np.kernels.numba_cuda.mass_forward.TOKENS", 3)
        cubin(mass_prepare_kernel(float32, "pdma", 8, 8))
    with monkeypatch.context() as patch:
        patch.setattr("ramnet_np.kernels.numba_cuda.mass_forward.takes_part", lambda options, token: True)
        cubin(mass_prepare_kernel(float32, "pdma", 8, 8))
    with monkeypatch.context() as patch:
        patch.setattr(cubins, "COMPILER", "numba-cuda-mlir 99")
        cubin(mass_prepare_kernel(float32, "pdma", 8, 8))
    assert len(compilations) == 7
    cubin(mass_prepare_kernel(float32, "pdma", 8, 8))
    assert len(compilations) == 7


def test_a_kernel_has_the_same_name_in_every_process():
    code = """if True:
        import hashlib
        from tests.kernels.test_numba_cuda_compile import every_kernel
        from ramnet_np.kernels.numba_cuda.cubins import contents
        for name, kernel in every_kernel():
            made_from = repr(contents(kernel.function))
            assert " at 0x" not in made_from, name
            print(hashlib.sha256((str(kernel.signature) + made_from).encode()).hexdigest())"""
    first, second = (python(code, PYTHONHASHSEED=seed) for seed in "12")
    assert first == second
    assert max(Counter(first.split()).values()) == 1
    assert len(first.split()) > 10 * len(RULES)


def test_where_nothing_can_be_written_kernels_are_compiled_each_time(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(cubins, "_folders", lambda: iter([tmp_path / "file", tmp_path / "file" / "below"]))
    kernel = mass_prepare_kernel(float32, "pdma", 8, 8)
    assert cubin(kernel) == cubin(kernel)
    assert len(compilations) == 2
    monkeypatch.setattr(cubins, "_folders", lambda: iter([tmp_path / "file", tmp_path / "second"]))
    assert cubin(kernel) == cubin(kernel)
    assert len(compilations) == 3
    assert len(list((tmp_path / "second").iterdir())) == 1
