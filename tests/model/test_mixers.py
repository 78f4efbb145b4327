"""Models of every mixer: gradients, the layer by hand, pieces against the whole, steps, files, and what is refused."""

from functools import partial

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNet, RAMNetConfig, decay
from ramnet_np.model.decay import decay_backward, decay_forward, decay_parameters
from ramnet_np.model.layout import model_parameters
from ramnet_np.model.mixers import delta
from ramnet_np.model.parameters import init_parameters, shapes_of
from ramnet_np.train.optim import has_weight_decay
from tests.mixer_cases import MIXERS
from tests.tolerances import assert_close

SMALL = {"vocab": 11, "width": 8, "layers": 2, "heads": 2, "order": 2, "radix": 3, "top_k": 4, "cape": (2, 1)}
IDS = np.random.default_rng(3).integers(0, 11, (2, 9))


def make(name, dtype=np.float64, seed=0):
    """A small model whose parameters are far from their initial values."""
    model = RAMNet(RAMNetConfig(**SMALL, **MIXERS[name]), seed=seed, dtype=dtype)
    rng = np.random.default_rng(seed)
    for p in model.params.values():
        p += (0.4 * rng.normal(size=p.shape)).astype(dtype)
    return model


def arrays(state):
    """All arrays of a state, whatever it is made of."""
    return [state] if isinstance(state, np.ndarray) else [a for part in state for a in arrays(part)]


@pytest.mark.parametrize("name", MIXERS)
def test_backward_gives_the_gradient_of_every_parameter(name):
    model = make(name)
    params = model.params
    _, state = model.forward_with_state(IDS[:, ::-1])
    for call in ({}, {"select": np.array([9, 0, 5]), "positions": np.arange(9, 18), "state": state}):

        def forward(*values, call=call):
            return RAMNet(model.config, params=dict(zip(params, values, strict=True))).forward(IDS, **call)

        def backward(dlogits, ctx):
            grads = model.backward(dlogits, ctx)
            assert list(grads) == list(params)
            return list(grads.values())

        gradcheck(forward, backward, params, samples=10).raise_if_failed()


@pytest.mark.parametrize("name", MIXERS)
def test_pieces_and_steps_give_what_the_whole_gives(name):
    model = make(name)
    whole, final = model.forward_with_state(IDS)
    assert_close(whole, model.forward(IDS)[0])
    pieces, state = [], None
    for start, stop in ((0, 1), (1, 3), (3, 7), (7, 9)):
        logits, state = model.forward_with_state(IDS[:, start:stop], state, positions=np.arange(start, stop))
        pieces.append(logits)
    assert_close(np.concatenate(pieces, axis=1), whole)
    for now, then in zip(arrays(state), arrays(final), strict=True):
        assert_close(now, then)
    _, state = model.forward_with_state(IDS[:, :2])
    kept = [a.copy() for a in arrays(state)]
    model.forward(IDS, state=state, positions=np.arange(2, 11))
    for now, before in zip(arrays(state), kept, strict=True):
        np.testing.assert_array_equal(now, before)  # a forward leaves the given state alone ...
    for t in range(2, 9):
        assert_close(model.step(IDS[:, t : t + 1], state, np.array([t]))[:, 0], whole[:, t])
    for now, then in zip(arrays(state), arrays(final), strict=True):
        assert_close(now, then)  # ... a step does not


@pytest.mark.parametrize("name", MIXERS)
def test_generate_is_the_argmax_of_the_growing_sequence(name):
    model = make(name, seed=5)
    ids = IDS
    for _ in range(4):
        logits, _ = model.forward(ids)
        ids = np.concatenate([ids, logits[:, -1].argmax(axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(model.generate(IDS, 4), ids)


@pytest.mark.parametrize("name", MIXERS)
def test_no_token_sees_a_later_one(name):
    model = make(name)
    later = IDS.copy()
    later[:, 5:] = (later[:, 5:] + 1) % 11
    before, after = model.forward(IDS)[0], model.forward(later)[0]
    np.testing.assert_allclose(before[:, :5], after[:, :5], rtol=1e-12)
    assert not np.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_folder_keeps_a_model(name, dtype, tmp_path):
    pytest.importorskip("safetensors")
    model = make(name, dtype)
    model.save_pretrained(tmp_path)
    again = RAMNet.from_pretrained(tmp_path)
    assert again.config == model.config
    assert list(again.params) == list(model.params)
    np.testing.assert_array_equal(again.forward(IDS)[0], model.forward(IDS)[0])


def test_a_window_as_long_as_the_sequence_is_all_of_it():
    fields = SMALL | {"ffn": "none"}
    whole = RAMNet(RAMNetConfig(**fields, mixer="softmax"), dtype=np.float64)
    window = RAMNet(RAMNetConfig(**fields, mixer="window", window=9), params=whole.params)
    narrow = RAMNet(RAMNetConfig(**fields, mixer="window", window=8), params=whole.params)
    logits = whole.forward(IDS)[0]
    assert_close(window.forward(IDS)[0], logits)
    assert_close(narrow.forward(IDS)[0][:, :8], logits[:, :8])
    assert not np.allclose(narrow.forward(IDS)[0][:, 8], logits[:, 8])


def test_a_window_keeps_no_more_than_it_needs():
    _, state = make("window").forward_with_state(IDS)
    assert state[0].memory.keys.shape == (2, 2, 2, 4)
    assert state[0].inputs.shape == (2, 1, 8)
    for array in arrays(state):
        assert array.base is None  # a view would keep the whole sequence


def test_delta_layer_by_hand():
    """Projections, unit keys and queries, gates, the recurrence, the way out: as the module says."""
    config = RAMNetConfig(**SMALL, mixer="delta", delta_gate=True, key_channels=3)
    rng = np.random.default_rng(0)
    p = {name: rng.normal(size=shape) for name, shape in shapes_of(delta.MIXER.parameters(config, 0)).items()}
    x = rng.normal(size=(2, 6, 8))
    q, k, v = ((x @ p[f"{n}_proj.weight"].T).reshape(2, 6, 2, -1) for n in "qkv")
    q, k = (a / (1 + np.exp(-a)) for a in (q, k))
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    b = 1 / (1 + np.exp(-(x @ p["b_proj.weight"].T)))
    a = np.exp(-np.exp(p["A_log"]) * np.log1p(np.exp(x @ p["a_proj.weight"].T + p["dt_bias"])))
    y = np.zeros((2, 6, 2, 4))
    for i, h in np.ndindex(2, 2):
        S = np.zeros((4, 3))
        for t in range(6):
            key = k[i, t, h]
            S = a[i, t, h] * (S - b[i, t, h] * np.outer(S @ key, key)) + b[i, t, h] * np.outer(v[i, t, h], key)
            y[i, t, h] = S @ q[i, t, h]
    out, _, _ = delta.delta_layer_forward(x, p, config)
    np.testing.assert_allclose(out, y.reshape(2, 6, 8) @ p["o_proj.weight"].T, rtol=1e-9, atol=1e-11)


def test_decay_gradients():
    rng = np.random.default_rng(0)
    names = {"a_proj.weight": (3, 5), "dt_bias": (3,), "A_log": (3,)}
    inputs = {"x": rng.normal(size=(2, 4, 5))} | {name: rng.normal(size=shape) for name, shape in names.items()}

    def forward(x, *params, outputs=slice(2)):
        *both, ctx = decay_forward(x, dict(zip(names, params, strict=True)))
        return tuple(both[outputs]), ctx

    def backward(douts, ctx):
        dx, grads = decay_backward(douts[0], ctx, dstep=douts[1] if len(douts) == 2 else None)
        return [dx, *(grads[name] for name in names)]

    gradcheck(forward, backward, inputs).raise_if_failed()
    gradcheck(partial(forward, outputs=slice(1)), backward, inputs).raise_if_failed()
    log_decay, _, ctx = decay_forward(inputs.pop("x"), inputs)
    with pytest.raises(ValueError, match=r"dstep must be float64 of shape \(2, 4, 3\), got"):
        decay_backward(log_decay, ctx, dstep=log_decay[0])
    with pytest.raises(ValueError, match=r"dlog_decay must be float64 of shape \(2, 4, 3\), got"):
        decay_backward(log_decay[..., :1], ctx)


def test_a_decay_of_far_out_logits_is_finite():
    params = {"a_proj.weight": np.eye(2, dtype=np.float32), "dt_bias": np.zeros(2, np.float32)}
    params["A_log"] = np.zeros(2, np.float32)
    log_decay, step, ctx = decay_forward(np.array([[[1000.0, -1000.0]]], np.float32), params)
    np.testing.assert_array_equal(log_decay, [[[-1000.0, 0.0]]])
    np.testing.assert_array_equal(step, [[[1000.0, 0.0]]])
    dx, grads = decay_backward(np.ones_like(log_decay), ctx)
    np.testing.assert_array_equal(dx, [[[-1.0, 0.0]]])
    assert {x.dtype for x in (log_decay, dx, *grads.values())} == {np.dtype(np.float32)}


def test_initial_values():
    config = RAMNetConfig(
        vocab=8, width=512, heads=256, channels=2, layers=1, mixer="delta", delta_gate=True, short_conv=4
    )
    params = init_parameters(model_parameters(config), seed=0, dtype=np.float32)
    conv = params["model.layers.0.attn_conv.weight"]
    assert conv.shape == (512, 4)
    assert (conv[:, -1] == 1).all()
    assert abs(conv[:, :-1]).max() <= 0.5
    assert conv[:, :-1].std() == pytest.approx(0.5 / np.sqrt(3), rel=0.05)
    rate, step = np.exp(params["model.layers.0.attn.A_log"]), np.log1p(np.exp(params["model.layers.0.attn.dt_bias"]))
    assert 1 <= rate.min() < 2 < 15 < rate.max() <= 16
    assert step.min() * 1.001 >= 1e-3
    assert step.max() <= 1e-1 * 1.001
    assert np.median(step) == pytest.approx(1e-2, rel=0.3)
    assert params["model.layers.0.attn.b_proj.weight"].shape == (256, 512)
    decayed = {name.partition("layers.0.")[2] for name, p in params.items() if has_weight_decay(name, p)}
    assert decayed == {
        "",
        *(f"attn.{n}_proj.weight" for n in "qkvoba"),
        *(f"mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
    }


def test_a_decay_starts_at_the_step_that_was_drawn(monkeypatch):
    """softplus(dt) lies in the range, also where softplus is far from an exponential."""
    monkeypatch.setattr(decay, "STEPS", (2.0, 3.0))
    config = RAMNetConfig(width=64, heads=64, mixer="delta", delta_gate=True)
    step = np.logaddexp(init_parameters(decay_parameters(config), seed=0, dtype=np.float64)["dt_bias"], 0)
    assert 2 <= step.min() * 1.001 < 2.1
    assert 2.9 < step.max() <= 3 * 1.001


def test_ram_draws_the_values_that_it_always_drew():
    """Fields of other mixers leave the initial values of a RAM-Net alone."""
    plain, other = (
        RAMNet(RAMNetConfig(**SMALL, window=window, delta_gate=gate)) for window, gate in ((64, False), (3, True))
    )
    for name, p in plain.params.items():
        np.testing.assert_array_equal(other.params[name], p)


@pytest.mark.parametrize("name", MIXERS)
def test_what_a_mixer_cannot_do_is_said(name):
    model = make(name)
    with pytest.raises(
        ValueError, match=r"mask must be None unless mixer is 'ram' and short_conv 0: .* got a mask with"
    ):
        model.forward(IDS, mask=np.ones(IDS.shape, bool))
    with pytest.raises(ValueError, match=r"state must hold one state per layer \(2\), got 1"):
        model.forward(IDS, state=[None])
    _, state = model.forward_with_state(IDS)
    with pytest.raises(ValueError, match=r"ids must have shape \(B, 1\) in a step, got \(2, 9\)"):
        model.step(IDS, state, np.arange(9, 18))
    for missing in (None, [None, None]):
        with pytest.raises(ValueError, match="state must be the list that forward_with_state returned"):
            model.step(IDS[:, :1], missing, np.array([0]))
    with pytest.raises(ValueError, match=r"ids must have shape \(B, T\) with at least one token, got \(0, 9\)"):
        model.forward(IDS[:0])
    if model.config.short_conv:
        with pytest.raises(TypeError, match="state of a block with a short convolution must be a ConvState, got int"):
            model.forward(IDS, state=[1, 1])
    elif model.config.mixer in ("softmax", "window"):
        with pytest.raises(TypeError, match=r"state of mixer '.*' must be a KeyValueState, got tuple"):
            model.forward(IDS, state=[tuple(state[0]), state[1]])
    if model.config.mixer == "ram":
        assert model.trace(IDS)[1]["read"].index.shape == (2, 9, 2, 4)
        return
    with pytest.raises(ValueError, match=f"backend must be None for mixer '{model.config.mixer}', .* got 'numba'"):
        model.forward(IDS, backend="numba")
    with pytest.raises(
        ValueError, match=f"trace needs mixer 'ram', which alone has slots, got mixer '{model.config.mixer}'"
    ):
        model.trace(IDS)


def test_trace_follows_the_convolution():
    """What a layer addresses comes from what the convolution lets through: with all weights 0, one address for all."""
    model = make("ram-conv")
    for i in range(2):
        model.params[f"model.layers.{i}.attn_conv.weight"][...] = 0
    index = model.trace(IDS)[0]["write"].weight
    assert_close(index, np.broadcast_to(index[:1, :1], index.shape))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"mixer": "mamba"},
            ValueError,
            "mixer must be one of 'ram', 'softmax', 'window', 'linear', 'delta', 'gla', 'mamba2', got 'mamba'",
        ),
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"short_conv": -1}, ValueError, "short_conv must be at least 0, got -1"),
        ({"key_channels": 0}, ValueError, "key_channels must be at least 1, got 0"),
        ({"rotary": 1}, TypeError, "rotary must be True or False, got 1"),
        ({"delta_gate": None}, TypeError, "delta_gate must be True or False, got None"),
        (
            {"mixer": "softmax", "key_channels": 5},
            ValueError,
            "key_channels must be even for mixer='softmax' with rotary",
        ),
        ({"mixer": "window", "width": 10}, ValueError, "key_channels must be even for mixer='window' .* got 5"),
    ],
)
def test_config_refuses(fields, error, message):
    with pytest.raises(error, match=message):
        RAMNetConfig(**fields)
    if "key_channels must be even" in message:
        assert RAMNetConfig(**fields, rotary=False).rotary is False
