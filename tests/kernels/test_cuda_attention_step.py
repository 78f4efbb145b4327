"""One token's softmax attention over a cache on a GPU, against the mathematics in float64. Needs a GPU."""

import numpy as np
import pytest

from ramnet_np.layers.softmax_attention import softmax_attention_forward, softmax_attention_step

pytestmark = pytest.mark.gpu

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1.5e-2}
B, H, ROOM, TOKENS = 2, 3, 200, 150


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("d_k", "d_v"), [(64, 64), (16, 40), (3, 5), (128, 136)], ids=str)
def test_a_graph_takes_in_token_after_token(d_k, d_v, dtype, monkeypatch):
    cp = pytest.importorskip("cupy")
    rng = np.random.default_rng(0)
    dtype_of = np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    whole = [cp.asarray(rng.normal(size=(B, TOKENS, H, d)).astype(dtype_of)) for d in (d_k, d_k, d_v)]
    expected, _ = softmax_attention_forward(*(x.get().astype(np.float64) for x in whole))
    token = [x[:, :1].copy() for x in whole]
    cache = tuple(cp.full((B, ROOM, H, d), np.nan, dtype_of) for d in (d_k, d_v))
    used = cp.zeros(1, np.int64)
    first = softmax_attention_step(*token, cache, used).get()
    empty = cp.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.view(np.uint8).fill(0xFF)
        return array

    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    cp.cuda.Device().synchronize()
    with stream, cp.cuda.using_allocator(pool.malloc), monkeypatch.context() as patch:
        patch.setattr(cp, "empty", poisoned)
        stream.begin_capture()
        y = softmax_attention_step(*token, cache, used)
        used += 1
        graph = stream.end_capture()
    with stream:
        for t in range(TOKENS):
            for one, all_of_them in zip(token, whole, strict=True):
                one[...] = all_of_them[:, t : t + 1]
            graph.launch(stream)
            got = y.get()
            if t == 0:
                assert got.tobytes() == first.tobytes()
            assert np.linalg.norm(got[:, 0] - expected[:, t]) < TOLERANCE[dtype] * np.linalg.norm(expected[:, t])
    for part, all_of_them in zip(cache, whole[1:], strict=True):
        assert part[:, :TOKENS].get().tobytes() == all_of_them.get().tobytes()
    assert int(used[0]) == TOKENS
