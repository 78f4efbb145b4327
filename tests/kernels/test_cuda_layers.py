"""The fused layers against the core's plain mathematics, in float64, float32 and 16 bits. Needs a GPU."""

import numpy as np
import pytest

from ramnet_np import use_backend
from ramnet_np.layers.embedding import embedding_backward, embedding_forward
from ramnet_np.layers.gate import gate_backward, gate_forward
from ramnet_np.layers.linear import add_in_place, linear_backward, linear_forward
from ramnet_np.layers.loss import cross_entropy_and_gradient, cross_entropy_backward, cross_entropy_forward
from ramnet_np.layers.norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.address import address_backward, address_forward
from ramnet_np.train.optim import adamw_init, adamw_update, clip_by_global_norm, has_weight_decay

pytestmark = pytest.mark.gpu

ROWS = [(1, 1), (3, 7), (129, 64), (40, 33), (5, 1000), (4300, 20), (2, 4097), (700, 264)]
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def draw(shape, dtype, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def run(arrays, call):
    """What ``call`` returns for arrays, as NumPy arrays."""
    return [x.get() if hasattr(x, "get") else np.asarray(x) for x in call(*arrays)]


def sums_of(dtype):
    """The dtype of sums over tokens, gradients of parameters and losses."""
    return np.float64 if dtype == "float64" else np.float32


def check(cp, arrays, call, dtype, monkeypatch, sums=(), sizes=None):
    """On the GPU as in NumPy's float64 on the same numbers; poisoned outputs; the same bits twice.

    ``sums``: which of the results are gradients of parameters or losses. ``sizes``: of results whose terms nearly
    cancel, the norm of what the terms add up to in absolute value.
    """
    wide = [a.astype(np.float64) if a.dtype.kind not in "iu" else a for a in arrays]
    expected = run(wide, call)
    actual = run([cp.asarray(a) for a in arrays], call)
    assert len(actual) == len(expected)
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        assert got.shape == want.shape
        if want.dtype.kind == "f":
            assert got.dtype == (sums_of(dtype) if i in sums else dtype_of(dtype))
        size = max(1.0, np.linalg.norm(want), (sizes or {}).get(i, 0))
        assert np.linalg.norm(got.astype(np.float64) - want) < TOLERANCE[dtype] * size
    empty = cp.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.view(np.uint8).fill(0xFF) if array.ndim else array.fill(-1)
        return array

    with monkeypatch.context() as patch:
        patch.setattr(cp, "empty", poisoned)
        again = run([cp.asarray(a) for a in arrays], call)
    for got, want in zip(again, actual, strict=True):
        assert got.tobytes() == want.tobytes()


def rmsnorm(x, weight, dy, add=None):
    y, ctx = rmsnorm_forward(x, weight, 1e-5)
    return y, *rmsnorm_backward(dy, ctx, add)


def layernorm(x, weight, bias, dy, add=None):
    y, ctx = layernorm_forward(x, weight, bias, 1e-5)
    return y, *layernorm_backward(dy, ctx, add)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_norms(cp, shape, dtype, monkeypatch):
    kind = dtype_of(dtype)
    x, dy = 3 + draw(shape, kind, 0), draw(shape, kind, 1)
    weight, bias = draw(shape[1:], kind, 2), draw(shape[1:], kind, 3)
    check(cp, [x.astype(kind), weight, dy], rmsnorm, dtype, monkeypatch, sums=(2,))
    check(cp, [x.astype(kind), weight, bias, dy], layernorm, dtype, monkeypatch, sums=(2, 3))
    add = draw(shape, kind, 4)
    check(cp, [x.astype(kind), weight, dy, add], rmsnorm, dtype, monkeypatch, sums=(2,))
    check(cp, [x.astype(kind), weight, bias, dy, add], layernorm, dtype, monkeypatch, sums=(2, 3))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [*ROWS, (129, 256)], ids=str)
def test_additions_in_place(cp, shape, dtype, monkeypatch):
    def add(y, x):
        y = y.copy()
        assert add_in_place(y, x) is y
        return [y]

    kind = dtype_of(dtype)
    for x in (draw(shape, kind, 1), draw(shape[1:], kind, 1)):
        check(cp, [draw(shape, kind, 0), x], add, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_gates(cp, shape, silu, dtype, monkeypatch):
    def gate(a, b, dy):
        y, ctx = gate_forward(a, b, silu=silu)
        return y, *gate_backward(dy, ctx)

    arrays = [draw(shape, dtype_of(dtype), seed) for seed in range(3)]
    arrays[0][0, 0] = -200  # whose exponential overflows
    check(cp, arrays, gate, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("rows", "width", "outputs"),
    [(1, 1, 1), (5, 1, 3), (129, 64, 20), (4000, 20, 64), (7, 3, 1), (4096, 64, 20), (5001, 70, 65)],
)
def test_linear_maps(cp, rows, width, outputs, dtype, monkeypatch):
    def linear(x, weight, bias, dy, sums):
        y, ctx = linear_forward(x, weight, bias)
        grads = linear_backward(dy, ctx)
        return y, *grads, linear_backward(dy, ctx, accumulate_into=sums.copy()).x

    shapes = (rows, width), (outputs, width), (outputs,), (rows, outputs), (rows, width)
    check(cp, [draw(s, dtype_of(dtype), i) for i, s in enumerate(shapes)], linear, dtype, monkeypatch, sums=(2, 3))


def test_products_of_transposes_and_views(cp):
    from ramnet_np.kernels.cuda.layers.blas import matrix_product

    a, b = draw((6, 8), np.float32, 0), draw((8, 10), np.float32, 1)
    for left in (cp.asarray(a), cp.asarray(a.T.copy()).T, cp.asarray(np.repeat(a, 2, axis=1))[:, ::2]):
        for right in (cp.asarray(b), cp.asarray(b.T.copy()).T, cp.asarray(np.repeat(b, 2, axis=0))[::2]):
            np.testing.assert_allclose(matrix_product(left, right).get(), a @ b, rtol=1e-5, atol=1e-5)
    assert matrix_product(cp.zeros((0, 3), np.float32), cp.zeros((3, 2), np.float32)).shape == (0, 2)
    assert matrix_product(cp.zeros((2, 0), np.float32), cp.zeros((0, 3), np.float32)).get().tolist() == [[0] * 3] * 2


def test_products_of_float32_are_not_rounded_to_tf32(cp):
    """1 + 2**-12 is a float32 and no TF32 number."""
    from ramnet_np.kernels.cuda.layers.blas import matrix_product

    a = cp.full((64, 64), 1 + 2**-12, dtype=np.float32)
    assert (matrix_product(a, cp.eye(64, dtype=np.float32)).get() == np.float32(1 + 2**-12)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 2), (9, 7), (130, 300), (3, 20_000)], ids=str)
def test_cross_entropy(cp, shape, dtype, monkeypatch):
    logits = 4 * draw(shape, dtype_of(dtype), 0)
    labels = np.random.default_rng(1).integers(shape[1], size=shape[0])
    labels[0], labels[2::5] = 1, -100
    logits[-1] = 0  # a tie for the largest

    def loss(x, labels):
        result = cross_entropy_and_gradient(x.copy(), labels)
        plain, ctx = cross_entropy_forward(x, labels)
        return *result, plain, cross_entropy_backward(0.5, ctx)

    check(cp, [logits, labels], loss, dtype, monkeypatch, sums=(0, 4))


def test_cross_entropy_in_place_and_without_labels(cp):
    logits = cp.asarray(draw((4, 6), np.float32, 0))
    result = cross_entropy_and_gradient(logits, cp.full(4, -100))
    assert result.dlogits.data.ptr == logits.data.ptr
    assert float(result.loss) == 0
    assert not result.dlogits.get().any()
    outside = cross_entropy_and_gradient(logits, cp.array([0, 1, 6, 2]))  # not looked at on the host: shows as NaN
    assert np.isnan(float(outside.loss))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("tokens", "rows", "width"), [(1, 1, 1), (7, 3, 5), (600, 40, 33), (1300, 200, 64), (50, 1000, 8)]
)
def test_embedding_gradient(cp, tokens, rows, width, dtype, monkeypatch):
    def lookup(table, ids, dy):
        y, ctx = embedding_forward(ids, table)
        return y, embedding_backward(dy, ctx)

    rng = np.random.default_rng(0)
    for ids in (rng.integers(rows, size=tokens), np.full(tokens, rows - 1), rng.zipf(1.2, size=tokens) % rows):
        table, dy = draw((rows, width), dtype_of(dtype), 1), draw((tokens, width), dtype_of(dtype), 2)
        check(cp, [table, ids.astype(np.int32), dy], lookup, dtype, monkeypatch, sums=(1,))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("copied", ["bfloat16", "float16"])
def test_adamw_equals_the_plain_one_and_stops_at_numbers_that_are_not_finite(cp, dtype, copied):
    from ramnet_np.kernels.cuda.optimizer.adamw import AdamWSettings, DeviceAdamW

    copied = dtype_of(copied)
    shapes = {"a.weight": (70, 130), "a.bias": (5,), "norm.weight": (9001,), "b.weight": (1, 1)}
    settings = AdamWSettings([0.1, 0.05, 0.02], beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=2.0)
    plain = {name: draw(shape, dtype, i) for i, (name, shape) in enumerate(shapes.items())}
    params = {name: cp.asarray(p) for name, p in plain.items()}
    state, moments = adamw_init(plain), adamw_init(params)
    copies = {name: cp.empty(p.shape, copied) for name, p in params.items()}
    fused = DeviceAdamW(
        params, moments.mean, moments.square, {n for n in plain if has_weight_decay(n, plain[n])}, 0, settings, copies
    )
    table = fused.addresses()
    correct, labels = cp.array(3, dtype=np.int32), cp.array(4, dtype=np.int32)

    def update(grads, loss):
        grads = fused.contiguous({name: cp.asarray(g) for name, g in grads.items()})
        fused.bind(table, grads)
        fused.update(table, cp.array(loss, dtype=dtype), correct, labels)
        return fused.numbers()

    for step, size in enumerate((1.0, 1e-4, 3.0)):  # clipped, not clipped, clipped
        grads = {name: size * draw(shape, dtype, 10 * step + i) for i, (name, shape) in enumerate(shapes.items())}
        numbers = update(grads, 0.5)
        norm = clip_by_global_norm(grads, settings.clip)
        options = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}
        state = adamw_update(plain, grads, state, settings.rates[step], **options)
        assert numbers["norm"] == pytest.approx(norm, rel=1e-6)
        assert {**numbers, "norm": 0} == {
            "loss": 0.5, "correct": 3, "labels": 4, "norm": 0, "rate": settings.rates[step], "updates": step + 1,
            "stopped": 0,
        }  # fmt: skip
        for name, p in plain.items():
            assert copies[name].get().tobytes() == params[name].get().astype(np.float32).astype(copied).tobytes()
            for got, want in ((params, p), (moments.mean, state.mean[name]), (moments.square, state.square[name])):
                np.testing.assert_allclose(got[name].get(), want, rtol=3e-5, atol=1e-7 if dtype == "float32" else 1e-14)
    before = {name: p.get() for name, p in params.items()}
    assert update(grads, np.nan)["stopped"] == 1
    after = update(grads, 0.5)  # until the host has seen it
    assert (after["stopped"], after["updates"]) == (1, 3)
    assert np.isnan(after["loss"])
    for name, p in params.items():
        assert p.get().tobytes() == before[name].tobytes()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "order", "radix", "width"), [(1, 1, 1, 1), (2, 5, 4, 64), (3, 2, 7, 33)])
def test_address_projections(cp, heads, order, radix, width, bias, dtype, monkeypatch):
    config = RAMNetConfig(width=width, heads=heads, order=order, radix=radix, top_k=1, channels=1, address_bias=bias)
    rows = heads * order * radix

    shapes = {"w_proj.weight": (rows, width), "w_scale": (heads, order)} | ({"w_proj.bias": (rows,)} if bias else {})

    def project(x, dlogits, *params):
        logits, ctx = address_forward(x, dict(zip(shapes, params, strict=True)), "w", config)
        dx, grads = address_backward(dlogits, ctx, "w")
        return logits, dx, *(grads[name] for name in shapes)

    all_shapes = (2, 3, width), (2, 3, heads, order, radix), *shapes.values()
    arrays = [draw(s, dtype_of(dtype), i) for i, s in enumerate(all_shapes)]
    x, dlogits, weight, scale = (a.astype(np.float64) for a in arrays[:4])
    terms = np.abs(dlogits.reshape(6, rows).T @ x.reshape(6, width) * weight).reshape(heads * order, -1).sum(axis=1)
    terms *= np.exp(scale.ravel()) / config.tau
    check(cp, arrays, project, dtype, monkeypatch, sums=range(2, len(all_shapes)), sizes={3: np.linalg.norm(terms)})


def test_the_core_on_cupy_arrays_without_fused_layers(cp):
    x, weight = cp.asarray(draw((5, 7), np.float32, 0)), cp.ones(7, dtype=np.float32)
    with use_backend("numpy"):
        plain, _ = rmsnorm_forward(x, weight)
    fused, _ = rmsnorm_forward(x, weight)
    np.testing.assert_allclose(plain.get(), fused.get(), rtol=1e-5)
