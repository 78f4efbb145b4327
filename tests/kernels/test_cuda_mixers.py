"""Attention, the recurrences and the short convolution on a GPU, as NumPy has them, in a graph too. Needs a GPU."""

import numpy as np
import pytest

from ramnet_np import use_backend
from ramnet_np.layers.delta_rule import delta_rule_backward, delta_rule_forward
from ramnet_np.layers.gated_linear_attention import gated_linear_attention_backward, gated_linear_attention_forward
from ramnet_np.layers.linear_attention import linear_attention_backward, linear_attention_forward
from ramnet_np.layers.matmul import matmul
from ramnet_np.layers.norm import l2norm_backward, l2norm_forward
from ramnet_np.layers.rotary import rotary_backward, rotary_forward
from ramnet_np.layers.short_conv import short_conv_backward, short_conv_forward
from ramnet_np.layers.softmax_attention import softmax_attention_backward, softmax_attention_forward
from ramnet_np.layers.triangular import unit_lower_inverse

pytestmark = pytest.mark.gpu

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}
SHAPES = [
    (1, 1, 1, 2, 1),
    (2, 5, 3, 4, 5),
    (3, 64, 1, 16, 32),
    (2, 150, 2, 6, 5),
    (1, 300, 2, 64, 64),
]  # B, T, H, d_k, d_v


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def softmax(window=None, past=0):
    def run(q, k, v, dy, **_):
        before = (k[:, :past] * 2, v[:, :past] - 1) if past else None
        y, ctx = softmax_attention_forward(q, k, v, window, before)
        return y, *softmax_attention_backward(dy, ctx)

    return run


def linear(q, k, v, dy, linear_state, **_):
    y, state, ctx = linear_attention_forward(q, k, v, linear_state)
    return y, state, *linear_attention_backward(dy, ctx)


def delta(gated):
    def run(q, k, v, dy, beta, log_decay, state, **_):
        k, k_ctx = l2norm_forward(k)
        y, state, ctx = delta_rule_forward(q, k, v, beta, log_decay if gated else None, state)
        grads = delta_rule_backward(dy, ctx)
        return y, state, l2norm_backward(grads.k, k_ctx), *(g for g in grads if g is not None)

    return run


def plain_linear(q, k, v, dy, state, **_):
    y, state, ctx = linear_attention_forward(q, k, v, state, feature_map="identity", normaliser=False)
    return y, state, *linear_attention_backward(dy, ctx)


def gated_linear(decay):
    def run(q, k, v, dy, state, **arrays):
        log_decay = arrays[decay] if decay == "channel_decay" else arrays[decay][..., None]
        y, state, ctx = gated_linear_attention_forward(q, k, v, log_decay, state)
        return y, state, *gated_linear_attention_backward(dy, ctx)

    return run


def rotary(given):
    def run(q, positions, **_):
        y, ctx = rotary_forward(q, positions if given else None)
        return y, rotary_backward(q, ctx)

    return run


def conv(before):
    def run(x, weight, dx, **_):
        earlier = x[:, :before] * 2 if before else None
        y, ctx = short_conv_forward(x, weight, earlier)
        return y, *short_conv_backward(dx, ctx)

    return run


WORK = {
    "softmax": softmax(),
    "softmax-past": softmax(past=1),
    "window-1": softmax(1),
    "window-7": softmax(7, past=1),
    "window-100": softmax(100),
    "linear": linear,
    "linear-identity": plain_linear,
    "gla": gated_linear("channel_decay"),
    "mamba2": gated_linear("log_decay"),
    "delta": delta(gated=False),
    "gated-delta": delta(gated=True),
    "rotary": rotary(given=False),
    "rotary-positions": rotary(given=True),
    "conv": conv(0),
    "conv-before": conv(1),
}


def draw(B, T, H, d_k, d_v, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (B, T, H, d_k), "k": (B, T, H, d_k), "v": (B, T, H, d_v), "dy": (B, T, H, d_v),
        "state": (B, H, d_k, d_v), "x": (B, T, H * d_v), "dx": (B, T, H * d_v), "weight": (H * d_v, 4),
    }  # fmt: skip
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    arrays["beta"] = rng.uniform(0, 1, (B, T, H)).astype(dtype)
    arrays["log_decay"] = -rng.uniform(0, 0.5, (B, T, H)).astype(dtype)
    resets = rng.random((B, T, H, d_k)) < 0.1  # decays of 0 among others
    arrays["channel_decay"] = np.where(resets, -200, -rng.uniform(0, 0.5, (B, T, H, d_k))).astype(dtype)
    arrays["linear_state"] = rng.uniform(0, 1, (B, H, d_k, d_v + 1)).astype(dtype)
    arrays["positions"] = rng.integers(0, 3000, (B, T))
    return arrays


def close(results, expected, tolerance):
    for got, want in zip(results, expected, strict=True):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) <= tolerance * max(1.0, np.linalg.norm(want))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", WORK)
def test_as_numpy_inside_and_outside_of_a_graph(cp, name, shape, dtype, monkeypatch):
    arrays = draw(*shape, dtype)
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    expected = WORK[name](**wide)
    on_gpu = {n: cp.asarray(a) for n, a in arrays.items()}
    # without fused functions, CuPy's own
    with use_backend("numpy"):
        close([a.get() for a in WORK[name](**on_gpu)], expected, TOLERANCE[dtype])
    empty = cp.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.view(np.uint8).fill(0xFF) if array.ndim else array.fill(-1)
        return array

    with monkeypatch.context() as patch:
        patch.setattr(cp, "empty", poisoned)
        outside = [a.get() for a in WORK[name](**on_gpu)]
    close(outside, expected, TOLERANCE[dtype])
    for got, want in zip(outside, expected, strict=True):
        assert got.dtype == (dtype if want.dtype.kind == "f" else want.dtype)
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.Device().synchronize()
    with stream:
        WORK[name](**on_gpu)  # cuBLAS's workspace of this stream
        with cp.cuda.using_allocator(pool.malloc):
            stream.begin_capture()
            inside = WORK[name](**on_gpu)
            graph = stream.end_capture()
        for _ in range(2):
            graph.launch(stream)
            stream.synchronize()
            for got, want in zip(inside, outside, strict=True):
                assert got.get().tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_stacked_products_of_transposes_slices_and_copies(cp, dtype):
    rng = np.random.default_rng(0)
    a, b, sums = (rng.normal(size=s).astype(dtype) for s in ((3, 4, 6, 5), (3, 4, 5, 7), (3, 4, 6, 9)))
    lefts = [lambda x: x, lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2), lambda x: x.repeat(2, -1)[..., ::2]]
    for left in lefts:
        for right in lefts:
            product = matmul(left(cp.asarray(a)), right(cp.asarray(b))).get()
            np.testing.assert_allclose(product, a @ b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    target = cp.asarray(sums)
    part = target[..., 1:8]
    assert matmul(cp.asarray(a), cp.asarray(b), accumulate_into=part) is part
    expected = sums.copy()
    expected[..., 1:8] += a @ b
    np.testing.assert_allclose(target.get(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    shared = cp.broadcast_to(cp.asarray(a[0, 0]), (3, 4, 6, 5))  # one matrix for all
    np.testing.assert_allclose(matmul(shared, cp.asarray(b)).get(), a[0, 0] @ b, rtol=1e-4, atol=1e-4)
    assert matmul(cp.zeros((0, 2, 3)), cp.zeros((0, 3, 4))).shape == (0, 2, 4)
    assert not matmul(cp.zeros((2, 2, 0)), cp.zeros((2, 0, 4))).any()
    with pytest.raises(ValueError, match=r"a, b must have shapes \(\.\.\., m, k\), \(\.\.\., k, n\)"):
        matmul(cp.asarray(a), cp.asarray(a))
    with pytest.raises(TypeError, match="a, b and accumulate_into must have one dtype"):
        matmul(cp.asarray(a), cp.asarray(b).astype(np.float16))
    with pytest.raises(ValueError, match="accumulate_into must have contiguous rows"):
        matmul(cp.asarray(a), cp.asarray(b), cp.asarray(sums.repeat(2, -1))[..., :14:2])


@pytest.mark.parametrize("size", [1, 2, 32, 64])
def test_triangular_inverse(cp, size):
    below = np.random.default_rng(0).normal(size=(70, 3, size, size)) / size
    below[0] = 1  # tokens that are all alike
    inverse = unit_lower_inverse(cp.asarray(below)).get()
    np.testing.assert_allclose(inverse, unit_lower_inverse(below), rtol=1e-10, atol=1e-12)
    single = unit_lower_inverse(cp.asarray(below, dtype=np.float32)).get()
    np.testing.assert_allclose(single, unit_lower_inverse(below), rtol=1e-4, atol=1e-5)


def test_a_convolution_of_no_sequences(cp):
    y, ctx = short_conv_forward(cp.zeros((0, 5, 3)), cp.ones((3, 2)))
    dx, dweight = short_conv_backward(y, ctx)
    assert dx.shape == (0, 5, 3)
    assert not dweight.any()


def test_a_convolution_of_16_bits(cp):
    """Against float32 on the same numbers: on the CPU there is no float16."""
    drawn = draw(2, 40, 1, 2, 30, np.float32)
    narrow = {n: drawn[n].astype(np.float16) for n in ("x", "weight", "dx")}
    expected = conv(0)(**{n: a.astype(np.float32) for n, a in narrow.items()})
    narrow = {n: cp.asarray(a) for n, a in narrow.items()}
    for got, want in zip(conv(0)(**narrow), expected, strict=True):
        np.testing.assert_allclose(got.get().astype(np.float64), want, rtol=2e-2, atol=5e-2)
