"""What docs/extending.md adds works: its files and changes, made in a copy of the library, pass the library's tests.

A block of the page that begins with the name of a file is that file. A ```diff block changes the file that its first
line names: the other lines, without the "+" ones, must stand there once, and are replaced by those without the "-".
The blocks that run as they stand are in test_docs_code.py.
"""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ramnet_np.backend import register_backend, unregister_backend
from tests.operation_cases import CASES, assert_agree, draw, run
from tests.test_signatures import PROTOCOLS, parameters

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
RULE_FILES = {
    "ramnet_np/core/retention.py",
    "ramnet_np/core/dense.py",
    "kernels/cpu/retention.py",
    "kernels/cuda/memory/retention.cuh",
    "kernels/numba_cuda/retention.py",
    "docs/mathematics.md",
}  # no more than six, tests apart


def section(title):
    """The text below a heading of the second level."""
    [text] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return text


def changes(text):
    """(file, old lines, new lines) of every ```diff block."""
    for name, body in re.findall(r"^```diff\n--- (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        lines = body.splitlines(keepends=True)
        assert all(line[0] in " +-" for line in lines), f"a line of the diff of {name} begins with none of ' +-'"
        yield name, *("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))


def new_files(text):
    """(file, content) of every block that begins with a comment that is the name of a file."""
    return re.findall(r"^```(?:py|cpp)\n(?:#|//) (\S+\.\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def left_out(folder, names):
    """Not copied: what is built, and where the folder of kernels may be linked to already."""
    built = {"__pycache__", "_build"} | ({"kernels"} if Path(folder) == ROOT / "ramnet_np" else set())
    return built & set(names)


def extended(text, folder, leave_out=()):
    """A copy of the library in ``folder``, with what a section of the page adds; the files that it adds or changes."""
    for name in ("ramnet_np", "kernels", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "ramnet_np/kernels").symlink_to(folder / "kernels")  # where pyproject.toml installs them
    touched = set()
    for name, content in new_files(text):
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(content, encoding="utf-8")
        touched.add(name)
    for name, old, new in changes(text):
        if name not in leave_out:
            before = (folder / name).read_text(encoding="utf-8")
            assert before.count(old) == 1, f"{name} has {before.count(old)} places for the change\n{old}"
            (folder / name).write_text(before.replace(old, new), encoding="utf-8")
            touched.add(name)
    return touched


def python(folder, *arguments, **environment):
    """Run Python on the copy, with a cache of Numba's own; returns what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    kept |= {"NUMBA_CACHE_DIR": str(folder / "numba_cache"), "NUMBA_OPT": "1"}  # compiling takes longer than running
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def library_tests(folder, *arguments, marked="not gpu", **environment):
    """How many of the library's own tests passed in the copy; all of the chosen ones must."""
    printed = python(folder, "-m", "pytest", "-x", "-m", marked, "-p", "no:cacheprovider", *arguments, **environment)
    return int(re.search(r"(\d+) passed", printed)[1])


NUMERIC = (
    "tests/core/test_retention.py",
    "tests/core/test_attention.py",
    "tests/gradcheck/test_cases.py",
    "tests/test_mathematics.py",
    "tests/test_docstrings.py",
    "tests/kernels/test_update_rules.py",
)


@pytest.fixture(scope="module")
def with_rule(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rule")
    touched = extended(section("Add an update rule"), folder)
    assert touched == RULE_FILES
    return folder


def test_a_rule_equals_the_oracle_and_its_slopes_are_true(with_rule):
    """In NumPy: the dense oracle, finite differences in float64, the examples in docstrings; and every tier has it."""
    where = python(with_rule, "-c", "import ramnet_np.kernels as k; print(k.__file__)")
    assert Path(where.strip()).is_relative_to(with_rule)
    numeric = "(exponential and not gradient_in_numba) or dense_oracle_on_random_shapes or (example and retention)"
    assert library_tests(with_rule, *NUMERIC, "-k", numeric) >= 30


@pytest.mark.slow
def test_a_rule_runs_in_numba(with_rule):
    """Forward, backward and step as in NumPy."""
    assert library_tests(with_rule, "tests/kernels/test_cpu_agreement.py", "-k", "exponential and not f64") >= 2


def test_a_rule_runs_in_numba_cuda(with_rule):
    """Under the simulator: the fast kernels, the plain ones, the step."""
    chosen = "tests/kernels/test_numba_cuda_agreement.py", "-k", "exponential"
    assert library_tests(with_rule, *chosen, NUMBA_ENABLE_CUDASIM="1") >= 3


def test_a_rule_compiles_in_numba_cuda(with_rule):
    """Its retention and slopes in the fast kernels, the plain ones, the step."""
    pytest.importorskip("numba_cuda_mlir")
    chosen = "tests/kernels/test_numba_cuda_compile.py", "-k", "exponential and float32"
    assert library_tests(with_rule, *chosen) == 6


def test_a_rule_compiles_in_cuda(with_rule):
    """conflicts.cu, mass_backward.cu, plain.cu for both reads, both steps."""
    pytest.importorskip("cuda.bindings.nvrtc")
    assert library_tests(with_rule, "tests/kernels/test_cuda_compile.py", "-k", "exponential") >= 6


REFUSED = """
import sys
import numpy as np
from ramnet_np.contract import Address, MemoryOptions
from ramnet_np.core.dense import dense_ram_attention
from ramnet_np.kernels.cpu.memory import memory_forward as numba
from ramnet_np.kernels.cuda.memory.retention import require_rule as cuda
from ramnet_np.kernels.numba_cuda.retention import retention_of as numba_cuda

address, x = Address(np.zeros((1, 1, 1, 1), np.int32), np.ones((1, 1, 1, 1))), np.zeros((1, 1, 1, 1, 2))
calls = {
    "dense.py": lambda rule: dense_ram_attention(x, x, np.ones((1, 1, 1, 1)), update=rule, top_k=1),
    "cpu": lambda rule: numba(address, address, np.ones((1, 1, 1, 1)), 1.0, None, None, MemoryOptions(2, rule), True),
    "cuda": cuda,
    "numba_cuda": lambda rule: numba_cuda(rule, np.float32),
}
for name, call in calls.items():
    try:
        call("exponential")
    except ValueError as error:
        print(f"{name}: {error}")
"""


def test_a_tier_without_the_rule_refuses_it_in_one_sentence(tmp_path):
    """With the rule in core/retention.py alone."""
    text = section("Add an update rule")
    touched = extended(text, tmp_path, leave_out=RULE_FILES - {"ramnet_np/core/retention.py"})
    assert touched == {"ramnet_np/core/retention.py"}
    printed = python(tmp_path, "-c", REFUSED, NUMBA_ENABLE_CUDASIM="1").splitlines()
    assert printed == [
        "dense.py: update must be 'pdma' or 'gsu' for the dense oracle, got 'exponential'",
        "cpu: update must be one of 'pdma', 'gsu' on backend 'numba', got 'exponential'",
        "cuda: update must be one of 'pdma', 'gsu' on backend 'cupy', got 'exponential'",
        "numba_cuda: the backend 'numba-cuda' knows the update rules pdma, gsu, got 'exponential'",
    ]
    assert printed[1].removeprefix("cpu: ") in text  # the page shows it


@pytest.mark.gpu
def test_a_rule_runs_in_cuda(with_rule):
    """The chunked kernels and the step."""
    chosen = "tests/kernels/test_cuda_agreement.py", "-k", "exponential"
    assert library_tests(with_rule, *chosen, marked="gpu") >= 3


@pytest.fixture(scope="module")
def with_kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    touched = extended(section("Add a kernel for a layer"), folder)
    assert touched == {
        "kernels/cuda/layers/silu.cu",
        "kernels/cuda/layers/silu.py",
        "kernels/cuda/layers/__init__.py",
        "kernels/cuda/defaults.py",
        "ramnet_np/layers/activation.py",
        "tests/test_signatures.py",
        "tests/kernels/test_cuda_layers.py",
    }
    return folder


def test_a_layers_kernel_is_known_to_the_tables_and_compiles(with_kernel):
    tables = "tests/test_signatures.py", "tests/layers/test_activation.py"
    chosen = "(signatures and (silu or SiLU or every_fast_layer)) or test_activation"
    assert library_tests(with_kernel, *tables, "-k", chosen) >= 4 + 5
    pytest.importorskip("cuda.bindings.nvrtc")
    assert library_tests(with_kernel, "tests/kernels/test_cuda_compile.py", "-k", "silu") >= 4


@pytest.mark.gpu
def test_a_layers_kernel_equals_the_mathematics(with_kernel):
    assert library_tests(with_kernel, "tests/kernels/test_cuda_layers.py", "-k", "test_silu", marked="gpu") >= 28


@pytest.fixture
def backend_module(tmp_path, monkeypatch):
    """The page's backend, importable from a folder of its own."""
    [(name, content), (_, program)] = new_files(section("Add a backend"))
    (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield program
    unregister_backend("every-slot")
    sys.modules.pop("every_slot", None)


def test_a_backend_prints_what_the_page_says(backend_module):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(backend_module, {})
    [expected] = re.findall(r"^```text\n(.*?)^```$", section("Add a backend"), re.DOTALL | re.MULTILINE)
    assert out.getvalue() == expected


@pytest.mark.usefixtures("backend_module")
def test_a_backend_equals_the_core_on_every_case():
    register_backend("every-slot", "every_slot")
    from every_slot import BACKEND

    assert parameters(BACKEND.decode_forward) == parameters(PROTOCOLS["decode_forward"].__call__)
    for case in CASES:
        if case.slots < 2000:
            inputs = draw(case)
            assert_agree(run(inputs, "every-slot"), run(inputs, "numpy"))
