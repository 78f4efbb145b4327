"""The packages that train import one way: experiment -> runs -> train -> data, model; plot needs none of them."""

import ast
from pathlib import Path

import pytest

import ramnet_np

ROOT = Path(ramnet_np.__file__).parent
BELOW_DATA = {"contract", "core"}
BELOW_TRAIN = {"backend", "contract", "core", "data", "kernels", "layers", "model"}
BELOW_RUNS = BELOW_TRAIN | {"plot", "train"}
MAY_IMPORT = {
    "data": BELOW_DATA,
    "plot": {"contract", "core"},
    "train": BELOW_TRAIN,
    "runs": BELOW_RUNS,
    "experiment": BELOW_RUNS | {"runs"},
}


def imported_rooms(source):
    """The parts of ramnet_np that a file imports, also within its functions."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0  # names here are written out
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "ramnet_np" and len(part) > 1}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    files = sorted((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        odd = imported_rooms(file.read_text(encoding="utf-8")) - MAY_IMPORT[room] - {room}
        assert not odd, f"{room}/{file.name} imports {', '.join(sorted(odd))}"


def test_imports_are_seen_wherever_they_stand():
    within = "def f():\n    from ramnet_np import plot\n    from ramnet_np.runs.text import run_text\n"
    assert imported_rooms(f"import ramnet_np.train.loop\n{within}") == {"train", "plot", "runs"}
