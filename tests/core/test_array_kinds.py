"""Arrays that nothing here serves are refused by name, whichever argument they are."""

import copy
import pickle

import numpy as np
import pytest

from ramnet_np import (
    RAMState,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
    use_backend,
)
from ramnet_np.backend import array_kind, load_backend, register_backend
from ramnet_np.core.require import require_array
from ramnet_np.layers.activation import gelu_forward, relu_forward, sigmoid_forward, silu_forward
from ramnet_np.layers.delta_rule import delta_rule_forward
from ramnet_np.layers.embedding import embedding_backward, embedding_forward
from ramnet_np.layers.gate import gate_forward
from ramnet_np.layers.linear import linear_backward, linear_forward
from ramnet_np.layers.loss import cross_entropy_backward, cross_entropy_forward
from ramnet_np.layers.mlp import mlp_forward
from ramnet_np.layers.norm import l2norm_forward, layernorm_forward, rmsnorm_forward
from ramnet_np.layers.rotary import rotary_forward
from ramnet_np.layers.scale import scale_forward
from ramnet_np.layers.short_conv import short_conv_forward
from ramnet_np.layers.softmax_attention import softmax_attention_forward

X, V = np.zeros((1, 2, 1, 2, 4)), np.ones((1, 2, 1, 3))


class Tensor:
    """As one of a framework that has the property of GPU arrays on its class, for tensors on the CPU too."""

    shape, ndim, dtype = (1, 2, 1, 3), 4, "torch.float32"

    @property
    def __cuda_array_interface__(self):
        raise AttributeError("Can't get __cuda_array_interface__ on non-CUDA tensor type")


class OnDevice(Tensor):
    __cuda_array_interface__ = None


class ByInstance:
    """One whose class does not tell that it is an array."""

    def __init__(self, **more):
        vars(self).update(shape=V.shape, ndim=V.ndim, dtype=V.dtype, **more)


def test_kinds():
    assert array_kind(X) == array_kind(np.float32(1)) == array_kind(None) == array_kind([1]) == "numpy"
    assert array_kind(np.zeros(2).view(type("Mine", (np.ndarray,), {}))) == "numpy"
    assert array_kind(np.ma.zeros(2)) == "numpy.MaskedArray"
    with pytest.warns(PendingDeprecationWarning, match="matrix"):
        assert array_kind(np.matrix([[1.0]])) == "numpy.matrix"
    assert array_kind(Tensor()) == "tests.Tensor"
    assert array_kind(OnDevice()) == "device"
    assert array_kind(ByInstance()) == "tests.ByInstance"  # as the arrays of some libraries
    assert array_kind(ByInstance(__cuda_array_interface__={})) == "device"
    with pytest.raises(TypeError, match=r"values must be a NumPy or CuPy array, got tests\.ByInstance on the CPU"):
        ram_attention_forward(X, X, ByInstance())


@pytest.mark.parametrize("name", ["write_logits", "read_logits", "values", "gamma", "mask", "positions", "state.slots"])
@pytest.mark.parametrize("wrong", ["MaskedArray", "Tensor"])
def test_the_operation_names_the_argument_of_another_kind(name, wrong):
    state = RAMState.initial(1, 1, 16, 3, np.float64)
    good = {
        "write_logits": X, "read_logits": X, "values": V, "gamma": np.ones((1, 2, 1)), "positions": np.arange(2),
        "mask": np.ones((1, 2), bool), "state": state,
    }  # fmt: skip
    ram_attention_forward(**good)

    def other(array):
        return Tensor() if wrong == "Tensor" else np.ma.masked_array(array, mask=False)

    if name == "state.slots":
        bad = good | {"state": state._replace(slots=other(state.slots))}
    else:
        bad = good | {name: other(good[name])}
    with pytest.raises(TypeError, match=f"^{name} must be .* got .*{wrong}"):
        ram_attention_forward(**bad)


def test_addresses_and_gradients_of_another_kind():
    with pytest.raises(TypeError, match=r"^logits must be a plain NumPy array, got numpy\.MaskedArray, whose mask"):
        decode_address(np.ma.zeros(X.shape))
    y, _, ctx = ram_attention_forward(X, X, V)
    with pytest.raises(TypeError, match=r"^dy must be a plain NumPy array"):
        ram_attention_backward(np.ma.masked_array(y), ctx)
    with pytest.raises(TypeError, match="ctx must be the RAMAttentionContext that ram_attention_forward returned last"):
        ram_attention_backward(ctx, y)
    with pytest.raises(TypeError, match=r"^dstate\.slots must be an array of the kind of values, got list"):
        ram_attention_backward(y, ctx, RAMState([1.0], [2.0]))


MASKED = np.ma.masked_array(np.ones((2, 4)), mask=[[True] * 4, [False] * 4])
W = np.ones(4)
HEADS = np.ones((1, 2, 1, 4))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda x: linear_forward(x, np.ones((3, 4)))),
        ("x", lambda x: rmsnorm_forward(x, W)),
        ("x", lambda x: layernorm_forward(x, W, W)),
        ("x", lambda x: short_conv_forward(x[None], np.ones((4, 2)))),
        ("x", lambda x: rotary_forward(x[None, :, None])),
        *(("x", f) for f in (sigmoid_forward, relu_forward, silu_forward, gelu_forward)),
        ("a", lambda x: gate_forward(x, x)),
        ("table", lambda x: embedding_forward(np.array([0]), x)),
        ("logits", lambda x: cross_entropy_forward(x, np.array([0, 1]))),
        ("q", lambda x: softmax_attention_forward(x[None, :, None], HEADS, HEADS)),
        ("q", lambda x: delta_rule_forward(x[None, :, None], HEADS, HEADS, np.ones((1, 2, 1)))),
    ],
)  # fmt: skip
def test_layers_refuse_masks_and_what_is_no_float(name, call):
    with pytest.raises(TypeError, match=rf"^{name} must be a plain NumPy array, got numpy\.MaskedArray"):
        call(MASKED)
    for dtype in (np.float16, np.int64, object, ">f8"):
        with pytest.raises(TypeError, match=f"^{name} must be float32 or float64.* got {np.dtype(dtype)}"):
            call(np.ones((2, 4), dtype))


def test_labels_and_ids_of_another_kind():
    logits = np.zeros((2, 5))
    with pytest.raises(TypeError, match=r"^labels must be a plain NumPy array"):
        cross_entropy_forward(logits, np.ma.masked_array([0, 1], mask=[True, False]))
    with pytest.raises(TypeError, match=r"^ids must be a plain NumPy array"):
        embedding_forward(np.ma.masked_array([0, 1]), logits)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint64, ">i4"])
def test_ids_and_labels_of_every_integer(dtype):
    table = np.random.default_rng(0).normal(size=(120, 3))
    y, ctx = embedding_forward(np.array([3, 119, 3], dtype), table)
    np.testing.assert_array_equal(y, table[[3, 119, 3]])
    np.testing.assert_array_equal(embedding_backward(np.ones_like(y), ctx)[[3, 119, 0], 0], [2, 1, 0])
    loss, ctx = cross_entropy_forward(table.T, np.array([0, 119, 7], dtype))
    expected, expected_ctx = cross_entropy_forward(table.T, np.array([0, 119, 7]))
    assert loss == expected
    np.testing.assert_array_equal(cross_entropy_backward(1.0, ctx), cross_entropy_backward(1.0, expected_ctx))


ONES = np.ones((2, 4))


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (
            ValueError,
            r"bias must be float64 of shape \(3,\)",
            lambda: linear_forward(ONES, np.ones((3, 4)), np.ones(1)),
        ),
        (ValueError, "bias must be float64", lambda: linear_forward(ONES, np.ones((3, 4)), np.ones(3, np.float32))),
        (ValueError, r"weight must have shape \(E, D\)", lambda: linear_forward(ONES, W)),
        (ValueError, r"bias must be float64 of shape \(4,\)", lambda: layernorm_forward(ONES, W, np.ones(1))),
        (ValueError, r"weight must have shape \(D,\)", lambda: rmsnorm_forward(ONES, W[:, None])),
        (TypeError, "weight must be an array, got list", lambda: rmsnorm_forward(ONES, [1.0] * 4)),
        (ValueError, "eps must be 0 or more and finite, got -1", lambda: rmsnorm_forward(ONES, W, -1.0)),
        (ValueError, "eps must be 0 or more and finite, got nan", lambda: layernorm_forward(ONES, W, W, np.nan)),
        (ValueError, "d at least 1", lambda: l2norm_forward(ONES[:, :0])),
        (TypeError, "before must be an array, got list", lambda: short_conv_forward(HEADS[0], np.ones((4, 2)), [1])),
        (TypeError, "window must be an integer", lambda: softmax_attention_forward(HEADS, HEADS, HEADS, 2.5)),
        (TypeError, "past must be a pair", lambda: softmax_attention_forward(HEADS, HEADS, HEADS, None, (HEADS,))),
        (ValueError, "base must be above 0", lambda: rotary_forward(HEADS, base=-1.0)),
        (ValueError, "tau must be above 0 and finite, got 0", lambda: scale_forward(ONES, None, np.ones(2), 0.0)),
        (ValueError, "R a multiple of 3 groups", lambda: scale_forward(ONES, None, np.ones(3), 1.0)),
        (ValueError, "activation must be one of", lambda: mlp_forward(ONES, ONES, ONES.T, [])),
        (ValueError, "backend must be one of", lambda: use_backend(["numpy"])),
        (ValueError, "slots must be at least 1, got 0", lambda: RAMState.initial(1, 1, 0, 3)),
        (ValueError, "batch must be at least 0, got -1", lambda: RAMState.initial(-1, 1, 4, 3)),
        (TypeError, "return_state must be True or False", lambda: ram_attention_forward(X, X, V, return_state="no")),
        (ValueError, "rows of unequal length", lambda: ram_attention_forward(X, X, V, positions=[[0], [1, 2]])),
    ],
)
def test_what_would_be_broadcast_or_end_in_a_traceback(error, words, call):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_swapped_arguments_of_a_layers_backward():
    y, ctx = linear_forward(np.ones((2, 4)), np.ones((3, 4)))
    with pytest.raises(TypeError, match="ctx must be the LinearContext that linear_forward returned last, got ndarray"):
        linear_backward(ctx, y)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_context_is_read_pickled_and_copied(backend):
    y, _, ctx = ram_attention_forward(X, X, V, backend=backend)
    assert repr(ctx).startswith(f"RAMAttentionContext(backend=Backend('{backend}'), write=DecodeContext, ")
    assert "y=float64 (1, 2, 1, 3), state_shape=(1, 1, 16, 3), gamma_is_number=True" in repr(ctx)
    assert repr(ctx.memory).startswith("MemoryContext(")
    expected = ram_attention_backward(y, ctx)
    for other in (pickle.loads(pickle.dumps(ctx)), copy.deepcopy(ctx)):
        assert other.backend is load_backend(backend)
        for a, b in zip(ram_attention_backward(y, other)[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_name_is_one_backend():
    register_backend("numpy", "ramnet_np.core.numpy_backend")  # itself again, as when a notebook's cell is run again
    with pytest.raises(ValueError, match="name must not be that of another backend, got 'numpy', which is ramnet_np"):
        register_backend("numpy", "my.module")


def test_what_is_no_array():
    with pytest.raises(TypeError, match="x must be an array, got list"):
        require_array("x", [1.0])
    with pytest.raises(TypeError, match=r"^values must be a NumPy or CuPy array, got tests\.Tensor on the CPU: "):
        ram_attention_step(X[:, :1], X[:, :1], Tensor(), state=RAMState.initial(1, 1, 16, 3))
