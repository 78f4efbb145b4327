"""The Numba CUDA backend against the NumPy core: every output, every gradient, the state, the step.

Under the simulator (NUMBA_ENABLE_CUDASIM=1) on small shapes; on a GPU the whole grid.
"""

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda import layout
from ramnet_np.kernels.numba_cuda.decode import decode_forward
from ramnet_np.kernels.numba_cuda.layout import MAX_FAST_K
from ramnet_np.kernels.numba_cuda.memory_plain import masses_forward as plain_masses_forward

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward
from ramnet_np.gradcheck import gradcheck
from tests.kernels.numba_cuda_device import NEEDS_GPU, SIMULATED, on_device, on_host, sized, to_device
from tests.operation_cases import CASES, PACKED, Case, assert_agree, assert_same_bits, draw, packed, run, run_steps
from tests.tolerances import assert_close

pytestmark = NEEDS_GPU

CASE = {case.name: case for case in CASES}
EXTRA = [
    Case("several-slices", B=1, H=2, T=80, U=5, P=4, C=64),
    Case("state-in-device-memory", B=1, H=2, T=40, U=8, P=4, C=20, state=True),
    Case("renumbered", B=2, T=60, H=2, U=8, P=4, dstate=False, masked=0.2, options={"mass_aware": True}),
    Case("K-48", B=1, T=9, H=2, U=5, P=4, K=48),
    Case("long", B=1, T=700, H=2, U=5, P=4, C=24, gamma=0.6),
]


def of_memory(case):
    """What of a case the kernels behind the decoder can tell from another's."""
    options = {name: value for name, value in case.options.items() if name not in ("renorm", "cape_heads")}
    return str((case.B, case.gamma, case.masked, case.state, case.dstate, case.logits, sorted(options.items())))


# the simulator takes seconds a case: of those that differ in their addresses alone, the first
MEMORY_CASES = list({of_memory(case): case for case in reversed(CASES)}.values()) if SIMULATED else CASES
SOME = ["plain", "everything", "gsu-per-token", "huge-logits", "K-pair", "mask-given-state"]


@pytest.mark.parametrize("case", CASES + EXTRA, ids=lambda case: case.name)
def test_float64_equals_numpy(case):
    inputs = draw(sized(case), np.float64)
    assert_agree(on_device(inputs), run(inputs, "numpy"))


@pytest.mark.parametrize("case", [CASE[n] for n in SOME] if SIMULATED else CASES + EXTRA, ids=lambda case: case.name)
def test_float32_is_as_close_to_numpy_as_rounding_allows(case):
    """By relative norm, as rounding of the recurrence is amplified where a slot forgets almost nothing."""
    inputs = draw(sized(case), np.float32)
    actual, expected = on_device(inputs), run(inputs, "numpy")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        if name.endswith("index"):
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
        else:
            error = np.linalg.norm((actual[name].astype(np.float64) - value).ravel())
            size = max(1.0, np.linalg.norm(value.astype(np.float64).ravel()))
            assert error / size < (2e-4 if name.startswith("d") else 2e-5), name


@pytest.mark.parametrize("case", [c for c in MEMORY_CASES if c.B * c.T * c.slots < 1e6], ids=lambda case: case.name)
def test_steps_equal_numpy(case):
    inputs = draw(sized(case), np.float64)
    actual, expected = run_steps(inputs, "numba-cuda", to_device), run_steps(inputs, "numpy")
    ys = np.concatenate([on_host(y) for y in actual["y"]], axis=1)
    assert_close(ys, np.concatenate(expected["y"], axis=1), name="y")
    assert_close(on_host(actual["slots"]), expected["slots"], name="slots")
    assert_close(on_host(actual["mass"]), expected["mass"], name="mass")


SMALL_PACKED = [
    packed("packed", 2, 0, 3, 1, H=1, C=3, U=2),
    packed("packed-given-state", 0, 2, 1, H=2, C=2, U=2, state=True, gamma="token", masked=0.3, K=(2, 3)),
    packed("packed-cape", 2, 1, H=1, C=2, U=2, dstate=False, options={"cape_heads": 1, "mass_aware": True}),
]


@pytest.mark.parametrize("case", SMALL_PACKED if SIMULATED else SMALL_PACKED + PACKED, ids=lambda case: case.name)
def test_packed_sequences_equal_numpy(case):
    inputs = draw(case, np.float64)
    assert_agree(on_device(inputs), run(inputs, "numpy"))


def plain_kernels_serve(monkeypatch, in_shared=True):
    """From here on, also where the fast kernels would; with too little shared memory for any slot, or enough."""
    monkeypatch.setattr("ramnet_np.kernels.numba_cuda.memory.MAX_FAST_K", 0)
    if not in_shared:
        monkeypatch.setattr("ramnet_np.kernels.numba_cuda.memory_plain.shared_limit", lambda: 0)


@pytest.mark.parametrize("case", MEMORY_CASES, ids=lambda case: case.name)
def test_plain_kernels_equal_numpy(case, monkeypatch):
    plain_kernels_serve(monkeypatch)
    inputs = draw(sized(case), np.float64)
    assert_agree(on_device(inputs), run(inputs, "numpy"))


@pytest.mark.parametrize("plain", [False, True])
def test_gsu_has_gradients_where_a_weight_is_0_or_1_and_the_slope_is_past_float32(plain, monkeypatch):
    if plain:
        plain_kernels_serve(monkeypatch)
    inputs = draw(
        Case("gsu-far", B=1, T=4, H=1, U=1, P=3, C=2, K=3, gamma="token", options={"update": "gsu"}), np.float32
    )
    write_logits, _, values = inputs.arrays
    write_logits[..., 0] += 120  # one slot has weight 1, the others 0, exactly
    values[...], inputs.dy[...], inputs.gamma[...] = 100, 100, np.array([-90, 72, 90, 103]).reshape(1, 4, 1)
    actual = on_device(inputs)
    assert all(np.isfinite(actual[name]).all() for name in actual if name.startswith("d"))


@pytest.mark.parametrize("name", ["everything", "gsu-per-token", "given-state", "no-state-returned", "M-large"])
def test_plain_kernels_with_the_state_in_device_memory_equal_numpy(name, monkeypatch):
    plain_kernels_serve(monkeypatch, in_shared=False)
    inputs = draw(sized(CASE[name]), np.float64)
    assert_agree(on_device(inputs), run(inputs, "numpy"))


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_plain_kernels_in_float32_are_as_exact_as_the_fast_ones(name, monkeypatch):
    inputs = draw(sized(CASE[name]), np.float32)
    fast = on_device(inputs)
    plain_kernels_serve(monkeypatch)
    plain, exact = on_device(inputs), run(draw(sized(CASE[name]), np.float64), "numpy")
    for key, value in exact.items():
        assert plain[key].dtype == fast[key].dtype, key
        size = max(1.0, np.linalg.norm(value.ravel()))
        error, of_fast = (np.linalg.norm((a[key].astype(np.float64) - value).ravel()) / size for a in (plain, fast))
        assert error < 2 * of_fast + 1e-6, key


def test_more_accesses_than_the_fast_kernels_serve_go_to_the_plain_ones(monkeypatch):
    """A token reads and writes every slot: each write may come before a read that another thread makes."""
    served = []
    monkeypatch.setattr(
        "ramnet_np.kernels.numba_cuda.memory_plain.masses_forward",
        lambda *arguments: (served.append(arguments), plain_masses_forward(*arguments))[1],
    )
    K = MAX_FAST_K + 3
    inputs = draw(Case("K-large", B=1, T=2, H=1, U=1, P=K, C=2, K=K, options={"mass_aware": True}), np.float64)
    assert_agree(on_device(inputs), run(inputs, "numpy"))
    assert len(served) == 1


@pytest.mark.parametrize("name", ["everything", "mask-given-state", "proxy", "no-state-returned", "K-pair"])
def test_a_state_in_device_memory_gives_the_same(name, monkeypatch):
    """With too little shared memory for any slot, on the paths for large M: the state in device memory, renumbered."""
    inputs = draw(sized(CASE[name]), np.float64)
    expected = on_device(inputs)
    whole = {"content_layout": layout.content_layout, "mass_layout": layout.mass_layout}

    def without_room(function, position):
        def chosen(*arguments):
            rows = 2**25  # of these none fit
            full = whole[function](*arguments[:position], rows, *arguments[position + 1 :])
            assert not full.in_shared
            return full

        return chosen

    monkeypatch.setattr("ramnet_np.kernels.numba_cuda.memory_fast.content_layout", without_room("content_layout", 1))
    monkeypatch.setattr("ramnet_np.kernels.numba_cuda.memory_fast.mass_layout", without_room("mass_layout", 1))
    actual = on_device(inputs)
    assert_agree(actual, run(inputs, "numpy"))
    assert_agree(actual, expected)


@pytest.mark.parametrize("logits", ["normal", "ties", "equal", "huge"])
def test_both_decoders_give_the_same_slots(logits, monkeypatch):
    """The one for small K and P, and the one for any."""
    inputs = draw(sized(Case("decoders", U=4, P=3, K=7, logits=logits, options={"cape_heads": 1})), np.float32)
    expected = on_device(inputs)
    monkeypatch.setattr("ramnet_np.kernels.numba_cuda.decode.MAX_SMALL", 0)
    assert_agree(on_device(inputs), expected)


@pytest.mark.parametrize("K", [5, 10])
def test_logits_that_are_no_numbers_select_different_slots(K):
    logits = np.zeros((1, 3, 2, 3, 3), np.float32)
    logits[0, 0], logits[0, 1, :, 1], logits[0, 2, :, :, 2] = np.nan, np.nan, -np.inf
    index = on_host(decode_forward(to_device(logits), K, False, 0, None)[0])
    assert all(len({*row}) == K for row in index.reshape(-1, K))
    assert index.min() >= 0
    assert index.max() < 3**3


@pytest.mark.parametrize("kernels", ["fast", "plain"])
def test_a_large_gamma_is_taken_through_the_logarithm(kernels, monkeypatch):
    """Its power of the rounded 1 - w would err by gamma times that rounding: float32 is held against float64."""
    if kernels == "plain":
        plain_kernels_serve(monkeypatch)
    write, read, values = draw(sized(Case("large-gamma", B=1, T=30, H=2, U=5, P=4)), np.float32).arrays
    arrays = 64 * write, 64 * read, values
    expected = ram_attention_forward(*(a.astype(np.float64) for a in arrays), 1e30, backend="numpy")[0]
    actual = on_host(ram_attention_forward(*map(to_device, arrays), 1e30)[0])
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("update", ["pdma", "gsu"])
def test_a_gamma_that_is_no_number_reaches_what_its_token_reads_and_no_other_head(update):
    inputs = draw(sized(Case("nan", B=1, T=5, H=2, U=3, P=3, K=3)), np.float32)
    write, _, values = map(to_device, inputs.arrays)
    gamma = np.full(inputs.arrays[2].shape[:3], 0.5, np.float32)
    gamma[0, 3, 0] = np.nan
    y, _, ctx = ram_attention_forward(write, write, values, to_device(gamma), update=update, top_k=3)
    dgamma = on_host(ram_attention_backward(y, ctx).gamma)
    y = on_host(y)
    assert np.isnan(y[0, 3, 0]).all()
    assert np.isfinite(y[0, :3]).all()
    assert np.isfinite(y[:, :, 1]).all()
    assert np.isnan(dgamma[0, 3, 0])


@pytest.mark.parametrize("name", ["plain", "everything", "K-pair-read-1", "U-1-K-is-M"])
def test_the_same_inputs_give_the_same_bits(name):
    inputs = draw(sized(CASE[name]), np.float32)
    assert_same_bits(on_device(inputs), on_device(inputs))


def test_a_sequence_in_pieces_gives_the_same():
    inputs = draw(sized(Case("pieces", T=6, gamma="token", options={"cape_heads": 1})), np.float64)
    T = inputs.arrays[2].shape[1]
    whole, state, _ = ram_attention_forward(*map(to_device, inputs.arrays), to_device(inputs.gamma), cape_heads=1)
    parts, passed = [], None
    for piece in (slice(0, 2), slice(2, T)):
        y, passed, _ = ram_attention_forward(
            *(to_device(a[:, piece]) for a in inputs.arrays),
            to_device(inputs.gamma[:, piece]),
            cape_heads=1,
            positions=np.arange(T)[piece],
            state=passed,
        )
        parts.append(on_host(y))
    assert_close(np.concatenate(parts, axis=1), on_host(whole))
    for part, expected in zip(passed, state, strict=True):
        assert_close(on_host(part), on_host(expected))


@pytest.mark.parametrize("name", ["gsu", "pdma"])
def test_finite_differences(name):
    options = {
        "gsu": {"top_k": (3, 5), "mass_aware": True, "renorm": (True, False), "cape_heads": 1, "update": "gsu"},
        "pdma": {"top_k": 4, "mass_aware": True},
    }[name]
    rng = np.random.default_rng(3)
    B, T, H, U, P, C = (1, 3, 1, 2, 3, 2) if SIMULATED else (2, 7, 2, 3, 3, 5)
    inputs = {
        "write_logits": 1.5 * rng.normal(size=(B, T, H, U, P)),
        "read_logits": 1.5 * rng.normal(size=(B, T, H, U, P)),
        "values": rng.normal(size=(B, T, H, C)),
        "gamma": rng.uniform(0.3, 2, (B, T, H)),
    }

    def forward(*arrays):
        y, _, ctx = ram_attention_forward(*map(to_device, arrays), return_state=False, **options)
        return on_host(y), ctx

    def backward(dy, ctx):
        return [on_host(g) for g in ram_attention_backward(to_device(dy), ctx)[:4]]

    report = gradcheck(forward, backward, inputs, samples=3 if SIMULATED else 20)
    assert report.passed, str(report)


def test_a_context_serves_two_backwards():
    inputs = draw(sized(CASE["given-state"]), np.float64)
    state = RAMState(*map(to_device, inputs.options["state"]))
    _, _, ctx = ram_attention_forward(*map(to_device, inputs.arrays), state=state)
    dy = to_device(inputs.dy)
    first, second = (
        {n: on_host(g) for n, g in zip("abc", ram_attention_backward(dy, ctx), strict=False)} for _ in "12"
    )
    assert_same_bits(first, second)
