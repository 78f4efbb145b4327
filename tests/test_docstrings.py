"""The examples in the docstrings run as shown, and whatever is public has a docstring."""

import builtins
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import ramnet_np.kernels

import ramnet_np

MODULES = sorted(
    {
        module.name
        for package in (ramnet_np, ramnet_np.kernels)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
    - {"ramnet_np.kernels.cuda.backend", "ramnet_np.kernels.numba_cuda.backend"}  # need a GPU
)

FRAMEWORK = {"tensors": "torch", "torch_ops": "torch", "ramnet_ops": "torch"}  # of the other bridges: their own name
MODULES = [
    name
    for name in MODULES
    if not name.startswith("ramnet_np.bridges.")
    or importlib.util.find_spec(FRAMEWORK.get(part := name.rpartition(".")[2], part))
]


def test_the_modules_are_found():
    assert {"ramnet_np.core.topk", "ramnet_np.model.mixers.ram", "ramnet_np.kernels.cuda.address.decode"} <= set(
        MODULES
    )


# commands are explained by --help, kernels in docs/kernels.md
DOCUMENTED = [name for name in MODULES if name != "ramnet_np.cli" and not name.startswith("ramnet_np.kernels")]
# a minute of training; drawing into a file; what needs a GPU, MPI or a thread of its own
WITHOUT_EXAMPLE = {
    *("run_demo", "main", "own_stream"),
    *("in_order_on", "graph_pool", "free_with", "begin_capture", "capture", "start"),
}


@pytest.mark.parametrize("name", ramnet_np.__all__)
def test_public_names_say_what_they_take(name):
    item = getattr(ramnet_np, name)
    text = inspect.getdoc(item)
    assert ">>>" in text
    if name not in ("backends", "use_backend", "RAMNet", "RAMNetConfig", "preset", "gradcheck"):
        assert "(B, " in text  # shapes
        assert "Source:" in text
    if inspect.isfunction(item) and name != "backends":
        assert "Raises" in text


def test_sources_are_where_a_reader_finds_them():
    """The paper, a published package, or a page of this repository; not a section of a document that is not there."""
    texts = [Path(importlib.import_module(name).__file__).read_text(encoding="utf-8") for name in MODULES]
    assert not [text for text in texts if re.search(r"\bspec sections?\b", text)]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_functions_have_an_example(name):
    module = importlib.import_module(name)
    missing = [
        function
        for function, item in vars(module).items()
        if inspect.isroutine(item)
        and item.__module__ == name
        and not function.startswith("_")
        and function not in WITHOUT_EXAMPLE
        and ">>>" not in item.__doc__
    ]
    assert not missing


@pytest.mark.parametrize("name", MODULES)
def test_examples_and_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
    vars(builtins).pop("_", None)  # the last value, which tyro would look at when it is imported
    for public, item in vars(module).items():
        if getattr(item, "__module__", None) == name and inspect.isroutine(item) and not public.startswith("_"):
            assert item.__doc__, f"{name}.{public} has no docstring"
