"""Tests on books: what counts as a name and how far back it was, needles, slots, and the records of the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.cli import main
from ramnet_np.contract import RAMState
from ramnet_np.data.corpus import Corpus, text_corpus
from ramnet_np.data.names import mentions
from ramnet_np.data.needles import WORDS, make_needles
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.block import ConvState
from ramnet_np.runs import book_tests
from ramnet_np.runs.book_tests import names_table, needles_table
from ramnet_np.runs.slot_tests import slots_table
from ramnet_np.train.slot_use import written_mass
from ramnet_np.train.text_loss import documents_loss
from ramnet_np.train.token_loss import documents_nats

SMALL = RAMNetConfig(vocab=256, width=16, layers=2, heads=2, order=2, radix=4, top_k=4, ffn="none", cape=(2, 1))


def model_of(**settings):
    return RAMNet(replace(SMALL, init_std=0.3, **settings), seed=0)


def books(*texts):
    parts = [text_corpus(text, f"book {i}") for i, text in enumerate(texts)]
    return Corpus(tuple(part.documents[0] for part in parts), parts[0].dtype, parts[0].codec, "")


def test_what_a_name_is():
    book = b"Kim ran. He saw Kim, and Lurgan saw kim-like men. The Mrs said, God. " * 5
    other = b"Then the Mrs said, God. Where was Kim, or the Lama? " * 5

    def named(*texts):
        found = mentions({str(i): text for i, text in enumerate(texts)}, least=4)
        return [{mention.name for mention in one} for one in found.values()]

    assert named(book) == [{b"Lurgan", b"Mrs", b"God"}]  # Kim is written small, too; He and The begin sentences
    assert named(book, other) == [{b"Lurgan"}, {b"Kim", b"Lama"}]  # what many books have is nobody's name


def test_distances_are_from_the_mention_before():
    text = b"then Kim ran " * 5
    found = mentions({"a": text}, least=5)["a"]
    assert [(m.begin, m.end, m.distance) for m in found] == [
        (5, 8, None), (18, 21, 10), (31, 34, 10), (44, 47, 10), (57, 60, 10),
    ]  # fmt: skip


def test_the_loss_on_names_is_that_of_their_tokens():
    text = b"then Kim ran " * 8 + b"and so on; " * 20 + b"then Kim ran "
    corpus = books(text)
    nats = np.arange(len(text) - 1, dtype=float)
    begins = [m.begin for m in mentions({"a": text})["a"]]
    first, near, far = names_table(corpus, corpus.documents, {"book 0": nats})
    assert (first["mentions"], near["mentions"], far["mentions"]) == (1, 7, 1)
    assert (near["begin"], near["end"], far["begin"]) == (0, 100, 100)
    assert first["nats"] == sum(range(begins[0] - 1, begins[0] + 2))  # nats[i] is of token i + 1
    assert far["nats"] == sum(range(begins[-1] - 1, begins[-1] + 2))
    assert far["bits_per_byte"] == pytest.approx(far["nats"] / 3 / np.log(2))


def test_a_token_counts_that_has_a_byte_of_the_name():
    class Pieces:
        pieces = (b"then", b" K", b"im ", b"ran ")
        unit, vocab, token_bytes = "token", 4, np.array([4, 2, 3, 4])

        def piece(self, token):
            return self.pieces[token]

    one = text_corpus(bytes([0, 1, 2, 3] * 8)).documents[0]
    corpus = Corpus((one,), np.dtype(np.uint8), Pieces(), "")
    _, rest = names_table(corpus, corpus.documents, {"text": np.arange(31, dtype=float)})
    assert rest["mentions"] == 7
    assert rest["nats"] == np.mean([(4 * i) + (4 * i + 1) for i in range(1, 8)])  # tokens 4 i + 1 and 4 i + 2


@pytest.mark.parametrize("carry", [True, False])
def test_nats_of_tokens_sum_to_the_loss_of_documents(carry):
    corpus = books(b"Tom has a fox, and the fox has Tom. " * 3, b"Mary has a lamb. ", b"A.\0" * 20)  # token 0 too
    model = model_of()
    nats = documents_nats(model, corpus, corpus.documents, 16, carry=carry, tokens=32)
    assert {name: len(one) for name, one in nats.items()} == {d.name: d.size - 1 for d in corpus.documents}
    for document in corpus.documents:
        whole = documents_loss(model, corpus, [document], 16, carry=carry)
        assert nats[document.name].sum() == pytest.approx(whole.loss.nats, rel=1e-5)


def test_needles_are_about_different_places_and_words():
    needles = make_needles(8, seed=3)
    assert len({needle.fact for needle in needles}) == len({needle.answer for needle in needles}) == 8
    assert all(f" is {WORDS[needle.answer]}." in needle.fact for needle in needles)
    assert make_needles(8, seed=3) == needles != make_needles(8, seed=4)


@pytest.mark.parametrize("settings", [{}, {"mixer": "softmax"}, {"hybrid": "window", "hybrid_every": 2}], ids=str)
def test_needles_are_asked_of_the_memory_behind_facts_and_filler(settings, monkeypatch):
    """The scores are those of a model that reads facts, filler, question and word in one go."""
    corpus = books(bytes(np.random.default_rng(0).integers(97, 122, 3000).tolist()))
    model, asked = model_of(**settings), []
    monkeypatch.setattr(book_tests, "NEEDLES", 2)
    monkeypatch.setattr(book_tests, "APART", 16)

    def ask(model, codec, needle, memory, real=book_tests._ask):
        asked.append((needle, memory.tokens, real(model, codec, needle, memory)))
        return asked[-1][-1]

    monkeypatch.setattr(book_tests, "_ask", ask)
    table = needles_table(model, corpus, corpus.documents, 100, asked_after=(50, 230), starts=2)
    assert [(row["tokens"], row["asked"]) for row in table] == [(50, 4), (230, 4)]
    text = corpus.read(corpus.documents[0], 0, 3000)
    needle, tokens, (right, nats) = asked[7]  # the second text, its second fact, after the longer distance
    rolled = np.roll(text, -1500)
    first, second = (np.frombuffer(n.fact.encode(), np.uint8) for n in make_needles(2, seed=1))
    read = np.concatenate([rolled[:16], first, rolled[16:32], second, rolled[32:]])[:tokens]
    assert make_needles(2, seed=1)[1] == needle
    scores = []
    for word in WORDS:
        rest = np.frombuffer(f"{needle.question} {word}".encode(), np.uint8)
        logits = model.forward(np.concatenate([read, rest])[None].astype(np.int32))[0][0].astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        at = len(read) + len(rest) - len(word) - 2 + np.arange(len(word) + 1)
        scores.append(log_p[at, rest[-len(word) - 1 :]].sum())
    assert right == (np.argmax(scores) == needle.answer)
    assert nats == pytest.approx(np.log(np.exp(scores).sum()) - scores[needle.answer], abs=1e-3)


def test_what_slots_keep_and_what_erasing_all_of_them_changes(monkeypatch):
    from ramnet_np.runs import slot_tests

    corpus, model = books(b"Tom has a fox, and the fox has Tom. " * 9), model_of(cape=0)
    rows = slots_table(model, corpus, corpus.documents, 16, read=6)
    assert [row["layer"] for row in rows] == [0, 1]
    for row in rows:
        assert 0 < row["touched"] <= 1
        assert -1 <= row["kept_64"] <= 1
        assert row["erased"] != row["erased_random"]
    monkeypatch.setattr(slot_tests, "ERASED", 1.0)
    [first] = slots_table(model_of(cape=0, layers=1), corpus, corpus.documents, 16, read=6)
    model = model_of(cape=0, layers=1)
    window = corpus.read(corpus.documents[0], 6 * 16, 7 * 16 + 1)
    _, state = model.forward_with_state(corpus.read(corpus.documents[0], 0, 96)[None])
    bits = []
    for memory in (state, None):
        logits, _ = model.forward(window[None, :-1], state=memory, positions=np.arange(96, 112))
        logits = logits[0].astype(float)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        bits.append(-log_p[np.arange(16), window[1:]].mean() / np.log(2))
    _, earlier = model.forward_with_state(corpus.read(corpus.documents[0], 0, 80)[None])
    trace = model.trace(corpus.read(corpus.documents[0], 0, 96)[None])[0]["write"]
    written = written_mass(trace.index, trace.weight, 16)[None] >= 0.01
    a, b = earlier[0].slots[written], state[0].slots[written]
    cosine = (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-30)
    assert first["kept_16"] == pytest.approx(cosine[np.linalg.norm(a, axis=-1) > 0].mean(), abs=1e-5)
    assert first["erased"] == pytest.approx(bits[1] - bits[0], abs=1e-5)
    assert first["erased_random"] == pytest.approx(first["erased"], abs=1e-6)


@pytest.mark.parametrize("short_conv", [0, 3])
def test_a_trace_goes_on_from_a_state(short_conv):
    model, ids = model_of(short_conv=short_conv), np.random.default_rng(0).integers(256, size=(2, 24))
    whole = model.trace(ids, positions=np.arange(24))
    _, state = model.forward_with_state(ids[:, :10], positions=np.arange(10))
    rest = model.trace(ids[:, 10:], positions=np.arange(10, 24), state=state)
    for layer, other in zip(whole, rest, strict=True):
        np.testing.assert_array_equal(layer["write"].index[:, 10:], other["write"].index)
    assert isinstance(state[0], ConvState if short_conv else RAMState)


def test_mass_by_content_is_what_cape_has_not_moved():
    model, ids = model_of(cape=0), np.random.default_rng(0).integers(256, size=(1, 24))
    plain = model.trace(ids)[0]["write"]
    other = RAMNet(replace(model.config, cape=2), params=model.params)
    moved = other.trace(ids, positions=np.arange(5, 29))[0]["write"]
    own = written_mass(plain.index, plain.weight, 16)
    np.testing.assert_allclose(written_mass(moved.index, moved.weight, 16, cape_heads=2, first=5), own)
    assert not np.allclose(written_mass(moved.index, moved.weight, 16), own)


def test_the_command_appends_each_test_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ramnet_np.runs.books.ASKED_AFTER", (100,))
    model_of().save_pretrained(tmp_path / "model")
    (tmp_path / "book.txt").write_text("Tom has a fox, and Kim has Tom. " * 80)
    command = ["evaluate", str(tmp_path / "model"), "--path", str(tmp_path / "book.txt"), "--length", "64"]
    command += ["--json", str(tmp_path / "found.jsonl"), "--tests"]
    assert main([*command, "names", "slots"]) == 0
    assert "names, model, carried" in capsys.readouterr().out
    assert main([*command, "needles", "names", "positions"]) == 0
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [record["test"] for record in records] == ["names", "slots", "needles", "positions"]
    assert [list(record["tables"]) for record in records] == [
        ["windows", "carried"], ["carried"], ["carried"], ["windows", "carried"],
    ]  # fmt: skip
    assert {record["model"] for record in records} == {"model"}
    loss = documents_loss(RAMNet.from_pretrained(tmp_path / "model"), *_of(tmp_path / "book.txt"), 64)
    [row, last] = records[3]["tables"]["carried"]
    assert row["bits_per_byte"] == pytest.approx(loss.by_position[0].loss.bits_per_byte, rel=1e-5)
    assert last["tokens"] == loss.by_position[1].loss.tokens
    model_of(mixer="delta").save_pretrained(tmp_path / "delta")
    command[1] = str(tmp_path / "delta")
    assert main([*command, "slots"]) == 2
    assert "tests must not name slots for a model without them" in capsys.readouterr().err


def test_another_model_of_the_same_name_is_tested_anew_and_files_of_something_else_are_left_alone(tmp_path, capsys):
    book, found = tmp_path / "book.txt", tmp_path / "found.jsonl"
    book.write_text("Tom has a fox, and Kim has Tom. " * 8)
    model_of().save_pretrained(tmp_path / "a/model")
    model_of(cape=0).save_pretrained(tmp_path / "b/model")

    def evaluate(folder, *more):
        return main(["evaluate", str(tmp_path / folder / "model"), "--path", str(book), *more])

    positions = ("--length", "64", "--json", str(found), "--tests", "positions")
    for folder in "aab":
        assert evaluate(folder, *positions, "positions") == 0
    first, second = map(json.loads, found.read_text().splitlines())
    assert first["model"] == second["model"]
    assert first["tables"] != second["tables"]
    capsys.readouterr()
    whole = found.read_bytes()
    assert evaluate("a", "--json", str(found)) == 2
    assert f"json must be another file than {str(found)!r}, which has records of tests" in capsys.readouterr().err
    assert found.read_bytes() == whole
    numbers = tmp_path / "numbers.json"
    assert evaluate("a", "--json", str(numbers)) == 0
    capsys.readouterr()
    assert evaluate("a", "--json", str(numbers), "--tests", "positions") == 2
    assert f"json must be a file of records of tests, a line each, got {str(numbers)!r}" in capsys.readouterr().err
    assert json.loads(numbers.read_text())["documents"] == ["book.txt"]
    assert evaluate("a", "--json", str(numbers)) == 0
    capsys.readouterr()
    assert evaluate("a", "--json", "/dev/null") == 2  # before it measures, as no file may take its place
    assert "json must be a file in a folder that is there, got '/dev/null'" in capsys.readouterr().err
    other = tmp_path / "other"
    for content in ("Tom has a fox", '{"name": "a"}', "[1]", "3", '{"name": "a"}\n{"name": "b"}\n'):
        other.write_text(content)
        for more, words in (((), "new file or one of earlier numbers"), (positions[4:], "file of records of tests")):
            assert evaluate("a", "--json", str(other), *more) == 2
            assert f"json must be a {words}" in capsys.readouterr().err
        assert other.read_text() == content
    (tmp_path / "a/model/run.json").write_text("{")
    assert evaluate("a", *positions) == 2
    assert "run.json' is damaged or not JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test", "length", "message"),
    [
        ("slots", 128, "length must leave two windows of every document for slots, got 128, and 'book.txt' has 256"),
        ("needles", 64, "path must hold 501,513 tokens or more for needles, got 256"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused_before_the_others(tmp_path, capsys, test, length, message):
    model_of().save_pretrained(tmp_path / "model")
    (tmp_path / "book.txt").write_text("Tom has a fox, and Kim has Tom. " * 8)
    command = ["evaluate", str(tmp_path / "model"), "--path", str(tmp_path / "book.txt"), "--length", str(length)]
    assert main([*command, "--json", str(tmp_path / "found.jsonl"), "--tests", "positions", test]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "found.jsonl").exists()


def test_the_window_that_is_measured_has_a_token_to_predict():
    corpus = books(b"Tom")
    assert all(np.isfinite(list(row.values())).all() for row in slots_table(model_of(), corpus, corpus.documents, 1))
    with pytest.raises(ValueError, match="length must leave two windows of every document"):
        slots_table(model_of(), books(b"Tom"), books(b"To").documents, 1)


@pytest.mark.parametrize("size", [9, 500, 2000])
def test_a_text_too_short_for_needles_is_one_sentence(size):
    corpus = books(b"x" * size)
    with pytest.raises(ValueError, match=rf"path must hold 2,\d+ tokens or more for needles, got {size:,}"):
        needles_table(model_of(), corpus, corpus.documents, 100, asked_after=(1000,))


def test_a_text_just_long_enough_for_needles_is_enough(monkeypatch):
    monkeypatch.setattr(book_tests, "NEEDLES", 2)
    monkeypatch.setattr(book_tests, "APART", 16)
    needed = 2 * 16 + sum(len(needle.fact) for needle in make_needles(2, seed=0)) + 50
    for size in (needed, needed - 1):
        corpus = books(b"x" * size)
        if size == needed:
            [row] = needles_table(model_of(), corpus, corpus.documents, 100, asked_after=(50,), starts=1)
            assert row["asked"] == 2
        else:
            with pytest.raises(ValueError, match=rf"path must hold {needed} tokens or more for needles, got {size}"):
                needles_table(model_of(), corpus, corpus.documents, 100, asked_after=(50,), starts=1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--tests", "positions", "--edges", "10"],
            "edges must not be given with tests, whose ranges are fixed, got (10,)",
        ),
        (["--tests", "names", "slots", "--no-carry-state"], "carry_state must be True for test 'slots'"),
        (["--tests", "needles", "--no-carry-state"], "carry_state must be True for test 'needles'"),
    ],
)
def test_options_that_contradict_each_other(more, words, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--path", str(tmp_path), *more]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def _of(path):
    corpus = text_corpus(path.read_bytes())
    return corpus, corpus.documents
