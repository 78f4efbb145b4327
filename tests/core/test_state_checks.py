"""A state that a step cannot update in place is refused, and nothing has changed."""

import numpy as np
import pytest

from ramnet_np import RAMState, ram_attention_forward, ram_attention_step
from ramnet_np.core.state_checks import overlaps_itself

X, V = np.zeros((2, 1, 2, 2, 4)), np.ones((2, 1, 2, 3))
BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba"])


def fresh():
    return RAMState.initial(2, 2, 16, 3, np.float64)


def read_only(array):
    array.flags.writeable = False
    return array


def overlapping(array):
    """Every sequence of the batch at the same place, and writeable."""
    return np.lib.stride_tricks.as_strided(array, array.shape, (0, *array.strides[1:]))


STATES = {
    "read-only slots": (lambda s: s._replace(slots=read_only(s.slots)), r"state\.slots must be writeable"),
    "read-only mass": (lambda s: s._replace(mass=read_only(s.mass)), r"state\.mass must be writeable"),
    "broadcast": (lambda s: s._replace(mass=np.broadcast_to(1 / 16, s.mass.shape)), r"state\.mass must be writeable"),
    "overlapping slots": (
        lambda s: s._replace(slots=overlapping(s.slots)),
        r"state\.slots must hold every element in memory of its own .* got strides \(0, ",
    ),
    "overlapping mass": (lambda s: s._replace(mass=overlapping(s.mass)), r"state\.mass must hold every element"),
    "one memory": (
        lambda s: s._replace(mass=s.slots[..., 0]),
        r"state\.slots and state\.mass must not share memory",
    ),
}


@BACKENDS
@pytest.mark.parametrize("name", STATES)
def test_a_step_refuses_what_it_cannot_update(name, backend):
    change, words = STATES[name]
    state = change(fresh())
    before = [a.copy() for a in state]
    with pytest.raises(ValueError, match=words):
        ram_attention_step(X, X, V, state=state, backend=backend)
    for now, then in zip(state, before, strict=True):
        np.testing.assert_array_equal(now, then)
    ram_attention_forward(X, X, V, state=state, backend=backend)  # which only reads it


@BACKENDS
def test_a_step_updates_views(backend):
    """Slots and mass side by side in one array, its axes in another order, every second head of it."""
    buffer = np.zeros((16, 4, 2, 4))
    slots, mass = buffer[:, ::2, :, :3].transpose(2, 1, 0, 3), buffer[:, ::2, :, 3].transpose(2, 1, 0)
    mass[...] = 1 / 16
    y, _ = ram_attention_step(X, X, V, state=RAMState(slots, mass), backend=backend)
    state = fresh()
    expected, _ = ram_attention_step(X, X, V, state=state, backend=backend)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(slots, state.slots)
    np.testing.assert_array_equal(mass, state.mass)
    assert not buffer[:, 1::2].any()


def test_overlap():
    x = np.zeros((3, 4, 5))
    for view in (x, x.T, x[::2, ::-1], x[:, None], x[:0], x[1], x[..., ::3].swapaxes(0, 1), np.zeros(())):
        assert not overlaps_itself(view)
    strided = np.lib.stride_tricks.as_strided
    for view in (np.broadcast_to(x, (2, 3, 4, 5)), strided(x, (3, 3), (8, 8)), strided(x, (2, 5), (32, 8))):
        assert overlaps_itself(view)


@BACKENDS
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_state_without_positions_is_no_place_to_go_on_from(backend, tokens):
    x, v = np.zeros((1, tokens, 2, 2, 4)), np.ones((1, tokens, 2, 3))
    state = RAMState.initial(1, 2, 16, 3, np.float64)
    with pytest.raises(ValueError, match="positions must say where these tokens are when heads use CAPE and a"):
        ram_attention_forward(x, x, v, cape_heads=1, state=state, backend=backend)
    y, _, _ = ram_attention_forward(x, x, v, cape_heads=1, backend=backend)
    same, _, _ = ram_attention_forward(x, x, v, cape_heads=1, state=state, positions=np.arange(tokens), backend=backend)
    np.testing.assert_array_equal(same, y)
    ram_attention_forward(x, x, v, state=state, backend=backend)  # without CAPE no position matters
