"""The whole model: gradients, pieces against the whole, generation against repeated forwards, bad calls."""

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNet, RAMNetConfig
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
    check_gradients(model, select=np.array([9, 0, 5]), mask=mask, state=state)


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
        (ValueError, "length must be 0 or more, got -1", lambda: model.generate(IDS, -1)),
        (TypeError, "length must be an integer, got 1.5", lambda: model.generate(IDS, 1.5)),
        (ValueError, "temperature must be 0 or more", lambda: model.generate(IDS, 1, temperature=-1)),
        (TypeError, "dtype must be float32 or float64, got float16", lambda: RAMNet(model.config, dtype=np.float16)),
    ):
        with pytest.raises(error, match=message):
            call()
