"""The examples of docs/guide/frameworks.md learn what they say, where their framework is installed."""

import contextlib
import importlib.util
import io
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.parametrize(("framework", "least"), [("torch", 95), ("jax", 90)])
def test_an_example_learns(framework, least):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(EXAMPLES / f"{framework}_model.py"), run_name="__main__")
    assert int(re.search(r"(\d+)%", out.getvalue())[1]) >= least


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_linked(path):
    assert len(path.read_text().splitlines()) <= 70
    assert f"(../examples/{path.name})" in (EXAMPLES.parent / "guide" / "frameworks.md").read_text()
