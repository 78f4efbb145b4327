"""The code of the documentation's pages runs and prints what they say.

The blocks of a page run one after the other in one namespace and an empty folder; a ```text block below a ```python
block is what it prints. Blocks that open with the line "# needs an NVIDIA GPU and CuPy" are compiled, and what they
import from ramnet_np must exist. Blocks that open with "# needs PyTorch" or "# needs JAX" run where it is installed.
Blocks that are files, or changes to files, are in test_extending.py.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
from pathlib import Path
from unittest.mock import patch

import pytest

from ramnet_np.model.config import MIXER_CHECKS
from ramnet_np.model.mixers import MIXERS

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)
GPU = "# needs an NVIDIA GPU and CuPy\n"
FRAMEWORKS = {"# needs PyTorch\n": "torch", "# needs JAX\n": "jax"}
PAGES = sorted(
    page.relative_to(DOCS).as_posix()
    for page in DOCS.rglob("*.md")
    if "_build" not in page.parts and BLOCK.search(page.read_text())
)


def test_the_pages_are_found():
    assert {"guide/operation.md", "guide/train.md", "gpu-training.md", "extending.md"} <= set(PAGES)


@pytest.fixture
def _same_mixers_afterwards():
    with patch.dict(MIXERS), patch.dict(MIXER_CHECKS):
        yield


@pytest.mark.usefixtures("_same_mixers_afterwards")
@pytest.mark.parametrize("page", PAGES)
def test_code_runs_and_prints(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code, expected in BLOCK.findall((DOCS / page).read_text()):
        program = compile(code, page, "exec")
        if code.startswith(GPU):
            check_imports(code)
            continue
        if not all(importlib.util.find_spec(name) for line, name in FRAMEWORKS.items() if code.startswith(line)):
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(program, namespace)
        if expected:
            assert out.getvalue() == expected


def check_imports(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ramnet_np"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
