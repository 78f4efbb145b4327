"""The Numba backend against the NumPy core: every output, every gradient, the state, the step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ramnet_np.kernels.cpu import beam
from ramnet_np.kernels.cpu.beam import SORTED
from ramnet_np.kernels.cpu.memory import memory_forward
from ramnet_np.kernels.cpu.network import candidate_ranks

from ramnet_np import decode_address
from ramnet_np.contract import Address, MemoryOptions
from ramnet_np.core.retention import RULES
from ramnet_np.core.topk import staircase
from tests.operation_cases import CASES, Case, assert_agree, assert_same_bits, draw, run, run_steps
from tests.tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ram_attention_equals_numpy(case, dtype):
    inputs = draw(case, dtype)
    assert_agree(run(inputs, "numba"), run(inputs, "numpy"))


@pytest.mark.parametrize("case", [c for c in CASES if c.B * c.T * c.slots < 1e6], ids=lambda case: case.name)
def test_ram_attention_step_equals_numpy(case):
    inputs = draw(case, np.float32)
    actual, expected = run_steps(inputs, "numba"), run_steps(inputs, "numpy")
    assert_close(np.concatenate(actual["y"], axis=1), np.concatenate(expected["y"], axis=1), name="y")
    assert_close(actual["slots"], expected["slots"], name="slots")
    assert_close(actual["mass"], expected["mass"], name="mass")


def test_ram_attention_step_of_many_heads_equals_numpy():
    """Enough heads for the parallel form of the step."""
    inputs = draw(Case("many-heads", B=7, T=3, H=11, options={"cape_heads": 4}), np.float32)
    actual, expected = run_steps(inputs, "numba"), run_steps(inputs, "numpy")
    assert_close(np.concatenate(actual["y"], axis=1), np.concatenate(expected["y"], axis=1), name="y")
    assert_close(actual["slots"], expected["slots"], name="slots")


@st.composite
def cases(draw):
    U, P = draw(st.sampled_from([(1, 1), (1, 9), (2, 3), (3, 2), (2, 5), (4, 3), (9, 2), (5, 4), (7, 4)]))
    H = draw(st.integers(1, 4))
    k = st.integers(1, min(P**U, 40))
    update = draw(st.sampled_from(list(RULES)))
    return Case(
        "drawn",
        B=draw(st.integers(0, 3)),
        T=draw(st.integers(1, 40)),
        H=H,
        U=U,
        P=P,
        C=draw(st.integers(1, 70)),
        K=(draw(k), draw(k)),
        gamma=draw(st.sampled_from([0.0, 0.4, 1.0, 1.7, "token"])),
        options={
            "update": update,
            "cape_heads": draw(st.integers(0, H)),
            "mass_aware": draw(st.booleans()),
            "renorm": (draw(st.booleans()), draw(st.booleans())),
            "proxy_eps": draw(st.sampled_from([0.0, 0.01])),
        },
        positions=draw(st.booleans()),
        masked=draw(st.sampled_from([0.0, 0.3, 0.9])),
        state=draw(st.booleans()),
        dstate=draw(st.booleans()),
        logits=draw(st.sampled_from(["normal", "equal", "ties"])),
    )


@settings(max_examples=100)
@given(cases(), st.integers(0, 2**32 - 1))
def test_ram_attention_of_drawn_cases_equals_numpy(case, seed):
    inputs = draw(case, np.float64, seed)
    assert_agree(run(inputs, "numba"), run(inputs, "numpy"))


@settings(max_examples=100)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(5, 4), (4, 3), (10, 2), (2, 30), (1, 50), (3, 7)]),
    st.integers(1, 40),
    st.sampled_from([0.01, 0.1, 1.0, 7.0]),
)
def test_decode_address_selects_the_same_slots_among_near_ties(seed, digits, top_k, step):
    """float32 logits on a coarse grid: many sums tie, or tie only by rounding; the core's choice is binding."""
    U, P = digits
    rng = np.random.default_rng(seed)
    logits = (step * rng.integers(-4, 5, (2, 3, 2, U, P)) + 1e-7 * rng.integers(-3, 4, (2, 3, 2, U, P))).astype(
        np.float32
    )
    k = min(top_k, P**U)
    actual, expected = (decode_address(logits, k, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_array_equal(actual.index, expected.index)
    assert_close(actual.weight, expected.weight)


@pytest.mark.parametrize(("digits", "top_k"), [((1, 700), 699), ((2, 27), 300), ((10, 2), 1024), ((3, 9), 729)])
@pytest.mark.parametrize("logits", ["normal", "equal", "ties"])
def test_decode_address_of_a_large_k_selects_the_same_slots(digits, top_k, logits):
    """Lists of more than SORTED candidates are heaps; the order, ties too, is still the core's."""
    U, P = digits
    assert top_k > SORTED
    x = np.random.default_rng(3).normal(size=(1, 5, 2, U, P))
    x = {"normal": x, "equal": np.zeros_like(x), "ties": np.round(x)}[logits]
    actual, expected = (decode_address(x, top_k, backend=backend) for backend in ("numba", "numpy"))
    np.testing.assert_array_equal(actual.index, expected.index)
    assert_close(actual.weight, expected.weight)


@pytest.mark.parametrize("order", ["best last", "best first", "equal"])
def test_a_list_of_k_costs_k_log_k(order, monkeypatch):
    """As many comparisons as a heap needs at most: to enter it, to be put in its place, to be sorted."""
    k, compared, compare = 2048, 0, beam.better.py_func

    def better(*candidates):
        nonlocal compared
        compared += 1
        return compare(*candidates)

    monkeypatch.setattr(beam, "better", better)
    monkeypatch.setattr(beam, "sink", beam.sink.py_func)
    given = {"best last": np.arange(2 * k), "best first": -np.arange(2 * k), "equal": np.zeros(2 * k)}[order]
    scores, slots, n = np.empty(k), np.empty(k, np.int64), 0
    for slot, score in enumerate(given):
        n = beam.insert.py_func(score, slot, scores, slots, n, k)
    beam.finish.py_func(scores, slots, n, k)
    assert compared <= 2 * 3 * k * np.log2(k)
    np.testing.assert_array_equal(slots, np.argsort(-given, kind="stable")[:k])


def test_inputs_of_any_layout_give_the_same_bits():
    """Transposed, reversed, strided and read-only arrays are copied into the layout that the kernels take."""
    inputs = draw(Case("layouts", gamma="token", masked=0.3, state=True), np.float32)
    expected = run(inputs, "numba")

    def fortran(a):
        return np.asfortranarray(a)

    def reversed_twice(a):
        return a[::-1].copy()[::-1]

    def strided(a):
        wide = np.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = a
        return wide[..., ::2]

    def read_only(a):
        a = a.copy()
        a.flags.writeable = False
        return a

    for layout in (fortran, reversed_twice, strided, read_only):
        assert_same_bits(run(inputs, "numba", layout), expected)


def test_a_step_updates_a_state_of_any_layout_in_place():
    inputs = draw(Case("layouts", T=4), np.float32)
    expected = run_steps(inputs, "numba")
    actual = run_steps(inputs, "numba", np.asfortranarray)
    assert actual["slots"].flags.f_contiguous
    assert_same_bits(actual, expected)


def test_a_step_refuses_a_read_only_state_and_changes_nothing():
    inputs = draw(Case("read-only", T=1), np.float32)

    def read_only(a):
        a = a.copy()
        a.flags.writeable = False
        return a

    with pytest.raises(ValueError, match=r"state\.slots must be writeable"):
        run_steps(inputs, "numba", read_only)


def test_more_writes_than_an_int32_can_number_are_refused():
    """They would wrap, and a write would replace the version of another slot."""
    T = 2**29  # arrays of one number repeated take no memory
    address = Address(*(np.broadcast_to(np.zeros(1, dtype), (1, T, 1, 4)) for dtype in (np.int32, np.float32)))
    values = np.broadcast_to(np.zeros(1, np.float32), (1, T, 1, 1))
    with pytest.raises(
        ValueError, match=r"^T must be below 536870912 on backend 'numba' for 4 writes a token, got 536870912$"
    ):
        memory_forward(address, address, values, 1.0, None, None, MemoryOptions(slots=64), False)


@given(n=st.integers(1, 40), radix=st.integers(1, 40), top_k=st.integers(1, 40))
def test_candidates_are_the_staircase_of_the_core(n, radix, top_k):
    np.testing.assert_array_equal(candidate_ranks(n, radix, top_k), np.stack(staircase(n, radix, top_k), axis=1))
