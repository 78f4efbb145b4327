"""A file, a function and a kernel's parameters stay small enough to read; the preprocessor declares no names.

Functions that Numba compiles for the GPU have limits of their own: tests/kernels/test_numba_cuda_sizes.py.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import ramnet_np.kernels

import ramnet_np

TESTS, LIBRARY, KERNELS = (Path(f).parent for f in (__file__, ramnet_np.__file__, ramnet_np.kernels.__file__))
PYTHON = sorted(path for root in (LIBRARY, KERNELS, TESTS) for path in root.rglob("*.py"))
CUDA = sorted(path for ending in ("cu", "cuh") for path in (KERNELS / "cuda").rglob(f"*.{ending}"))
FILE, LIBRARY_FILE, PYTHON_FUNCTION, CUDA_FUNCTION = 450, 400, 80, 70  # lines
KERNEL_PARAMETERS = 8
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Function(NamedTuple):
    name: str
    lines: int
    parameters: tuple[str, ...]
    is_kernel: bool


def python_functions(text: str) -> list[Function]:
    """Every ``def``, without its decorators, and without the functions within it, which count by themselves.

    (A kernel's factory holds its phases, which the compiler specialises with it.)
    """
    every = [node for node in ast.walk(ast.parse(text)) if isinstance(node, DEFINITIONS)]
    return [Function(node.name, own_lines(node), (), False) for node in every]


def own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = set(range(function.lineno, function.end_lineno + 1))
    for node in ast.walk(function):
        if isinstance(node, DEFINITIONS) and node is not function:
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def without_comments(text: str) -> str:
    """The same lines without comments, strings and the preprocessor's."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r'//[^\n]*|"[^"\n]*"', "", text)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda line: "\n" * line[0].count("\n"), text, flags=re.MULTILINE)


def cuda_functions(text: str) -> list[Function]:
    """Every function with a body, methods too, from the first word of its declaration to its closing brace."""
    text = without_comments(text)
    found: list[Function] = []
    within: list[int] = []  # of every open brace: where its function's declaration starts, or -1
    start = 0  # of the declaration, or statement, that is being read
    for at, mark in enumerate(text):
        if mark == "{":
            header = text[start:at].strip()
            opens_function = not any(begin >= 0 for begin in within) and is_function(header)
            within.append(at - len(text[start:at].lstrip()) if opens_function else -1)
        elif mark == "}":
            begin = within.pop()
            if begin >= 0:
                found.append(function_of(text[begin : at + 1]))
        if mark in "{};":
            start = at + 1
    assert not within
    return found


def is_function(header: str) -> bool:
    declared = re.sub(r"^template\s*<[^()]*>\s*", "", header)
    return "(" in declared and not re.match(r"(struct|class|union|enum|namespace)\b", declared)


def function_of(text: str) -> Function:
    """From the text of its definition."""
    head = re.sub(r"(alignas|__launch_bounds__|__cluster_dims__)\((?:[^()]|\([^()]*\))*\)", "", text)
    match = re.search(r"(operator\s*\(\)|operator\W+|[\w:]+)\s*\(((?:[^()]|\([^()]*\))*)\)", head)
    assert match, text
    parameters = tuple(" ".join(one.split()) for one in match[2].split(",") if one.strip())
    return Function(match[1], text.count("\n") + 1, parameters, "__global__" in head[: match.start()])


def faults(text: str, functions: list[Function], most_lines: int, file: int = FILE) -> list[str]:
    lines = len(text.splitlines())
    found = [f"{lines} lines"] if lines > file else []
    return found + [f"{one.name}: {one.lines} lines" for one in functions if one.lines > most_lines]


def cuda_faults(text: str) -> list[str]:
    functions = cuda_functions(text)
    found = faults(text, functions, CUDA_FUNCTION)
    for one in functions:
        structs = [parameter for parameter in one.parameters if "__grid_constant__" in parameter]
        if one.is_kernel and (len(structs) > 1 or len(one.parameters) > KERNEL_PARAMETERS):
            found.append(f"{one.name}: {len(one.parameters)} parameters, {len(structs)} structs")
    # a macro may abbreviate attributes; it declares no name and computes nothing
    for name, value in re.findall(r"^[ \t]*#[ \t]*define[ \t]+(\S+)((?:[^\n]*\\\n)*[^\n]*)", text, flags=re.MULTILINE):
        if not re.fullmatch(r"[A-Z_]+", name) or not re.fullmatch(r"(\s*__\w+__)+\s*", value):
            found.append(f"#define {name}")
    return found


def name_of(path: Path) -> str:
    root = next(root for root in (KERNELS, LIBRARY, TESTS) if path.is_relative_to(root))
    return f"{root.name}/{path.relative_to(root).as_posix()}"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_python_stays_small(path):
    text = path.read_text(encoding="utf-8")
    most = FILE if path.is_relative_to(TESTS) else LIBRARY_FILE
    assert faults(text, python_functions(text), PYTHON_FUNCTION, most) == []


@pytest.mark.parametrize("path", CUDA, ids=name_of)
def test_cuda_stays_small(path):
    assert cuda_faults(path.read_text(encoding="utf-8")) == []


def test_every_kernel_is_seen():
    for path in CUDA:
        text = path.read_text(encoding="utf-8")
        kernels = [one for one in cuda_functions(text) if one.is_kernel]
        assert len(kernels) == without_comments(text).count("__global__"), path
        assert all(one.parameters for one in kernels)


LONG_BODY = "    x += 1;\n" * 69
KERNEL = 'extern "C" __global__ void __launch_bounds__(THREADS, sizeof(Acc) == 4 ? 2 : 1)\nwide({}) {{\n}}\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"DEVICE void f(int x) {{\n{LONG_BODY}}}\n", "f: 71 lines"),
        (f"struct S {{\n    int x;\n    DEVICE S(int a) : x(a) {{\n{LONG_BODY}    }}\n}};\n", "S: 71 lines"),
        (f"struct S {{\n    DEVICE Acc operator()(Acc x) {{\n{LONG_BODY}    }}\n}};\n", "operator(): 71 lines"),
        (f"template <class T, bool B>\nDEVICE void f(T x) {{\n{LONG_BODY}}}\n", "f: 72 lines"),
        ("int x;\n" * 451, "451 lines"),
        (KERNEL.format(", ".join(f"int a{i}" for i in range(9))), "wide: 9 parameters, 0 structs"),
        (KERNEL.format("const __grid_constant__ A a, const __grid_constant__ B b"), "wide: 2 parameters, 2 structs"),
        ("#define ROWS 8\n", "#define ROWS"),
        ("#define LOAD(x) __ldg(&x)\n", "#define LOAD(x)"),
        ("  # define DEVICE __device__ \\\n    int\n", "#define DEVICE"),
    ],
)
def test_what_is_too_large_is_found(text, fault):
    assert cuda_faults(text) == [fault]


def test_what_is_small_enough_passes():
    shorter = LONG_BODY.removesuffix("    x += 1;\n")
    small = f"struct alignas(2 * sizeof(Acc)) S {{\n{LONG_BODY}{LONG_BODY}}};\nDEVICE void f() {{\n{shorter}}}\n"
    assert cuda_faults(f"#define DEVICE __device__ __forceinline__\n{small}") == []
    assert cuda_faults(KERNEL.format("const __grid_constant__ A a, " + ", ".join(f"int a{i}" for i in range(7)))) == []


def test_a_long_file_is_found():
    assert faults("x = 0\n" * 401, [], PYTHON_FUNCTION, LIBRARY_FILE) == ["401 lines"]
    assert faults("x = 0\n" * 400, [], PYTHON_FUNCTION, LIBRARY_FILE) == []
    assert faults("x = 0\n" * 451, [], PYTHON_FUNCTION) == ["451 lines"]


def test_a_long_python_function_is_found():
    inner = "    def g():\n" + "        x = 0\n" * 60
    text = f"@cache\ndef f():\n{inner}" + "    x = 0\n" * 80
    assert faults(text, python_functions(text), PYTHON_FUNCTION) == ["f: 81 lines"]
    text = f"def f():\n{inner}" + "    x = 0\n" * 70
    assert faults(text, python_functions(text), PYTHON_FUNCTION) == []
