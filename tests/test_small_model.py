"""The small folder of a trained language model: made by docs/small_model.py, and tested itself where it is there."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ramnet_np.cli import main
from ramnet_np.data.corpus import read_corpus
from ramnet_np.experiment.grid import load_grid, read_grid
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.records import read_records
from ramnet_np.model import RAMNet
from ramnet_np.model.files import append_record
from ramnet_np.runs.evaluate import EvaluateOptions, evaluate_text
from ramnet_np.runs.text import load_text_model
from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder
from tests.experiment.test_text_grids import TINY, write_texts

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("small_model", ROOT / "docs/small_model.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
MODEL = ROOT / "models/novels-20m"
LARGEST = 50e6  # bytes


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a run of pieces, and its record."""
    pytest.importorskip("tokenizers")
    out = tmp_path_factory.mktemp("kept")
    tokens = out / "tokens"
    tokenize_folder(TokenizeOptions(write_texts(out), tokens, vocab=280, held_out=("z*",)), progress=False)
    run = read_grid(TINY.replace('held_out = ["z*"]\n', ""), "tiny", corpus=read_corpus(tokens)).points[0].base
    record = run_one(run, "cpu", out=out, text=tokens, keep_model=True)
    append_record(out / "results.jsonl", {"grid": "tiny", **record, "name": "another", "settings": {}})
    append_record(out / "results.jsonl", {"grid": "tiny", **record})
    return out / "models" / "plain-seed0", record


def test_a_kept_model_becomes_a_small_folder(kept, tmp_path, capsys):
    folder, record = kept
    out = tmp_path / "small"
    said = script.small_model(folder, folder.parents[1] / "results.jsonl", out)
    size = sum(file.stat().st_size for file in out.iterdir())
    assert said == f"{record['parameters']:,} parameters, {size / 1e6:.1f} MB in {out}"
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    whole, small = load_text_model(folder), load_text_model(out)
    for name, p in whole.params.items():
        np.testing.assert_allclose(small.params[name], p, rtol=2**-8)
    with safe_open(out / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert main(["generate", str(out), "--prompt", "Tom ", "--length", "3"]) == 0
    assert capsys.readouterr().out.startswith("Tom ")


def test_the_card_has_the_numbers_of_the_record(kept, tmp_path):
    folder, record = kept
    script.small_model(folder, folder.parents[1] / "results.jsonl", tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    tokens, test = record["steps"] * 2 * 16, record["accuracy"]
    for part in (
        f"{record['parameters']:,} parameters",
        f"| tokens | {tokens:,}: {record['epochs']:g} passes, {record['steps']} steps of 2 windows of 16 |",
        f"| bits a byte | {test['bits_per_byte']:.4f} |",
        f"| bits a byte with the memory carried through each novel | {test['carried bits_per_byte']:.4f} |",
        f"ended {record['date'][:10]} |",
        "| learning rate | 0.003, ",
        "experiment tiny --only plain --text tokens",
        "small_model.py runs/long/models/plain-seed0",
        "2 layers of width 8, 1 heads of 4 slots, 2 of them written and read",
    ):
        assert part in card, part
    assert "stand-in" not in card
    assert "**A stand-in**" in script.card(record | {"grid": "tiny", "quick": True}, "plain-seed0", tmp_path)


def test_what_is_missing_is_named(kept, tmp_path):
    folder, record = kept
    results, out = folder.parents[1] / "results.jsonl", tmp_path / "small"
    with pytest.raises(FileNotFoundError, match=r"kept must be a folder that --keep-models made, but .* no run.json"):
        script.small_model(tmp_path, results, out)
    other = json.loads(json.dumps(record))
    other["settings"]["train"]["learning_rate"] /= 2
    append_record(tmp_path / "other.jsonl", {"grid": "tiny", **other})
    with pytest.raises(ValueError, match=r"results must have the record of the run in .*plain-seed0', but .* has none"):
        script.small_model(folder, tmp_path / "other.jsonl", out)
    assert not out.exists()


def test_a_model_of_the_real_size_fits_and_writes_on_a_cpu(kept, tmp_path):
    run = next(point.base for point in load_grid("language-long").points if point.name == "ram-20m-long")
    model = RAMNet(replace(run.model, vocab=8192), seed=0)
    model.save_pretrained(tmp_path, dtype="bfloat16")
    assert (
        sum(file.stat().st_size for file in tmp_path.iterdir()) + 1e6 < LARGEST
    )  # a tokenizer has half a million bytes
    loaded = RAMNet.from_pretrained(tmp_path)
    assert loaded.generate(np.array([[1, 2, 3]]), 20).shape == (1, 23)


@pytest.mark.skipif(not MODEL.is_dir(), reason="models/novels-20m is not in this copy of the repository")
def test_the_model_of_the_repository(capsys):
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < LARGEST
    with safe_open(MODEL / "model.safetensors", "np") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    records = read_records([ROOT / "docs/results/language.jsonl"])
    [record] = [one for one in records if one["name"] == "ram-20m-long" and one["accuracy"]]
    assert card == script.card(record, "ram-20m-long-seed0", Path("models/novels-20m"))
    assert main(["generate", str(MODEL), "--prompt", "It was ", "--length", "20"]) == 0
    assert capsys.readouterr().out.startswith("It was ")


@pytest.mark.skipif(not MODEL.is_dir(), reason="models/novels-20m is not in this copy of the repository")
def test_the_model_of_the_repository_has_learned_to_read():
    """A page of a novel that it was not trained on; an untrained one needs about 3.5 bits a byte."""
    found = evaluate_text(EvaluateOptions(MODEL, ROOT / "notebooks/data/passage.txt", length=2048), progress=False)
    assert found.result.loss.bits_per_byte < 2
