"""Settings of a model, one for each mixer and what it can be combined with: for tests on the CPU and on a GPU."""

from typing import Any

_NORM_AND_GATE = {"output_norm": True, "output_gate": True, "gate_activation": "silu"}
MIXERS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "softmax", "ffn": "none"},
    "softmax-plain": {"mixer": "softmax", "rotary": False, "key_channels": 3, "value_bias": True, "ffn_width": 5},
    "window": {"mixer": "window", "window": 3, "short_conv": 2, "output_gate": True, "ffn": "gelu"},
    "linear": {"mixer": "linear", "key_channels": 5, "ffn": "none", "norm": "layernorm"},
    "linear-conv": {"mixer": "linear", "short_conv": 4, "output_norm": True, "tie_embeddings": False, "ffn_width": 5},
    "delta": {"mixer": "delta", "key_channels": 4, "channels": 3, "ffn": "none"},
    "delta-gate": {"mixer": "delta", "delta_gate": True, "short_conv": 4, "output_norm": True, "ffn": "none"},
    "linear-identity": {
        "mixer": "linear",
        "feature_map": "identity",
        "normaliser": False,
        "output_norm": True,
        "ffn": "none",
    },
    "gla": {"mixer": "gla", "key_channels": 5, "ffn": "none"},
    "gla-gate": {"mixer": "gla", "feature_map": "silu", **_NORM_AND_GATE, "ffn": "none"},
    "mamba2": {"mixer": "mamba2", "key_channels": 5, "channels": 3, **_NORM_AND_GATE, "short_conv": 2, "ffn": "none"},
    "ram-conv": {"mixer": "ram", "short_conv": 3, "ffn": "none"},
}
