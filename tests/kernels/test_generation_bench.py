"""The benchmarks of generation: what they print and record. No test asserts a time."""

import json

import pytest
from ramnet_np.kernels.bench import generation, generation_agreement


def records(tmp_path, **options):
    out = tmp_path / "records.jsonl"
    generation.main(generation.Options(layers=1, tokens=5, out=out, **options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_batch_and_context_is_recorded(tmp_path, capsys):
    rows = records(tmp_path, batch=(1, 2), context=(8, 1_000_000))
    assert [(row["batch"], row["context"]) for row in rows] == [(1, 8), (1, 1_000_000), (2, 8), (2, 1_000_000)]
    assert rows[2]["state_bytes"] == 2 * rows[0]["state_bytes"] == 2 * rows[1]["state_bytes"]
    assert rows[1]["keys_and_values_bytes"] == 2 * 384 * 4 * 1_000_000  # of one layer
    assert capsys.readouterr().out.count("choosing the token") == 4


@pytest.mark.gpu
def test_with_graphs_and_without(tmp_path, capsys):
    rows = records(tmp_path, device="gpu", dtype="bfloat16", graphs=("on", "off"), context=(8,))
    assert [row["graphs"] for row in rows] == ["on", "off"]
    rows = records(tmp_path, device="gpu", mixer="softmax", context=(8, 700))
    assert rows[-1]["state_bytes"] > 80 * rows[-2]["state_bytes"] / 2


@pytest.mark.gpu
def test_agreement_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation_agreement, "preset", lambda name: generation.TEXT_10M)
    options = generation_agreement.Options(prompts=3, tokens=5, out=tmp_path / "a.jsonl")
    generation_agreement.main(options)
    [row] = map(json.loads, options.out.read_text().splitlines())
    assert row["alike"] + len(row["gaps"]) == 3
    assert "texts agree in all 5 tokens" in capsys.readouterr().out
