"""The fused one-token kernel and positions as they are given, against the NumPy core."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ramnet_np.kernels.cuda.step.step import MAX_FUSED_K, step_specialisation

from ramnet_np import RAMState, decode_address, ram_attention_backward, ram_attention_forward, ram_attention_step
from ramnet_np.core.retention import RULES
from tests.tolerances import assert_close

# (U, P, K_w, K_r, C): K = 1, K = M, unequal K, more candidates than lanes, rows of every width, more channels than a
# block has threads for; then K and P at the limits of the fused kernel and beyond
SHAPES = [
    (5, 4, 8, 8, 64), (5, 4, 8, 8, 53), (1, 1, 1, 1, 1), (1, 2, 2, 1, 2), (2, 3, 9, 9, 6), (3, 4, 1, 8, 16),
    (3, 4, 8, 1, 36), (5, 2, 32, 31, 4), (12, 2, 5, 11, 20), (4, 3, 33, 17, 8), (2, 7, 32, 49, 2100), (14, 2, 6, 3, 7),
    (5, 4, 64, 64, 64), (2, 64, 64, 40, 12), (1, 64, 64, 64, 3), (5, 4, 65, 8, 16), (5, 4, 8, 65, 16), (2, 65, 8, 8, 5),
]  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "U{}-P{}-K{}-{}-C{}".format(*shape))


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def draw(rng, shape, B=2, H=3, kind="normal"):
    """One token's logits, values, gamma and a state, in float64; few slots are touched, so M may be large."""
    U, P, _, _, C = shape
    M = P**U
    logits = {
        "normal": lambda: 1.5 * rng.normal(size=(2, B, 1, H, U, P)),
        "ties": lambda: rng.integers(0, 3, (2, B, 1, H, U, P)).astype(float),
        # sums that tie only by rounding, and scores that flushing to zero would turn into ties
        "near-ties": lambda: rng.choice([0, -1e-40, -3e-9, -1e-8, -2e-8, -1, -1 - 1e-7, -5], (2, B, 1, H, U, P)),
        "same": lambda: np.repeat(1.5 * rng.normal(size=(1, B, 1, H, U, P)), 2, axis=0),  # reads find what was written
    }[kind]()
    state = RAMState(rng.normal(size=(B, H, M, C)), rng.uniform(0.1, 2, (B, H, M)))
    return [*logits, rng.normal(size=(B, 1, H, C)), rng.uniform(0, 3, (B, 1, H))], state


def both(cp, arrays, state, dtype, gamma=None, **options):
    """y, slots, mass after a step: the kernel's in ``dtype``, the core's in that of the sums, so that ties agree."""
    sums = np.dtype(dtype) if np.dtype(dtype).itemsize >= 4 else np.dtype(np.float32)
    rounded = [a.astype(dtype) for a in arrays]

    def run(arrays, state, convert, backend):
        given = {k: convert(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        arrays = [convert(a) for a in arrays]
        state = RAMState(*(convert(part.copy()) for part in state))
        number = arrays[3] if gamma is None else gamma
        y, after = ram_attention_step(*arrays[:3], number, state=state, backend=backend, **given)
        assert after is state
        assert y.dtype == arrays[2].dtype
        return {"y": y, "slots": state.slots, "mass": state.mass}

    state = RAMState(*(part.astype(sums) for part in state))
    actual = run(rounded, state, cp.asarray, "cupy")
    expected = run([a.astype(sums) for a in rounded], state, np.asarray, "numpy")
    return {name: cp.asnumpy(value) for name, value in actual.items()}, expected


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@shapes
def test_step_equals_numpy(cp, shape, dtype):
    rng = np.random.default_rng(sum(shape))
    for number, kind in enumerate(("normal", "ties", "same", "near-ties")):
        arrays, state = draw(rng, shape, kind=kind)
        actual, expected = both(
            cp, arrays, state, dtype,
            gamma=None if number else 0.7,
            update="gsu" if number == 1 else "pdma",
            top_k=shape[2:4],
            renorm=(number in (0, 3), number in (1, 3)),
            cape_heads=number,
            positions=rng.integers(-(2**40), 2**40, (2, 1)),
            mask=np.array([[True], [number != 1]]),
            mass_aware=number != 0,
            eps=1e-3,
        )  # fmt: skip
        for name, value in expected.items():
            assert_close(actual[name], value, name=f"{kind} {name}")


@pytest.mark.gpu
@settings(max_examples=40)
@given(st.data())
def test_drawn_steps_equal_numpy(data):
    import cupy

    draw_from = data.draw
    U, P = draw_from(st.integers(1, 6)), draw_from(st.integers(1, 5))
    K = st.integers(1, min(P**U, 70))
    shape = (U, P, draw_from(K), draw_from(K), draw_from(st.integers(1, 40)))
    B, H = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 3))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32 - 1)))
    arrays, state = draw(rng, shape, B, H, draw_from(st.sampled_from(["normal", "ties", "same", "near-ties"])))
    masks = st.sampled_from([None, rng.random((B, 1)) < 0.5])
    actual, expected = both(
        cupy, arrays, state, draw_from(st.sampled_from([np.float32, np.float64])),
        gamma=draw_from(st.sampled_from([None, 0.0, 1.0, 2.5])),
        update=draw_from(st.sampled_from(list(RULES))),
        top_k=shape[2:4],
        renorm=(draw_from(st.booleans()), draw_from(st.booleans())),
        cape_heads=draw_from(st.integers(0, H)),
        positions=rng.integers(-50, 5000, draw_from(st.sampled_from([(1,), (B, 1)]))),
        mask=draw_from(masks),
        mass_aware=draw_from(st.booleans()),
    )  # fmt: skip
    for name, value in expected.items():
        assert_close(actual[name], value, name=name)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", [(5, 4, 8, 8, 64), (3, 4, 8, 5, 53), (5, 4, 65, 8, 16)])
def test_half_precision_with_a_float32_state(cp, shape, dtype, tolerance):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    arrays, state = draw(np.random.default_rng(1), shape)
    positions = np.array([7])
    actual, expected = both(cp, arrays, state, dtype, top_k=shape[2:4], cape_heads=1, positions=positions)
    for name in ("slots", "mass"):
        assert_close(actual[name], expected[name], name=name)
    np.testing.assert_allclose(actual["y"].astype(np.float32), expected["y"], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [8, (8, 65)])
def test_the_same_bits_twice_and_all_of_y_written(cp, top_k, monkeypatch):
    arrays, state = draw(np.random.default_rng(2), (5, 4, 8, 8, 20), kind="same")
    mask = np.array([[False], [True]])
    first, _ = both(cp, arrays, state, np.float32, top_k=top_k, mask=mask, mass_aware=True)
    empty = cp.empty

    def poison(*args, **kwargs):
        array = empty(*args, **kwargs)
        array.fill(np.nan if array.dtype.kind == "f" else -(2**31))
        return array

    monkeypatch.setattr(cp, "empty", poison)
    second, _ = both(cp, arrays, state, np.float32, top_k=top_k, mask=mask, mass_aware=True)
    for name, value in first.items():
        assert value.tobytes() == second[name].tobytes(), name


@pytest.mark.gpu
def test_slots_that_are_not_read_leave_no_nan(cp):
    """0 * NaN is NaN: a slot that is written but not read must not take part in y."""
    arrays, state = draw(np.random.default_rng(3), (5, 4, 8, 8, 64), B=1, H=1)
    write = cp.asnumpy(decode_address(cp.asarray(arrays[0]), 8).index)[0, 0, 0]
    read = cp.asnumpy(decode_address(cp.asarray(arrays[1]), 8).index)[0, 0, 0]
    [unread, *_] = sorted(set(write) - set(read))
    state.slots[0, 0, unread] = np.nan
    actual, _ = both(cp, arrays, state, np.float32)
    assert np.isfinite(actual["y"]).all()
    assert np.isnan(actual["slots"][0, 0, unread]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [8, 65])
def test_inputs_and_states_of_any_layout_are_served_in_place(cp, top_k):
    arrays, state = draw(np.random.default_rng(4), (5, 4, 8, 8, 6))

    def strided(a):
        wide = cp.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = cp.asarray(a)
        return wide[..., ::2]

    def unaligned(a):
        flat = cp.empty(a.size + 1, a.dtype)
        flat[1:] = cp.asarray(a).ravel()
        return flat[1:].reshape(a.shape)

    results = []
    for layout in (cp.asarray, strided, unaligned, lambda a: cp.asfortranarray(cp.asarray(a))):
        held = RAMState(*(layout(part.astype(np.float32)) for part in state))
        given = [layout(cp.asarray(a.astype(np.float32))) for a in arrays]
        y, after = ram_attention_step(*given, state=held, top_k=top_k, mass_aware=True)
        assert after is held
        results.append([cp.asnumpy(a).tobytes() for a in (y, *held)])
    assert all(result == results[0] for result in results)


@pytest.mark.gpu
@pytest.mark.parametrize("top_k", [8, 33, (4, 8)])
def test_positions_left_out_count_from_zero(cp, top_k):
    """What the kernels count themselves, given as (T,) and as (B, T): the same bits, forward and backward."""
    rng = np.random.default_rng(5)
    write, read = cp.asarray(rng.normal(size=(2, 2, 40, 3, 5, 4)).astype(np.float32))
    values = cp.asarray(rng.normal(size=(2, 40, 3, 4)).astype(np.float32))
    row = np.arange(40, dtype=np.int32)
    results = []
    for positions in (None, cp.asarray(row), row, cp.asarray(np.tile(row, (2, 1)))):
        y, _, ctx = ram_attention_forward(write, read, values, top_k=top_k, cape_heads=2, positions=positions)
        grads = ram_attention_backward(y, ctx)
        address = decode_address(write, 8, cape_heads=2, positions=positions)
        arrays = (y, grads.write_logits, grads.read_logits, address.index)
        results.append([cp.asnumpy(a).tobytes() for a in arrays])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("limit", "beyond"), [((64, 64, 64), (64, 65, 64)), ((64, 1, 1), (65, 1, 1)), ((4, 1, 64), (4, 1, 65))]
)
def test_the_fused_kernel_goes_up_to_a_limit(limit, beyond):
    assert MAX_FUSED_K == 64
    for (radix, write_k, read_k), kernel in ((limit, "step"), (beyond, "step_plain")):
        assert step_specialisation("float", 4, radix, write_k, read_k, 64, "pdma").kernels == (kernel,)


@pytest.mark.parametrize(
    ("element", "top_k", "channels", "threads"),
    [
        ("float", 8, 64, 128),
        ("float", 1, 1, 64),
        ("float", 8, 53, 256),
        ("double", 8, 64, 256),
        ("bfloat16", 8, 64, 128),
    ],
)
def test_threads_of_a_block_share_out_the_rows(element, top_k, channels, threads):
    specialisation = step_specialisation(element, 5, 4, top_k, top_k, channels, "pdma")
    assert dict(specialisation.defines)["THREADS"] == threads


@pytest.mark.parametrize("read_k", [8, 65])
def test_a_step_is_compiled_for_its_update_rule(read_k):
    for update in ("pdma", "gsu"):
        specialisation = step_specialisation("float", 5, 4, 8, read_k, 64, update)
        assert dict(specialisation.defines)["UPDATE"] == update
