"""Arrays that reach the Numba CUDA backend: kinds, layouts, dtypes, streams; and what is refused, in one sentence."""

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda.compiler import cuda
from ramnet_np.kernels.numba_cuda.memory import memory_forward

from ramnet_np import RAMState, decode_address, ram_attention_backward, ram_attention_forward, ram_attention_step
from ramnet_np.contract import Address, MemoryOptions
from ramnet_np.layers.norm import rmsnorm_forward
from tests.kernels.numba_cuda_device import NEEDS_GPU, on_device, on_host, sized, to_device
from tests.operation_cases import Case, assert_same_bits, draw, run
from tests.tolerances import assert_close

pytestmark = NEEDS_GPU
CASE = Case("arrays", T=5, gamma="token", masked=0.3, state=True, positions=True, options={"cape_heads": 1})


def strided(array):
    """The same numbers, two apart."""
    array = np.asarray(array)
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return cuda.to_device(wide)[(slice(None),) * (wide.ndim - 1) + (slice(None, None, 2),)]


def test_arrays_of_any_layout_give_the_same_bits():
    inputs = draw(sized(CASE), np.float32)
    assert_same_bits(on_device(inputs, convert=strided), on_device(inputs))


def test_a_step_updates_a_state_of_any_layout_in_place():
    inputs = draw(Case("step", B=1, T=1, C=3, state=True), np.float64)
    results = []
    for convert in (to_device, strided):
        state = RAMState(*map(convert, inputs.options["state"]))
        y, returned = ram_attention_step(*map(to_device, inputs.arrays), state=state)
        assert returned is state
        results.append({"y": on_host(y), "slots": on_host(state.slots), "mass": on_host(state.mass)})
    assert_same_bits(*results)


def test_the_backend_follows_the_arrays_and_returns_its_own():
    inputs = draw(sized(Case("default", T=3)), np.float32)
    y, state, ctx = ram_attention_forward(*map(to_device, inputs.arrays))
    assert ctx.backend.name == "numba-cuda"
    for array in (y, *state, *ram_attention_backward(y, ctx)[:4]):
        assert hasattr(array, "__cuda_ndarray__")


@pytest.mark.parametrize("make", [np.asarray, lambda p: np.asarray(p, np.int32), to_device])
def test_positions_from_the_host_and_of_other_integers(make):
    inputs = draw(sized(Case("positions", T=4)), np.float64)
    logits = inputs.arrays[0]
    positions = 7 * np.arange(logits.shape[1])
    index, _ = decode_address(to_device(logits), cape_heads=2, positions=make(positions))
    np.testing.assert_array_equal(on_host(index), decode_address(logits, cape_heads=2, positions=positions).index)


def test_half_precision_inputs_with_float32_sums():
    """Against float64 on the rounded inputs: what is left is the rounding of y and of the gradients."""
    inputs = draw(sized(Case("half", T=4, gamma="token", options={"cape_heads": 1})), np.float32)
    half = [np.asarray(a, np.float16) for a in (*inputs.arrays, inputs.gamma, inputs.dy)]
    *arrays, dy = map(to_device, half)
    y, state, ctx = ram_attention_forward(*arrays, cape_heads=1)
    grads = ram_attention_backward(dy, ctx)
    wide = [a.astype(np.float64) for a in half]
    y_wide, _, ctx_wide = ram_attention_forward(*wide[:4], cape_heads=1, backend="numpy")
    expected = ram_attention_backward(wide[4], ctx_wide)
    assert state.slots.dtype == np.float32
    for actual, value in ((y, y_wide), *zip(grads[:4], expected[:4], strict=True)):
        assert actual.dtype == np.float16
        error = np.linalg.norm(on_host(actual).astype(np.float64) - value)
        assert error < 4e-3 * max(1.0, np.linalg.norm(value))


def test_the_gradient_of_a_number_gamma_has_no_axes():
    inputs = draw(sized(Case("number", T=3)), np.float64)
    _, _, ctx = ram_attention_forward(*map(to_device, inputs.arrays), 0.5)
    gamma = ram_attention_backward(to_device(inputs.dy), ctx).gamma
    assert gamma.shape == ()
    _, _, on_cpu = ram_attention_forward(*inputs.arrays, 0.5, backend="numpy")
    assert_close(on_host(gamma), ram_attention_backward(inputs.dy, on_cpu).gamma, gradient=True)


def test_what_is_refused_is_said_in_one_sentence():
    inputs = draw(sized(Case("refused", T=2)), np.float32)
    arrays = [*map(to_device, inputs.arrays)]
    with pytest.raises(TypeError, match="backend 'numba-cuda' serves device and cupy arrays, got numpy arrays"):
        ram_attention_forward(*inputs.arrays, backend="numba-cuda")
    with pytest.raises(TypeError, match="backend 'numpy' serves numpy and cupy arrays, got device arrays"):
        ram_attention_forward(*arrays, backend="numpy")
    with pytest.raises(TypeError, match="must be arrays of one library, got device, device, numpy"):
        ram_attention_forward(*arrays[:2], inputs.arrays[2], backend="numba-cuda")
    with pytest.raises(TypeError, match=r"arrays on a GPU must be CuPy's here"):
        rmsnorm_forward(arrays[2], to_device(np.ones(inputs.arrays[2].shape[-1], np.float32)))
    with pytest.raises(ValueError, match=r"gamma must be a number or have shape"):
        ram_attention_forward(*arrays, to_device(np.ones(3, np.float32)))
    many = np.zeros((1, 1, 1, 1, 60_000), np.float32)
    with pytest.raises(ValueError, match="top_k must leave room for a row's lists in shared memory, got 60000"):
        ram_attention_forward(to_device(many), to_device(many), to_device(many[0]), top_k=60_000)


def test_an_unknown_update_rule_is_refused_in_one_sentence():
    inputs = draw(sized(Case("rule", T=2)), np.float32)
    address = Address(*decode_address(to_device(inputs.arrays[0])))
    arguments = address, address, to_device(inputs.arrays[2]), 1.0, None, None
    with pytest.raises(ValueError, match=r"^the backend 'numba-cuda' knows the update rules pdma, gsu, got 'other'$"):
        memory_forward(*arguments, MemoryOptions(slots=64, update="other"), return_state=False)


def test_a_batch_of_none_launches_nothing():
    inputs = draw(Case("none", B=0), np.float32)
    assert on_device(inputs)["y"].shape == inputs.dy.shape
    assert run(inputs, "numpy")["y"].shape == inputs.dy.shape
