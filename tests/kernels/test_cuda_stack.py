"""How stacked matrices are told to cuBLAS: leading dimension, stride and transpose, for views of every kind. No GPU."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ramnet_np.kernels.cuda.layers.blas import Stack, _require_one_dtype


def stack_of(array):
    return Stack.of(array.shape, tuple(step // array.itemsize for step in array.strides))


def read(array, stack, base):
    """The matrices that cuBLAS would read from ``base``, from the first element of ``array`` on."""
    *outer, rows, columns = array.shape
    first = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // array.itemsize
    flat, count = base.ravel(), int(np.prod(outer))
    assert stack.leading >= (rows if stack.transposed else columns)  # as cuBLAS insists

    def element(i, row, column):
        along, across = (column, row) if stack.transposed else (row, column)
        return flat[first + i * stack.stride + along * stack.leading + across]

    found = [[[element(i, r, c) for c in range(columns)] for r in range(rows)] for i in range(count)]
    return np.array(found).reshape(array.shape)


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.data(),
)
def test_what_is_taken_as_a_stack_is_read_as_it_is(shape, data):
    """Slices, steps, swapped axes, axes in another order, broadcast axes."""
    base = np.arange(np.prod(shape) * 2 ** len(shape)).reshape([2 * n for n in shape])
    view = base[tuple(slice(data.draw(st.integers(0, 1)), None, data.draw(st.integers(1, 2))) for _ in shape)]
    view = view.transpose(data.draw(st.permutations(range(len(shape)))))
    if data.draw(st.booleans()):
        view = np.broadcast_to(view, (3, *view.shape))
    stack = stack_of(view)
    if stack is not None:
        np.testing.assert_array_equal(read(view, stack, base), view)


def test_what_attention_multiplies_needs_no_copy():
    x = np.zeros((6, 4, 64, 10))  # (heads, chunks, tokens, channels)
    for view, expected in (
        (x, Stack(False, 10, 640)),
        (x.swapaxes(-1, -2), Stack(True, 10, 640)),
        (x[..., 3:7], Stack(False, 10, 640)),
        (x[:, 2, :, 3:].swapaxes(-1, -2), Stack(True, 10, 2560)),
        (x[:, :, 5:20], Stack(False, 10, 640)),
        (x.reshape(24, 640)[:, 10:30], Stack(False, 640, 0)),
        (x[..., :1], Stack(False, 10, 640)),
        (x[..., :1, :], Stack(False, 10, 640)),
    ):
        assert stack_of(view) == expected


@pytest.mark.parametrize(
    "view",
    [
        np.zeros((4, 6, 8))[:, ::2, ::2],
        np.zeros((2, 3, 4, 5))[:, ::2],
        np.zeros((2, 3, 4, 5)).transpose(1, 0, 2, 3),
        np.zeros((3, 4, 5))[::-1],
        np.broadcast_to(np.zeros(5), (3, 4, 5)),
    ],
)
def test_what_has_no_single_stride_is_copied(view):
    assert stack_of(view) is None


def test_products_of_different_dtypes_are_refused():
    single, double = np.zeros(1, np.float32), np.zeros(1)
    _require_one_dtype(single, single, None)
    _require_one_dtype(double, double, double)
    with pytest.raises(TypeError, match="a, b and accumulate_into must have one dtype, got float32 and float64"):
        _require_one_dtype(single, double, None)
    with pytest.raises(TypeError, match="got float32 and float32, accumulate_into float64"):
        _require_one_dtype(single, single, double)
