"""Softmax attention of 16-bit numbers on a GPU, against the mathematics in float64. Needs a GPU."""

import numpy as np
import pytest
from ramnet_np.kernels.cuda.layers.flash_attention import FlashAttentionContext

from ramnet_np.layers.softmax_attention import (
    SoftmaxAttentionContext,
    softmax_attention_backward,
    softmax_attention_forward,
)

pytestmark = pytest.mark.gpu

TOLERANCE = {"float16": 1.5e-3, "bfloat16": 1e-2}  # of a norm; rounded inputs, weights and results
TOKENS, PAST, WINDOWS = (1, 17, 64, 130, 257), (0, 33, 62), (None, 1, 5, 64)  # to both sides of the edges of tiles
CHANNELS = [(64, 64), (128, 128), (24, 40), (64, 128), (128, 8)]  # d_k, d_v


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def draw(dtype, T, d_k, d_v, past=0, B=2, H=3, size=1.0):
    """q, k, v, dy, and the keys and values before them, rounded to ``dtype``."""
    rng = np.random.default_rng(0)
    shapes = [(B, T, H, d_k)] * 2 + [(B, T, H, d_v)] * 2 + [(B, past, H, d_k), (B, past, H, d_v)]
    arrays = [rng.normal(size=shape) for shape in shapes]
    arrays[0] *= size
    return [a.astype(dtype_of(dtype)) for a in arrays]


def run(q, k, v, dy, past_k, past_v, window=None, fused=True):
    """y, dq, dk and dv."""
    y, ctx = softmax_attention_forward(q, k, v, window, (past_k, past_v) if past_k.shape[1] else None)
    if not isinstance(y, np.ndarray):
        assert isinstance(ctx, FlashAttentionContext if fused else SoftmaxAttentionContext)
    return y, *softmax_attention_backward(dy, ctx)


def check(cp, arrays, dtype, monkeypatch, window=None):
    """As in float64 on the same numbers; all of the results written; the same bits twice."""
    expected = run(*(a.astype(np.float64) for a in arrays), window)
    on_gpu = [cp.asarray(a) for a in arrays]
    results = [a.get() for a in run(*on_gpu, window)]
    for name, got, want in zip(("y", "dq", "dk", "dv"), results, expected, strict=True):
        assert (got.shape, got.dtype) == (want.shape, dtype_of(dtype))
        # a query that sees one key has no gradient; what its terms round to is measured by their size
        size = max(np.linalg.norm(want), 1e-2 * want.size**0.5)
        assert np.linalg.norm(got.astype(np.float64) - want) < TOLERANCE[dtype] * size, name
    empty = cp.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.view(np.uint8).fill(0xFF)
        return array

    with monkeypatch.context() as patch:
        patch.setattr(cp, "empty", poisoned)
        again = [a.get() for a in run(*on_gpu, window)]
    assert [a.tobytes() for a in again] == [a.tobytes() for a in results]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("window", WINDOWS)
def test_as_the_mathematics(cp, window, channels, dtype, monkeypatch):
    for tokens in TOKENS:
        for past in PAST:
            check(cp, draw(dtype, tokens, *channels, past), dtype, monkeypatch, window)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("tokens", "past", "window"), [(1000, 0, None), (1000, 300, 200), (1000, 5, 999)])
def test_long_sequences(cp, tokens, past, window, dtype, monkeypatch):
    check(cp, draw(dtype, tokens, 64, 64, past, B=1, H=2), dtype, monkeypatch, window)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_large_scores(cp, dtype, monkeypatch):
    """Weights that are nearly all 0 or 1."""
    check(cp, draw(dtype, 130, 64, 64, size=30.0), dtype, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_arrays_that_are_not_contiguous_or_aligned(cp, dtype):
    arrays = [cp.asarray(a) for a in draw(dtype, 70, 64, 64, past=5)]
    expected = run(*arrays, 9)
    wider = [cp.concatenate([a, a], axis=-1) for a in arrays]
    layouts = [
        [a.swapaxes(1, 2).copy().swapaxes(1, 2) for a in arrays],  # heads before tokens
        [cp.concatenate([a[..., :1], a], axis=-1)[..., 1:] for a in arrays],  # rows of 65
        [a[..., 64:] for a in wider],
        [cp.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape) for a in arrays],  # 2 bytes behind
    ]
    for laid_out in layouts:
        for got, want in zip(run(*laid_out, 9), expected, strict=True):
            assert got.get().tobytes() == want.get().tobytes()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_in_a_graph(cp, dtype):
    arrays = [cp.asarray(a) for a in draw(dtype, 130, 64, 64, past=37)]
    outside = [a.get() for a in run(*arrays, 100)]
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.Device().synchronize()
    with stream, cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        inside = run(*arrays, 100)
        graph = stream.end_capture()
    for _ in range(2):
        graph.launch(stream)
        stream.synchronize()
        assert [a.get().tobytes() for a in inside] == [a.tobytes() for a in outside]


@pytest.mark.parametrize(("dtype", "channels"), [("float32", 64), ("float16", 12), ("float16", 136)])
def test_what_the_kernels_do_not_serve_goes_the_other_way(cp, dtype, channels):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 70, 2, channels)).astype(dtype) for _ in range(4)]
    none = np.zeros((1, 0, 2, channels), dtype)
    expected = run(*(a.astype(np.float64) for a in (*arrays, none, none)))
    results = run(*(cp.asarray(a) for a in (*arrays, none, none)), fused=False)
    for got, want in zip(results, expected, strict=True):
        assert np.linalg.norm(got.get() - want) < 1e-2 * np.linalg.norm(want)
