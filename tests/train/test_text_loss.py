"""The loss on text: over windows and documents, in bits a byte of any tokens, by position; and the command for it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.cli import main
from ramnet_np.data.codec import BPECodec
from ramnet_np.data.corpus import Corpus, Document, text_corpus
from ramnet_np.data.text import TextSettings
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.evaluate import EvaluateOptions, evaluate_text
from ramnet_np.runs.text import TextRun, generate_text, load_codec, load_text_model, run_text
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.text_loss import EDGES, TextLoss, documents_loss, windows_loss

PIECES = {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "abc": 5}  # "Ġ" is how a byte-level BPE writes a space
TOKENIZER = json.dumps({
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": PIECES, "merges": [["a", "b"], ["ab", "c"]]},
})  # fmt: skip
CONFIG = RAMNetConfig(vocab=6, width=8, layers=2, heads=2, order=2, radix=3, top_k=4, cape=(2, 1), ffn="none")


def model_of(mixer="ram", **settings):
    return RAMNet(replace(CONFIG, mixer=mixer, init_std=0.7, **settings), seed=1, dtype=np.float64)


def corpus_of(*sizes):
    rng = np.random.default_rng(3)
    documents = tuple(Document(f"{i}.txt", rng.integers(6, size=n), 0, n) for i, n in enumerate(sizes))
    return Corpus(documents, np.dtype(np.int64), BPECodec(TOKENIZER), "0")


def nats_of(model, tokens):
    """-log p of every token but the first, computed at once."""
    logits = model.forward(tokens[None, :-1])[0][0]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize(("mixer", "settings"), [
    ("ram", {}), ("delta", {"short_conv": 3}), ("linear", {}), ("window", {"window": 5}), ("softmax", {}),
])  # fmt: skip
def test_documents_in_windows_have_the_loss_of_the_whole(mixer, settings):
    """Documents of all lengths, side by side in any number, in windows of any length."""
    model, corpus = model_of(mixer, **settings), corpus_of(31, 5, 1, 64, 17, 2)
    texts = [document.source for document in corpus.documents if document.size > 1]
    nats = np.concatenate([nats_of(model, text) for text in texts])
    lengths = corpus.codec.token_bytes
    assert lengths.tolist() == [1, 1, 1, 1, 2, 3]
    before = np.concatenate([np.cumsum(lengths[text])[:-1] for text in texts])
    size = np.concatenate([lengths[text[1:]] for text in texts])
    for length, tokens in ((7, 21), (16, 16), (100, 10_000)):
        result = documents_loss(model, corpus, corpus.documents, length, edges=(10, 40), tokens=tokens)
        assert result.loss.tokens == len(nats)
        assert result.loss.bytes == size.sum()
        assert result.loss.nats == pytest.approx(nats.sum(), rel=1e-10)
        for part, (low, high) in zip(result.by_position, ((0, 10), (10, 40), (40, 10**9)), strict=True):
            chosen = (before >= low) & (before < high)
            assert (part.begin, part.loss.tokens) == (low, chosen.sum())
            assert part.loss.nats == pytest.approx(nats[chosen].sum(), rel=1e-10)
            assert part.loss.bits_per_byte == pytest.approx(nats[chosen].sum() / size[chosen].sum() / math.log(2))


def test_without_carried_state_every_window_starts_empty():
    model, corpus = model_of(), corpus_of(31, 64)
    nats = 0.0
    for document in corpus.documents:
        for start in range(0, document.size - 1, 8):
            nats += nats_of(model, document.source[start : start + 9]).sum()
    result = documents_loss(model, corpus, corpus.documents, 8, carry=False)
    assert result.loss.nats == pytest.approx(nats, rel=1e-10)
    assert result.loss.nats != pytest.approx(documents_loss(model, corpus, corpus.documents, 8).loss.nats, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_windows_apart_know_where_they_are(rows):
    """Windows of several documents are read at once, and a document's go on in the next batch of windows."""
    model, corpus = model_of(), corpus_of(31, 5, 64, 1, 17)
    lengths, bounds = corpus.codec.token_bytes, (0, 10, 40, 10**9)
    nats, tokens = np.zeros(3), np.zeros(3, int)
    for document in corpus.documents:
        for start in range(0, document.size - 1, 8):
            losses = nats_of(model, document.source[start : start + 9])
            before = np.cumsum(lengths[document.source])[start : start + len(losses)]
            part = np.searchsorted(bounds, before, side="right") - 1
            nats += np.bincount(part, losses, 3)
            tokens += np.bincount(part, minlength=3)
    result = documents_loss(model, corpus, corpus.documents, 8, carry=False, edges=bounds[1:3], tokens=8 * rows)
    assert [part.loss.tokens for part in result.by_position] == tokens.tolist()
    assert [part.loss.nats for part in result.by_position] == pytest.approx(nats, rel=1e-10)


def test_some_windows_of_each_document():
    model, corpus = model_of(), corpus_of(31, 64, 5)
    result = documents_loss(model, corpus, corpus.documents, 8, most_windows=2)
    nats = sum(nats_of(model, document.source[:17]).sum() for document in corpus.documents)
    assert result.loss.nats == pytest.approx(nats, rel=1e-10)


def test_a_sure_model_and_one_that_guesses():
    """8 bits for a guess among all bytes; tokens of several bytes share their bits."""
    guess = RAMNet(replace(CONFIG, init_std=0.0))
    corpus = corpus_of(40)
    loss = documents_loss(guess, corpus, corpus.documents, 10).loss
    assert loss.nats_per_token == pytest.approx(math.log(6), rel=1e-6)
    assert loss.perplexity == pytest.approx(6, rel=1e-6)
    assert loss.bits_per_byte == pytest.approx(loss.tokens * math.log2(6) / loss.bytes, rel=1e-6)


@pytest.mark.parametrize(("tokens", "size", "means"), [(1, 1, (2, 4, 1)), (1, 2, (1, 4, 1)), (0, 0, (0, 1, 0))])
def test_a_single_token_and_none(tokens, size, means):
    loss = TextLoss(tokens, size, tokens * math.log(4), correct=tokens)
    assert (loss.bits_per_byte, loss.perplexity, loss.accuracy) == pytest.approx(means)


def test_the_ranges_of_positions_that_records_have():
    """A byte is of the range that the number of bytes before it lies in: records of other ranges fit no table."""
    model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none"), seed=0)
    corpus = text_corpus(bytes(range(97, 105)) * 125 + b"abc")
    ranges = documents_loss(model, corpus, corpus.documents, 512).by_position
    assert [(part.begin, part.end, part.loss.tokens) for part in ranges] == [(0, 1000, 999), (1000, 10_000, 3)]
    assert EDGES == (1000, 10_000, 100_000)


def test_a_run_on_tokens_leaves_what_generate_and_evaluate_need(tmp_path, capsys):
    pytest.importorskip("tokenizers")
    (tmp_path / "text" / "valid").mkdir(parents=True)
    for name, words in (
        ("a.txt", "Tom has a fox. "),
        ("b.txt", "Ann has a hen. "),
        ("valid/c.txt", "Zoë has a hen.\n"),
    ):
        (tmp_path / "text" / name).write_text(words * 30, encoding="utf-8")
    tokens, out = tmp_path / "tokens", tmp_path / "run"
    assert main(["tokenize", str(tmp_path / "text"), "--vocab", "270", "--out", str(tokens)]) == 0
    assert "3 documents of 1,380 bytes: " in capsys.readouterr().out
    model = replace(CONFIG, vocab=256)
    run = TextRun(
        model=model, data=TextSettings(path=tokens, length=12, carry_state=True), by_position=True,
        train=TrainConfig(steps=4, batch=2, warmup=1, evaluate_every=2, log_every=1, accumulate=2), out=out,
    )  # fmt: skip
    assert run.model.vocab == 270
    result = run_text(run, progress=False)
    [*_, last] = [record for record in read_metrics(result.metrics) if record["kind"] == "held_out"]
    assert set(last["accuracy"]) == {"next token", "mean"}
    assert last["perplexity"] == pytest.approx(math.exp(last["nats"]))
    assert last["by_position"][0]["bits_per_byte"] == pytest.approx(last["bits_per_byte"])
    codec, trained = load_codec(out), load_text_model(out)
    assert codec.unit == "token"
    for temperature in (0.0, 1.0):
        prompt = codec.encode("Zoë")[None]
        whole = trained.generate(prompt, 9, temperature=temperature, seed=3)[0, prompt.shape[1] :]
        text = b"".join(codec.piece(int(token)) for token in whole).decode(errors="replace")
        pieces = list(generate_text(trained, "Zoë", 9, temperature=temperature, seed=3, codec=codec))
        assert len(pieces) == 10
        assert "".join(pieces) == text
    assert main(["generate", str(out), "--prompt", "Zoë", "--length", "5", "--temperature", "0"]) == 0
    assert capsys.readouterr().out.startswith("Zoë")
    found = [
        evaluate_text(EvaluateOptions(out, path, files=files, length=12), progress=False)
        for path, files in ((tokens, None), (tmp_path / "text", ("valid/c.txt",)))
    ]
    assert found[0].result == found[1].result
    assert found[0].documents == ("valid/c.txt",)
    assert found[0].result.loss.bits_per_byte == pytest.approx(last["bits_per_byte"], rel=1e-5)
    numbers = tmp_path / "numbers.json"
    assert main(["evaluate", str(out), "--path", str(tokens), "--json", str(numbers), "--edges", "20", "200"]) == 0
    shown = capsys.readouterr().out
    assert "1 documents: valid/c.txt" in shown
    assert "20 to 200" in shown
    assert [part["begin"] for part in json.loads(numbers.read_text())["by_position"]] == [0, 20, 200]


def test_what_cannot_be_measured_is_one_sentence(tmp_path):
    model = RAMNet(replace(CONFIG, vocab=256))
    model.save_pretrained(tmp_path / "bytes")
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"path must hold documents of two tokens or more, got a\.txt"):
        evaluate_text(EvaluateOptions(tmp_path / "bytes", tmp_path / "a.txt"), progress=False)
    with pytest.raises(FileNotFoundError, match=r"^path must be a file or a folder, got"):
        evaluate_text(EvaluateOptions(tmp_path / "bytes", tmp_path / "no"), progress=False)
    for json_file in (tmp_path, tmp_path / "no" / "numbers.json"):
        with pytest.raises(ValueError, match="json must be a file in a folder that is there, got"):
            evaluate_text(EvaluateOptions(tmp_path / "no", tmp_path, json=json_file), progress=False)
    with pytest.raises(ValueError, match=r"edges must rise from above 0, got \(5, 5\)"):
        EvaluateOptions(tmp_path, tmp_path, edges=(5, 5))
    (tmp_path / "bytes" / "tokenizer.json").write_text(TOKENIZER)
    with pytest.raises(
        ValueError, match=r"a model of the tokens of the tokenizer\.json beside it \(vocab 6, .* vocab 256"
    ):
        load_text_model(tmp_path / "bytes")
    RAMNet(CONFIG).save_pretrained(tmp_path / "bytes")
    (tmp_path / "a.txt").write_bytes(b"ab \xff")
    with pytest.raises(ValueError, match=r"'a\.txt' must be text in UTF-8 for a model of tokens"):
        evaluate_text(EvaluateOptions(tmp_path / "bytes", tmp_path / "a.txt"), progress=False)
    with pytest.raises(ValueError, match="text must be Unicode for a model of pieces, got the byte or surrogate"):
        generate_text(RAMNet(CONFIG), "a\udcff", 3, codec=load_codec(tmp_path / "bytes"))


def test_a_window_is_no_longer_than_the_documents():
    model, corpus = model_of(), corpus_of(25, 7)
    endless = documents_loss(model, corpus, corpus.documents, 10**9)  # would take terabytes
    assert endless.loss == documents_loss(model, corpus, corpus.documents, 24).loss


def test_windows_and_documents_agree():
    model, corpus = model_of(), corpus_of(25)
    from ramnet_np.data.text import windows

    batch = windows(corpus, [(corpus.documents[0], start) for start in (0, 8, 16)], 8)
    one = windows_loss(model, batch, corpus.codec.token_bytes, tokens=8)
    other = documents_loss(model, corpus, corpus.documents, 8, carry=False).loss
    assert (one.tokens, one.bytes, one.correct) == (other.tokens, other.bytes, other.correct)
    assert one.nats == pytest.approx(other.nats, rel=1e-12)
