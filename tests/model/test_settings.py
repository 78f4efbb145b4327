"""Each setting of a model, and of how tokens are chosen, reaches what it is for: changed alone, it changes that."""

import zlib
from dataclasses import fields, replace

import numpy as np
import pytest

from ramnet_np.backend import use_backend
from ramnet_np.layers.uniform import row_seeds
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.sampling import Sampling
from tests.tolerances import assert_close

BASE = RAMNetConfig(
    vocab=11, width=8, layers=2, heads=2, order=2, radix=3, channels=4, top_k=4, cape=1, ffn_width=6, init_std=0.5
)
IDS = np.random.default_rng(0).integers(8, size=(2, 9))
ALL = {"logits", "grads", "state"}
NEW = {"names", *ALL}  # another set of parameters
SIZE = {"names", *ALL, "initial"}

# setting -> (base settings, another value, what changes); "initial": parameters of the same names and shapes
CHANGES = {
    "vocab": ({}, 8, {"names", "logits", "grads", "initial"}),
    "width": ({}, 6, SIZE),
    "layers": ({}, 1, SIZE),
    "heads": ({}, 1, SIZE),
    "order": ({}, 3, SIZE),
    "radix": ({}, 4, SIZE),
    "channels": ({}, 3, SIZE),
    "top_k": ({}, 2, ALL),
    "renorm": ({}, True, ALL),
    "update": ({}, "gsu", ALL),
    "gamma": ({}, 2.0, ALL),
    "gamma_mode": ({}, "dynamic", NEW),
    "proxy_eps": ({}, 0.3, {"grads"}),
    "cape": ({}, (0, 1), ALL),
    "temperature": ({}, 0.7, ALL),
    "init_mass": ({}, 0.9, ALL),
    "learned_slots": ({}, True, NEW),
    "mass_aware": ({}, True, ALL),
    "output_gate": ({}, True, NEW),
    "gate_activation": ({"output_gate": True}, "silu", {*ALL, "initial"}),
    "output_norm": ({}, True, NEW),
    "address_bias": ({}, False, NEW),
    "address_prior": ({}, "cape", {"initial"}),
    "value_bias": ({}, True, NEW),
    "address_scale": ({}, False, NEW),
    "eps": ({}, 0.3, ALL),
    "norm": ({}, "layernorm", NEW),
    "norm_eps": ({}, 0.5, ALL),
    "ffn": ({}, "gelu", NEW),
    "ffn_width": ({}, 5, SIZE),
    "tie_embeddings": ({}, False, {"names", "logits", "grads"}),
    "init_std": ({}, 0.1, {"initial"}),
    "mixer": ({}, "delta", SIZE),
    "hybrid": ({"hybrid_every": 2}, "window", SIZE),
    "hybrid_every": ({"hybrid": "window"}, 1, SIZE),
    "key_channels": ({"mixer": "linear"}, 3, SIZE),
    "window": ({"mixer": "window"}, 3, ALL),
    "feature_map": ({"mixer": "linear"}, "relu", ALL),
    "normaliser": ({"mixer": "linear"}, False, ALL),
    "delta_gate": ({"mixer": "delta"}, True, NEW),
    "rotary": ({"mixer": "softmax"}, False, ALL),
    "short_conv": ({}, 3, NEW),
}


def results(model, xp=np):
    """Logits, the state behind the last token, and gradients, of parameters that are not all alike."""
    for name, p in model.params.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        p[...] = xp.asarray(rng.normal(size=p.shape) * 0.5 + ("norm" in name))
    ids = xp.asarray(IDS)
    logits, ctx = model.forward(ids)
    grads = model.backward(xp.asarray(np.random.default_rng(2).normal(size=logits.shape)), ctx)
    _, state = model.forward_with_state(ids)
    return {"logits": [logits], "grads": [grads[name] for name in sorted(grads)], "state": list(arrays(state))}


def arrays(state):
    if hasattr(state, "shape"):
        yield state
    elif isinstance(state, list | tuple):
        for part in state:
            yield from arrays(part)


def differ(ours, theirs):
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return True
    return any(np.abs(a - b).max(initial=0) > 1e-6 for a, b in zip(ours, theirs, strict=True))


def test_no_setting_of_a_model_is_left_out():
    assert CHANGES.keys() == {field.name for field in fields(RAMNetConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_of_a_model_changes_what_it_is_for(name):
    given, value, expected = CHANGES[name]
    base = replace(BASE, **given)
    models = [RAMNet(config, seed=0, dtype=np.float64) for config in (base, replace(base, **{name: value}))]
    first, second = ({n: p.copy() for n, p in model.params.items()} for model in models)
    changed = set()
    if {n: p.shape for n, p in first.items()} != {n: p.shape for n, p in second.items()}:
        changed.add("names")
    both = [n for n in first if n in second]
    if differ([first[n] for n in both], [second[n] for n in both]):
        changed.add("initial")
    with use_backend("numpy"):
        ours, theirs = map(results, models)
        changed |= {part for part in ours if differ(ours[part], theirs[part])}
        assert changed - {"initial"} == expected - {"initial"}
        if "names" not in expected:
            assert changed == expected
        # one token at a time, as in generation
        _, state = models[1].forward_with_state(IDS[:, :1])
        steps = [models[1].step(IDS[:, t : t + 1], state, np.array([t])) for t in range(1, IDS.shape[1])]
    assert_close(np.concatenate(steps, axis=1), theirs["logits"][0][:, 1:], name="steps")


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_of_a_model_reaches_the_gpu(name):
    import cupy

    given, value, _ = CHANGES[name]
    config = replace(replace(BASE, **given), **{name: value})
    with use_backend("numpy"):
        expected = results(RAMNet(config, seed=0, dtype=np.float64))
    found = results(RAMNet(config, seed=0, dtype=np.float64).to("gpu"), cupy)
    for part, arrays_of_part in expected.items():
        for ours, theirs in zip(found[part], arrays_of_part, strict=True):
            assert_close(cupy.asnumpy(ours), theirs, gradient=part == "grads", name=part)


MODEL = RAMNet(BASE, seed=3, dtype=np.float64)
# setting -> settings that it is added to, and another value
SAMPLING = {
    "temperature": ({"temperature": 1.0}, 0.01),
    "top_k": ({"temperature": 3.0}, 1),
    "top_p": ({"temperature": 3.0}, 1e-6),
    "min_p": ({"temperature": 3.0}, 1.0),
    "repetition_penalty": ({}, 50.0),
    "seed": ({"temperature": 3.0}, 7),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_setting_of_sampling_changes_the_text(name):
    """Through ``generate``; what leaves one token to draw gives the text of the likeliest."""
    assert SAMPLING.keys() == {field.name for field in fields(Sampling)}
    given, value = SAMPLING[name]
    with use_backend("numpy"):
        texts = [MODEL.generate(IDS, 12, **settings) for settings in (given, given | {name: value}, {})]
    assert (texts[0] != texts[1]).any()
    assert (texts[1] == texts[2]).all() == (name not in ("repetition_penalty", "seed"))


def test_the_seed_of_a_row_is_the_seed_and_its_number():
    assert row_seeds(7, 3, np.zeros(1)).tolist() == [7, 8, 9]
