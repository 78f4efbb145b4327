"""Fast layers without a GPU: a kernel is given what its source declares, and results have the forms of the core's.

Arrays stand in for CuPy's, and launches are looked at instead of made: as many arguments as the source has parameters,
each of its type, structs of the layout that the compile test checks. Numbers are for the tests that need a GPU.
"""

import dataclasses
import importlib
import pkgutil
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import ramnet_np.kernels.cuda.layers as fast_layers
from ramnet_np.kernels.cuda.layers import LAYERS, few_rows, flash_attention
from ramnet_np.kernels.cuda.optimizer import adamw
from ramnet_np.kernels.cuda.runtime.module import FOLDER

import ramnet_np.layers
from ramnet_np import backend
from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.layers.embedding import EmbeddingContext
from ramnet_np.layers.norm import layernorm_forward, rmsnorm_forward
from ramnet_np.layers.softmax_attention import softmax_attention_backward, softmax_attention_forward


class DeviceArray(np.ndarray):
    """A NumPy array with what the fast layers use of CuPy's."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0], device_id=0)

    def copy(self, order="C"):
        return device(np.array(self, order=order))

    def set(self, values, stream=None):
        self[...] = values

    def get(self):
        return np.asarray(self)


DeviceArray.__module__ = "cupy"  # by which the library of an array is told


def empty(shape, dtype=np.float64):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 16, np.uint8)
    start = -memory.ctypes.data % 16  # aligned as CuPy's
    return memory[start : start + size].view(dtype).reshape(shape).view(DeviceArray)


def device(values):
    values = np.asarray(values)
    array = empty(values.shape, values.dtype)
    array[...] = values
    return array


def declared(source, kernel):
    """The types of a kernel's parameters."""
    text = re.sub("//.*", "", (FOLDER / source).read_text())
    found = re.search(rf"__global__ void (?:__launch_bounds__\([^()]+\) )?{kernel}\(([^)]*)\)", text)
    return [" ".join(parameter.split()).rpartition(" ")[0] for parameter in found[1].split(",")]


@pytest.fixture
def launched(monkeypatch):
    """The names of kernels that were launched, each looked at."""
    log = []

    def get_kernel(specialisation, name):
        assert name in specialisation.kernels
        types = declared(specialisation.source, name)

        def launch(grid, block, arguments, shared_mem=0):
            assert all(size >= 1 for size in (*grid, *block))
            assert block[0] <= 1024
            for argument, kind in zip(arguments, types, strict=True):
                if kind.startswith("const __grid_constant__"):
                    struct = kind.split()[-1]
                    assert argument.dtype in [p.dtype for p in specialisation.params if p.name == struct]
                elif kind.endswith("*"):
                    assert isinstance(argument, DeviceArray)
                else:
                    assert type(argument) is {"int": np.int32, "long long": np.int64}[kind]
            log.append(name)

        return launch

    cupy = SimpleNamespace(
        empty=empty,
        zeros=empty,
        asarray=device,
        ascontiguousarray=lambda a: a if a.flags.c_contiguous else a.copy(),
        concatenate=lambda arrays, axis: device(np.concatenate(arrays, axis)),
        cuda=SimpleNamespace(
            Device=lambda: SimpleNamespace(compute_capability="80"),
            get_current_stream=lambda: None,
            runtime=SimpleNamespace(getDevice=lambda: 0),
        ),
        ndarray=DeviceArray,
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(DeviceArray, "device", SimpleNamespace(id=0), raising=False)
    monkeypatch.setattr(few_rows, "_limits", lambda gpu: few_rows.Limits(163 * 1024, clusters=False))
    for module in pkgutil.iter_modules(ramnet_np.layers.__path__):
        importlib.import_module(f"ramnet_np.layers.{module.name}")
    for module in pkgutil.iter_modules(fast_layers.__path__):
        loaded = importlib.import_module(f"ramnet_np.kernels.cuda.layers.{module.name}")
        if hasattr(loaded, "get_kernel"):
            monkeypatch.setattr(loaded, "get_kernel", get_kernel)
    monkeypatch.setattr(adamw, "get_kernel", get_kernel)
    core = backend.load_backend("numpy")
    fast = dataclasses.replace(core, name="cupy", array_kind="cupy", layers=LAYERS)
    monkeypatch.setattr(backend, "_loaded", {"cupy": fast, "numpy": core})
    return log


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


X, MATRICES, COLUMN = normal(2, 5, 7), normal(3, 2, 8, 8), normal(3, 2, 8, 1)
LABELS = np.array([[0, 1, -100, 3, 4]] * 2)
SCALED = normal(12, 7), normal(12)
# what a forward is given; then what its backward is given before the context
PAIRS = {
    "rmsnorm": ((X, normal(7)), (X,), ["norm_forward", "norm_backward", "add_parts"]),
    "layernorm": ((X, normal(7), normal(7)), (X,), ["norm_forward", "norm_backward", "add_parts"]),
    "gate": ((X, X), (X,), ["gate_forward", "gate_backward"]),
    "short_conv": (
        (X, normal(7, 4), normal(2, 3, 7)), (X,), ["conv_forward", "conv_backward", "conv_weights", "add_parts"],
    ),
    "scale": ((*SCALED, normal(2, 3), 0.5), SCALED, ["scale_forward", "scale_backward"]),
    "cross_entropy": ((X, LABELS), (2.0,), ["count_labels", "cross_entropy", "add_losses"] * 2),
}  # fmt: skip
SINGLE = {
    "sum_over_tokens": ((normal(20, 7),), ["column_sums", "add_parts"]),
    "cross_entropy_and_gradient": ((normal(10, 7), LABELS.ravel()), ["count_labels", "cross_entropy", "add_losses"]),
    "rotate": ((normal(2, 5, 3, 6), normal(5, 1, 3), normal(5, 1, 3)), ["rotate"]),
    "softmax_rows": ((normal(4, 5, 6), 1, 3, 0.5), ["softmax_rows"]),
    "softmax_rows_backward": ((*normal(2, 4, 5, 6), normal(4, 5, 1), 1, None, 0.5), ["softmax_rows_backward"]),
    "softmax_attention_step": (
        (*normal(3, 2, 1, 3, 5), tuple(normal(2, 2, 9, 3, 5)), np.array([7])),
        ["attend_pieces", "join_pieces"],
    ),
    "apply_decay": ((MATRICES, MATRICES, COLUMN, COLUMN), ["apply_decay"]),
    "apply_decay_backward": ((*(MATRICES,) * 4, COLUMN, COLUMN), ["apply_decay_backward"]),
    "unit_lower_inverse": ((MATRICES,), ["unit_lower_inverse"]),
    "few_rows_product": ((normal(5, 7), normal(3, 7)), ["few_rows"]),
    "normed_products": (
        (normal(5, 7), normal(7), 1e-6, (normal(3, 7), normal(9, 7)), (None, normal(9))),
        ["few_rows"],
    ),
    "normed_gated_product": ((normal(5, 7), normal(7), 1e-6, *normal(2, 3, 7)), ["few_rows"]),
    "product_added": ((normal(5, 7), normal(3, 7), normal(3), normal(5, 3)), ["few_rows"]),
}


def arrays_in(result):
    if isinstance(result, tuple):
        for part in result:
            yield from arrays_in(part)
    elif result is not None:
        yield np.asarray(result)


def require_same_form(fast, plain):
    # counts are int32 on the device
    forms = [[(a.shape, a.dtype.kind == "f" and a.dtype) for a in arrays_in(x)] for x in (fast, plain)]
    assert forms[0] == forms[1]
    assert type(fast) is type(plain) or isinstance(plain, np.ndarray | np.generic)


def on_device(arguments):
    moved = [device(a) if isinstance(a, np.ndarray) else a for a in arguments]
    return [tuple(on_device(a)) if type(a) is tuple else a for a in moved]


@pytest.mark.parametrize("name", PAIRS)
def test_forward_and_backward(launched, name):
    forward_arguments, backward_arguments, kernels = PAIRS[name]
    results = []
    for arguments, to in ((forward_arguments, on_device), (forward_arguments, list)):
        functions = LAYERS if to is on_device else ACCELERATED
        *outputs, ctx = functions[f"{name}_forward"](*to(arguments))
        results.append((tuple(outputs), functions[f"{name}_backward"](*to(backward_arguments), ctx)))
    (outputs, grads), (plain_outputs, plain_grads) = results
    require_same_form(outputs, plain_outputs)
    require_same_form(grads, plain_grads)
    assert launched == kernels


@pytest.mark.parametrize("name", SINGLE)
def test_functions_without_a_context(launched, name):
    arguments, kernels = SINGLE[name]
    plain = ACCELERATED[name](*(a.copy() if isinstance(a, np.ndarray) else a for a in arguments))
    require_same_form(LAYERS[name](*on_device(arguments)), plain)
    assert launched == kernels


FLASH = ["flash_forward", "flash_row_sums", "flash_keys_backward", "flash_queries_backward"]


@pytest.mark.parametrize(("d_k", "d_v"), [(64, 64), (8, 128), (72, 24)])
def test_attention_of_16_bits(launched, d_k, d_v):
    q, k, v = (device(normal(2, 5, 3, d).astype(np.float16)) for d in (d_k, d_k, d_v))
    y, ctx = softmax_attention_forward(q, k, v, 4, past=(k[:, :2], v[:, :2]))
    assert (y.shape, y.dtype) == (v.shape, v.dtype)
    assert (ctx.k.shape[1], ctx.v.shape[1], ctx.log_sums.shape) == (7, 7, (2, 3, 5))
    grads = softmax_attention_backward(y, ctx)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (q, k, v)]
    assert launched == FLASH
    with pytest.raises(ValueError, match="dy must be float16 of shape"):
        softmax_attention_backward(y[:, 1:], ctx)
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        softmax_attention_forward(q, k, v, 0)


def test_other_attention_goes_the_way_of_the_mathematics(launched, monkeypatch):
    served = normal(2, 5, 3, 64).astype(np.float16)
    others = [served.astype(np.float32), served[..., :12], np.repeat(served, 3, axis=-1)]
    forward = LAYERS["softmax_attention_forward"]
    assert [forward(*[device(x)] * 3) for x in others] == [NotImplemented] * 3
    assert forward(device(served), device(served), device(others[2])) is NotImplemented
    old = SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability="75"))
    monkeypatch.setattr(sys.modules["cupy"], "cuda", old)
    assert forward(*[device(served)] * 3) is NotImplemented
    y, ctx = ACCELERATED["softmax_attention_forward"](*[others[0]] * 3)
    assert LAYERS["softmax_attention_backward"](y, ctx) is NotImplemented
    assert launched == []


def test_blocks_and_shared_memory_of_attention():
    """Every query and key has one block, and two stages fit what a block of compute capability 8.0 can have."""
    for d_k, d_v, rows, bytes_of_stages in ((64, 64, 128, 32768), (8, 65, 64, 49152), (128, 128, 64, 65536)):
        defines = dict(flash_attention.flash_specialisation("bfloat16", d_k, d_v).defines)
        assert defines["QUERIES"] == defines["KEYS"] == rows
        assert all(padded in (64, 128) and padded >= d for padded, d in ((defines["D_K"], d_k), (defines["D_V"], d_v)))
        assert flash_attention.shared_bytes("flash_forward", d_k, d_v) == bytes_of_stages
        assert flash_attention.shared_bytes("flash_keys_backward", d_k, d_v) == bytes_of_stages + 1024
        for tokens in (1, 64, 65, 128, 129):
            q, v = empty((2, tokens, 3, d_k), np.float16), empty((2, tokens, 3, d_v), np.float16)
            ctx = flash_attention.FlashAttentionContext(q, q, v, v, v, None)
            assert flash_attention.blocks_of(ctx) == 6 * len(range(0, tokens, rows))


def test_a_product_over_many_tokens(launched):
    dweight = LAYERS["weight_product"](device(normal(5000, 20)), device(normal(5000, 9)))
    assert dweight.shape == (20, 9)
    assert launched == ["weight_gradient_splitk", "add_parts"]


def test_an_embedding(launched):
    ctx = EmbeddingContext(device(np.zeros((2, 5), np.int64)), 9, rmsnorm_forward.__wrapped__(X, normal(7))[0])
    assert LAYERS["embedding_backward"](device(X), ctx).shape == (9, 7)
    assert launched == ["embedding_order", "embedding_sums"]


def test_the_decorator_finds_the_fast_version_through_arrays_and_contexts(launched):
    y, ctx = layernorm_forward(*on_device((X, normal(7), normal(7))))
    assert isinstance(y, DeviceArray)
    assert launched == ["norm_forward"]
    assert isinstance(ctx.mean, DeviceArray)


def test_adamw(launched):
    params = {"a": device(normal(70, 130)), "b": device(normal(5))}
    moments = [{name: empty(p.shape, p.dtype) for name, p in params.items()} for _ in range(2)]
    settings = adamw.AdamWSettings([0.1, 0.2], beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=2.0)
    optimizer = adamw.DeviceAdamW(params, *moments, {"a"}, 3, settings)
    table = optimizer.addresses()
    optimizer.bind(table, optimizer.contiguous(params))
    assert table[:, 3].tolist() == table[:, 0].tolist() == [p.data.ptr for p in params.values()]
    assert table[:, 4:].tolist() == [[0, 9100, 1], [0, 5, 0]]
    optimizer.update(table, empty((), np.float32), *(empty((), np.int32) for _ in range(2)))
    assert launched == ["gradient_squares", "adamw_prepare", "adamw_update"]
    assert optimizer.numbers() == {
        "loss": 0, "correct": 0, "labels": 0, "norm": 0, "rate": 0, "updates": 3, "stopped": 0,
    }  # fmt: skip
