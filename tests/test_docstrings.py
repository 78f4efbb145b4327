"""The examples in the docstrings run as shown, and whatever is public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

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


def test_the_modules_are_found():
    assert {"ramnet_np.core.topk", "ramnet_np.model.layer", "ramnet_np.kernels.cuda.decode"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_and_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module).failed == 0
    for public, item in vars(module).items():
        if getattr(item, "__module__", None) == name and inspect.isroutine(item) and not public.startswith("_"):
            assert item.__doc__, f"{name}.{public} has no docstring"
