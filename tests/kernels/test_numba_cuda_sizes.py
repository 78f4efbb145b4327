"""The Numba CUDA kernels stay readable: no long function, no long list of parameters."""

import ast
from pathlib import Path

import pytest
import ramnet_np.kernels.numba_cuda

MAX_LINES, MAX_PARAMETERS = 70, 10
FILES = sorted(Path(ramnet_np.kernels.numba_cuda.__file__).parent.glob("*.py"))


def functions_on_the_device(source):
    """Those under ``@kernel(...)`` or ``@cuda.jit(device=True)``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list]
            if {"kernel", "cuda.jit"} & set(decorators):
                yield node


def too_large(source):
    for node in functions_on_the_device(source):
        arguments = node.args
        parameters = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
        if node.end_lineno - node.lineno + 1 > MAX_LINES or parameters > MAX_PARAMETERS or arguments.vararg:
            yield node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_function_on_the_device_is_too_large(path):
    assert list(too_large(path.read_text())) == []


def test_the_functions_are_found():
    found = {node.name for path in FILES for node in functions_on_the_device(path.read_text())}
    assert {"content_forward", "content_backward", "mass_scan", "plain_masses", "step", "enter", "token_of"} <= found
    body = "\n".join(["    x = 0"] * 70)
    assert list(too_large(f"@kernel(a)\ndef long():\n{body}")) == ["long"]
    names = ", ".join("abcdefghijk")
    assert list(too_large(f"@cuda.jit(device=True)\ndef wide({names}):\n    pass")) == ["wide"]
