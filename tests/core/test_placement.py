"""Calls run on the GPU of their arrays. CuPy is a stand-in here; ``tests/kernels/test_cuda_two_gpus.py`` needs two."""

import ast
import dataclasses
import os
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import ramnet_np
from ramnet_np import backend as backends
from ramnet_np import forked
from ramnet_np.contract import RAMState
from ramnet_np.core import arrays, placement
from ramnet_np.core.placement import on_gpu_of_arrays, on_gpu_of_foreign_arrays
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


PLACING = {"on_gpu_of_arrays", "accelerated", "accelerated_everywhere"}


def test_every_public_forward_and_backward_of_a_layer_is_placed():
    """And every function of the operation, of the optimiser, and of a model."""
    root = Path(ramnet_np.__file__).parent
    files = [*root.glob("layers/*.py"), root / "core/attention.py", root / "train/optim.py"]
    found = [(path.name, node) for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
    plain = [
        f"{name}: {node.name}"
        for name, node in found
        if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and takes_arrays(node)
        and not PLACING & {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
    ]  # fmt: skip
    assert sorted(plain) == [
        "heads.py: from_chunks", "heads.py: heads_first", "heads.py: heads_last", "heads.py: to_chunks",  # views
        "linear.py: require_addable", "loss.py: require_labels", "optim.py: has_weight_decay",
        "short_conv.py: require_short_conv", "softmax_attention.py: require_attention",
        "softmax_attention.py: require_attention_step", "triangular.py: require_power_of_two",
    ]  # fmt: skip


def takes_arrays(function: ast.FunctionDef) -> bool:
    return any("Array" in ast.unparse(a.annotation) for a in function.args.args if a.annotation)


class ForeignArray:
    """An array of another library: all that it says is an address."""

    dtype, shape, ndim = np.dtype(np.float32), (2,), 1

    def __init__(self, address):
        self.__cuda_array_interface__ = {"data": (address, False)}

    __cuda_array_interface__ = None


@pytest.fixture
def call_foreign(monkeypatch):
    """(GPU that is current, number of switches) within a call; GPU n holds the addresses from 1000 n on."""
    switches = []

    def gpu_of(array):
        return array.__cuda_array_interface__["data"][0] // 1000 if isinstance(array, ForeignArray) else None

    @contextmanager
    def on_gpu(gpu):
        switches.append(gpu)
        yield
        switches.pop()

    backend = dataclasses.replace(backends.load_backend("numpy"), gpu_of=gpu_of, on_gpu=on_gpu)
    monkeypatch.setattr(placement, "backend_for", lambda array, name: backend)

    @on_gpu_of_foreign_arrays
    def gpus(first, ctx=None, state=None, *, backend=None):
        return tuple(switches)

    gpus.context = lambda address: (backend, (3, State(ForeignArray(address), None)))
    return gpus


def test_foreign_arrays_run_where_their_address_is(call_foreign):
    there = ForeignArray(1001)
    assert call_foreign(there) == call_foreign(first=there, backend="numba-cuda") == (1,)
    assert call_foreign(there, state=RAMState(there, ForeignArray(1500))) == (1,)
    assert call_foreign(there, ctx=call_foreign.context(1002)) == (1,)
    assert call_foreign(ARRAY) == call_foreign(0.5) == ()


def test_foreign_arrays_of_two_gpus_are_refused_by_name(call_foreign):
    there = ForeignArray(1001)
    with pytest.raises(ValueError, match=r"must be on one GPU, got first on GPU 1, state on GPU 0$"):
        call_foreign(there, state=RAMState(ForeignArray(1), ForeignArray(2)))
    with pytest.raises(ValueError, match=r"got first on GPU 1, ctx on GPU 2$"):
        call_foreign(there, ctx=call_foreign.context(2000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_after_the_gpu_was_used_says_so():
    code = """
import os, sys, warnings
from ramnet_np import forked
warnings.simplefilter("ignore")
for used in (False, True):
    if used:
        forked.use_gpu()
    if os.fork() == 0:
        try:
            forked.use_gpu()
            print("served", flush=True)
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "served"
    assert second.startswith("the GPU cannot be used in a process forked after the GPU was used: start")


def test_what_uses_a_gpu_asks_first(call, monkeypatch):
    monkeypatch.setattr(forked, "_lost", True)
    with pytest.raises(RuntimeError, match="forked"):
        call(GPUArray(0))
    monkeypatch.setitem(backends._loaded, "cupy", SimpleNamespace(array_kind="cupy"))
    with pytest.raises(RuntimeError, match="forked"):
        backends.load_backend("cupy")
    monkeypatch.setattr(arrays, "why_unavailable", lambda name: None)
    with pytest.raises(RuntimeError, match="forked"):
        arrays.gpu_namespace()
