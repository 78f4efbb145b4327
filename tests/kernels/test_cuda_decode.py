"""The CUDA decoder against the NumPy core: the same slots exactly, weights and gradients within their tolerance."""

import importlib.util

import numpy as np
import pytest
from ramnet_np.kernels.cuda.address import decode

from ramnet_np import decode_address
from ramnet_np.core import decoder
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu

# (U, P, K): each kind of kernel, K = 1, K = M, one below and at the limits of the registers, and beyond
SHAPES = [
    (1, 2, 1), (1, 2, 2), (1, 3, 3), (1, 4, 1), (1, 7, 5), (1, 16, 8), (1, 16, 16), (1, 300, 8), (1, 300, 64),
    (1, 300, 300), (1, 1024, 16),
    (2, 2, 4), (2, 3, 5), (2, 3, 9), (2, 4, 8), (2, 7, 32), (2, 7, 49), (2, 16, 5), (2, 16, 32), (2, 16, 64),
    (2, 16, 256), (2, 32, 32), (2, 33, 8), (5, 2, 8), (5, 2, 32), (5, 3, 31), (5, 4, 1), (5, 4, 5), (5, 4, 8),
    (5, 4, 16), (5, 4, 17), (5, 4, 32), (5, 4, 33), (5, 4, 64), (5, 4, 1024), (5, 7, 64), (5, 16, 8), (8, 2, 256),
    (8, 3, 8), (8, 4, 8), (8, 4, 32), (8, 7, 5), (12, 2, 8), (12, 2, 64), (12, 2, 4096), (12, 3, 32), (12, 4, 5),
    (15, 2, 16384), (30, 2, 6),
]  # fmt: skip
LOGITS = ["normal", "ties", "equal", "zeros", "huge", "near-ties"]
HALVES = ["float16", *(["bfloat16"] if importlib.util.find_spec("ml_dtypes") else [])]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "U{}-P{}-K{}".format(*shape))


def decode_forward(logits, top_k, renorm, cape_heads, positions):
    """One side."""
    [side] = decode.decode_forward((logits,), (top_k,), (renorm,), cape_heads, positions)
    return side


def decode_backward(dweight, ctx):
    [dlogits] = decode.decode_backward((dweight,), (ctx,))
    return dlogits


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def draw(rng, kind, shape, dtype):
    """Logits (B, T, H, U, P)."""
    normal = rng.normal(size=shape)
    logits = {
        "normal": 1.5 * normal,
        "ties": rng.integers(0, 3, shape),
        "equal": np.full(shape, 0.7),
        "zeros": np.where(normal < 0, -0.0, 0.0),
        "huge": 500 * normal,
        # sums that tie only by rounding, and scores that flushing to zero would turn into ties
        "near-ties": rng.choice([0, -1e-40, -3e-9, -1e-8, -2e-8, -1, -1 - 1e-7, -5, -5 + 4e-7], size=shape),
    }[kind]
    return np.asarray(logits).astype(dtype)


def both(cp, logits, top_k, renorm, cape_heads, positions, dweight):
    """index, weight, dlogits of the kernels and of the core, which is given the logits in the dtype of its sums."""
    index, weight, ctx = decode_forward(cp.asarray(logits), top_k, renorm, cape_heads, cp.asarray(positions))
    dlogits = decode_backward(cp.asarray(dweight), ctx)
    upcast = logits.astype(dweight.dtype)
    expected_index, expected_weight, expected_ctx = decoder.decode_forward(upcast, top_k, renorm, cape_heads, positions)
    expected = expected_index, expected_weight, decoder.decode_backward(dweight, expected_ctx)
    return tuple(map(cp.asnumpy, (index, weight, dlogits))), expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@shapes
def test_decode_equals_numpy(cp, shape, dtype):
    U, P, K = shape
    B, T, H, M = 2, 37, 3, P**U
    rng = np.random.default_rng(U * 1000 + P)
    for number, kind in enumerate(LOGITS):
        logits = draw(rng, kind, (B, T, H, U, P), dtype)
        positions = rng.integers(-10 * M - 5, 10 * M + 5, (B, T)) + number % 2 * 2**40
        dweight = rng.normal(size=(B, T, H, K)).astype(dtype)
        for renorm in (False, True):
            (index, weight, dlogits), expected = both(cp, logits, K, renorm, number % (H + 1), positions, dweight)
            np.testing.assert_array_equal(index, expected[0], err_msg=kind)
            assert index.dtype == np.int32
            assert_close(weight, expected[1], name=kind)
            assert_close(dlogits, expected[2], gradient=True, name=kind)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(5, 4, 8), (5, 4, 32), (3, 5, 7), (10, 2, 8), (5, 4, 64)])
def test_decode_of_half_precision_equals_numpy_on_the_same_numbers(cp, shape, dtype):
    U, P, K = shape
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    rng = np.random.default_rng(3)
    positions = rng.integers(0, 1000, (2, 40))
    dweight = rng.normal(size=(2, 40, 3, K)).astype(np.float32)
    for kind in ("normal", "ties", "huge"):
        logits = draw(rng, kind, (2, 40, 3, U, P), dtype)
        (index, weight, dlogits), expected = both(cp, logits, K, True, 2, positions, dweight)
        np.testing.assert_array_equal(index, expected[0])
        assert_close(weight, expected[1])
        assert dlogits.dtype == logits.dtype
        rounding = 2.0**-8 if dlogits.dtype.name == "bfloat16" else 2.0**-11
        np.testing.assert_allclose(dlogits.astype(np.float32), expected[2], rtol=rounding + 1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 70_001])
@pytest.mark.parametrize("top_k", [8, 64])
def test_decode_of_any_number_of_rows_equals_numpy(cp, rows, top_k):
    rng = np.random.default_rng(rows)
    logits, positions = draw(rng, "normal", (1, rows, 1, 5, 4), np.float32), np.arange(rows)[None]
    dweight = rng.normal(size=(1, rows, 1, top_k)).astype(np.float32)
    (index, weight, dlogits), expected = both(cp, logits, top_k, False, 1, positions, dweight)
    np.testing.assert_array_equal(index, expected[0])
    assert_close(weight, expected[1])
    assert_close(dlogits, expected[2], gradient=True)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3)])
@pytest.mark.parametrize("top_k", [8, 64])
def test_decode_of_nothing(cp, shape, top_k):
    logits = cp.empty((*shape, 5, 4), dtype=np.float32)
    index, weight, ctx = decode_forward(logits, top_k, False, 1, cp.empty(shape[:2], dtype=np.int64))
    assert index.shape == weight.shape == (*shape, top_k)
    assert decode_backward(weight, ctx).shape == logits.shape


def call(cp, inputs, shape):
    """index, weight, dlogits, on the device."""
    logits, positions, dweight = inputs
    index, weight, ctx = decode_forward(logits, shape[2], True, 2, positions)
    return index, weight, decode_backward(dweight, ctx)


def device_inputs(cp, shape):
    U, P, K = shape
    rng = np.random.default_rng(5)
    logits = draw(rng, "normal", (3, 50, 3, U, P), np.float32)
    return tuple(map(cp.asarray, (logits, rng.integers(-99, 9999, (3, 50)), rng.normal(size=(3, 50, 3, K)))))


def bits(cp, arrays):
    return [cp.asnumpy(array).tobytes() for array in arrays]


kinds = pytest.mark.parametrize("shape", [(5, 4, 8), (3, 5, 7), (5, 4, 64), (12, 2, 4096)])


@kinds
def test_the_same_bits_twice_and_every_element_written(cp, shape, monkeypatch):
    """What ``cupy.empty`` hands out the second time is NaN, or an impossible slot."""
    inputs = device_inputs(cp, shape)
    expected = bits(cp, call(cp, inputs, shape))
    assert bits(cp, call(cp, inputs, shape)) == expected
    empty, poisoned = cp.empty, []

    def poison(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.fill({"f": np.nan, "i": -(2**31), "u": 255}[array.dtype.kind])
        poisoned.append(array.size)
        return array

    monkeypatch.setattr(cp, "empty", poison)
    actual = call(cp, inputs, shape)
    monkeypatch.undo()
    assert len(poisoned) >= 2
    assert bits(cp, actual) == expected


@kinds
def test_inputs_of_any_layout_give_the_same_bits_and_are_left_alone(cp, shape):
    inputs = device_inputs(cp, shape)
    expected, before = bits(cp, call(cp, inputs, shape)), bits(cp, inputs)

    def misaligned(a):
        shifted = cp.empty(a.size + 1, dtype=a.dtype)[1:].reshape(a.shape)
        shifted[...] = a
        return shifted

    def strided(a):
        wide = cp.empty((*a.shape[:-1], 2 * a.shape[-1]), dtype=a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]

    for layout in (cp.asfortranarray, misaligned, strided, lambda a: a[::-1].copy()[::-1]):
        assert bits(cp, call(cp, tuple(map(layout, inputs)), shape)) == expected
    assert bits(cp, inputs) == before


def test_broadcast_positions_are_read_where_they_are(cp):
    logits = device_inputs(cp, (5, 4, 8))[0]
    positions = cp.broadcast_to(cp.arange(50, dtype=np.int64), (3, 50))
    broadcast, copied = (decode_forward(logits, 8, False, 3, p)[0] for p in (positions, positions.copy()))
    assert bits(cp, [broadcast]) == bits(cp, [copied])


@pytest.mark.parametrize("top_k", [8, 64])
def test_a_nan_logit_stays_in_its_token_and_head(cp, top_k):
    logits, positions, _ = device_inputs(cp, (5, 4, top_k))
    expected = cp.asnumpy(decode_forward(logits, top_k, False, 0, positions)[1])
    logits[1, 7, 2, 3, 1] = np.nan
    logits[2, 9, 0, 0] = np.nan
    index, weight, _ = map(cp.asnumpy, (*decode_forward(logits, top_k, False, 0, positions)[:2], logits))
    hit = np.zeros(weight.shape[:3], dtype=bool)
    hit[1, 7, 2] = hit[2, 9, 0] = True
    assert np.isnan(weight[hit]).all()
    np.testing.assert_array_equal(weight[~hit], expected[~hit])
    assert (np.diff(np.sort(index), axis=-1) > 0).all()
    assert index.min() >= 0
    assert index.max() < 4**5


@kinds
def test_a_captured_graph_gives_the_same_bits(cp, shape):
    inputs = device_inputs(cp, shape)
    expected = bits(cp, call(cp, inputs, shape))
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        call(cp, inputs, shape)  # so that the pool holds what the capture takes from it
        stream.synchronize()
        stream.begin_capture()
        captured = call(cp, inputs, shape)
        graph = stream.end_capture()
        for array in captured:
            array.fill(0)
        graph.launch(stream)
        stream.synchronize()
        assert bits(cp, captured) == expected


def test_subnormal_weights_are_0_and_select_the_same_slots(cp):
    """As docs/guide/numerics.md tells: CuPy compiles with -ftz=true."""
    logits = np.zeros((1, 1, 1, 1, 4), np.float32)
    logits[0, 0, 0, 0] = [0, -95, -96, -200]  # exp(-95) is 5.5e-42
    address = decode_address(cp.asarray(logits), top_k=3)
    on_cpu = decode_address(logits, top_k=3)
    assert address.index.get().tolist() == on_cpu.index.tolist() == [[[[0, 1, 2]]]]
    assert address.weight.get().tolist() == [[[[1, 0, 0]]]]
    assert (on_cpu.weight > 0).all()
