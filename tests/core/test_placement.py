"""Calls run on the GPU of their arrays. CuPy is a stand-in here; ``tests/kernels/test_cuda_two_gpus.py`` needs two."""

import ast
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import ramnet_np
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec


class GPUArray:
    """As much of a CuPy array as the decorator looks at."""

    def __init__(self, gpu):
        self.data = SimpleNamespace(device_id=gpu)


@pytest.fixture
def current(monkeypatch):
    """The numbers of the GPUs that were made current, the innermost last; GPU 0 is so at first."""
    stack = [0]

    @contextmanager
    def device(gpu):
        stack.append(gpu)
        yield
        stack.pop()

    cupy = ModuleType("cupy")
    cupy.ndarray = GPUArray
    cupy.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: stack[-1]), Device=device)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return stack


@pytest.fixture
def call(current):
    @on_gpu_of_arrays
    def depth_and_gpu(first, *others, option=None):
        return len(current), current[-1]

    return depth_and_gpu


State = namedtuple("State", "slots mass")
ARRAY = np.zeros(2)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda a: (a,),
        lambda a: (0.5, a),
        lambda a: (ARRAY, [a]),
        lambda a: (None, State(ARRAY, a)),
        lambda a: ([State(ARRAY, a), None],),
        lambda a: (None, (3, "text", ArraySpec((2,), "float32", "cupy", a.data.device_id), (a,))),
        lambda a: ({"weight": a},),
        lambda a: (SimpleNamespace(params={"weight": a}),),
    ],
    ids=["array", "second", "list", "state", "list of states", "context", "dictionary", "model"],
)
def test_the_gpu_of_the_arrays_is_current_within(call, current, arguments):
    assert call(*arguments(GPUArray(1))) == (2, 1)
    assert call(None, option=arguments(GPUArray(1))[-1]) == (2, 1)
    assert call(*arguments(GPUArray(0))) == (1, 0)  # it is so already
    assert current == [0]


def test_without_arrays_of_a_gpu_nothing_changes(call, monkeypatch):
    assert call("text", 3, None, [1.5], ARRAY, option={"a": ARRAY}) == (1, 0)
    monkeypatch.delitem(sys.modules, "cupy")
    assert call(ARRAY, option=3) == (1, 0)


def test_arrays_of_two_gpus_are_refused_by_name(call, current):
    with pytest.raises(
        ValueError, match=r"^all arrays of a call must be on one GPU, got first on GPU 1, option on GPU 0"
    ):
        call(GPUArray(1), option=State(ARRAY, GPUArray(0)))
    with pytest.raises(ValueError, match=r"got first on GPU 0 and 2$"):
        call({"a": GPUArray(0), "b": GPUArray(2)})
    assert current == [0]


def test_every_public_forward_and_backward_of_a_layer_is_placed():
    """And every function of the operation, of the optimiser, and of a model."""
    root = Path(ramnet_np.__file__).parent
    files = [*root.glob("layers/*.py"), root / "core/attention.py", root / "train/optim.py"]
    found = [(path.name, node) for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
    plain = [
        f"{name}: {node.name}"
        for name, node in found
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and takes_arrays(node)
        and not {"on_gpu_of_arrays", "accelerated"} & {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    ]  # fmt: skip
    assert sorted(plain) == [
        "heads.py: from_chunks", "heads.py: heads_first", "heads.py: heads_last", "heads.py: to_chunks",  # views
        "loss.py: require_labels", "optim.py: has_weight_decay", "short_conv.py: require_short_conv",
        "triangular.py: require_power_of_two",
    ]  # fmt: skip


def takes_arrays(function: ast.FunctionDef) -> bool:
    return any("Array" in ast.unparse(a.annotation) for a in function.args.args if a.annotation)
