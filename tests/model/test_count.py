from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.model import RAMNet, RAMNetConfig, count, format_count, preset, state_elements
from tests.mixer_cases import MIXERS


def totals(config):
    rows = count(config)
    return tuple(sum(getattr(row, name) for row in rows) for name in ("parameters", "total_state", "active_state"))


def test_paper_340m_has_the_papers_figures():
    parameters, total_state, active_state = totals(preset("paper-340m"))
    assert round(parameters / 1e6, 1) == 340.8
    assert round(total_state / 1e6, 1) == 28.8
    assert round(active_state / 1e6, 1) == 0.4


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ffn": "gelu", "norm": "layernorm", "tie_embeddings": False},
        {"ffn": "none", "value_bias": True, "gamma_mode": "learnable", "address_scale": False},
        {"update": "gsu", "gamma_mode": "dynamic", "output_gate": True, "output_norm": True, "address_bias": False},
        *MIXERS.values(),
    ],
)
def test_count_is_the_size_of_the_parameters(fields):
    config = RAMNetConfig(vocab=20, width=12, layers=3, heads=2, order=2, **fields)
    assert totals(config)[0] == RAMNet(config).num_parameters()


def test_count_of_state_tells_writes_from_reads():
    config = RAMNetConfig(width=12, layers=3, heads=2, channels=5, order=2, radix=4, top_k=(3, 7))
    assert totals(config)[1:] == (3 * 2 * 16 * 6, 3 * 2 * 10 * 6)
    conv = replace(config, short_conv=4)  # three inputs more, all of them touched
    assert totals(conv)[1:] == (3 * (2 * 16 * 6 + 3 * 12), 3 * (2 * 10 * 6 + 3 * 12))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("length", [5, 40])
def test_state_elements_is_the_size_of_the_state(name, length):
    """After a sequence as long as the context."""
    config = RAMNetConfig(**{"vocab": 20, "width": 12, "layers": 3, "heads": 2, "order": 2, **MIXERS[name]})
    _, state = RAMNet(config).forward_with_state(np.ones((1, length), np.int32))
    size = sum(a.size for a in _arrays(state))
    if config.mixer == "window":  # counts the token itself, which the state of a model need not hold
        size += 3 * 2 * (config.head_key_channels + config.head_channels)
    assert state_elements(config, context=length) == size
    rows = count(config, context=length)
    assert sum(row.total_state for row in rows) == state_elements(config, context=length)


def _arrays(state):
    return [state] if hasattr(state, "size") else [a for part in state for a in _arrays(part)]


def test_state_elements_of_the_papers_figure():
    """17k for RAM-Net at M = 256, C = 32 in one head of two layers; full attention of 4 channels; DeltaNet 64 x 64."""
    base = RAMNetConfig(width=64, heads=1, order=4, channels=32)
    assert state_elements(base) == 2 * 256 * 33
    assert state_elements(RAMNetConfig(heads=1, channels=4, mixer="softmax")) == 2 * 1024 * 8
    assert state_elements(RAMNetConfig(heads=1, channels=64, mixer="delta")) == 2 * 64 * 64
    assert state_elements(RAMNetConfig(heads=1, channels=4, mixer="window", window=100), context=30) == 2 * 30 * 8
    with pytest.raises(ValueError, match="context must be at least 1, got 0"):
        state_elements(base, context=0)


def test_format_count_prints_every_kind_and_the_sums():
    text = format_count(preset("authors-340m"))
    lines = text.splitlines()
    for kind in ("embeddings", "addresses", "values", "forgetting", "output", "norms", "feed-forward", "memory"):
        assert any(kind in line for line in lines)
    assert "0-24" in text
    assert max(map(len, lines)) <= 120
    assert "figures are for one layer of 25" in text
    assert "Layers" not in format_count(RAMNetConfig(layers=1)).splitlines()[-1]
    softmax = format_count(RAMNetConfig(layers=1, mixer="softmax"), context=2000).splitlines()[-1]
    assert softmax.startswith("State after 2,000 tokens. Parameters")
    assert f"total state {2000 * 128 / 1e6:.1f}M" in softmax
