"""The NumPy core against the dense oracle, and against itself: pieces, states, masks, repeatability."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet_np import RAMState, gradcheck, ram_attention_backward, ram_attention_forward, ram_attention_step
from ramnet_np.core.dense import dense_ram_attention
from ramnet_np.core.retention import RULES
from tests.tolerances import assert_close


def draw(seed=0, B=2, T=6, H=3, U=3, P=2, C=4, dtype=np.float64, scale=2.0):
    """Random write logits, read logits and values."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(2, B, T, H, U, P))
    return (*logits.astype(dtype), rng.normal(size=(B, T, H, C)).astype(dtype))


def draw_state(seed=9, B=2, H=3, M=8, C=4):
    rng = np.random.default_rng(seed)
    return RAMState(rng.normal(size=(B, H, M, C)), rng.uniform(0.1, 1.0, (B, H, M)))


def assert_same_outputs(actual, expected):
    (y, state), (y_expected, state_expected) = actual, expected
    assert_close(y, y_expected, name="y")
    assert_close(state.slots, state_expected.slots, name="slots")
    assert_close(state.mass, state_expected.mass, name="mass")


OPTIONS = {
    "pdma": {},
    "gamma-0": {"gamma": 0.0},
    "gamma-0.3": {"gamma": 0.3},
    "gamma-2.5": {"gamma": 2.5},
    "gsu": {"update": "gsu", "gamma": 2.2},
    "gsu-negative": {"update": "gsu", "gamma": -3.0},
    "renorm": {"renorm": True},
    "renorm-reads": {"renorm": (False, True)},
    "mass-aware": {"mass_aware": True},
    "mass-aware-gsu-renorm": {"mass_aware": True, "update": "gsu", "renorm": True},
    "cape": {"cape_heads": 2},
    "cape-positions": {"cape_heads": 3, "positions": np.array([3, 4, 900, 901, 7, 8])},
    "K-1": {"top_k": 1},
    "K-pair": {"top_k": (2, 5)},
    "K-M": {"top_k": 8},
}


@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_forward_equals_dense_oracle(name, given_state):
    options = {"top_k": 3, **OPTIONS[name]}
    state = draw_state() if given_state else None
    if given_state:
        options = {"positions": np.arange(6), **options}
    y, final, _ = ram_attention_forward(*draw(), state=state, backend="numpy", **options)
    assert_same_outputs((y, final), dense_ram_attention(*draw(), state=state, **options))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 4)] * 5),
    radix=st.integers(1, 4),
    update=st.sampled_from(list(RULES)),
    mass_aware=st.booleans(),
    data=st.data(),
)
def test_forward_equals_dense_oracle_on_random_shapes(seed, shape, radix, update, mass_aware, data):
    B, T, H, U, C = shape
    M = radix**U
    options = {
        "top_k": data.draw(st.tuples(st.integers(1, M), st.integers(1, M))),
        "cape_heads": data.draw(st.integers(0, H)),
        "renorm": data.draw(st.tuples(st.booleans(), st.booleans())),
        "update": update,
        "mass_aware": mass_aware,
        "mask": np.random.default_rng(seed).random((B, T)) < 0.7,
    }
    inputs = draw(seed, B, T, H, U, radix, C)
    gamma = np.random.default_rng(seed).uniform(0, 3, (B, T, H))
    y, final, _ = ram_attention_forward(*inputs, gamma, backend="numpy", **options)
    assert_same_outputs((y, final), dense_ram_attention(*inputs, gamma, **options))


@pytest.mark.parametrize("mass_aware", [False, True])
def test_eps_is_added_to_every_mass_that_divides(mass_aware):
    """Equal logits and K = 1: each token writes and reads slot 0 of 2 with weight 1/2, and gamma 0 keeps all."""
    logits, values, eps = np.zeros((1, 4, 1, 1, 2)), np.array([4.0, -1.0, 2.0, 8.0]), 0.25
    options = {"top_k": 1, "eps": eps, "mass_aware": mass_aware, "backend": "numpy"}
    arrays = logits, logits, values.reshape(1, 4, 1, 1)
    y, _, _ = ram_attention_forward(*arrays, 0.0, **options)
    state, s, z = RAMState.initial(1, 1, 2, 1, np.float64), 0.0, 0.5
    for t, value in enumerate(values):
        now = [array[:, t : t + 1] for array in arrays]
        step, _ = ram_attention_step(*now, 0.0, state=state, positions=np.array([t]), **options)
        z += 0.5
        s += 0.5 / (z + eps) * (value - s)
        r = 0.5 * (0.5 * z) / (0.5 * z + eps) if mass_aware else 0.5
        assert y[0, t, 0, 0] == pytest.approx(r * s, rel=1e-12)
        assert step[0, 0, 0, 0] == pytest.approx(r * s, rel=1e-12)


@pytest.mark.parametrize("mass_aware", [False, True])
def test_the_gradient_is_that_of_a_large_eps(mass_aware):
    """By default eps is too small for a backward without it to differ."""
    write_logits, read_logits, values = draw(B=1, T=4, H=1, P=2, C=2)

    def forward(*inputs):
        y, _, ctx = ram_attention_forward(*inputs, top_k=3, eps=0.25, mass_aware=mass_aware, backend="numpy")
        return y, ctx

    gradcheck(
        forward,
        lambda dy, ctx: ram_attention_backward(dy, ctx)[:3],
        {"write_logits": write_logits, "read_logits": read_logits, "values": values},
    ).raise_if_failed()


def test_proxy_eps_changes_the_gradient_of_the_writes_alone():
    inputs, found = draw(), []
    for proxy_eps in (0.0, 0.3):
        y, _, ctx = ram_attention_forward(*inputs, 1.5, top_k=3, proxy_eps=proxy_eps, backend="numpy")
        found.append((y, ram_attention_backward(np.ones_like(y), ctx)))
    (y, true), (same, proxy) = found
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(true.read_logits, proxy.read_logits)
    assert np.abs(true.write_logits - proxy.write_logits).max() > 1e-3
    assert np.abs(true.gamma - proxy.gamma) > 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_and_backward_keep_the_dtype(dtype):
    inputs = draw(dtype=dtype)
    gamma = np.ones((2, 6, 3), dtype)
    y, state, ctx = ram_attention_forward(*inputs, gamma, top_k=3, mass_aware=True, backend="numpy")
    grads = ram_attention_backward(y, ctx)
    assert {a.dtype for a in (y, *state, *grads[:4])} == {np.dtype(dtype)}


@pytest.mark.parametrize("update", RULES)
def test_pieces_equal_the_whole(update):
    write, read, values = draw(T=9)
    options = {"top_k": 3, "cape_heads": 2, "update": update, "backend": "numpy"}
    y, final, _ = ram_attention_forward(write, read, values, 0.7, **options)
    state, pieces = None, []
    for start, stop in ((0, 1), (1, 5), (5, 9)):
        part = slice(start, stop)
        y_part, state, _ = ram_attention_forward(
            write[:, part],
            read[:, part],
            values[:, part],
            0.7,
            state=state,
            positions=np.arange(start, stop),
            **options,
        )
        pieces.append(y_part)
    assert_same_outputs((np.concatenate(pieces, axis=1), state), (y, final))


def test_gradient_through_pieces_equals_the_whole():
    """dstate of a later piece is what the earlier piece's backward needs."""
    write, read, values = draw(T=8)
    options = {"top_k": 3, "cape_heads": 1, "mass_aware": True, "backend": "numpy"}
    dy = np.random.default_rng(5).normal(size=values.shape)
    _, _, ctx = ram_attention_forward(write, read, values, 0.6, state=draw_state(), positions=np.arange(8), **options)
    whole = ram_attention_backward(dy, ctx)
    first, second = slice(0, 3), slice(3, 8)
    _, state, ctx_1 = ram_attention_forward(
        write[:, first], read[:, first], values[:, first], 0.6, state=draw_state(), positions=np.arange(3), **options
    )
    _, _, ctx_2 = ram_attention_forward(
        write[:, second], read[:, second], values[:, second], 0.6, state=state, positions=np.arange(3, 8), **options
    )
    later = ram_attention_backward(dy[:, second], ctx_2)
    earlier = ram_attention_backward(dy[:, first], ctx_1, later.state)
    for name in ("write_logits", "read_logits", "values"):
        joined = np.concatenate([getattr(earlier, name), getattr(later, name)], axis=1)
        assert_close(joined, getattr(whole, name), gradient=True, name=name)
    assert_close(np.float64(earlier.gamma + later.gamma), np.float64(whole.gamma), gradient=True, name="gamma")
    assert_close(earlier.state.slots, whole.state.slots, gradient=True, name="slots")
    assert_close(earlier.state.mass, whole.state.mass, gradient=True, name="mass")


def test_step_equals_forward_and_updates_in_place():
    write, read, values = draw(T=5)
    options = {"top_k": (3, 2), "cape_heads": 2, "mass_aware": True, "backend": "numpy"}
    y, final, _ = ram_attention_forward(write, read, values, 0.4, **options)
    state = RAMState.initial(2, 3, 8, 4, np.float64)
    for t in range(5):
        now = slice(t, t + 1)
        y_t, returned = ram_attention_step(
            write[:, now], read[:, now], values[:, now], 0.4, state=state, positions=np.array([t]), **options
        )
        assert returned is state
        assert_close(y_t, y[:, now])
    assert_same_outputs((y, state), (y, final))


def test_a_masked_token_leaves_no_trace():
    """Whatever a masked token holds, the others' results and gradients are the same bits."""
    write, read, values = draw()
    mask = np.ones((2, 6), bool)
    mask[0, 2] = mask[1, 5] = False
    dy = np.random.default_rng(1).normal(size=values.shape)

    def run(write, read, values, dy):
        y, state, ctx = ram_attention_forward(write, read, values, 0.5, top_k=3, mask=mask, backend="numpy")
        return [y, *state, *ram_attention_backward(dy, ctx)[:3]]

    expected = run(write, read, values, dy)
    assert (expected[0][~mask] == 0).all()
    assert all((grad[~mask] == 0).all() for grad in expected[3:])
    other = [a.copy() for a in (write, read, values, dy)]
    for a in other:
        a[~mask] = 1e3 * np.random.default_rng(2).normal(size=a[~mask].shape)
    other[2][~mask] = other[3][~mask] = np.nan
    assert all(map(np.array_equal, run(*other), expected))


def test_a_given_state_is_left_alone():
    state = draw_state()
    kept = [a.copy() for a in state]
    _, final, ctx = ram_attention_forward(*draw(), top_k=3, state=state, backend="numpy")
    ram_attention_backward(np.ones((2, 6, 3, 4)), ctx, final)
    assert all(map(np.array_equal, state, kept))


def test_backward_may_be_called_twice():
    y, _, ctx = ram_attention_forward(*draw(), top_k=3, backend="numpy")
    first, second = ram_attention_backward(y, ctx), ram_attention_backward(y, ctx)
    assert all(np.array_equal(a, b) for a, b in zip(first[:4], second[:4], strict=True))


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_without_gradients_there_is_no_context(backend):
    inputs = draw()
    y, state, _ = ram_attention_forward(*inputs, top_k=3, backend=backend)
    y_alone, state_alone, ctx = ram_attention_forward(*inputs, top_k=3, gradients=False, backend=backend)
    assert ctx is None
    assert all(map(np.array_equal, (y, *state), (y_alone, *state_alone)))


def test_without_returned_state_nothing_of_size_M_is_kept():
    """2**30 slots: anything of that size would need gigabytes."""
    inputs = draw(T=4, U=30, P=2, dtype=np.float32)
    y, state, ctx = ram_attention_forward(*inputs, return_state=False, backend="numpy")
    assert state is None
    assert np.isfinite(ram_attention_backward(y, ctx).write_logits).all()


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("proxy_eps", [0.0, 0.01])
def test_gradients_are_finite_where_a_weight_is_one(gamma, proxy_eps):
    """Logits far apart round every kept weight to exactly 1 or 0."""
    write, read, values = draw(scale=500.0)
    y, state, ctx = ram_attention_forward(write, read, values, gamma, top_k=2, proxy_eps=proxy_eps, backend="numpy")
    grads = ram_attention_backward(np.ones_like(y), ctx, state)
    assert all(np.isfinite(grad).all() for grad in grads[:4])


def test_one_slot_with_weight_one_holds_the_last_value():
    write, read, values = draw(T=4, U=1, P=1)
    y, _, _ = ram_attention_forward(write, read, values, 1.0, top_k=1, backend="numpy")
    assert_close(y, values)


def test_one_slot_with_gamma_0_holds_the_mean():
    """z_0 = 1/M = 1 and every weight is 1: the initial zero counts as one value."""
    write, read, values = draw(T=4, U=1, P=1)
    y, _, _ = ram_attention_forward(write, read, values, 0.0, top_k=1, backend="numpy")
    assert_close(y, values.cumsum(axis=1) / np.arange(2, 6)[None, :, None, None])


@pytest.mark.parametrize("mass_aware", [False, True])
def test_contents_stay_within_the_values(mass_aware):
    """The normalised content is a convex combination of 0 and past values, for any gamma."""
    write, read, values = draw(T=40)
    gamma = np.random.default_rng(0).uniform(0, 5, (2, 40, 3))
    _, state, _ = ram_attention_forward(write, read, values, gamma, top_k=4, mass_aware=mass_aware, backend="numpy")
    assert np.abs(state.slots).max() <= np.abs(values).max() + 1e-12


def test_empty_batch():
    y, state, ctx = ram_attention_forward(*(a[:0] for a in draw()), top_k=3, backend="numpy")
    grads = ram_attention_backward(y, ctx)
    assert y.shape == (0, 6, 3, 4)
    assert state.slots.shape == (0, 3, 8, 4)
    assert grads.write_logits.shape == (0, 6, 3, 3, 2)
    assert grads.gamma == 0
