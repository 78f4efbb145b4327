"""One token's softmax attention without a GPU: its C++ on the CPU, token after token, against the mathematics."""

import functools
import importlib
import shutil
import sys

import numpy as np
import pytest

from ramnet_np.layers.softmax_attention import softmax_attention_forward
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu
from tests.kernels.test_cuda_step_on_cpu import on

attention_step = importlib.import_module("ramnet_np.kernels.cuda.layers.attention_step")
B, H = 2, 3
TOLERANCE = {"float64": 1e-13, "float32": 1e-6}


@pytest.fixture
def step(tmp_path, monkeypatch):
    """``softmax_attention_step`` with launches that run on the CPU."""
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")

    library = functools.cache(lambda kernels: compile_for_cpu(kernels, tmp_path, attention_step.THREADS))

    def get_kernel(kernels, name):
        run = getattr(library(kernels), f"run_{name}")
        return lambda grid, threads, arguments: run(arguments[0].tobytes(), *grid, 1, 1)

    cupy = FakeCuPy()
    cupy.empty = lambda shape, dtype: on(np.full(shape, np.nan, dtype))
    monkeypatch.setattr(attention_step, "get_kernel", get_kernel)

    def step(q, k, v, cache, used):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "cupy", cupy)
            return np.asarray(
                attention_step.softmax_attention_step(*(x.view(OnDevice) for x in (q, k, v)), cache, on(used))
            )

    return step


def draw(dtype, d_k, d_v, tokens):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, tokens, H, d)).astype(dtype) for d in (d_k, d_k, d_v)]


def with_room(before, size):
    """A cache with NaN where nothing is yet."""
    room = on(np.full((len(before), size, *before.shape[2:]), np.nan, before.dtype))
    room[:, : before.shape[1]] = before
    return room


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("d_k", "d_v"), [(16, 33), (6, 5)], ids=str)  # 6: no whole vectors in float32
@pytest.mark.parametrize("used", [0, 1, 31, 63, 64, 127, 140])  # to both sides of the edges of warps and pieces
def test_as_the_mathematics_in_any_room(step, used, d_k, d_v, dtype):
    q, k, v = draw(dtype, d_k, d_v, used + 1)
    past = k[:, :-1], v[:, :-1]
    wide = [x.astype(np.float64) for x in (q[:, -1:], k[:, -1:], v[:, -1:], *past)]
    expected, _ = softmax_attention_forward(*wide[:3], past=tuple(wide[3:]))
    found = []
    for size in (used + 1, 256):
        cache = tuple(with_room(x[:, :-1], size) for x in (k, v))
        found.append(step(q[:, -1:], k[:, -1:], v[:, -1:], cache, np.array([used])))
        for part, whole in zip(cache, (k, v), strict=True):
            np.testing.assert_array_equal(part[:, : used + 1], whole)
            assert np.isnan(part[:, used + 1 :].astype(np.float64)).all()
    assert found[0].dtype == q.dtype
    assert abs(found[0].astype(np.float64) - expected).max() < TOLERANCE[dtype] * max(1, abs(expected).max())
    assert found[0].tobytes() == found[1].tobytes()


def test_a_row_is_the_same_beside_others_and_at_any_size_of_its_scores(step):
    q, k, v = draw("float64", 8, 8, 70)
    q[1] *= 300  # weights that are nearly all 0 or 1
    args = [x[:, -1:] for x in (q, k, v)]
    together = step(*args, tuple(with_room(x[:, :-1], 128) for x in (k, v)), np.array([69]))
    expected, _ = softmax_attention_forward(*args, past=(k[:, :-1], v[:, :-1]))
    np.testing.assert_allclose(together, expected, rtol=1e-9, atol=1e-12)
    [alone] = step(*(x[1:] for x in args), tuple(on(with_room(x[:, :-1], 128)[1:]) for x in (k, v)), np.array([69]))
    assert alone.tobytes() == together[1].tobytes()


def test_many_pieces_are_joined_at_the_largest_score_of_all(step):
    """33 pieces, more than a warp has lanes, and the largest score is in the last."""
    q, k, v = (x[:1, :, :1] for x in draw("float64", 2, 2, 32 * attention_step.PIECE + 1))
    k[:, -1] = 2000 * q[:, -1]
    args = [x[:, -1:] for x in (q, k, v)]
    y = step(*args, tuple(with_room(x[:, :-1], k.shape[1]) for x in (k, v)), np.array([k.shape[1] - 1]))
    expected, _ = softmax_attention_forward(*args, past=(k[:, :-1], v[:, :-1]))
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_views_are_taken_and_what_does_not_fit_is_refused(step):
    q, k, v = draw("float64", 4, 4, 3)
    cache, used = tuple(with_room(x[:, :-1], 4) for x in (k, v)), np.array([2])
    views = [np.repeat(x[:, -1:], 2, axis=-1)[..., ::2] for x in (q, k, v)]
    expected, _ = softmax_attention_forward(*views, past=(k[:, :-1], v[:, :-1]))
    np.testing.assert_allclose(step(*views, cache, used), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="q must hold one token in a step, got 2"):
        step(q[:, 1:], k[:, 1:], v[:, 1:], cache, used)
