"""The benchmarks of generation: what they print and record. No test asserts a time."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.bench import generation, generation_agreement

from ramnet_np.model import RAMNet, RAMNetConfig


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


def test_matrices_in_16_bits_are_half_the_bytes(tmp_path, capsys):
    [whole], [half] = (records(tmp_path / dtype, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert whole["weights_bytes"] == pytest.approx(4 * whole["parameters"], rel=0.01)
    assert half["parameters"] == whole["parameters"]
    assert half["weights_bytes"] == pytest.approx(whole["weights_bytes"] / 2, rel=0.01)


def test_a_peer_is_recorded_as_far_as_it_comes(tmp_path, capsys, monkeypatch):
    lines = [json.dumps({"batch": 4, "ms": 2.0, "context": context}) for context in (8, 16)]
    done = SimpleNamespace(stdout="\n".join(["a warning", *lines]), stderr="trace\nout of memory\n", returncode=1)
    asked = []
    monkeypatch.setattr(generation.subprocess, "run", lambda command, **_: asked.append(command) or done)
    out = tmp_path / "records.jsonl"
    generation._time_peer("transformer", (8, 16, 32), generation.Options(batch=(4, 5), out=out), {"device": "a GPU"})
    assert asked[0][-4:-1] == ["transformer-generate", "4,5", "8,16,32"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["peer"], row["batch"], row["context"], row["device"]) for row in rows] == [
        ("transformer", 4, 8, "a GPU"), ("transformer", 4, 16, "a GPU"),
    ]  # fmt: skip
    assert "context        16, transformer: 2,000 tokens/s" in (said := capsys.readouterr().out)
    assert said.endswith("transformer: not timed further (out of memory)\n")


@pytest.mark.gpu
def test_with_graphs_and_without(tmp_path, capsys):
    rows = records(tmp_path, device="gpu", dtype="bfloat16", graphs=("on", "off"), context=(8,))
    assert [row["graphs"] for row in rows] == ["on", "off"]
    rows = records(tmp_path, device="gpu", mixer="softmax", context=(8, 700))
    token = 2 * 384 * 4  # bytes of the keys and values of one layer, 700 - 8 times as often behind 700 tokens
    assert rows[-1]["state_bytes"] - rows[-2]["state_bytes"] == 692 * token


def test_prompts_are_passages_of_the_text_in_the_models_tokens(tmp_path):
    model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2))
    model.save_pretrained(tmp_path)
    (tmp_path / "novel.txt").write_text("It was a fine day. " * 9)
    options = generation_agreement.Options(folder=tmp_path, text=tmp_path / "novel.txt", length=30, prompts=4)
    passages = [bytes(row.tolist()).decode() for row in generation_agreement.prompts_for(model, options)]
    assert len(set(passages)) > 1
    assert all(len(passage) == 30 and passage in "It was a fine day. " * 9 for passage in passages)
    random = generation_agreement.prompts_for(model, generation_agreement.Options(length=7, prompts=3))
    assert random.shape == (3, 7)
    assert random.max() < 256


def test_distances_between_the_logits_of_two_models_are_told():
    model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), dtype=np.float64)
    texts = np.array([[1, 2, 3], [4, 5, 6]])
    rounded = model.to("cpu", "float32")
    errors = generation_agreement.logit_errors(model, rounded, texts)
    assert 0 < errors["median"] < errors["largest"] < 1e-5
    apart = np.abs(model.forward(texts)[0] - rounded.forward(texts)[0])
    assert errors["largest"] == pytest.approx(apart.max(), rel=0.5)  # a batch sums in another order
    assert set(generation_agreement.logit_errors(model, model, texts).values()) == {0.0}


@pytest.mark.gpu
def test_agreement_is_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(generation_agreement, "preset", lambda name: generation.TEXT_10M)
    options = generation_agreement.Options(prompts=3, tokens=5, out=tmp_path / "a.jsonl")
    generation_agreement.main(options)
    [row] = map(json.loads, options.out.read_text().splitlines())
    assert row["alike"] + len(row["gaps"]) == 3
    assert "texts agree in all 5 tokens" in capsys.readouterr().out
