"""The kernels for a few rows: near the mathematics, the same bits for any number of rows and threads."""

import numba
import numpy as np
import pytest
from ramnet_np.kernels.cpu import BACKEND, products
from ramnet_np.kernels.cpu.norm import few_rows_rmsnorm
from ramnet_np.kernels.cpu.products import few_rows_product

from ramnet_np.backend import use_backend
from ramnet_np.contract import RAMState
from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.core.bfloat16 import from_bfloat16, to_bfloat16
from ramnet_np.core.option_checks import check_options
from ramnet_np.layers.few_rows import normed_products, normed_swiglu_added, product_added
from ramnet_np.layers.linear import linear_backward, linear_forward
from ramnet_np.layers.norm import rmsnorm_forward
from ramnet_np.layers.ram_step import ram_step

RNG = np.random.default_rng(0)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_product_is_that_of_the_mathematics_for_any_rows_and_threads(dtype, monkeypatch):
    x, weight = RNG.normal(size=(8, 131)).astype(dtype), RNG.normal(size=(257, 131)).astype(dtype)
    whole = few_rows_product(x, weight)
    np.testing.assert_allclose(whole, ACCELERATED["few_rows_product"](x, weight), atol=50 * TOLERANCE[dtype])
    monkeypatch.setattr(products, "BYTES_PER_PIECE", 4096)  # shared out in many pieces
    usual = numba.get_num_threads()
    for threads in {1, usual}:
        numba.set_num_threads(threads)
        for rows in (1, 3, 8):
            np.testing.assert_array_equal(few_rows_product(x[:rows], weight), whole[:rows])
    numba.set_num_threads(usual)
    assert few_rows_product(x, weight.T.copy().T) is NotImplemented
    np.testing.assert_allclose(linear_forward(x, weight.T.copy().T)[0], whole, atol=50 * TOLERANCE[dtype])
    assert np.isnan(few_rows_product(np.full_like(x, np.nan), weight)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_norm_is_that_of_the_mathematics(dtype):
    x, weight = RNG.normal(size=(5, 200)).astype(dtype), RNG.normal(size=200).astype(dtype)
    x[1], x[2] = 0, x[2] / 10 * np.finfo(dtype).max  # squares that overflow
    for got, wanted in zip(
        few_rows_rmsnorm(x, weight, 1e-6), ACCELERATED["few_rows_rmsnorm"](x, weight, 1e-6), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=20 * TOLERANCE[dtype], atol=0)
    assert np.isfinite(few_rows_rmsnorm(x, weight, 1e-6)[0]).all()
    np.testing.assert_array_equal(few_rows_rmsnorm(x[3:4], weight, 1e-6)[0], few_rows_rmsnorm(x, weight, 1e-6)[0][3:4])


def test_layers_take_them_for_a_few_rows_and_a_selected_backend_decides(monkeypatch):
    x, weight = RNG.normal(size=(1, 8, 160)), RNG.normal(size=(160, 160))
    product = linear_forward(x, weight)[0]
    np.testing.assert_array_equal(product[0], few_rows_product(x[0], weight))
    np.testing.assert_array_equal(rmsnorm_forward(x, weight[0])[0][0], few_rows_rmsnorm(x[0], weight[0], 1e-6)[0])
    with use_backend("numpy"):
        np.testing.assert_array_equal(linear_forward(x, weight)[0], x @ weight.T)
    many = np.concatenate([x, x], axis=1)
    np.testing.assert_array_equal(linear_forward(many, weight)[0][0], many[0] @ weight.T)


def normal(*shape):
    return RNG.normal(size=shape)


X, NORM = normal(8, 160), 1 + normal(160) / 4
DIGITS = 2, 3, 4  # H, U, P; 8 channels
MAPS = tuple(normal(rows, 160) / 12 for rows in (24, 24, 80))
SETTINGS = check_options(
    64, 2, update="pdma", top_k=(5, 3), renorm=(True, False), cape_heads=1, eps=1e-12, proxy_eps=0.0, mass_aware=True
)
CASES = {
    "normed_products": lambda x: (x, NORM, 1e-6, MAPS, (normal(24), None, normal(80))),
    "product_added": lambda x: (x, normal(120, 160), normal(120), normal(len(x), 120)),
    "product_added without a bias": lambda x: (x, normal(120, 160), None, normal(len(x), 120)),
    "normed_swiglu_added": lambda x: (x, NORM, 1e-6, normal(128, 160), normal(128, 160), normal(160, 128)),
    "ram_step": lambda x: (
        x, NORM, 1e-6, MAPS, (normal(24), normal(24), normal(80)), normal(160, 80), normal(160), 0.9,
        np.arange(len(x))[:, None] + 5, state_of(len(x)), DIGITS, *SETTINGS,
    ),
}  # fmt: skip


def state_of(sequences):
    return RAMState(normal(sequences, 2, 64, 40), normal(sequences, 2, 64) ** 2)


def rows_of(argument, rows):
    """The first ``rows`` sequences of an argument, which it shares with no other; x has 8."""
    if isinstance(argument, RAMState):
        return RAMState(*(array[:rows].copy() for array in argument))
    return argument[:rows].copy() if isinstance(argument, np.ndarray) and len(argument) == 8 else argument


@pytest.mark.parametrize("case", CASES)
def test_a_call_for_several_steps_is_the_mathematics_and_a_row_is_the_same_beside_others(case):
    name = case.partition(" ")[0]
    arguments = CASES[case](X)
    together = [rows_of(argument, 8) for argument in arguments]
    wanted = ACCELERATED[name](*(rows_of(argument, 8) for argument in arguments))
    fast = BACKEND.layers[name](*together)
    assert fast is not NotImplemented
    for got, right in zip(*((y if isinstance(y, tuple) else (y,)) for y in (fast, wanted)), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-9)
    for rows in (1, 3):
        alone = [rows_of(argument, rows) for argument in arguments]
        some = BACKEND.layers[name](*alone)
        for got, whole in zip(*((y if isinstance(y, tuple) else (y,)) for y in (some, fast)), strict=True):
            np.testing.assert_array_equal(got, whole[:rows])
        for got, whole in zip(alone, together, strict=True):
            if isinstance(got, RAMState):
                np.testing.assert_array_equal(got.slots, whole.slots[:rows])


def test_matrices_that_threads_share_out_are_those_of_the_mathematics():
    """Pieces begin and end within a matrix; a matrix is one output, and so is the last piece."""
    width = 1000
    each = products.BYTES_PER_PIECE // (4 * width)
    maps = [normal(rows, width).astype(np.float32) for rows in (each + 9, 1, 2 * each - 9)]
    assert sum(weight.nbytes for weight in maps) >= products.SHORT
    x, norm, *biases = (
        normal(*shape).astype(np.float32) for shape in ((2, width), (width,), *[w.shape[:1] for w in maps])
    )
    arguments = x, norm, 1e-6, tuple(maps), tuple(biases)
    fast, wanted = BACKEND.layers["normed_products"](*arguments), ACCELERATED["normed_products"](*arguments)
    for got, right in zip(fast, wanted, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-3)
    usual = numba.get_num_threads()
    numba.set_num_threads(1)
    alone = BACKEND.layers["normed_products"](x[1:].copy(), *arguments[1:])
    numba.set_num_threads(usual)
    for got, whole in zip(alone, fast, strict=True):
        np.testing.assert_array_equal(got, whole[1:])


def test_one_output_has_its_bias_and_what_is_added():
    x, weight, bias, add = normal(1, 2**14), normal(1, 2**14), normal(1), normal(1, 1)
    y = BACKEND.layers["product_added"](x, weight, bias, add)
    np.testing.assert_allclose(y, x @ weight.T + bias + add, rtol=1e-12)


def test_a_step_of_a_layer_leaves_the_state_of_the_mathematics():
    arguments = CASES["ram_step"](X)
    states = []
    for function in (BACKEND.layers["ram_step"], ACCELERATED["ram_step"]):
        given = [rows_of(argument, 8) for argument in arguments]
        function(*given)
        states += [argument for argument in given if isinstance(argument, RAMState)]
    for fast, wanted in zip(*states, strict=True):
        np.testing.assert_allclose(fast, wanted, rtol=1e-9, atol=1e-12)


def in_float32(argument, matrix):
    """An argument of CASES in float32; ``matrix``: what becomes of a matrix of weights, which has more rows than x."""
    if isinstance(argument, RAMState):
        return RAMState(*(array.astype(np.float32) for array in argument))
    if isinstance(argument, tuple) and any(isinstance(part, np.ndarray) for part in argument):
        return tuple(in_float32(part, matrix) for part in argument)
    if not isinstance(argument, np.ndarray) or argument.dtype != np.float64:
        return argument
    argument = argument.astype(np.float32)
    return matrix(argument) if argument.ndim == 2 and len(argument) > 8 else argument


@pytest.mark.parametrize("case", CASES)
def test_matrices_in_16_bits_are_their_rounded_numbers(case):
    """In the kernels and in the mathematics; sums may be taken in another order."""
    name = case.partition(" ")[0]
    arguments = CASES[case](X)
    results = []
    for matrix in (to_bfloat16, lambda weight: from_bfloat16(to_bfloat16(weight))):
        for layers in (BACKEND.layers, ACCELERATED):
            y = layers[name](*(in_float32(rows_of(argument, 8), matrix) for argument in arguments))
            assert y is not NotImplemented
            results.append(y if isinstance(y, tuple) else (y,))
    for other in results[1:]:
        for got, wanted in zip(results[0], other, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("inputs", [160, 10])
def test_a_linear_map_takes_a_weight_in_16_bits(rows, inputs):
    x, weight, bias = (array.astype(np.float32) for array in (normal(rows, inputs), normal(200, inputs), normal(200)))
    y, ctx = linear_forward(x, to_bfloat16(weight), bias)
    wanted, _ = linear_forward(x, from_bfloat16(to_bfloat16(weight)), bias)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    assert abs(y - linear_forward(x, weight, bias)[0]).max() > 1e-3  # rounding shows
    with pytest.raises(TypeError, match="weight must be float32 or float64 on the CPU, got uint16"):
        linear_backward(y, ctx)
    with pytest.raises(TypeError, match="x must have the dtype of the weight"):
        linear_forward(x.astype(np.float64), to_bfloat16(weight))


REFUSED = {
    "x of another width": (normed_products, (X[:, :3], NORM, 1e-6, MAPS, (None,) * 3), "x must have 160 channels"),
    "a bias too few": (normed_products, (X, NORM, 1e-6, MAPS, (None,) * 2), "zip"),
    "a short bias": (normed_products, (X, NORM, 1e-6, MAPS, (None, None, normal(3))), "bias must be float64"),
    "add": (product_added, (X, MAPS[2], None, X), "add must be float64"),
    "gate and up": (normed_swiglu_added, (X, NORM, 1e-6, normal(128, 160), normal(127, 160), X), "up must be float64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_kernel_does_not_serve_the_mathematics_refuses(case):
    function, arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("wrong", ["logits", "state", "positions"])
def test_a_step_of_a_layer_that_is_refused_changes_nothing(wrong):
    arguments = list(CASES["ram_step"](X))
    if wrong == "logits":
        arguments[0] = np.full_like(X, np.nan)
    if wrong == "state":
        arguments[9] = RAMState(arguments[9].slots[:, :, :63].copy(), arguments[9].mass)
    if wrong == "positions":
        arguments[8] = np.arange(3)
    before = [array.copy() for array in arguments[9]]
    with pytest.raises(ValueError, match=r"must be finite|state\.slots must have shape|positions must have shape"):
        ram_step(*arguments)
    for array, old in zip(arguments[9], before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_large_matrices_many_rows_and_other_layouts_are_left_to_the_mathematics(monkeypatch):
    arguments = CASES["ram_step"](X)
    served = BACKEND.layers["ram_step"]
    assert served(np.concatenate([X, X]), *arguments[1:]) is NotImplemented
    assert served(*arguments[:5], np.asfortranarray(arguments[5]), *arguments[6:]) is NotImplemented
    monkeypatch.setitem(served.__globals__, "SHORT", 1000)
    assert served(*arguments) is NotImplemented
    monkeypatch.setattr(products, "SHORT", 1000)
    assert BACKEND.layers["normed_swiglu_added"](*CASES["normed_swiglu_added"](X)) is NotImplemented
