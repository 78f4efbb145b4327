"""Gradient checks of everything here that has a gradient: what ``ramnet-np gradcheck`` and the tests run.

A case is a name and a function (samples, seed) -> :class:`GradcheckReport` that draws inputs and checks them: the
operation with every option, every layer and loss, the layer of every mixer, and small models with the paper's and the
authors' settings and of every mixer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from ramnet_np.contract import Array, RAMState
from ramnet_np.core.attention import ram_attention_backward, ram_attention_forward
from ramnet_np.core.decoder import decode_backward, decode_forward
from ramnet_np.core.retention import RULES
from ramnet_np.gradcheck import GradcheckReport, gradcheck
from ramnet_np.gradcheck.check import text_table
from ramnet_np.layers.activation import ACTIVATIONS
from ramnet_np.layers.embedding import embedding_backward, embedding_forward
from ramnet_np.layers.feature_map import FEATURE_MAPS
from ramnet_np.layers.gate import gate_backward, gate_forward
from ramnet_np.layers.linear import linear_backward, linear_forward
from ramnet_np.layers.loss import cross_entropy_backward, cross_entropy_forward
from ramnet_np.layers.mlp import mlp_backward, mlp_forward, swiglu_backward, swiglu_forward
from ramnet_np.layers.norm import (
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)
from ramnet_np.layers.rotary import rotary_backward, rotary_forward
from ramnet_np.layers.short_conv import short_conv_backward, short_conv_forward
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.mixers import MIXERS, Mixer, Variant
from ramnet_np.model.parameters import Params, init_parameters

Case = Callable[[int | None, int], GradcheckReport]

# Sizes of the operation's cases: M = 27 slots, some touched and some not, and odd numbers everywhere.
B, T, H, U, P, C = 2, 7, 3, 3, 3, 5

OPERATION_OPTIONS: dict[str, dict[str, Any]] = {
    "pdma gamma=0": {"gamma": 0.0},
    "pdma gamma=0.3": {"gamma": 0.3},
    "pdma gamma=1": {"gamma": 1.0},
    "pdma gamma=2.5": {"gamma": 2.5},
    "gsu gamma=-1.5": {"gamma": -1.5, "update": "gsu"},
    "gsu gamma=2.2": {"gamma": 2.2, "update": "gsu"},
    **{f"{rule} gamma per token": {"gamma": "array", "update": rule} for rule in RULES},
    "renorm": {"renorm": True},
    "renorm of writes": {"renorm": (True, False)},
    "mass-aware": {"mass_aware": True, "gamma": 0.7},
    "mass-aware gsu renorm": {"mass_aware": True, "renorm": (False, True), "update": "gsu", "gamma": "array"},
    "mask": {"mask": True},
    "positions": {"positions": True, "cape_heads": 3},
    "K = 1": {"top_k": 1},
    "K_w = 2, K_r = 6": {"top_k": (2, 6)},
    "K = M": {"top_k": 27},
    "no state": {"state": False},
    "no returned state": {"return_state": False, "state": False},
}


def operation_case(name: str, samples: int | None, seed: int, backend: str | None = None) -> GradcheckReport:
    """Check the operation with the options of ``OPERATION_OPTIONS[name]``: every input, given state included.

    >>> operation_case("renorm", samples=2, seed=0).passed
    True
    """
    options = {"top_k": 4, "cape_heads": 1, "gamma": 1.0, "return_state": True, **OPERATION_OPTIONS[name]}
    rng = np.random.default_rng(seed)
    with_state, returned = options.pop("state", True), options["return_state"]
    if options.pop("mask", False):
        options["mask"] = rng.random((B, T)) < 0.7
    if options.pop("positions", False):
        options["positions"] = rng.integers(0, 1000, (B, T))
    if with_state:  # which does not say where its tokens were
        options.setdefault("positions", np.arange(T))
    inputs = {
        "write_logits": 2 * rng.standard_normal((B, T, H, U, P)),
        "read_logits": 2 * rng.standard_normal((B, T, H, U, P)),
        "values": rng.standard_normal((B, T, H, C)),
    }
    gamma, least = options.pop("gamma"), RULES[options.get("update", "pdma")].least_gamma
    if gamma == "array":
        inputs["gamma"] = max(least, 0.0) + rng.uniform(0.2, 2.0, (B, T, H))
    elif gamma > least:  # a gamma at its bound cannot step both ways
        inputs["gamma"] = np.array(gamma)
    if with_state:
        inputs["state.slots"] = rng.standard_normal((B, H, P**U, C))
        inputs["state.mass"] = rng.uniform(0.1, 1.0, (B, H, P**U))

    def forward(*arrays: Array) -> tuple[Any, Any]:
        x = dict(zip(inputs, arrays, strict=True))
        state = RAMState(x["state.slots"], x["state.mass"]) if with_state else None
        y, state, ctx = ram_attention_forward(
            x["write_logits"], x["read_logits"], x["values"], x.get("gamma", gamma), state=state, backend=backend,
            **options,
        )  # fmt: skip
        return (y, state), ctx

    def backward(dout: Any, ctx: Any) -> list[Array]:
        grads = ram_attention_backward(dout[0], ctx, dout[1] if returned else None)
        kept = [g for g, known in zip(grads[:4], (True, True, True, "gamma" in inputs), strict=True) if known]
        return [*kept, *(grads.state or ())]

    return gradcheck(forward, backward, inputs, samples=samples, seed=seed, title=f"ram_attention: {name}")


def decode_case(renorm: bool, samples: int | None, seed: int) -> GradcheckReport:
    """Check the address decoder alone.

    >>> decode_case(renorm=True, samples=2, seed=0).passed
    True
    """
    logits = 2 * np.random.default_rng(seed).standard_normal((B, T, H, U, P))
    positions = np.zeros((B, T), np.int64)

    def forward(logits: Array) -> tuple[Array, Any]:
        _, weight, ctx = decode_forward(logits, 4, renorm, 0, positions)
        return weight, ctx

    title = f"decode_address: renorm={renorm}"
    return gradcheck(forward, decode_backward, {"logits": logits}, samples=samples, seed=seed, title=title)


_IDS = np.array([[0, 3, 3, 1], [4, 3, 0, 0]])
_LABELS = np.array([0, 3, -100, 6, 6])
_X = (2, 3, 6)

# name -> (forward, backward, shapes of the inputs)
LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "rotary": (rotary_forward, rotary_backward, {"x": (2, 5, 3, 6)}),
    "short convolution": (short_conv_forward, short_conv_backward, {"x": (2, 7, 3), "weight": (3, 4)}),
    "linear": (linear_forward, linear_backward, {"x": _X, "weight": (4, 6), "bias": (4,)}),
    "rmsnorm": (rmsnorm_forward, rmsnorm_backward, {"x": _X, "weight": (6,)}),
    "layernorm": (layernorm_forward, layernorm_backward, {"x": _X, "weight": (6,), "bias": (6,)}),
    **{name: (*functions, {"x": _X}) for name, functions in (ACTIVATIONS | FEATURE_MAPS).items()},
    "gate": (gate_forward, gate_backward, {"a": _X, "b": _X}),
    "swiglu": (swiglu_forward, swiglu_backward, {"x": _X, "gate": (8, 6), "up": (8, 6), "down": (6, 8)}),
    "mlp": (
        lambda x, up, down, up_bias, down_bias: mlp_forward(x, up, down, "gelu", up_bias, down_bias),
        mlp_backward,
        {"x": _X, "up": (8, 6), "down": (6, 8), "up_bias": (8,), "down_bias": (6,)},
    ),
    "embedding": (partial(embedding_forward, _IDS), embedding_backward, {"table": (5, 4)}),
    "cross-entropy": (
        lambda logits: cross_entropy_forward(logits, _LABELS),
        cross_entropy_backward,
        {"logits": (5, 7)},
    ),
}


def layer_case(name: str, samples: int | None, seed: int) -> GradcheckReport:
    """Check one layer of ``LAYERS`` on normal random inputs.

    >>> layer_case("rmsnorm", samples=2, seed=0).passed
    True
    """
    forward, backward, shapes = LAYERS[name]
    rng = np.random.default_rng(seed)
    inputs = {key: rng.standard_normal(shape) for key, shape in shapes.items()}
    return gradcheck(forward, backward, inputs, samples=samples, seed=seed, title=name)


_SMALL = {
    "vocab": 11,
    "width": 6,
    "layers": 2,
    "heads": 2,
    "order": 2,
    "radix": 3,
    "top_k": 4,
    "cape": 1,
    "window": 3,
    "tie_embeddings": False,
}

MODELS: dict[str, dict[str, Any]] = {
    "paper": {"update": "pdma", "gamma": 0.7, "value_bias": True},
    "paper, learnable gamma": {"update": "pdma", "gamma": 0.7, "gamma_mode": "learnable", "top_k": (3, 5)},
    "authors": {
        "update": "gsu",
        "gamma": 2.197,
        "gamma_mode": "dynamic",
        "output_gate": True,
        "output_norm": True,
        "mass_aware": True,
        "renorm": True,
    },
    "no FFN, layer norm, tied": {
        "update": "pdma",
        "gamma": 1.0,
        "ffn": "none",
        "norm": "layernorm",
        "tie_embeddings": True,
    },
    "gelu FFN, dynamic pdma gamma": {"update": "pdma", "gamma": 0.5, "gamma_mode": "dynamic", "ffn": "gelu"},
}


# every mixer in every variant that tables tell apart, by the variant's name
VARIANTS: dict[str, tuple[Mixer, Variant]] = {
    variant.name: (mixer, variant) for mixer in MIXERS.values() for variant in mixer.variants
}
MODELS |= {
    f"{variant.label}, short convolution": {
        "mixer": mixer.name,
        "short_conv": 3,
        "channels": 4,
        "ffn": "none",
        **variant.settings,
    }
    for mixer, variant in VARIANTS.values()
}
_NORM_AND_GATE = {"output_norm": True, "output_gate": True, "gate_activation": "silu", "ffn": "none"}
MODELS |= {
    f"{variant.label}, norm and SiLU gate": {"mixer": mixer.name, **_NORM_AND_GATE, **variant.settings}
    for name, (mixer, variant) in VARIANTS.items()
    if name in ("gated delta", "gla", "mamba2")
}
MODELS["learned slots"] = {"learned_slots": True, "cape": (1, 0), "ffn": "none"}
MODELS["hybrid"] = {"hybrid": "window", "hybrid_every": 2, "window": 3, "key_channels": 4, "ffn": "none"}
MODELS["linear attention, no normaliser, tied"] = {
    "mixer": "linear",
    "feature_map": "identity",
    "normaliser": False,
    "ffn": "none",
    "tie_embeddings": True,
}


def mixer_case(name: str, samples: int | None, seed: int) -> GradcheckReport:
    """Check the layer of the variant ``name`` of a mixer, over several blocks of queries or chunks of tokens.

    >>> mixer_case("gated delta", samples=2, seed=0).passed
    True
    """
    mixer, variant = VARIANTS[name]
    sizes = {**_SMALL, "key_channels": 4, "channels": 5, "window": 10}
    config = RAMNetConfig(**{**sizes, "mixer": mixer.name, **variant.settings})
    rng = np.random.default_rng(seed)
    params = _away_from_initial(init_parameters(mixer.parameters(config, 0), seed, np.float64), rng)
    x = rng.standard_normal((1, 140, config.width))

    def forward(x: Array, *values: Array) -> tuple[Array, Any]:
        out, _, ctx = mixer.forward(x, dict(zip(params, values, strict=True)), config)
        return out, ctx

    def backward(dout: Array, ctx: Any) -> list[Array]:
        dx, grads = mixer.backward(dout, ctx)
        return [dx, *(grads[key] for key in params)]

    return gradcheck(forward, backward, {"x": x, **params}, samples=samples, seed=seed, title=f"mixer: {name}")


def model_case(name: str, samples: int | None, seed: int) -> GradcheckReport:
    """Check a small language model of ``MODELS``: a third of ``samples`` from each of its many parameters.

    >>> model_case(next(iter(MODELS)), samples=1, seed=0).passed
    True
    """
    config = RAMNetConfig(**{**_SMALL, **MODELS[name]})
    model = RAMNet(config, seed=seed, dtype=np.float64)
    rng = np.random.default_rng(seed)
    inputs = _away_from_initial(model.params, rng)
    ids = rng.integers(0, config.vocab, (2, 6))

    def forward(*params: Array) -> tuple[Array, Any]:
        model.params = dict(zip(inputs, params, strict=True))
        return model.forward(ids)

    def backward(dlogits: Array, ctx: Any) -> list[Array]:
        grads = model.backward(dlogits, ctx)
        return [grads[key] for key in inputs]

    third = None if samples is None else -(-samples // 3)
    return gradcheck(forward, backward, inputs, samples=third, seed=seed, title=f"model: {name}")


def _away_from_initial(params: Params, rng: np.random.Generator) -> Params:
    """At the initial values addresses are close to ties, and scales and biases are all alike."""
    return {name: value + 0.3 * rng.standard_normal(value.shape) for name, value in params.items()}


CASES: dict[str, Case] = {
    **{f"decode_address: renorm={renorm}": partial(decode_case, renorm) for renorm in (False, True)},
    **{f"ram_attention: {name}": partial(operation_case, name) for name in OPERATION_OPTIONS},
    **{f"layer: {name}": partial(layer_case, name) for name in LAYERS},
    **{f"mixer: {name}": partial(mixer_case, name) for name in VARIANTS},
    **{f"model: {name}": partial(model_case, name) for name in MODELS},
}


def run_cases(match: str = "", samples: int | None = 24, seed: int = 0) -> list[GradcheckReport]:
    """Run the cases whose name contains ``match``, with a progress bar. ValueError if there is none.

    >>> [report.passed for report in run_cases("decode", samples=2)]
    [True, True]
    """
    chosen = {name: case for name, case in CASES.items() if match in name}
    if not chosen:
        raise ValueError(f"match must be part of a case's name ({'; '.join(CASES)}), got {match!r}")
    return [case(samples, seed) for case in tqdm(chosen.values(), unit="case", leave=False, disable=None)]


def summary_table(reports: list[GradcheckReport]) -> str:
    """One line a report: inputs, elements checked and left out, worst errors, verdict.

    >>> print(summary_table(run_cases("swiglu", samples=2)).splitlines()[-1])
    1 passed, 0 failed (relative error at most 1e-06, step 6.1e-06 * max(1, |x|))
    """
    table = [("case", "inputs", "checked", "left out", "max |error|", "relative", "verdict")]
    for report in reports:
        rows = report.rows
        table.append(
            (
                report.title,
                str(len(rows)),
                str(sum(r.checked for r in rows)),
                str(sum(r.left_out for r in rows)),
                f"{max(r.max_abs_error for r in rows):.1e}",
                f"{max(r.max_rel_error for r in rows):.1e}",
                "pass" if report.passed else "FAIL",
            )
        )
    lines = text_table(table, "<>>>>><")
    failed = sum(not report.passed for report in reports)
    lines.append(
        f"{len(reports) - failed} passed, {failed} failed "
        f"(relative error at most {reports[0].rtol:g}, step {reports[0].step:.1e} * max(1, |x|))"
    )
    return "\n".join(lines)
