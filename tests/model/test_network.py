"""The whole model: gradients, pieces against the whole, generation against repeated forwards, bad calls."""

from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.sampling import Sampling, next_token
from tests.tolerances import assert_close

SMALL = {"vocab": 11, "width": 6, "layers": 2, "heads": 2, "order": 2, "radix": 3, "top_k": 4, "cape": (2, 1)}
MODELS = {
    "paper": {"gamma": 0.7, "value_bias": True, "ffn_width": 5},
    "untied": {"tie_embeddings": False, "ffn": "gelu", "norm": "layernorm"},
    "no-ffn": {"ffn": "none", "gamma_mode": "learnable"},
    "authors": {
        "update": "gsu", "gamma": 2.197, "gamma_mode": "dynamic", "output_gate": True, "output_norm": True,
        "mass_aware": True, "renorm": True, "init_mass": 0.3,
    },
}  # fmt: skip
IDS = np.random.default_rng(3).integers(0, 11, (2, 7))


def make(name, dtype=np.float64, seed=0):
    """A small model whose parameters are far from their initial values."""
    model = RAMNet(RAMNetConfig(**SMALL, **MODELS[name]), seed=seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    for p in model.params.values():
        p += (0.4 * rng.normal(size=p.shape)).astype(dtype)
    return model


def check_gradients(model, **call):
    params = model.params

    def forward(*values):
        return RAMNet(model.config, params=dict(zip(params, values, strict=True))).forward(IDS, **call)

    def backward(dlogits, ctx):
        grads = model.backward(dlogits, ctx)
        assert list(grads) == list(params)
        return list(grads.values())

    gradcheck(forward, backward, params, samples=4).raise_if_failed()


@pytest.mark.parametrize("name", MODELS)
def test_backward_gives_the_gradient_of_every_parameter(name):
    check_gradients(make(name))


def test_backward_of_selected_tokens_with_mask_positions_and_state():
    model = make("paper")
    _, state = model.forward_with_state(IDS[:, ::-1])
    select = np.zeros(IDS.shape, dtype=bool)
    select[0, 2] = select[1, 5] = select[1, 6] = True
    mask = np.ones(IDS.shape, dtype=bool)
    mask[1, 3] = False
    check_gradients(model, select=select, mask=mask, positions=np.arange(7, 14), state=state)
    check_gradients(model, select=np.array([9, 0, 5]), mask=mask, state=state, positions=np.arange(7))


@pytest.mark.parametrize("name", MODELS)
def test_selected_logits_are_those_of_the_whole(name):
    model = make(name)
    select = np.random.default_rng(0).random(IDS.shape) < 0.4
    whole, _ = model.forward(IDS)
    some, _ = model.forward(IDS, select=select)
    assert_close(some, whole[select])
    order = np.random.default_rng(1).permutation(np.flatnonzero(select))
    ordered, _ = model.forward(IDS, select=order)
    assert_close(ordered, whole.reshape(-1, whole.shape[-1])[order])


@pytest.mark.parametrize("name", MODELS)
def test_pieces_give_what_the_whole_gives(name):
    model = make(name)
    whole, final = model.forward_with_state(IDS)
    assert_close(whole, model.forward(IDS)[0])
    pieces, state = [], None
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        logits, state = model.forward_with_state(IDS[:, start:stop], state, positions=np.arange(start, stop))
        pieces.append(logits)
    assert_close(np.concatenate(pieces, axis=1), whole)
    for piecewise, at_once in zip(state, final, strict=True):
        assert_close(piecewise.slots, at_once.slots)
        assert_close(piecewise.mass, at_once.mass)


@pytest.mark.parametrize("name", MODELS)
def test_step_updates_its_state_to_what_a_forward_returns(name):
    model = make(name)
    _, state = model.forward_with_state(IDS[:, :6])
    kept = [tuple(a.copy() for a in s) for s in state]
    expected, after = model.forward_with_state(IDS[:, 6:], state, positions=np.array([6]))
    for now, before in zip(state, kept, strict=True):
        np.testing.assert_array_equal(now.slots, before[0])  # a forward leaves the given state alone ...
    assert_close(model.step(IDS[:, 6:], state, np.array([6])), expected)
    for now, then in zip(state, after, strict=True):
        assert_close(now.slots, then.slots)  # ... a step does not
        assert_close(now.mass, then.mass)


@pytest.mark.parametrize("name", MODELS)
def test_generate_is_the_argmax_of_the_growing_sequence(name):
    model = make(name, seed=5)
    ids = IDS
    for _ in range(9):
        logits, _ = model.forward(ids)
        ids = np.concatenate([ids, logits[:, -1].argmax(axis=-1)[:, None]], axis=1)
    out = model.generate(IDS, 9)
    np.testing.assert_array_equal(out, ids)
    assert len(np.unique(out[:, 7:])) > 1  # an argmax that never changes would prove little


def test_generate_draws_by_temperature_and_seed():
    model = make("paper")
    cold, first, again, other = (
        model.generate(IDS, 30, temperature=t, seed=s) for t, s in ((1e-9, 0), (5.0, 0), (5.0, 0), (5.0, 1))
    )
    np.testing.assert_array_equal(cold, model.generate(IDS, 30))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != cold).any()
    np.testing.assert_array_equal(model.generate(IDS, 0), IDS)


def test_generate_draws_from_the_softmax():
    model = make("paper")
    logits = model.forward(IDS[:1])[0][0, -1] / 2
    expected = np.exp(logits) / np.exp(logits).sum()
    drawn = model.generate(np.repeat(IDS[:1], 4000, axis=0), 1, temperature=2.0)[:, -1]
    np.testing.assert_allclose(np.bincount(drawn, minlength=11) / 4000, expected, atol=4 * 0.5 / np.sqrt(4000))


@pytest.mark.parametrize(("dtype", "vocab", "wide"), [(np.uint8, 300, np.uint16), (np.int8, 200, np.int16)])
def test_generated_tokens_do_not_wrap_in_the_dtype_of_the_prompt(dtype, vocab, wide):
    model = RAMNet(RAMNetConfig(**(SMALL | {"vocab": vocab})), seed=1)
    prompt = np.array([[100, 3]])
    expected = model.generate(prompt, 40, temperature=5.0)
    assert expected.max() > np.iinfo(dtype).max  # else this shows nothing
    got = model.generate(prompt.astype(dtype), 40, temperature=5.0)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == wide
    assert model.generate(prompt.astype(np.int16), 3).dtype == np.int16


@pytest.mark.parametrize("temperature", [1e-300, 5e-324, 1e-30, np.float32(1e-20)])
def test_a_tiny_temperature_is_the_limit(temperature):
    for dtype in (np.float32, np.float64):
        model = make("paper", dtype)
        np.testing.assert_array_equal(model.generate(IDS, 5, temperature=temperature), model.generate(IDS, 5))


def test_equal_logits_are_drawn_alike_at_any_temperature():
    logits = np.repeat(np.array([[3e38, -3e38, 3e38]], np.float32), 4000, axis=0)
    drawn = np.bincount(
        next_token(logits, Sampling(temperature=1e-300), np.random.default_rng(0).random(4000)), minlength=3
    )
    assert drawn[1] == 0
    assert abs(drawn[0] - 2000) < 4 * np.sqrt(1000)


@pytest.mark.parametrize("bad", [[0.0, np.nan], [np.inf, 0.0], [np.inf, np.nan], [-np.inf, -np.inf]])
def test_no_token_is_chosen_from_logits_that_are_not_finite(bad):
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.9, "min_p": 0.1}):
        words = "logits must be finite for a token to be chosen, got NaN or infinity for text 1"
        with pytest.raises(FloatingPointError, match=words):
            next_token(np.array([[0.0, -np.inf], bad]), Sampling(**settings), np.full(2, 0.5))


@pytest.mark.parametrize("conv", [0, 3])
def test_a_step_with_a_wrong_state_changes_nothing(conv):
    model = RAMNet(RAMNetConfig(**SMALL, short_conv=conv))
    _, state = model.forward_with_state(IDS)
    before = [np.array(a) for a in _arrays(state)]
    short = model.forward_with_state(IDS[:1])[1]
    mixed = [state[0], short[1]]
    for wrong, words in (
        (mixed, r"state\[1\].* must have shape"),
        ([state[0], state[0].inputs if conv else state[0].mass], r"state\[1\].* must be a"),
        ([state[0]], r"state must hold one state per layer \(2\), got 1"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            model.step(IDS[:, :1], wrong, np.array([7]))
        for now, then in zip(_arrays(state), before, strict=True):
            np.testing.assert_array_equal(now, then)


def test_a_step_refuses_slots_that_it_cannot_change_and_changes_none():
    model = make("paper")
    _, state = model.forward_with_state(IDS)
    before = [a.copy() for a in _arrays(state)]
    locked = state[1]._replace(slots=state[1].slots.view())
    locked.slots.flags.writeable = False
    for wrong, positions, words in (
        ([state[0], locked], np.array([7]), r"state\[1\]\.slots must be writeable to be updated in place"),
        ([state[0]] * 2, np.array([7]), "state must hold other slots for every layer, got two layers with the same"),
        ([state[0], state[1]._replace(mass=state[0].mass)], np.array([7]), "state must hold other slots for every"),
        (state, None, "positions must say where these tokens are, as heads use CAPE, got None"),
        ([state[0], [0, 1]], np.array([7]), r"state\[1\] must be a RAMState \(slots, mass\), got list"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            model.step(IDS[:, :1], wrong, positions)
        for now, then in zip(_arrays(state), before, strict=True):
            np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("mixer", ["ram", "softmax", "window"])
def test_a_forward_from_a_state_wants_positions_where_they_matter(mixer):
    settings = {**SMALL, "width": 8, "cape": (0, 1), "mixer": mixer}
    model = RAMNet(RAMNetConfig(**settings), seed=1)
    _, state = model.forward_with_state(IDS)
    with pytest.raises(
        ValueError, match=r"positions must say where these tokens are when .* a state is given, got None"
    ):
        model.forward(IDS, state=state)
    model.forward(IDS, state=state, positions=np.arange(7, 14))
    without = RAMNet(RAMNetConfig(**settings | {"cape": 0, "rotary": False}), seed=1)
    without.forward(IDS, state=without.forward_with_state(IDS)[1])


def test_an_initial_mass_is_no_state_that_needs_positions():
    model = RAMNet(RAMNetConfig(**SMALL, init_mass=0.1), seed=1)
    logits, ctx = model.forward(IDS)
    np.testing.assert_array_equal(logits, model.forward(IDS, positions=np.arange(7))[0])
    assert "blocks=(BlockContext, .. 2 in all)" in repr(ctx)
    with pytest.raises(
        TypeError, match=r"ctx must be the NetworkContext that RAMNet\.forward returned last, got ndarray"
    ):
        model.backward(ctx, logits)


def _arrays(state):
    """The arrays within the states of all layers."""
    if isinstance(state, np.ndarray):
        return [state]
    return [array for part in state for array in _arrays(part)]


def test_a_state_that_does_not_fit_is_refused_before_it_is_made():
    model = RAMNet(RAMNetConfig(vocab=11, width=1024, heads=1, order=15, radix=4, ffn="none"))
    with pytest.raises(MemoryError, match=r"the state of this model needs at least 8,804\.7 GB of memory"):
        model.generate(IDS[:1], 1)


def test_repr_says_what_the_model_is_on_one_screen():
    model = RAMNet(RAMNetConfig(**(SMALL | {"width": 8}), mixer="softmax"), dtype=np.float64)
    text = repr(model)
    assert len(text.splitlines()) == 4
    assert max(map(len, text.splitlines())) < 200
    for words in ("2 layers", "softmax attention", f"{model.num_parameters():,} parameters", "float64 on the CPU"):
        assert words in text


def test_masked_tokens_change_nothing_for_others():
    model = make("authors")
    mask = np.ones(IDS.shape, dtype=bool)
    mask[:, 2] = False
    other = IDS.copy()
    other[:, 2] = (other[:, 2] + 1) % 11
    keep = mask[0]
    assert_close(model.forward(IDS, mask=mask)[0][:, keep], model.forward(other, mask=mask)[0][:, keep])
    assert np.abs(model.forward(IDS)[0][:, 3:] - model.forward(other)[0][:, 3:]).max() > 1e-3


def test_later_tokens_change_nothing_for_earlier_ones():
    model = make("authors")
    other = IDS.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    assert_close(model.forward(IDS)[0][:, :4], model.forward(other)[0][:, :4])


def test_trace_says_where_each_layer_writes_and_reads():
    model = RAMNet(RAMNetConfig(**(SMALL | {"top_k": (2, 3)})), dtype=np.float64)
    accesses = model.trace(IDS)
    assert len(accesses) == 2
    for layer in accesses:
        assert layer["write"].index.shape == layer["write"].weight.shape == (2, 7, 2, 2)
        assert layer["read"].index.shape == (2, 7, 2, 3)
    shifted = model.trace(IDS, positions=np.arange(1, 8))
    cape, content = accesses[1]["write"].index[:, :, 0], accesses[1]["write"].index[:, :, 1]
    np.testing.assert_array_equal(shifted[0]["write"].index, (accesses[0]["write"].index - 1) % 9)
    assert cape.shape == content.shape


@pytest.mark.parametrize("name", MODELS)
def test_float32_stays_float32_and_is_near_float64(name):
    narrow, wide = make(name, np.float32), make(name)
    logits, ctx = narrow.forward(IDS)
    assert {logits.dtype, *(g.dtype for g in narrow.backward(logits, ctx).values())} == {np.dtype(np.float32)}
    for s in narrow.forward_with_state(IDS)[1]:
        assert s.slots.dtype == s.mass.dtype == np.float32
    np.testing.assert_allclose(logits, wide.forward(IDS)[0], rtol=1e-4, atol=1e-4)


def test_same_inputs_give_the_same_bits():
    model = make("authors", np.float32)
    (first, ctx), (again, ctx_again) = model.forward(IDS), model.forward(IDS)
    np.testing.assert_array_equal(first, again)
    grads, grads_again = model.backward(first, ctx), model.backward(first, ctx_again)
    for name in grads:
        np.testing.assert_array_equal(grads[name], grads_again[name])


def test_call_chooses_its_backend():
    pytest.importorskip("numba")
    model = make("authors")
    (plain, ctx), (fast, ctx_fast) = (model.forward(IDS, backend=name) for name in ("numpy", "numba"))
    assert ctx_fast.blocks[0].attn.attention.backend.name == "numba"
    assert_close(fast, plain)
    grads, grads_fast = model.backward(plain, ctx), model.backward(plain, ctx_fast)
    for name in grads:
        assert_close(grads_fast[name], grads[name], gradient=True, name=name)
    np.testing.assert_array_equal(model.generate(IDS, 5, backend="numba"), model.generate(IDS, 5))


def test_model_refuses():
    model = make("paper")
    _, state = model.forward_with_state(IDS)
    wrong = model.params | {"model.norm.weight": np.ones(5)}
    for error, message, call in (
        (ValueError, "ids must lie between 0 and 10, got 11 at index", lambda: model.forward(np.array([[0, 11]]))),
        (ValueError, "ids must lie between 0 and 10, got -1 at index", lambda: model.forward(np.array([[0, -1]]))),
        (TypeError, "ids must be integers, got float64", lambda: model.forward(IDS.astype(float))),
        (TypeError, "ids must be an array of integers, got list", lambda: model.forward([[1, 2]])),
        (ValueError, r"ids must have shape \(B, T\) with at least one token", lambda: model.forward(IDS[0])),
        (ValueError, r"at least one token, got \(2, 0\)", lambda: model.generate(IDS[:, :0], 3)),
        (ValueError, "select must be bool of the shape of ids", lambda: model.forward(IDS, select=IDS)),
        (ValueError, r"or \(N,\) integers, got list", lambda: model.forward(IDS, select=[0])),
        (ValueError, "mask must be bool of shape", lambda: model.forward(IDS, mask=IDS)),
        (
            ValueError,
            r"state must hold one state per layer \(2\), got 1",
            lambda: model.forward(IDS, state=state[:1]),
        ),
        (ValueError, "dlogits must be float64 of shape", lambda: model.backward(np.ones(3), model.forward(IDS)[1])),
        (ValueError, "length must be at least 0, got -1", lambda: model.generate(IDS, -1)),
        (TypeError, "length must be an integer, got 1.5", lambda: model.generate(IDS, 1.5)),
        (ValueError, "temperature must be between 0 and", lambda: model.generate(IDS, 1, temperature=-1)),
        (
            ValueError,
            "temperature must be between 0 and .* got nan",
            lambda: model.generate(IDS, 1, temperature=np.nan),
        ),
        (TypeError, "temperature must be a number, got '1'", lambda: model.generate(IDS, 1, temperature="1")),
        (ValueError, "seed must be at least 0, got -3", lambda: model.generate(IDS, 1, seed=-3)),
        (ValueError, "seed must be at least 0, got -3", lambda: RAMNet(model.config, seed=-3)),
        (TypeError, r"config must be a RAMNetConfig, as preset\(name\) .* got 'demo'", lambda: RAMNet("demo")),
        (ValueError, "select must lie between 0 and .* got -1", lambda: model.forward(IDS, select=np.array([0, -1]))),
        (ValueError, "select must name every token once", lambda: model.forward(IDS, select=np.array([1, 0, 1]))),
        (MemoryError, "a model of this size needs at least", lambda: RAMNet(replace(model.config, width=2**30))),
        (ValueError, r"params\['model.norm.weight'\] must have shape", lambda: RAMNet(model.config, params=wrong)),
        (
            TypeError,
            "dtype must be float32 or float64 on the CPU, got float16",
            lambda: RAMNet(model.config, dtype=np.float16),
        ),
    ):
        with pytest.raises(error, match=message):
            call()
