"""Bad input: one clear sentence that names the argument, what it was and what was expected."""

import numpy as np
import pytest

from ramnet_np import (
    RAMState,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
)

B, T, H, U, P, C, M = 2, 5, 3, 3, 2, 4, 8


def good():
    rng = np.random.default_rng(0)
    write, read = rng.normal(size=(2, B, T, H, U, P))
    return {"write_logits": write, "read_logits": read, "values": rng.normal(size=(B, T, H, C)), "top_k": 3}


def with_value(array, value):
    array[1, 2, 0] = value
    return array


def state(**changes):
    parts = {"slots": np.zeros((B, H, M, C)), "mass": np.ones((B, H, M)), **changes}
    return RAMState(**parts)


BAD = {
    "write_logits rank": (
        {"write_logits": np.zeros((B, T, H, P))},
        ValueError,
        r"write_logits must have 5 axes \(B, T, H, U, P\), got shape \(2, 5, 3, 2\)",
    ),
    "values rank": ({"values": np.zeros((B, T, C))}, ValueError, r"values must have 4 axes \(B, T, H, C\)"),
    "read axis U": (
        {"read_logits": np.zeros((B, T, H, 4, P))},
        ValueError,
        r"read_logits must have the shape of write_logits .*axis 3 \(U\) differs",
    ),
    "values axis H": ({"values": np.zeros((B, T, 2, C))}, ValueError, r"values must .*axis 2 \(H\) differs"),
    "values axis T": ({"values": np.zeros((B, 4, H, C))}, ValueError, r"values must .*axis 1 \(T\) differs"),
    "no channels": ({"values": np.zeros((B, T, H, 0))}, ValueError, r"values must have at least one channel"),
    "empty T": (
        {"write_logits": np.zeros((B, 0, H, U, P))},
        ValueError,
        r"write_logits must not be empty along axis 1 \(T\)",
    ),
    "integer logits": (
        {"write_logits": np.zeros((B, T, H, U, P), int)},
        TypeError,
        "write_logits must be floating point, got int64",
    ),
    "float16 on the CPU": (
        {"write_logits": np.zeros((B, T, H, U, P), np.float16)},
        TypeError,
        "write_logits must be float32 or float64 on the CPU, got float16",
    ),
    "list": ({"values": [1.0, 2.0]}, TypeError, "values must be an array, got list"),
    "mixed dtypes": (
        {"values": np.zeros((B, T, H, C), np.float32)},
        TypeError,
        r"values must have the dtype of write_logits \(float64\), got float32",
    ),
    "NaN logits": (
        {"write_logits": with_value(np.zeros((B, T, H, U, P)), np.nan)},
        ValueError,
        r"write_logits must be finite, got nan at index \(1, 2, 0, 0, 0\)",
    ),
    "infinite logits": (
        {"read_logits": with_value(np.zeros((B, T, H, U, P)), -np.inf)},
        ValueError,
        "read_logits must be finite, got -inf",
    ),
    "too many slots": (
        {"write_logits": np.zeros((B, T, H, 31, 2)), "read_logits": np.zeros((B, T, H, 31, 2))},
        ValueError,
        r"write_logits addresses P\*\*U = 2\*\*31 slots",
    ),
    "K = 0": ({"top_k": 0}, ValueError, "top_k must be between 1 and the number of slots M = 8, got 0"),
    "K > M": ({"top_k": 9}, ValueError, "top_k must be between 1 and the number of slots M = 8, got 9"),
    "K_r > M": ({"top_k": (3, 9)}, ValueError, r"top_k\[1\] must be between 1 and the number of slots M = 8, got 9"),
    "fractional K": ({"top_k": 2.5}, TypeError, "top_k must be an integer, got 2.5"),
    "three K": ({"top_k": (1, 2, 3)}, ValueError, r"top_k must be one value or a \(write, read\) pair, got 3 values"),
    "renorm": ({"renorm": "yes"}, TypeError, "renorm must be True or False, got 'yes'"),
    "cape_heads > H": (
        {"cape_heads": 4},
        ValueError,
        "cape_heads must be between 0 and the number of heads H = 3, got 4",
    ),
    "cape_heads < 0": ({"cape_heads": -1}, ValueError, "cape_heads must be between 0"),
    "cape_heads float": ({"cape_heads": 1.0}, TypeError, "cape_heads must be an integer, got 1.0"),
    "positions shape": ({"positions": np.arange(4)}, ValueError, r"positions must have shape \(T,\) = \(5,\)"),
    "positions dtype": ({"positions": np.zeros(T)}, TypeError, "positions must be integers, got float64"),
    "update": ({"update": "ema"}, ValueError, "update must be 'pdma' or 'gsu', got 'ema'"),
    "negative gamma": ({"gamma": -0.5}, ValueError, "gamma must not be negative for update='pdma', got -0.5"),
    "negative gammas": (
        {"gamma": np.full((B, T, H), -1.0)},
        ValueError,
        "gamma must not be negative for update='pdma', got a minimum of -1.0",
    ),
    "NaN gamma": ({"gamma": float("nan")}, ValueError, "gamma must be finite, .*, got nan"),
    "NaN in gamma": (
        {"gamma": with_value(np.ones((B, T, H)), np.nan)},
        ValueError,
        r"gamma must be finite, got nan at index \(1, 2, 0\)",
    ),
    "NaN in gamma of gsu": (
        {"gamma": with_value(np.ones((B, T, H)), np.nan), "update": "gsu"},
        ValueError,
        "gamma must be finite, got nan at index",
    ),
    "infinite gamma of gsu": (
        {"gamma": with_value(np.ones((B, T, H)), -np.inf), "update": "gsu"},
        ValueError,
        "gamma must be finite, got -inf at index",
    ),
    "NaN before a negative gamma": (
        {"gamma": with_value(np.full((B, T, H), -1.0), np.nan)},
        ValueError,
        "gamma must be finite, got nan",
    ),
    "huge gamma": ({"gamma": 10**400}, ValueError, "gamma must be a finite number, got an integer of 1329 bits"),
    "complex gamma": ({"gamma": np.array(1j)}, TypeError, "gamma must be a real number, got complex128"),
    "huge eps": ({"eps": 10**400}, ValueError, "eps must be a finite number, got an integer of 1329 bits"),
    "positions that wrap": (
        {"positions": np.array([0, 1, 2, 3, 2**63], np.uint64)},
        ValueError,
        "positions must be below 2.*63, got a maximum of 9223372036854775808",
    ),
    "huge positions": ({"positions": [0, 1, 2, 3, 2**64]}, TypeError, "positions must be integers, got object"),
    "state of a list": ({"state": [1, 2]}, TypeError, r"state must be a RAMState \(slots, mass\), got list"),
    "state of lists": ({"state": RAMState([0], [1])}, TypeError, "state.slots must be an array of the kind of values"),
    "gamma shape": (
        {"gamma": np.ones(H)},
        ValueError,
        r"gamma must be a number or have shape \(B, T, H\) = \(2, 5, 3\)",
    ),
    "gamma dtype": ({"gamma": np.ones((B, T, H), np.float32)}, TypeError, "gamma must have the dtype of values"),
    "gamma text": ({"gamma": "1"}, TypeError, "gamma must be a number or an array like values, got str"),
    "mask shape": ({"mask": np.ones(T, bool)}, ValueError, r"mask must be bool of shape \(B, T\) = \(2, 5\), got bool"),
    "mask dtype": ({"mask": np.ones((B, T))}, ValueError, "mask must be bool of shape .*, got float64"),
    "mask list": ({"mask": [[True] * T] * B}, TypeError, "mask must be an array of the kind of values, got list"),
    "state type": ({"state": (1, 2)}, TypeError, r"state must be a RAMState \(slots, mass\), got tuple"),
    "state slots": (
        {"state": state(slots=np.zeros((B, H, 9, C)))},
        ValueError,
        r"state.slots must have shape \(B, H, M, C\) = \(2, 3, 8, 4\), got \(2, 3, 9, 4\)",
    ),
    "state mass": ({"state": state(mass=np.ones((B, M)))}, ValueError, r"state.mass must have shape \(B, H, M\)"),
    "state dtype": (
        {"state": state(mass=np.ones((B, H, M), np.float32))},
        TypeError,
        "state.mass must be float64, got float32",
    ),
    "eps": ({"eps": -1e-3}, ValueError, "eps must be a finite number between 0 and inf, got -0.001"),
    "proxy_eps": ({"proxy_eps": 1.5}, ValueError, "proxy_eps must be a finite number between 0 and 1, got 1.5"),
    "mass_aware": ({"mass_aware": 1}, TypeError, "mass_aware must be True or False, got 1"),
    "gradients": ({"gradients": None}, TypeError, "gradients must be True or False, got None"),
    "backend": ({"backend": "gpu"}, ValueError, "backend must be one of .*, got 'gpu'"),
}


@pytest.mark.parametrize("name", BAD)
def test_forward_refuses(name):
    changes, error, words = BAD[name]
    with pytest.raises(error, match=words) as caught:
        ram_attention_forward(**{**good(), **changes})
    assert "\n" not in str(caught.value)


def test_what_is_good_passes():
    ram_attention_forward(**good())


@pytest.mark.parametrize(
    ("logits", "options", "error", "words"),
    [
        (np.zeros((B, T, U, P)), {}, ValueError, "logits must have 5 axes"),
        (np.zeros((B, T, H, U, P)), {"top_k": 9}, ValueError, "top_k must be between 1 and"),
        (np.zeros((B, T, H, U, P)), {"top_k": 2, "cape_heads": 4}, ValueError, "cape_heads must be between"),
        (np.zeros((B, T, H, U, P)), {"top_k": 2, "renorm": (True, False)}, TypeError, "renorm must be True or False"),
    ],
)
def test_decode_address_refuses(logits, options, error, words):
    with pytest.raises(error, match=words):
        decode_address(logits, **options)


@pytest.mark.parametrize(
    ("dy", "words"),
    [
        (np.zeros((B, T, H, C + 1)), r"dy must be float64 of shape \(2, 5, 3, 4\), got float64 of shape"),
        (np.zeros((B, T, H, C), np.float32), "got float32 of shape"),
        (1.0, "got float"),
    ],
)
def test_backward_refuses_dy(dy, words):
    _, _, ctx = ram_attention_forward(**good())
    with pytest.raises(ValueError, match=words):
        ram_attention_backward(dy, ctx)


def test_backward_refuses_dstate():
    y, _, ctx = ram_attention_forward(**good())
    with pytest.raises(ValueError, match=r"dstate\.slots must have shape"):
        ram_attention_backward(y, ctx, state(slots=np.zeros((B, H, 9, C))))
    y, _, ctx = ram_attention_forward(**good(), return_state=False)
    with pytest.raises(ValueError, match="dstate must be None after a forward with return_state=False"):
        ram_attention_backward(y, ctx, state())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, ValueError, r"values must hold one token .* got T = 5"),
        ({"state": None}, TypeError, "state must be a RAMState to update in place, got None"),
        ({"tokens": 1, "cape_heads": 1}, ValueError, "positions must say where these tokens are"),
    ],
)
def test_step_refuses_and_leaves_the_state_alone(changes, error, words):
    changes = dict(changes)
    tokens = changes.pop("tokens", T)
    inputs = {k: v[:, :tokens] if k != "top_k" else v for k, v in good().items()}
    held = state()
    with pytest.raises(error, match=words):
        ram_attention_step(**{**inputs, "state": held, **changes})
    assert (held.slots == 0).all()
    assert (held.mass == 1).all()


def test_what_passed_once_does_not_let_what_looks_alike_pass():
    """Checks that have passed are remembered; True is not 1, and arguments that no memory takes are still named."""
    for passes, fails, message in (
        ({"top_k": 1}, {"top_k": True}, "top_k must be an integer, got True"),
        ({"top_k": (2, 1)}, {"top_k": (2, True)}, r"top_k\[1\] must be an integer, got True"),
        ({"renorm": False}, {"renorm": 0}, "renorm must be True or False, got 0"),
        ({"cape_heads": 1}, {"cape_heads": True}, "cape_heads must be an integer, got True"),
        ({"eps": 1}, {"eps": [1]}, r"eps must be a number, got \[1\]"),
        ({"cape_heads": 0}, {"cape_heads": np.zeros(1)}, "cape_heads must be an integer, got array"),
        ({}, {"values": np.zeros((B, T, H, C), int)}, "values must be floating point, got int64"),
    ):
        ram_attention_forward(**{**good(), **passes})
        for _ in range(2):
            with pytest.raises(TypeError, match=message):
                ram_attention_forward(**{**good(), **fails})
    with pytest.raises(ValueError, match="write_logits must be finite, got nan"):
        ram_attention_forward(**{**good(), "write_logits": with_value(good()["write_logits"], np.nan)})


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_gamma_as_a_number_fits_the_dtype_of_values(backend):
    x, v = np.zeros((1, 2, 1, 2, 2), np.float32), np.ones((1, 2, 1, 2), np.float32)
    with pytest.raises(ValueError, match=r"gamma must be finite, in the dtype of values \(float32\) too, got 1e\+39"):
        ram_attention_forward(x, x, v, 1e39, top_k=2, backend=backend)
    ram_attention_forward(x.astype(float), x.astype(float), v.astype(float), 1e39, top_k=2, backend=backend)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("P", [3, 4])
def test_positions_near_the_ends_of_their_integers_do_not_wrap(backend, P):
    """Also where M is no power of two, so that a wrap by 2**64 would be no whole number of rounds."""
    M = P**U
    logits = np.random.default_rng(0).normal(size=(1, 1, 1, U, P))
    content = decode_address(logits, 3, backend=backend).index
    for position in (2**63 - 1, -(2**63), -(2**63) + 1, 2**53 + 1):
        moved = decode_address(logits, 3, cape_heads=1, positions=np.array([position]), backend=backend).index
        assert moved.ravel().tolist() == [(j - position) % M for j in content.ravel().tolist()]
    for dtype in (np.uint8, np.int8, np.uint64, ">i4"):
        moved = decode_address(logits, 3, cape_heads=1, positions=np.array([100], dtype), backend=backend).index
        assert moved.ravel().tolist() == [(j - 100) % M for j in content.ravel().tolist()]
