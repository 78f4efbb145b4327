"""The house of docs/house.md as imports: which room may use which, no circle, and what each tier may need installed.

Every rule is a function from the sources to its complaints. It has none about the house as it is, and one about a house
into which a forbidden import is planted.
"""

import ast
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
import ramnet_np.kernels

import ramnet_np

ROOTS = {"ramnet_np": Path(ramnet_np.__file__).parent, "ramnet_np.kernels": Path(ramnet_np.kernels.__file__).parent}

# The arrows of docs/house.md. A room may also import what the rooms that it may import may import.
ARROWS = {
    "cli": ["experiment", "gradcheck", "kernels/bench"],
    "experiment": ["ramnet_np", "runs", "plot"],
    "runs": ["train", "plot"],
    "train": ["data", "model"],
    "data": ["core"],
    "gradcheck": ["model"],
    "model": ["layers"],
    "layers": ["core"],
    "plot": ["core"],
    "bridges": ["core"],
    "ramnet_np": ["gradcheck"],  # ramnet_np/__init__.py: names of core, and when asked of model and gradcheck
    "core": ["backend"],
    "backend": ["contract", "forked"],
    "forked": [],
    "contract": [],
    "kernels": [],
    "kernels/gpu_errors": [],
    "kernels/cpu": ["backend"],
    "kernels/cuda": ["backend", "kernels/gpu_errors"],
    "kernels/numba_cuda": ["backend", "kernels/gpu_errors"],
    "kernels/bench": ["experiment", "gradcheck", "bridges", "kernels/cpu", "kernels/cuda", "kernels/numba_cuda"],
}
# The exceptions of docs/house.md: one file that may import another one.
EXCEPTIONS = {
    ("ramnet_np.train.gpu_trainer", "ramnet_np.kernels.cuda.optimizer.adamw"),
    ("ramnet_np.kernels.numba_cuda.backend", "ramnet_np.kernels.cuda.layers"),
}
# What a file may need besides Python, by room; in its first lines, or only within functions, when a call needs it.
EVERYWHERE = {"numpy"}
FRAMEWORKS = {"torch", "jax"}
AT_IMPORT = {
    "experiment": {"matplotlib", "tqdm"},
    "runs": {"matplotlib", "threadpoolctl", "tqdm", "tyro"},
    "train": {"safetensors", "tqdm"},
    "gradcheck": {"tqdm"},
    "model": {"safetensors"},
    "plot": {"cycler", "matplotlib"},
    "bridges": {"jax", "torch"},
    "kernels/cpu": {"numba", "llvmlite"},  # llvmlite is the compiler below Numba
    "kernels/numba_cuda": {"numba", "numba_cuda_mlir"},
}
WITHIN_FUNCTIONS = {
    "cli": {"numba"},
    "runs": {"numba"},
    "data": {"tokenizers"},
    "train": {"cupy", "cupyx", "mpi4py", "nccl"},
    "layers": {"cupyx", "scipy"},
    "model": {"ml_dtypes"},
    "core": {"cupy"},
    "bridges": {"cupy", "ml_dtypes"},
    "experiment": {"ray", "threadpoolctl"},
    "kernels/cuda": {"cupy", "cupy_backends"},
    "kernels/numba_cuda": {"cuda", "cupy"},
}


class Import(NamedTuple):
    importer: str
    target: str  # the file or package of ours, or the module of another library
    name: str  # what is taken out of it, if it is not a module
    at_import: bool  # not within a function


@cache
def sources() -> dict[str, str]:
    """Module name -> text, of ramnet_np and its kernels. A package's own file has the package's name."""
    found = {}
    for package, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


def packages(files: dict[str, str]) -> set[str]:
    return {name.rpartition(".")[0] for name in files} & files.keys()


def imports(files: dict[str, str]) -> list[Import]:
    inner, found = packages(files), []
    for module, text in files.items():
        for base, name, at_import in written(module, text, module in inner):
            whole = f"{base}.{name}"
            target, name = (whole, "") if name and whole in files else (base, name)
            found.append(Import(module, target, name, at_import))
    return found


@cache
def written(module: str, text: str, is_package: bool) -> list[tuple[str, str, bool]]:
    """(module, name or "", not within a function) of every import of a file, as far as its text tells."""
    tree, found = ast.parse(text), []
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    within = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        at_import = id(node) not in within
        if isinstance(node, ast.Import):
            found += [(alias.name, "", at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            path = module.split(".")
            above = path[: len(path) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(base, alias.name, at_import) for alias in node.names]
    return found


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "ramnet_np"


def room_of(module: str) -> str:
    """``layers`` for ramnet_np.layers.norm; the folders of kernels/ are rooms of their own."""
    parts = module.split(".")[1:]
    return "/".join(parts[:2] if parts[:1] == ["kernels"] else parts[:1]) or "ramnet_np"


@cache
def below(room: str) -> frozenset[str]:
    return frozenset(ARROWS[room]).union(*map(below, ARROWS[room]))


def describe(one: Import) -> str:
    return f"{one.importer} imports {one.target}{f' ({one.name})' if one.name else ''}"


def against_the_arrows(files: dict[str, str]) -> list[str]:
    """Imports of a room that is not below."""
    return [
        describe(one)
        for one in imports(files)
        if is_ours(one.target)
        and room_of(one.target) not in below(room_of(one.importer)) | {room_of(one.importer)}
        and (one.importer, one.target) not in EXCEPTIONS
        and not is_layer_of_a_kernel(one)
    ]


def is_layer_of_a_kernel(one: Import) -> bool:
    """A fast layer takes from the layer that it replaces types, checks and constants, and no mathematics."""
    if not one.importer.startswith("ramnet_np.kernels.cuda.layers."):
        return False
    is_type = one.name[:1].isupper()  # and constants
    if room_of(one.target) == "layers":
        return is_type or one.name.startswith("require_")
    return one.target == "ramnet_np.core.require" and bool(one.name)


def circles(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1][::-1])]
    return []


def circles_of_files(files: dict[str, str]) -> list[str]:
    graph: dict[str, set[str]] = {module: set() for module in files}
    for one in imports(files):
        if is_ours(one.target):
            graph[one.importer].add(one.target)
    return circles(graph)


def family_of(module: str) -> str:
    """The room of a file; within kernels/cuda, its folder there."""
    parts = module.split(".")[2:]
    is_family = parts[:1] == ["cuda"] and f"ramnet_np.kernels.{'.'.join(parts[:2])}" in packages(sources())
    return f"{room_of(module)}/{parts[1]}" if is_family else room_of(module)


def circles_of_rooms(files: dict[str, str]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for one in imports(files):
        here, there = family_of(one.importer), family_of(one.target) if is_ours(one.target) else ""
        if there and here != there:
            graph.setdefault(here, set()).add(there)
    return circles(graph)


def drawn_elsewhere(files: dict[str, str]) -> list[str]:
    """Uses of plot but by runs and experiment (the notebooks and docs are not among the sources)."""
    users = {"plot", "runs", "experiment"}
    return [
        describe(one)
        for one in imports(files)
        if is_ours(one.target) and room_of(one.target) == "plot" and room_of(one.importer) not in users
    ]


def gradcheck_knows(files: dict[str, str]) -> list[str]:
    """What gradcheck/check.py takes of this library, and who but the command uses gradcheck."""
    checked = [one for one in imports(files) if is_ours(one.target)]
    return [
        describe(one)
        for one in checked
        if one.importer == "ramnet_np.gradcheck.check"
        or (room_of(one.target) == "gradcheck" and room_of(one.importer) not in ("gradcheck", "cli", "ramnet_np"))
    ]


def frameworks_elsewhere(files: dict[str, str]) -> list[str]:
    """Imports of a framework but by the bridges, and imports of the bridges from outside: a user starts them."""
    return [
        describe(one)
        for one in imports(files)
        if (one.target.split(".")[0] in FRAMEWORKS or (is_ours(one.target) and room_of(one.target) == "bridges"))
        and room_of(one.importer) not in ("bridges", "kernels/bench")
    ]


def not_installed_for_it(files: dict[str, str]) -> list[str]:
    """Libraries that a room may not need, or not already when it is imported; the benchmarks may need any."""
    odd = []
    for one in imports(files):
        library, room = one.target.split(".")[0], room_of(one.importer)
        if library in sys.stdlib_module_names or library == "ramnet_np" or room == "kernels/bench":
            continue
        allowed = EVERYWHERE | AT_IMPORT.get(room, set())
        if not one.at_import:
            allowed |= WITHIN_FUNCTIONS.get(room, set())
        if library not in allowed:
            odd.append(describe(one) + (" when it is imported" if one.at_import else ""))
    return odd


RULES = {
    rule.__name__: rule
    for rule in (
        against_the_arrows, circles_of_files, circles_of_rooms, drawn_elsewhere, gradcheck_knows, frameworks_elsewhere,
        not_installed_for_it,
    )
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule):
    assert RULES[rule](sources()) == []


PLANTED = [
    ("against_the_arrows", "core.cape", "from ramnet_np.layers.norm import rmsnorm_forward"),
    ("against_the_arrows", "core.cape", "def f():\n    from ramnet_np.layers import norm"),
    ("against_the_arrows", "contract", "from ramnet_np.backend import Backend"),
    ("against_the_arrows", "backend", "import ramnet_np.core.decoder"),
    ("against_the_arrows", "layers.norm", "from ramnet_np.model.config import RAMNetConfig"),
    ("against_the_arrows", "model.block", "from ramnet_np.train import optim"),
    ("against_the_arrows", "model.mixers.ram", "from ramnet_np.data.mqar import MQAR"),
    ("against_the_arrows", "data.text", "from ramnet_np.train.loop import train"),
    ("against_the_arrows", "data.text", "from ramnet_np.layers.loss import IGNORE_INDEX"),
    ("against_the_arrows", "train.loop", "from ramnet_np.runs import mqar"),
    ("against_the_arrows", "train.loop", "from ramnet_np.kernels.cuda.optimizer.adamw import DeviceAdamW"),
    ("against_the_arrows", "runs.demo", "from ramnet_np.experiment.grid import Grid"),
    ("against_the_arrows", "experiment.grid", "from ramnet_np import cli"),
    ("against_the_arrows", "plot.style", "from ramnet_np.train.metrics import read_metrics"),
    ("against_the_arrows", "core.memory", "from ramnet_np import ram_attention_forward"),
    ("against_the_arrows", "core.memory", "from ramnet_np.kernels.cpu.memory import memory_forward"),
    ("against_the_arrows", "kernels.cpu.memory", "from ramnet_np.core.retention import RULES"),
    ("against_the_arrows", "kernels.cuda.memory.memory", "from ramnet_np.core.require import require_like"),
    ("against_the_arrows", "kernels.cuda.layers.norm", "from ramnet_np.layers.norm import rmsnorm_forward"),
    ("against_the_arrows", "kernels.cuda.layers.norm", "from ramnet_np.core import require"),
    ("against_the_arrows", "kernels.numba_cuda.step", "from ..cuda.step.step import step"),
    ("against_the_arrows", "kernels.numba_cuda.step", "from ..cpu import step"),
    ("circles_of_files", "core.arrays", "def f():\n    from ramnet_np.core.memory import memory_forward"),
    ("circles_of_files", "kernels.cpu.beam", "from .decode import decode_forward"),
    ("circles_of_rooms", "kernels.cuda.runtime.arrays", "from ..address.decode import MAX_HELD"),
    ("circles_of_rooms", "kernels.cuda.optimizer.adamw", "from ..backend import BACKEND"),
    ("drawn_elsewhere", "cli", "from ramnet_np.plot import slot_trace"),
    ("drawn_elsewhere", "kernels.bench.cpu", "def f():\n    from ramnet_np.plot import speed"),
    ("gradcheck_knows", "gradcheck.check", "from ramnet_np.contract import Array"),
    ("gradcheck_knows", "experiment.one_run", "from ramnet_np.gradcheck import gradcheck"),
    ("frameworks_elsewhere", "core.attention", "def f():\n    import torch"),
    ("frameworks_elsewhere", "runs.text", "def f():\n    from ramnet_np.bridges import torch"),
    ("against_the_arrows", "bridges.torch", "from ramnet_np.layers import norm"),
    ("not_installed_for_it", "bridges.torch", "import cupy"),
    ("not_installed_for_it", "core.memory", "import scipy.special"),
    ("not_installed_for_it", "core.memory", "import cupy"),
    ("not_installed_for_it", "contract", "def f():\n    import numba"),
    ("not_installed_for_it", "layers.norm", "import numba"),
    ("not_installed_for_it", "train.loop", "def f():\n    import torch"),
    ("not_installed_for_it", "kernels.cpu.step", "from jax import numpy"),
]


@pytest.mark.parametrize(("rule", "module", "text"), PLANTED)
def test_a_planted_import_breaks_its_rule(rule, module, text):
    module = f"ramnet_np.{module}"
    files = sources() | {module: f"{sources()[module]}\n{text}\n"}
    [complaint] = RULES[rule](files)
    assert (family_of(module) if rule == "circles_of_rooms" else module) in complaint


def test_every_exception_and_allowance_is_in_use():
    every = imports(sources())
    assert {(one.importer, one.target) for one in every} >= EXCEPTIONS
    used = {(room_of(one.importer), one.target.split(".")[0], one.at_import) for one in every}
    assert used >= {(room, library, True) for room, libraries in AT_IMPORT.items() for library in libraries}
    assert used >= {(room, library, False) for room, libraries in WITHIN_FUNCTIONS.items() for library in libraries}
    assert {room_of(module) for module in sources()} == ARROWS.keys()


def test_relative_and_nested_imports_are_seen():
    cuda = "ramnet_np.kernels.cuda"
    a_file, a_package = f"{cuda}.backend", f"{cuda}.layers"
    files = sources() | {
        a_file: "from ..cpu import step as s\nfrom .layers.norm import x",
        a_package: "def f():\n    from .. import backend\n    import ramnet_np.train.loop",
    }
    assert [one for one in imports(files) if one.importer in (a_file, a_package)] == [
        Import(a_file, "ramnet_np.kernels.cpu.step", "", True),
        Import(a_file, f"{cuda}.layers.norm", "x", True),
        Import(a_package, f"{cuda}.backend", "", False),
        Import(a_package, "ramnet_np.train.loop", "", False),
    ]
