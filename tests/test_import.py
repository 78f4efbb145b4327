"""What ``import ramnet_np`` brings with it, and what runs with NumPy alone.

No test asserts a time. What an import costs is the modules that it loads, and these are listed here.
``python -m tests.versions`` runs the tests of the core, the layers and the model where only NumPy is installed.
"""

import subprocess
import sys

import pytest

# modules of Python that NumPy has not loaded already: all of them small
OF_PYTHON = {"copy", "dataclasses", "threading"}
OURS = {"backend", "contract", "core", "forked"}

IMPORT = """
import sys
import {first}
before = set(sys.modules)
import {package}
{then}
print(*sorted(set(sys.modules) - before))
"""

# the finder of installed packages finds NumPy and no other
ALONE = """
import sys
from importlib.machinery import PathFinder

class NumPyAlone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "ramnet_np"}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = NumPyAlone
import importlib, pkgutil
import numpy as np
import ramnet_np.core, ramnet_np.layers, ramnet_np.model

for package in (ramnet_np.core, ramnet_np.layers, ramnet_np.model):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # these need safetensors
        if module.name.removeprefix("ramnet_np.model.") not in ("checkpoint", "files", "state_file"):
            importlib.import_module(module.name)
assert ramnet_np.backends()["numba"] == "needs numba, not installed (pip install numba)", ramnet_np.backends()
config = ramnet_np.model.RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2, ffn="gelu")
model = ramnet_np.model.RAMNet(config)
ids = np.array([[1, 2, 1]])
logits, ctx = model.forward(ids)
print(logits.shape, len(model.backward(logits, ctx)), model.generate(ids, 2).shape)
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["ramnet_np", "ramnet_np.cli"])
def test_an_import_loads_nothing_before_a_name_is_asked_for(package):
    loaded = run(IMPORT.format(first="typing", package=package, then="")).split()
    assert {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names} == {"ramnet_np", package}


def test_the_operation_loads_itself_and_nothing_else():
    code = IMPORT.format(first="numpy", package="ramnet_np", then="ramnet_np.ram_attention_forward")
    loaded = [name.split(".") for name in run(code).split()]
    assert {path[0] for path in loaded} <= {"ramnet_np"} | OF_PYTHON
    assert {path[1] for path in loaded if len(path) > 1} == OURS


def test_a_completion_offers_what_is_ours_and_nothing_else():
    names = run("import ramnet_np; print(*dir(ramnet_np))").split()
    assert {"RAMNet", "backend", "contract", "core", "gradcheck", "model", "__version__"} <= set(names)
    assert not {"Any", "TYPE_CHECKING", "import_module"} & set(names)


def test_core_layers_and_model_run_with_numpy_alone():
    assert run(ALONE) == "(1, 3, 8) 16 (1, 5)\n"


def test_what_replaces_scipy_agrees_with_it(monkeypatch):
    import importlib.util

    import numpy as np

    from ramnet_np.layers.activation import gelu_forward
    from ramnet_np.layers.embedding import embedding_backward, embedding_forward

    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(64, 5)).astype(np.float32), rng.integers(0, 9, 64)

    def both():
        return gelu_forward(x)[0], embedding_backward(x, embedding_forward(ids, x[:12])[1])

    with_scipy = both()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for alone, expected in zip(both(), with_scipy, strict=True):
        assert alone.dtype == np.float32
        np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-6)


NAMES = """
import sys
import ramnet_np

assert ramnet_np.contract.RAMState is ramnet_np.RAMState
assert ramnet_np.__version__ and not hasattr(ramnet_np, "other")
from ramnet_np import RAMNet, RAMNetConfig, gradcheck, preset
import numpy as np

assert RAMNet(preset("mqar-demo")).config == preset("mqar-demo") != RAMNetConfig()
assert gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": np.ones(2)}).passed
assert set(ramnet_np.__all__) < set(dir(ramnet_np))
print(*(name for name in ("numba", "matplotlib", "cupy", "safetensors", "tqdm", "torch", "jax") if name in sys.modules))
"""


def test_the_model_comes_from_the_package_when_it_is_asked_for():
    assert run(NAMES) == "\n"


def test_training_loads_no_bars_for_notebooks():
    """tqdm's would warn in a notebook that has no widgets."""
    assert run("import sys, ramnet_np.train.loop\nprint('tqdm.auto' in sys.modules)").split() == ["False"]
