import pytest

from ramnet_np.model import RAMNet, RAMNetConfig, count, format_count, preset


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
    ],
)
def test_count_is_the_size_of_the_parameters(fields):
    config = RAMNetConfig(vocab=20, width=12, layers=3, heads=2, order=2, **fields)
    assert totals(config)[0] == RAMNet(config).num_parameters()


def test_count_of_state_tells_writes_from_reads():
    config = RAMNetConfig(width=12, layers=3, heads=2, channels=5, order=2, radix=4, top_k=(3, 7))
    assert totals(config)[1:] == (3 * 2 * 16 * 6, 3 * 2 * 10 * 6)


def test_format_count_prints_every_kind_and_the_sums():
    text = format_count(preset("authors-340m"))
    lines = text.splitlines()
    for kind in ("embeddings", "addresses", "values", "forgetting", "output", "norms", "feed-forward", "memory"):
        assert any(kind in line for line in lines)
    assert "0-24" in text
    assert max(map(len, lines)) <= 120
    assert "figures are for one layer of 25" in text
    assert "Layers" not in format_count(RAMNetConfig(layers=1)).splitlines()[-1]
