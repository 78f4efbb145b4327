"""The CUDA backend against the NumPy core: every output, every gradient, the state, the step. Needs a GPU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward, ram_attention_step
from ramnet_np.gradcheck import gradcheck
from tests.kernels.test_cpu_agreement import cases
from tests.operation_cases import (
    CASES,
    PACKED,
    Case,
    assert_agree,
    assert_same_bits,
    draw,
    of_filled,
    packed,
    run,
    run_one_by_one,
    run_steps,
    run_without_gradients,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu

EXTRA = [
    Case("wide-slices", B=1, H=2, T=80, U=5, P=4, C=64),
    Case("narrow-slices", B=1, H=1, T=80, U=11, P=2, C=20),
    Case("narrowest-slices", B=1, H=1, T=80, U=6, P=4, C=20),
    Case("state-in-device-memory", B=1, H=2, T=40, U=8, P=4, C=20, state=True),
    Case("state-in-device-memory-returned", B=1, H=2, T=40, U=8, P=4, C=20, gamma=0.4),
    Case("renumbered", B=2, T=60, H=2, U=8, P=4, dstate=False, options={"mass_aware": True, "cape_heads": 1}),
    Case("renumbered-into-device-memory", B=1, T=2500, H=1, U=8, P=4, C=4, dstate=False, masked=0.2),
    Case("K-48", B=1, T=9, H=2, U=5, P=4, K=48),
    Case("segments", B=2, T=1024, H=1, U=5, P=4, C=20, gamma=0.6, dstate=False, masked=0.1),
    Case("segments-uneven", B=1, T=1237, H=2, U=5, P=4, C=20, K=(5, 9), gamma="token", dstate=False, masked=0.1),
    Case("segments-of-masses", B=1, T=1100, H=30, U=4, P=2, C=64, dstate=False, options={"mass_aware": True}),
    Case("segments-of-both", B=1, T=6300, H=15, U=5, P=2, C=64, gamma=0.8, dstate=False),
    Case("segments-hot-slots", B=1, T=1024, H=2, U=3, P=2, K=4, C=8, dstate=False, options={"mass_aware": True}),
    Case("lists-in-two-rounds", B=1, T=70, H=2, U=7, P=2, C=24, gamma=0.7),
    Case("tokens-alike", B=1, T=130, H=2, U=2, P=4, K=16, C=32, dstate=False, masked=0.1),
    Case("long", B=1, T=700, H=2, U=5, P=4, C=24, gamma=0.6),
    Case("alone", B=2, T=1024, H=1, U=5, P=4, C=20, dstate=False, options={"batch_invariant": True}),
    Case("alone-M-large", B=2, T=40, H=2, U=8, P=4, C=20, dstate=False, options={"batch_invariant": True}),
    Case("dense", T=70, H=2, K=16, C=32, gamma=0.7, dstate=False, masked=0.1),
    Case("dense-gsu-cape", T=40, K=16, C=64, gamma="token", dstate=False, options={"update": "gsu", "cape_heads": 1}),
    Case("dense-M-odd", T=70, U=2, P=5, K=(11, 9), C=20, dstate=False, options={"mass_aware": True, "renorm": True}),
    Case("dense-alone", T=100, U=2, P=7, K=(16, 13), C=32, gamma=0.3, dstate=False, options={"batch_invariant": True}),
    Case("dense-K-8", T=100, U=5, P=2, C=64, dstate=False, options={"proxy_eps": 0.02}),
    Case("dense-huge-logits", T=100, K=16, C=32, logits="huge", dstate=False),
    Case("dense-long", B=1, T=700, K=16, C=32, gamma=0.1, dstate=False, options={"batch_invariant": True}),
    packed("packed-dense", 33, 0, 70, 5, H=2, K=16, C=32, gamma=0.7, dstate=False, masked=0.1),
    packed("packed-long", 900, 0, 1237, 64, H=2, U=5, P=4, C=64, gamma=0.6, dstate=False, masked=0.1),
    packed("packed-M-large-long", 600, 0, 1, 1300, H=2, U=8, P=4, C=20, dstate=False, options={"mass_aware": True}),
    *PACKED,
]
CASE = {case.name: case for case in CASES + EXTRA}


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def on_gpu(cp, inputs, runner=run):
    results = runner(inputs, "cupy", cp.asarray)
    return {name: cp.asnumpy(value) for name, value in results.items()}


def relative_error(actual, expected):
    """|a - b| / |b| over a whole array, in the 2-norm; against 1 where b is smaller."""
    difference = np.linalg.norm(np.asarray(actual, np.float64).ravel() - np.asarray(expected, np.float64).ravel())
    return difference / max(1.0, np.linalg.norm(np.asarray(expected, np.float64).ravel()))


@pytest.mark.parametrize("case", CASES + EXTRA, ids=lambda case: case.name)
def test_float64_equals_numpy(cp, case):
    inputs = draw(case, np.float64)
    assert_agree(on_gpu(cp, inputs), run(inputs, "numpy"))


@pytest.mark.parametrize("case", CASES + EXTRA, ids=lambda case: case.name)
def test_float32_is_as_close_to_numpy_as_rounding_allows(cp, case):
    """By relative norm, as rounding of the recurrence is amplified where a slot forgets almost nothing."""
    inputs = draw(case, np.float32)
    actual, expected = on_gpu(cp, inputs), run(inputs, "numpy")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        if name.endswith("index"):
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
        else:
            assert relative_error(actual[name], value) < (2e-4 if name.startswith("d") else 2e-5), name


@pytest.mark.parametrize("case", [c for c in CASES if c.B * c.T * c.slots < 1e6], ids=lambda case: case.name)
def test_steps_equal_numpy(cp, case):
    inputs = draw(case, np.float32)
    actual, expected = run_steps(inputs, "cupy", cp.asarray), run_steps(inputs, "numpy")
    assert_close(cp.asnumpy(cp.concatenate(actual["y"], axis=1)), np.concatenate(expected["y"], axis=1), name="y")
    assert_close(cp.asnumpy(actual["slots"]), expected["slots"], name="slots")
    assert_close(cp.asnumpy(actual["mass"]), expected["mass"], name="mass")


@settings(max_examples=100)
@given(cases(), st.integers(0, 2**32 - 1))
def test_drawn_cases_equal_numpy(case, seed):
    import cupy

    inputs = draw(case, np.float64, seed)
    assert_agree(on_gpu(cupy, inputs), run(inputs, "numpy"))


@pytest.mark.parametrize(
    "name", ["plain", "everything", "slices", "M-large", "gsu-per-token", "huge-logits", "dense", "dense-K-8"]
)
def test_the_same_inputs_give_the_same_bits(cp, name):
    inputs = draw(CASE[name], np.float32)
    assert_same_bits(on_gpu(cp, inputs), on_gpu(cp, inputs))


@pytest.mark.parametrize("case", CASES + EXTRA, ids=lambda case: case.name)
def test_without_gradients_the_bits_are_the_same(cp, case):
    inputs = draw(case, np.float32)
    expected = on_gpu(cp, inputs)
    found = on_gpu(cp, inputs, run_without_gradients)
    assert_same_bits(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", [case for case in EXTRA if case.lengths], ids=lambda case: case.name)
def test_a_packed_sequence_gives_the_bits_that_it_gives_alone(cp, case, dtype):
    inputs = draw(case, dtype)
    expected = run_one_by_one(inputs, "cupy", cp.asarray, cp.concatenate)
    assert_same_bits(of_filled(on_gpu(cp, inputs), case.lengths), {k: cp.asnumpy(v) for k, v in expected.items()})


@pytest.mark.parametrize("case", [case for case in EXTRA if case.name.startswith("alone")], ids=lambda case: case.name)
def test_batch_invariant_bits_do_not_depend_on_the_batch(cp, case):
    """One row, and the same among many: with one the kernels would cut it into segments, with many not."""
    inputs = draw(case, np.float32)

    def first(copies):
        arrays = [cp.asarray(np.concatenate([a, *[a[:1]] * copies])) for a in inputs.arrays]
        y, _, ctx = ram_attention_forward(*arrays, **inputs.options)
        grads = ram_attention_backward(cp.ones_like(y), ctx)
        results = {"y": y, **grads._asdict()}
        return {name: cp.asnumpy(results[name][:1]) for name in ("y", "write_logits", "read_logits", "values")}

    assert_same_bits(first(0), first(150))


def test_offsets_may_be_on_either_side(cp):
    inputs = draw(PACKED[0], np.float32)
    arrays, options = [cp.asarray(a) for a in inputs.arrays], dict(inputs.options)
    offsets = options.pop("cu_seqlens")
    results = [
        ram_attention_forward(*arrays, cu_seqlens=given, **options)[0]
        for given in (offsets, cp.asarray(offsets), offsets.tolist(), offsets.astype(np.int64))
    ]
    assert_same_bits({"y": cp.asnumpy(cp.stack(results))}, {"y": cp.asnumpy(cp.stack(results[:1] * 4))})


@pytest.mark.parametrize("case", [CASE["plain"], CASE["everything"], CASE["C-odd"], *EXTRA], ids=lambda case: case.name)
def test_every_element_of_every_output_is_written(cp, case, monkeypatch):
    """cupy.empty hands out NaN and impossible slots; whatever a kernel left unset and then used would show."""
    inputs = draw(case, np.float32)
    expected = on_gpu(cp, inputs)
    empty, empty_like = cp.empty, cp.empty_like

    def poison(array):
        array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
        return array

    monkeypatch.setattr(cp, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(cp, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    assert_same_bits(on_gpu(cp, inputs), expected)


@pytest.mark.parametrize("name", ["plain", "everything", "pdma"])
def test_finite_differences(cp, name):
    options = {
        "plain": {"top_k": 4},
        "everything": {"top_k": (3, 5), "mass_aware": True, "renorm": (True, False), "cape_heads": 1, "update": "gsu"},
        "pdma": {"top_k": 4, "mass_aware": True},
    }[name]
    rng = np.random.default_rng(3)
    B, T, H, U, P, C = 2, 7, 2, 3, 3, 5
    inputs = {
        "write_logits": 1.5 * rng.normal(size=(B, T, H, U, P)),
        "read_logits": 1.5 * rng.normal(size=(B, T, H, U, P)),
        "values": rng.normal(size=(B, T, H, C)),
        "gamma": rng.uniform(0.3, 2, (B, T, H)),
    }

    def forward(*arrays):
        y, _, ctx = ram_attention_forward(*map(cp.asarray, arrays), return_state=False, **options)
        return cp.asnumpy(y), ctx

    def backward(dy, ctx):
        return [cp.asnumpy(g) for g in ram_attention_backward(cp.asarray(dy), ctx)[:4]]

    report = gradcheck(forward, backward, inputs, samples=20)
    assert report.passed, str(report)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
@pytest.mark.parametrize(("C", "U"), [(16, 5), (64, 5), (5, 5), (16, 3), (64, 3)])
def test_low_precision_inputs_with_float32_sums(cp, dtype, tolerance, C, U):
    """Against float64 on the rounded inputs: what is left is the rounding of y and of the gradients."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    inputs = draw(
        Case("half", C=C, T=40, U=U, K=8 if U == 5 else 16, gamma="token", options={"cape_heads": 1}), np.float32
    )

    def rounded(a):
        return a.astype(dtype) if a.dtype == np.float32 else a

    def to_half(x):
        return cp.asarray(rounded(np.asarray(x)))

    arrays, gamma, dy = [to_half(a) for a in inputs.arrays], to_half(inputs.gamma), to_half(inputs.dy)
    options = {key: value for key, value in inputs.options.items() if key != "return_state"}
    y, state, ctx = ram_attention_forward(*arrays, gamma, return_state=U == 5, **options)
    grads = ram_attention_backward(dy, ctx)
    assert state is None or state.slots.dtype == np.float32
    wide = [rounded(a).astype(np.float64) for a in (*inputs.arrays, inputs.gamma, inputs.dy)]
    y_wide, _, ctx_wide = ram_attention_forward(*wide[:4], backend="numpy", **options)
    expected = ram_attention_backward(wide[4], ctx_wide)
    assert y.dtype == arrays[0].dtype
    assert relative_error(cp.asnumpy(y).astype(np.float64), y_wide) < tolerance
    for field in ("write_logits", "read_logits", "values", "gamma"):
        grad = getattr(grads, field)
        assert grad.dtype == arrays[0].dtype
        assert relative_error(cp.asnumpy(grad).astype(np.float64), getattr(expected, field)) < tolerance, field


def test_inputs_of_any_layout_give_the_same_bits(cp):
    inputs = draw(Case("layouts", gamma="token", masked=0.3, state=True), np.float32)
    expected = on_gpu(cp, inputs)

    def strided(a):
        wide = cp.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = cp.asarray(a)
        return wide[..., ::2]

    def unaligned(a):
        flat = cp.empty(a.size + 1, a.dtype)
        flat[1:] = cp.asarray(a).ravel()
        return flat[1:].reshape(a.shape)

    for layout in (strided, unaligned, cp.asfortranarray):
        actual = run(inputs, "cupy", lambda a, layout=layout: layout(cp.asarray(a)))
        assert_same_bits({name: cp.asnumpy(value) for name, value in actual.items()}, expected)


def test_forward_backward_and_step_in_a_graph_give_the_same_bits(cp):
    inputs = draw(Case("graph", T=30, U=5, gamma=0.7, options={"cape_heads": 1}, dstate=False), np.float32)
    arrays, dy = [cp.asarray(a) for a in inputs.arrays], cp.asarray(inputs.dy)
    token = [a[:, :1].copy() for a in arrays]
    positions = cp.zeros((1,), dtype=np.int64)
    stream = cp.cuda.Stream(non_blocking=True)

    def work(state):
        y, _, ctx = ram_attention_forward(*arrays, 0.7, cape_heads=1, return_state=False)
        grads = ram_attention_backward(dy, ctx)
        step, _ = ram_attention_step(*token, 0.7, state=state, cape_heads=1, positions=positions)
        return [y, *grads[:3], step, *state]

    def state():
        return RAMState.initial(arrays[2].shape[0], arrays[2].shape[2], 4**5, arrays[2].shape[3], xp=cp)

    with stream:
        expected = [cp.asnumpy(a) for a in work(state())]
        captured = state()
        stream.begin_capture()
        results = work(captured)
        graph = stream.end_capture()
        for _ in range(2):
            captured.slots.fill(0)
            captured.mass.fill(1 / 4**5)
            graph.launch(stream)
        stream.synchronize()
        for actual, wanted in zip(results, expected, strict=True):
            assert cp.asnumpy(actual).tobytes() == wanted.tobytes()


def test_numpy_arrays_and_this_backend_do_not_mix(cp):
    inputs = draw(Case("mixed", T=2), np.float32)
    with pytest.raises(TypeError, match="backend 'cupy' serves cupy arrays, got numpy arrays"):
        ram_attention_forward(*inputs.arrays, backend="cupy")
    with pytest.raises(TypeError, match="arrays of one library"):
        ram_attention_forward(cp.asarray(inputs.arrays[0]), *inputs.arrays[1:])


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
@pytest.mark.parametrize("update", ["pdma", "gsu"])
@pytest.mark.parametrize("top_k", [8, 80], ids=["fast", "plain"])
def test_a_nan_in_gamma_reaches_what_its_token_reads_and_no_other_head(cp, update, top_k, backend):
    """Every token reads where it writes. On the CPU such a gamma is refused; looking for it would wait for a GPU."""
    inputs = draw(Case("nan", B=1, T=6, H=2, U=5, P=4), np.float32)
    write, _, values = (cp.asarray(a) for a in inputs.arrays)
    gamma = cp.full((1, 6, 2), 0.5, np.float32)
    gamma[0, 3, 0] = np.nan
    options = {"update": update, "top_k": top_k, "backend": backend}
    y, _, ctx = ram_attention_forward(write, write, values, gamma, **options)
    assert cp.isnan(y[0, 3, 0]).all()
    assert not cp.isnan(y[0, :3]).any()
    assert not cp.isnan(y[:, :, 1]).any()
    assert cp.isnan(ram_attention_backward(cp.ones_like(y), ctx).gamma[0, 3, 0])
    state, token = (
        RAMState.initial(1, 2, 4**5, values.shape[3], xp=cp),
        [a[:, 3:4] for a in (write, write, values, gamma)],
    )
    y, _ = ram_attention_step(*token, state=state, **options)
    assert cp.isnan(y[0, 0, 0]).all()
    assert not cp.isnan(y[0, 0, 1]).any()


def test_a_large_gamma_is_taken_through_the_logarithm(cp):
    """Its power of the rounded 1 - w would err by gamma times that rounding: float32 is held against float64."""
    write, read, values = draw(Case("large-gamma", B=1, T=30, H=2, U=5, P=4), np.float32).arrays
    arrays = [64 * write, 64 * read, values]
    wide = [a.astype(np.float64) for a in arrays]
    y = ram_attention_forward(*map(cp.asarray, arrays), 1e30)[0]
    assert relative_error(cp.asnumpy(y), ram_attention_forward(*wide, 1e30, backend="numpy")[0]) < 1e-4
