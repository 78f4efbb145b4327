"""Products of a few rows on a GPU, and what is fused with them, against the mathematics in float64. Needs a GPU."""

import numpy as np
import pytest
from ramnet_np.kernels.cuda.layers import few_rows
from ramnet_np.kernels.cuda.runtime import overlap

from ramnet_np.core.accelerated import ACCELERATED
from ramnet_np.core.cuda_graph import capture, graph_pool, own_stream, weights_stay
from ramnet_np.layers.few_rows import normed_gated_product, normed_products, product_added
from ramnet_np.layers.linear import few_rows_product
from ramnet_np.layers.norm import rmsnorm_forward
from ramnet_np.model import RAMNet, RAMNetConfig

pytestmark = pytest.mark.gpu

TOLERANCE = {"float64": 1e-13, "float32": 5e-6, "float16": 2e-3, "bfloat16": 1.5e-2}  # of the largest number
ROWS = (1, 2, 3, 4, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130)  # to both sides of the sizes of blocks, and beyond them
WIDTHS = (1, 7, 8, 64, 100, 513, 1024, 2816)
OUTPUTS = ((1,), (8, 3), (40, 33, 16, 5), (2816, 2816))
EPS = 1e-6


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if name == "bfloat16" else np.dtype(name)


def draw(dtype, rows, width, outputs):
    """x, the norm's weight, matrices, biases (of the second matrix none), and an array like the first product."""
    rng = np.random.default_rng(0)
    weights = tuple((rng.normal(size=(count, width)) / width**0.5).astype(dtype_of(dtype)) for count in outputs)
    biases = tuple(
        None if i == 1 else rng.normal(size=count).astype(dtype_of(dtype)) for i, count in enumerate(outputs)
    )
    shapes = (rows, width), (width,), (rows, outputs[0])
    x, norm, add = (rng.normal(size=shape).astype(dtype_of(dtype)) for shape in shapes)
    return x, norm, weights, biases, add


def each(function, arrays):
    """The arrays within tuples, through ``function``."""
    if isinstance(arrays, tuple):
        return tuple(each(function, a) for a in arrays)
    return None if arrays is None else function(arrays)


def results(x, norm, weights, biases, add):
    """What all four functions return."""
    same = len(weights) == 2 and weights[0].shape == weights[1].shape
    gated = (normed_gated_product(x, norm, EPS, *weights),) if same else ()
    products = normed_products(x, norm, EPS, weights, biases)
    return *products, *gated, product_added(x, weights[0], biases[0], add), few_rows_product(x, weights[-1])


def check(got, wanted, dtype):
    for one, expected in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype) == (expected.shape, dtype_of(dtype))
        error = np.abs(one.astype(np.float64) - expected).max()
        assert error <= TOLERANCE[dtype] * max(1, np.abs(expected).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
def test_as_the_mathematics_and_the_same_bits_for_a_row_beside_any_others(cp, dtype, outputs, monkeypatch):
    empty = cp.empty

    def poisoned(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.view(np.uint8).fill(0xFF)
        return array

    for width in WIDTHS:
        arrays = draw(dtype, max(ROWS), width, outputs)
        expected = results(*each(lambda a: a.astype(np.float64), arrays))
        on_gpu = each(cp.asarray, arrays)
        few, more = (each(cp.asnumpy, results(on_gpu[0][:n], *on_gpu[1:4], on_gpu[4][:n])) for n in (1, 17))
        for rows in ROWS:
            part = (on_gpu[0][:rows], *on_gpu[1:4], on_gpu[4][:rows])
            got = each(cp.asnumpy, results(*part))
            check(got, [e[:rows] for e in expected], dtype)
            if rows <= few_rows.MOST_ROWS[dtype_of(dtype).itemsize]:
                alike = few if rows <= few_rows.ROWS else more[:-1]  # more rows of a product alone are cuBLAS's
                for one, same in zip(got, alike, strict=False):
                    assert rows > few_rows.TILE_ROWS or one[: len(same)].tobytes() == same.tobytes()
                with monkeypatch.context() as patch:
                    patch.setattr(cp, "empty", poisoned)
                    again = each(cp.asnumpy, results(*part))
                assert [a.tobytes() for a in again] == [a.tobytes() for a in got]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_is_not_a_number_stays_in_its_row(cp, dtype):
    others = [n for n in range(16) if n not in (3, 7)]
    for width in (100, 1024):
        x, *given = draw(dtype, 16, width, (24, 24))
        clean = each(cp.asnumpy, results(*each(cp.asarray, (x, *given))))
        x[3, width - 1], x[7, 0] = float("nan"), float("inf")
        for got, before in zip(each(cp.asnumpy, results(*each(cp.asarray, (x, *given)))), clean, strict=True):
            assert np.isnan(got[3].astype(np.float64)).all()
            assert not np.isfinite(got[7].astype(np.float64)).any()
            assert got[others].tobytes() == before[others].tobytes()
        weight = given[1][0]
        weight[5, 2] = float("nan")
        product = cp.asnumpy(few_rows_product(cp.asarray(x), cp.asarray(weight))).astype(np.float64)
        assert np.isnan(product[:, 5]).all()
        assert np.isfinite(np.delete(product, 5, axis=1)[others]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_that_are_not_contiguous_or_aligned(cp, dtype):
    x, norm, weights, biases, add = each(cp.asarray, draw(dtype, 5, 64, (24, 24)))
    expected = [a.get() for a in results(x, norm, weights, biases, add)]
    shifted = each(
        lambda a: cp.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape), (x, norm, weights, biases)
    )
    strided = each(lambda a: cp.concatenate([a, a], axis=-1)[..., : a.shape[-1]], (x, norm, weights, biases))
    for laid_out in (shifted, strided):
        got = [a.get() for a in results(*laid_out, add)]
        check(got, [e.astype(np.float64) for e in expected], dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_launches_that_overlap_give_the_bits_of_those_that_do_not(cp, dtype, monkeypatch):
    x, norm, weights, biases, add = each(cp.asarray, draw(dtype, 3, 512, (512, 512)))
    overlapped, driver, pool = [], overlap._driver, graph_pool()  # the graph's memory stays
    cp.cuda.Device().synchronize()

    def chain():
        y = x
        for _ in range(20):
            y = product_added(normed_gated_product(y, norm, EPS, *weights), weights[0], biases[0], add)
            y = rmsnorm_forward(normed_products(y, norm, EPS, weights, biases)[0], norm, EPS)[0]
        return y

    monkeypatch.setattr(overlap, "_driver", lambda: [overlapped.append(1), driver()][1])
    with own_stream() as stream:
        expected = chain().get()
        assert not overlapped
        with weights_stay():
            graph, got = capture(chain, stream, pool)
        assert len(overlapped) == (80 if overlap._possible(0) else 0)
        for _ in range(20):
            got.fill(0)
            graph.launch()
            assert got.get().tobytes() == expected.tobytes()


def test_no_rows(cp):
    x, norm, weights, biases, add = each(cp.asarray, draw("float32", 1, 64, (24, 24)))
    assert [a.shape for a in results(x[:0], norm, weights, biases, add[:0])] == [(0, 24)] * 5


CONFIGS = {
    "paper": {"value_bias": True, "cape": (4,)},
    "gate and norm": {"update": "gsu", "gamma": 0.0, "gamma_mode": "dynamic", "output_gate": True, "output_norm": True},
    "learnt gamma": {"gamma_mode": "learnable", "gamma": 0.5, "ffn": "gelu"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_a_models_step_is_that_of_the_mathematics(cp, settings, dtype):
    config = RAMNetConfig(vocab=64, width=128, heads=4, layers=2, order=4, **settings)
    model = RAMNet(config).to("gpu", dtype)
    exact = RAMNet(config).to("cpu", "float64") if dtype == "float32" else None
    ids = np.random.default_rng(0).integers(0, 64, (3, 6))
    state = model.initial_state(3)
    steps = [model.step(cp.asarray(ids[:, t : t + 1]), state, cp.array([t])).get() for t in range(6)]
    whole = model.forward(cp.asarray(ids))[0].get() if exact is None else exact.forward(ids)[0]
    got, wanted = np.concatenate(steps, axis=1).astype(np.float64), whole.astype(np.float64)
    assert np.linalg.norm(got - wanted) < (0.05 if dtype == "bfloat16" else 1e-4) * np.linalg.norm(wanted)


def test_a_layer_of_the_paper_is_five_launches(cp, monkeypatch):
    from ramnet_np.kernels.cuda.runtime import module

    names = []
    call, get_kernel = module.Launch.__call__, few_rows.get_kernel
    monkeypatch.setattr(module.Launch, "__call__", lambda launch, *a: [names.append(launch.name), call(launch, *a)][1])
    monkeypatch.setattr(few_rows, "get_kernel", lambda s, name: [names.append(name), get_kernel(s, name)][1])
    model = RAMNet(RAMNetConfig(vocab=64, width=128, heads=4, layers=3, order=4, value_bias=True)).to("gpu", "float32")
    state = model.initial_state(1)
    model.step(cp.array([[1]]), state, cp.array([0]))
    assert names == ["few_rows", "step", *["few_rows"] * 3] * 3  # a head of 64 tokens is no product worth a kernel


def test_the_mathematics_takes_more_rows(cp):
    x, norm, weights, biases, add = each(cp.asarray, draw("float32", 100, 64, (24, 24)))
    assert few_rows.normed_products(x, norm, EPS, weights, biases) is NotImplemented
    assert few_rows.product_added(x, weights[0], None, add) is NotImplemented
    plain = ACCELERATED["normed_gated_product"](x, norm, EPS, *weights)
    assert normed_gated_product(x, norm, EPS, *weights).tobytes() == plain.tobytes()
