"""Text as training data, and runs on it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.codec import prompt_bytes
from ramnet_np.data.synthetic_facts import ANIMALS, NAMES, facts_text, recall_positions
from ramnet_np.data.text import TextData, TextSettings, read_data
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.text import TextRun, bits_per_byte, generate_text, load_text_model, run_text
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.loop import TrainResult
from ramnet_np.train.metrics import read_metrics
from tests.data.test_streams import corpus

TEXT = bytes(range(256)) * 4
SMALL = TextRun(
    model=RAMNetConfig(vocab=256, width=8, layers=1, heads=1, order=2, radix=3, top_k=4, ffn="none"),
    data=TextSettings(length=16, held_out_sequences=5),
    train=TrainConfig(steps=4, batch=4, warmup=1, evaluate_every=2, log_every=1, checkpoint_every=2),
)


def test_labels_are_the_next_bytes_and_held_out_text_is_never_trained_on():
    text = b"\x01" * 950 + b"\x02" * 50
    data = TextData(text, TextSettings(length=20, held_out=0.05), batch=8, seed=0)
    for step in range(50):
        assert (data.batch(step).ids == 1).all()
        assert (data.batch(step).labels == 1).all()
    assert (data.held_out()["next byte"].ids == 2).all()
    counted = TextData(TEXT, TextSettings(length=20), batch=8, seed=0)
    for ids, labels in (counted.batch(3), counted.held_out()["next byte"]):
        np.testing.assert_array_equal(labels, (ids + 1) % 256)
        assert ids.shape[1] == 20


def test_windows_follow_from_seed_and_step_alone():
    settings = TextSettings(length=20)
    one, two, other = (TextData(TEXT, settings, batch=4, seed=seed) for seed in (1, 1, 2))
    one.batch(0)
    np.testing.assert_array_equal(one.batch(9).ids, two.batch(9).ids)
    assert (one.batch(9).ids != other.batch(9).ids).any()
    assert (one.batch(9).ids != one.batch(10).ids).any()


def test_every_start_is_drawn():
    """The last window ends at the last byte that is trained on."""
    data = TextData(bytes(range(100)), TextSettings(length=4, held_out=0.805), batch=64, seed=0)  # 19 bytes to train on
    starts = {int(s) for step in range(20) for s in data.batch(step).ids[:, 0]}
    assert starts == set(range(15))


def test_sequences_may_start_at_lines():
    text = b"".join(b"%03d:%s\n" % (i, b"x" * (i % 7)) for i in range(200))
    data = TextData(text, TextSettings(length=9, start="line", held_out=0.3), batch=64, seed=0)
    for windows in (data.batch(0), data.batch(1)):
        assert all(bytes(row.tolist())[3:4] == b":" for row in windows.ids)
    assert len({bytes(row.tolist()[:3]) for step in range(20) for row in data.batch(step).ids}) > 120
    held_out = data.held_out()["next byte"].ids[1:]  # the first stands where the held-out text begins
    assert len(held_out) > 20
    assert all(bytes(row.tolist())[3:4] == b":" for row in held_out)


def test_held_out_windows_do_not_overlap():
    data = TextData(bytes(range(250)), TextSettings(length=10, held_out=0.5), batch=4, seed=0)
    ids = data.held_out()["next byte"].ids
    np.testing.assert_array_equal(ids.ravel(), np.arange(125, 125 + ids.size))
    assert ids.shape == (12, 10)
    few = TextData(bytes(range(250)), TextSettings(length=10, held_out=0.5, held_out_sequences=3), batch=4, seed=0)
    assert few.held_out()["next byte"].ids.shape == (3, 10)


def test_fewer_windows_than_held_out_documents_are_of_different_ones():
    few = TextData(corpus(), TextSettings(length=5, held_out=3, held_out_sequences=2), batch=4, seed=0)
    assert few.held_out()["next byte"].ids[:, 0].tolist() == [60, 80]  # of 60, 80 and 100


def test_documents_that_are_no_longer_than_a_window_are_read_from_their_start():
    batch = TextData(corpus(), TextSettings(length=10, held_out=1), batch=200, seed=0).batch(0)
    firsts = batch.ids[:, 0]
    short = firsts[(firsts >= 20) & (firsts < 60)]  # documents 1 and 2, of 7 and of 2 tokens
    assert set(short.tolist()) == {20, 40}
    assert (batch.labels >= 0).any(axis=1).all()


def test_facts_are_those_of_seed_0_unless_said():
    assert facts_text(3) == facts_text(3, seed=0) != facts_text(3, seed=1)


def test_text_too_short_for_its_sequences():
    with pytest.raises(ValueError, match=r"data\.length must be below the 5 tokens of the longest .* held out, got 16"):
        TextData(b"x" * 100, TextSettings(length=16), batch=4, seed=0)
    with pytest.raises(ValueError, match=r"data\.held_out must leave a document of 2 tokens .* held out, got none"):
        TextData(b"x" * 100, TextSettings(length=16, held_out=1e-9), batch=4, seed=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"length": 0}, r"data\.length must be at least 1, got 0"),
        ({"start": "page"}, r"data\.start must be one of 'anywhere', 'line', got 'page'"),
        ({"held_out": float("nan")}, r"data\.held_out must lie between 0 and 1, got nan"),
        ({"length": -4}, r"data\.length must be at least 1, got -4"),
        ({"held_out": 0}, r"data\.held_out must be at least 1, got 0"),
        ({"held_out": ()}, r"data\.held_out must name files, got \(\)"),
        ({"carry_state": True, "start": "line"}, r"data\.start must be 'anywhere' with data\.carry_state, got 'line'"),
        ({"held_out": 1.0}, r"data\.held_out must lie between 0 and 1, got 1\.0"),
        ({"held_out_sequences": 0}, r"data\.held_out_sequences must be at least 1, got 0"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        TextSettings(**settings)


def test_a_vocabulary_below_the_bytes():
    with pytest.raises(ValueError, match=r"model\.vocab must be 256, one for each byte, got 100"):
        replace(SMALL, model=replace(SMALL.model, vocab=100))


def test_any_file_is_text(tmp_path):
    (tmp_path / "any").write_bytes(TEXT)
    settings = replace(SMALL.data, path=tmp_path / "any")
    data = read_data(settings, batch=4)
    assert data.sha256 == TextData(TEXT, settings, batch=4, seed=0).sha256
    np.testing.assert_array_equal(data.batch(3).ids, TextData(TEXT, settings, batch=4, seed=0).batch(3).ids)
    with pytest.raises(ValueError, match=r"data\.path must hold \.txt files with something in them, but .* has none"):
        read_data(TextSettings(path=tmp_path), batch=4)
    (tmp_path / "any").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data\.path must be a file with something in it, but '.*any' is empty"):
        read_data(settings, batch=4)
    for text, seed, words in ((b"", 0, "text must hold something"), (TEXT, -1, "seed must be at least 0, got -1")):
        with pytest.raises(ValueError, match=words):
            TextData(text, SMALL.data, batch=4, seed=seed)


def test_a_prompt_is_the_bytes_that_were_typed():
    assert prompt_bytes("é\udcff") == b"\xc3\xa9\xff"
    model = RAMNet(SMALL.model)
    for prompt, error, words in (
        ("a\ud800", ValueError, r"prompt must be text, got the lone surrogate '\\ud800' at character 1"),
        ("", ValueError, "prompt must hold at least one character, got none"),
        (b"a", TypeError, "prompt must be text, got bytes"),
    ):
        with pytest.raises(error, match=words):
            generate_text(model, prompt, 3)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        generate_text(model, "a", -1)  # at once, not with the first byte that is asked for


def test_facts_are_repeated_as_they_were_told():
    text = facts_text(lines=30, facts=4, seed=3)
    assert text == facts_text(lines=30, facts=4, seed=3) != facts_text(lines=30, facts=4, seed=4)
    lines = text.decode().splitlines()
    assert len(lines) == 30
    for line in lines:
        said = line.rstrip(".").split(". ")
        assert len(said) == 12
        assert sorted(said[:4]) == sorted(said[4:8]) == sorted(said[8:])
        pairs = [re.fullmatch("([A-Z][a-z]+)([A-Z][a-z]+)", fact).groups() for fact in said[:4]]
        assert len({name for name, _ in pairs}) == len({animal for _, animal in pairs}) == 4
    at = recall_positions(text)
    assert len(at) == 30 * 8
    assert {chr(text[i]) for i in at} <= {animal[0] for animal in ANIMALS}
    assert len({name[-1] for name in NAMES}) == len(NAMES) == len({animal[0] for animal in ANIMALS})
    with pytest.raises(ValueError, match="facts must be between 1 and 14, got 15"):
        facts_text(1, facts=15)


def test_run_text_leaves_results_and_resumes_to_the_same_bits(tmp_path):
    whole = run_text(replace(SMALL, out=tmp_path / "a"), progress=False)
    assert isinstance(whole, TrainResult)
    assert {f.name for f in (tmp_path / "a").iterdir()} == {"metrics.jsonl", "checkpoints", "curves.png", "trace.png"}
    assert set(whole.accuracy) == {"next byte", "mean"}
    again = run_text(replace(SMALL, out=tmp_path / "b"), progress=False)
    resumed = run_text(replace(SMALL, out=tmp_path / "a", resume=True), progress=False)
    for name, param in whole.model.params.items():
        np.testing.assert_array_equal(again.model.params[name], param)
        np.testing.assert_array_equal(resumed.model.params[name], param)
    assert read_metrics(whole.metrics)[0]["loss"] > 0


def test_a_run_is_resumed_on_the_same_bytes_wherever_they_are(tmp_path):
    for name, text in (("one", TEXT), ("moved", TEXT), ("other", TEXT[1:])):
        (tmp_path / name).write_bytes(text)
    run = replace(SMALL, out=tmp_path / "run", data=replace(SMALL.data, path=tmp_path / "one"))
    run_text(run, progress=False)
    resume = replace(run, resume=True)
    run_text(replace(resume, data=replace(run.data, path=tmp_path / "moved")), progress=False)
    with pytest.raises(ValueError, match=r"data\.sha256 must be '[0-9a-f]{64}' as in the checkpoint"):
        run_text(replace(resume, data=replace(run.data, path=tmp_path / "other")), progress=False)


def test_bits_per_byte_is_the_mean_over_all_bytes():
    model = RAMNet(SMALL.model, seed=0)
    windows = TextData(TEXT, SMALL.data, batch=4, seed=0).batch(0)
    logits, _ = model.forward(windows.ids)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -np.take_along_axis(log_p, windows.labels[..., None], axis=-1).mean() / np.log(2)
    for rows in (1, 3, 32):
        assert bits_per_byte(model, windows, rows=rows) == pytest.approx(expected, rel=1e-5)


def test_written_is_what_generate_gives_piece_by_piece(tmp_path):
    run_text(replace(SMALL, out=tmp_path), progress=False)
    model = load_text_model(tmp_path)
    ids = np.frombuffer("aé".encode(), np.uint8).astype(np.int32)[None]
    for temperature in (0.0, 1.5):
        whole = model.generate(ids, 9, temperature=temperature, seed=3)
        pieces = list(generate_text(model, "aé", 9, temperature=temperature, seed=3))
        assert "".join(pieces) == bytes(whole[0, ids.shape[1] :].astype(np.uint8).tolist()).decode(errors="replace")
