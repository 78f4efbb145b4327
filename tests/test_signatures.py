"""Functions that stand for one another have the same parameters: their names, order, kinds and defaults.

The operation's five functions over all backends, and every fast layer with the mathematics that it takes the place of.
No GPU is needed: the functions are compared, not called. Fast layers are called with what they refuse, before they look
for a GPU.
"""

import importlib
import importlib.util
import inspect
import pkgutil

import numpy as np
import pytest
from ramnet_np.kernels.cpu import BACKEND as ON_CPU
from ramnet_np.kernels.cuda.layers import LAYERS

import ramnet_np.layers
from ramnet_np.backend import Backend, DecodeBackward, DecodeForward, MemoryBackward, MemoryForward, Step, by_side
from ramnet_np.core import decoder, numpy_backend
from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.layers.embedding import embedding_forward

for module in pkgutil.iter_modules(ramnet_np.layers.__path__):  # each adds its functions to ACCELERATED
    importlib.import_module(f"ramnet_np.layers.{module.name}")

PROTOCOLS = {
    "decode_forward": DecodeForward,
    "decode_backward": DecodeBackward,
    "memory_forward": MemoryForward,
    "memory_backward": MemoryBackward,
    "step": Step,
}
MODULES = {  # where each backend has its memory and its step, and a decoder of both sides or, by_side, of one
    "numba": ("ramnet_np.kernels.cpu", "memory", "step", "decode"),
    "cupy": ("ramnet_np.kernels.cuda", "memory.memory", "step.step", "address.decode"),
    "numba-cuda": ("ramnet_np.kernels.numba_cuda", "memory", "step", "decode"),
}


def parameters(function):
    """Names, kinds and defaults, in order; without annotations, which mypy compares."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values() if p.name != "self"]


def functions_of(backend):
    if backend == "numpy":
        return {name: getattr(numpy_backend, name) for name in PROTOCOLS}
    package, *parts = MODULES[backend]
    memory, step, decode = (importlib.import_module(f"{package}.{part}") for part in parts)
    functions = {
        "decode_forward": decode.decode_forward,
        "decode_backward": decode.decode_backward,
        "memory_forward": memory.memory_forward,
        "memory_backward": memory.memory_backward,
        "step": step.step,
    }
    if backend != "cupy":
        for name in ("decode_forward", "decode_backward"):
            assert parameters(functions[name]) == parameters(getattr(decoder, name)), name
        pair = by_side(decode.decode_forward, decode.decode_backward)
        functions["decode_forward"], functions["decode_backward"] = pair
    return functions


@pytest.mark.parametrize("backend", ["numpy", *MODULES])
def test_the_operations_functions_have_the_same_parameters_in_every_backend(backend):
    for name, function in functions_of(backend).items():
        assert parameters(function) == parameters(PROTOCOLS[name].__call__), f"{backend}: {name}"


def test_the_protocols_are_those_of_a_backends_functions():
    annotations = inspect.get_annotations(Backend)
    assert {name: annotations[name] for name in PROTOCOLS} == {name: p.__name__ for name, p in PROTOCOLS.items()}


def test_every_fast_layer_stands_for_a_function_of_the_mathematics():
    assert set(LAYERS) | set(ON_CPU.layers) == set(ACCELERATED)
    for name, fast in ON_CPU.layers.items():
        assert parameters(fast) == parameters(ACCELERATED[name]), name


@pytest.mark.parametrize("name", LAYERS)
def test_a_fast_layer_has_the_parameters_of_the_mathematics(name):
    assert parameters(LAYERS[name]) == parameters(ACCELERATED[name])


X, ROW, TABLE = np.zeros((5, 3)), np.zeros(3), np.zeros((4, 3))
REFUSED = {
    "another width": ("rmsnorm_forward", (np.zeros((5, 4)), ROW)),
    "no array": ("rmsnorm_forward", ([1.0], ROW)),
    "another dtype": ("layernorm_forward", (X.astype(np.float32), ROW, ROW)),
    "dy of a norm": ("rmsnorm_backward", (X[:2], ACCELERATED["rmsnorm_forward"](X, ROW)[1])),
    "dy of a LayerNorm": ("layernorm_backward", (X[:2], ACCELERATED["layernorm_forward"](X, ROW, ROW)[1])),
    "the gate's other factor": ("gate_forward", (X, X[:2])),
    "dy of a gate": ("gate_backward", (X[:2], ACCELERATED["gate_forward"](X, X)[1])),
    "a convolution's weight": ("short_conv_forward", (np.zeros((1, 5, 3)), ROW)),
    "tokens before, too many": ("short_conv_forward", (X[None], np.zeros((3, 2)), np.zeros((1, 2, 3)))),
    "dy of a convolution": (
        "short_conv_backward",
        (X[None, :2], ACCELERATED["short_conv_forward"](X[None], np.zeros((3, 2)))[1]),
    ),
    "labels": ("cross_entropy_forward", (X, np.zeros(4, int))),
    "labels of the gradient": ("cross_entropy_and_gradient", (X, np.zeros(4, int))),
    "dy of an embedding": ("embedding_backward", (X[:2], embedding_forward(np.arange(4), TABLE)[1])),
    "a norm's width": ("normed_products", (X, np.ones(4), 1.0, (TABLE,), (None,))),
    "one of several matrices": ("normed_products", (X, ROW, 1.0, (TABLE, np.zeros((4, 2))), (None, None))),
    "another bias": ("normed_products", (X, ROW, 1.0, (TABLE,), (ROW,))),
    "a gate's width": ("normed_gated_product", (X, ROW, 1.0, TABLE, np.zeros((4, 2)))),
    "what is added": ("product_added", (X, TABLE, None, X)),
    "a product's dtype": ("product_added", (X, TABLE.astype(np.float32), None, np.zeros((5, 4)))),
    "matrices that are not square": ("unit_lower_inverse", (np.zeros((2, 3, 4)),)),
    "an odd size": ("unit_lower_inverse", (np.zeros((2, 3, 3)),)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fast_layer_refuses_what_the_mathematics_refuses_in_the_same_words(case):
    name, arguments = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as plain:
        ACCELERATED[name](*arguments)
    with pytest.raises(type(plain.value)) as fast:
        LAYERS[name](*arguments)
    assert str(fast.value) == str(plain.value)
