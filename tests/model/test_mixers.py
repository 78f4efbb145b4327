"""Models of every mixer: gradients, the layer by hand, pieces against the whole, steps, files, and what is refused."""

import numpy as np
import pytest

from ramnet_np.gradcheck import gradcheck
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.layout import model_parameters
from ramnet_np.model.mixers import MIXERS as TABLE
from ramnet_np.model.mixers import delta
from ramnet_np.model.mixers.softmax import KeyValueCache
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

        gradcheck(forward, backward, params, samples=6).raise_if_failed()


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


def head_by_head(q, k, v, a):
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, y_t = S_t^T q_t."""
    B, T, H, d = q.shape
    y = np.zeros(v.shape)
    for i, h in np.ndindex(B, H):
        S = np.zeros((d, v.shape[-1]))
        for t in range(T):
            S = a[i, t, h][:, None] * S + np.outer(k[i, t, h], v[i, t, h])
            y[i, t, h] = S.T @ q[i, t, h]
    return y


def with_norm_and_gate(y, x, p):
    """Each head's y at mean square 1, times SiLU of a map of x, out."""
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps) * p["o_norm.weight"]
    gate = x @ p["o_gate.0.weight"].T + p["o_gate.0.bias"]
    return (gate / (1 + np.exp(-gate)) * y.reshape(gate.shape)) @ p["o_proj.weight"].T


@pytest.mark.parametrize("name", ["gla", "mamba2"])
def test_layers_with_a_decay_by_hand(name):
    """Projections, features, decay, the recurrence, norm, SiLU gate, the way out: as the modules say."""
    config = RAMNetConfig(
        **SMALL, mixer=name, key_channels=3, output_norm=True, output_gate=True, gate_activation="silu"
    )
    rng, mixer = np.random.default_rng(0), TABLE[name]
    p = {name: rng.normal(size=shape) for name, shape in shapes_of(mixer.parameters(config, 0)).items()}
    x = rng.normal(size=(2, 6, 8))
    q, k, v = ((x @ p[f"{n}_proj.weight"].T).reshape(2, 6, 2, -1) for n in "qkv")
    if name == "gla":
        logit = x @ p["a_proj.0.weight"].T @ p["a_proj.1.weight"].T + p["a_proj.1.bias"]
        a = (1 / (1 + np.exp(-logit.reshape(2, 6, 2, 3)))) ** (1 / 16)
    else:
        q, k = (z / (1 + np.exp(-z)) for z in (q, k))
        step = np.log1p(np.exp(x @ p["a_proj.weight"].T + p["dt_bias"]))[..., None]
        a = np.broadcast_to(np.exp(-np.exp(p["A_log"])[:, None] * step), k.shape)
        v = step * v
    out, _, _ = mixer.forward(x, p, config)
    np.testing.assert_allclose(out, with_norm_and_gate(head_by_head(q, k, v, a), x, p), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixer", ["linear", "delta", "gla", "mamba2"])
def test_a_feature_map_is_what_queries_and_keys_pass(mixer):
    """The mixer's own map by name changes nothing, another does; keys that relu makes 0 leave nothing behind."""
    own = {"linear": "elu", "delta": "silu", "gla": "identity", "mamba2": "silu"}[mixer]
    fields = SMALL | {"mixer": mixer, "ffn": "none", "normaliser": False}
    plain = RAMNet(RAMNetConfig(**fields), dtype=np.float64)
    logits = {
        name: RAMNet(RAMNetConfig(**fields, feature_map=name), params=plain.params).forward(IDS)[0]
        for name in ("elu", "relu", "silu", "identity")
    }
    np.testing.assert_array_equal(logits.pop(own), plain.forward(IDS)[0])
    for other in logits.values():
        assert not np.allclose(other, plain.forward(IDS)[0], rtol=1e-9, atol=0)
    config = RAMNetConfig(**fields, feature_map="relu")
    params = init_parameters(TABLE[mixer].parameters(config, 0), seed=0, dtype=np.float64)
    params["k_proj.weight"] = -np.abs(params["k_proj.weight"])
    assert not TABLE[mixer].forward(np.ones((1, 5, 8)), params, config)[0].any()


def test_a_silu_gate_starts_at_0_and_a_sigmoid_gate_open():
    for act, bias in (("sigmoid", 3), ("silu", 0)):
        config = RAMNetConfig(**SMALL, mixer="delta", output_gate=True, gate_activation=act)
        params = init_parameters(delta.MIXER.parameters(config, 0), seed=0, dtype=np.float64)
        assert (params["o_gate.0.bias"] == bias).all()


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
    with pytest.raises(ValueError, match=r"mask must be None where a state is given or returned, .* got one with"):
        model.forward_with_state(IDS, mask=np.ones(IDS.shape, bool))
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
        with pytest.raises(TypeError, match="must be a KeyValueState, got KeyValueCache"):  # for steps in place
            model.forward(IDS[:, :1], state=[KeyValueCache(*state[0], np.array([8])), state[1]])
    if model.config.mixer == "ram":
        assert model.trace(IDS)[1]["read"].index.shape == (2, 9, 2, 4)
        return
    with pytest.raises(TypeError, match="positions must be integers, got float64"):
        model.forward(IDS, positions=np.arange(9.0))
    with pytest.raises(ValueError, match=r"positions must have shape \(T,\) = \(1,\) or \(B, T\) = .* got \(3,\)"):
        model.step(IDS[:, :1], state, np.arange(3))
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
        ({"normaliser": 1}, TypeError, "normaliser must be True or False, got 1"),
        ({"feature_map": "exp"}, ValueError, "feature_map must be one of 'elu', 'relu', 'silu', 'identity', got 'exp'"),
        ({"gate_activation": "relu"}, ValueError, "gate_activation must be one of 'sigmoid', 'silu', got 'relu'"),
        (
            {"mixer": "linear", "feature_map": "identity"},
            ValueError,
            "normaliser must be False for feature_map 'identity', .* got True",
        ),
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
