"""Folders of text and of tokens: they are written, read back, and refused in a sentence where they are damaged."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ramnet_np.data.codec import BPECodec, ByteCodec, decoded, read_codec
from ramnet_np.data.corpus import held_out_names, read_corpus
from ramnet_np.data.text import TextSettings, read_data

FILES = {
    "a.txt": "Tom has a fox. ",
    "b.txt": "Ann\u2019s hen naps.\n\n",
    "valid/c.txt": "Zoë has a hen. ",
    ".hidden.txt": "x",
}


@pytest.fixture(scope="module")
def novels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("novels")
    (folder / "valid").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text * 40, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tokens(novels, tmp_path_factory):
    pytest.importorskip("tokenizers")
    from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder

    out = tmp_path_factory.mktemp("made") / "tokens"
    done = tokenize_folder(TokenizeOptions(novels, out, vocab=280, held_out=("valid/*",)), progress=False)
    assert (done.documents, done.held_out) == (3, ("valid/c.txt",))
    assert done.bytes == sum(len((text * 40).encode()) for name, text in FILES.items() if name[0] != ".")
    return out


def copied(tokens, tmp_path, name, change):
    """A copy of the folder in which one file is changed."""
    for path in tokens.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(change((tokens / name).read_bytes()))
    return tmp_path


def text_of(corpus, document):
    return "".join(decoded(corpus.codec, corpus.read(document, 0, document.size).tolist()))


def test_a_folder_of_text_is_its_files_in_order_of_their_names(novels):
    corpus = read_corpus(novels)
    assert [document.name for document in corpus.documents] == ["a.txt", "b.txt", "valid/c.txt"]
    assert [text_of(corpus, document) for document in corpus.documents] == [
        FILES[d.name] * 40 for d in corpus.documents
    ]
    lines = (f"{hashlib.sha256((FILES[d.name] * 40).encode()).hexdigest()}  {d.name}\n" for d in corpus.documents)
    assert corpus.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_tokens_are_the_text_and_fewer(tokens):
    corpus = read_corpus(tokens)
    manifest = json.loads((tokens / "manifest.json").read_text())
    assert corpus.aside == ("valid/c.txt",)
    assert corpus.codec.vocab == manifest["vocab"] <= 280
    for document, stored in zip(corpus.documents, manifest["documents"], strict=True):
        text = FILES[document.name] * 40
        assert text_of(corpus, document) == text
        ids = corpus.read(document, 0, document.size)
        assert (len(ids), int(corpus.codec.token_bytes[ids].sum())) == (stored["tokens"], stored["bytes"])
        assert stored["sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert len(ids) < 0.6 * stored["bytes"]
        np.testing.assert_array_equal(corpus.codec.encode(text), ids)
    size = sum(document.size for document in corpus.documents)
    assert (tokens / "tokens.bin").stat().st_size == 2 * size == 2 * manifest["tokens"]


def test_the_tokenizer_has_not_seen_what_is_held_out(tokens):
    codec = BPECodec((tokens / "tokenizer.json").read_text())
    pieces = {codec.piece(token) for token in range(256, codec.vocab)}
    assert any(b"Tom" in piece for piece in pieces)
    assert not any(b"Zo" in piece for piece in pieces)


def test_the_same_files_give_the_same_bytes_in_another_process(novels, tokens, tmp_path):
    command = [sys.executable, "-m", "ramnet_np.cli", "tokenize", str(novels), "--vocab", "280"]
    subprocess.run([*command, "--out", str(tmp_path), "--held-out", "valid/*"], check=True, capture_output=True)
    for name in ("tokens.bin", "tokenizer.json", "manifest.json", "SHA256SUMS"):
        assert (tmp_path / name).read_bytes() == (tokens / name).read_bytes(), name


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_checks_the_folder(tokens, tmp_path):
    folder = shutil.copytree(tokens, tmp_path / "tokens")
    command = ["sha256sum", "-c", "SHA256SUMS"]
    found = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    assert sorted(found.stdout.splitlines()) == ["manifest.json: OK", "tokenizer.json: OK", "tokens.bin: OK"]
    (folder / "tokens.bin").write_bytes(b"others")
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode != 0


def test_a_long_text_is_encoded_as_the_whole_would_be(tokens, novels, monkeypatch):
    from ramnet_np.runs import tokenize

    monkeypatch.setattr(tokenize, "_PIECE", 7)
    strings = list(tokenize._strings("b.txt", novels / "b.txt"))
    assert len(strings) > 40
    text, codec = "".join(strings), read_corpus(tokens).codec
    assert text == FILES["b.txt"] * 40
    np.testing.assert_array_equal(np.concatenate([codec.encode(string) for string in strings]), codec.encode(text))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("tokens.bin", lambda data: bytes([data[0] ^ 1]) + data[1:], r"tokens\.bin' is damaged: its SHA-256 is not"),
        ("tokens.bin", lambda data: data[:-2], r"tokens\.bin' must have [0-9,]+ bytes as its manifest says, got"),
        ("tokenizer.json", lambda data: data + b" ", r"tokenizer\.json' is damaged"),
        ("manifest.json", lambda data: b"{}", r"manifest\.json' must be a manifest of format 1 .*'format'"),
        ("manifest.json", lambda data: data.replace(b'"uint16"', b'"uint32"'), "must be a manifest .*dtype 'uint32'"),
        ("manifest.json", lambda data: re.sub(rb'"vocab": \d+', b'"vocab": true', data), "a manifest .*vocab True"),
        ("manifest.json", lambda data: data.replace(b"a.txt", b"b.txt"), "documents without names of their own"),
        ("SHA256SUMS", lambda data: b"", r"SHA256SUMS' must have the checksum of manifest\.json, got none"),
    ],
)
def test_damage_is_one_sentence(tokens, tmp_path, name, change, words):
    with pytest.raises(ValueError, match=words):
        read_corpus(copied(tokens, tmp_path, name, change))


def test_a_file_that_is_missing(tokens, tmp_path):
    folder = copied(tokens, tmp_path, "tokens.bin", lambda data: data)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a folder of tokens must hold tokenizer\.json, but"):
        read_corpus(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1",
        '{"model": {"type": "WordPiece", "vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 1}}, "decoder": {"type": "ByteLevel"}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": 0}]}',
        '{"model": {"type": "BPE", "vocab": {" ": 0}}, "decoder": {"type": "ByteLevel"}}',
    ],
)
def test_another_tokenizer_is_refused(text):
    with pytest.raises(ValueError, match=r"tokenizer\.json must hold a byte-level BPE as `ramnet-np tokenize` writes"):
        BPECodec(text)


def test_without_the_library_tokenizing_says_what_to_install(monkeypatch, novels, tmp_path):
    from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RuntimeError, match=r"must be installed: pip install 'ramnet-np\[text\]'"):
        tokenize_folder(TokenizeOptions(novels, tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_tokenizing_checks_everything_before_it_writes(novels, tokens, tmp_path):
    from ramnet_np.runs.tokenize import TokenizeOptions, tokenize_folder

    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "other.txt").write_bytes(b"text")
    out = tmp_path / "out"
    for options, error, words in (
        (TokenizeOptions(tmp_path, out), ValueError, r"'latin\.txt' must be text in UTF-8, got byte 0xe9 at 3"),
        (TokenizeOptions(tmp_path / "no", out), FileNotFoundError, "folder must be a file or a folder, got"),
        (TokenizeOptions(novels, out, held_out=("d*",)), ValueError, r"held_out must name documents, got 'd\*'"),
        (
            TokenizeOptions(novels / "a.txt", out, held_out=("b*",)),
            ValueError,
            "held_out must be a share where",
        ),
        (TokenizeOptions(novels, tokens), ValueError, r"out must be a new folder, but .* holds tokens\.bin"),
        (
            TokenizeOptions(novels, novels / "a.txt" / "out"),
            OSError,
            "out must be a folder that can be written",
        ),
        (TokenizeOptions(novels, novels / "a.txt"), ValueError, "out must be a folder, got .* which is a file"),
    ):
        with pytest.raises(error, match=words):
            tokenize_folder(options, progress=False)
    assert not out.exists()
    with pytest.raises(ValueError, match="vocab must be at least 257, got 256"):
        TokenizeOptions(novels, out, vocab=256)
    with pytest.raises(ValueError, match="vocab must be at most 1048576, got 1000000000"):  # the library would abort
        TokenizeOptions(novels, out, vocab=10**9)


def test_a_tokenizer_that_was_edited_says_so_before_it_loses_text(tokens, tmp_path):
    path, stored = tmp_path / "tokenizer.json", json.loads((tokens / "tokenizer.json").read_text())
    path.write_text(json.dumps(stored | {"pre_tokenizer": None}))  # spaces have no piece then, and would be left out
    assert read_codec(path).encode("Tom").size
    with pytest.raises(ValueError, match="got one whose pieces do not spell every text"):
        read_codec(path).encode("Tom has")
    path.write_text(json.dumps(stored | {"pre_tokenizer": {"type": "None"}}))
    with pytest.raises(ValueError, match="got what the library tokenizers does not read"):
        read_codec(path).encode("Tom")
    for damaged, words in ((b"\xff", "got what is no UTF-8"), (b"{", "got something else")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"tokenizer\.json': tokenizer\.json must hold .* {words}"):
            read_codec(path)


def test_characters_come_out_whole():
    """A character of several tokens appears with its last one; bytes that are none become U+FFFD."""
    assert list(decoded(ByteCodec(), "é€".encode())) == ["", "é", "", "", "€", ""]
    assert "".join(decoded(ByteCodec(), b"a\xffb\xe2\x82")) == "a\ufffdb\ufffd"


def test_held_out_files():
    names = ["a", "b", "c", "d/e"]
    assert held_out_names(names, 0.3) == ("d/e",)
    assert held_out_names(names, 2) == ("c", "d/e")
    assert held_out_names(names, ("d/*", "a")) == ("a", "d/e")
    for held_out, words in ((4, "must leave documents"), (("x",), "got 'x', which fits none of a, b, c and 1 more")):
        with pytest.raises(ValueError, match=words):
            held_out_names(names, held_out)


def test_a_folder_of_tokens_holds_out_what_its_tokenizer_has_not_seen(tokens, novels):
    data = read_data(TextSettings(path=tokens, length=8), batch=2)
    assert [document.name for document in data.aside] == ["valid/c.txt"]
    assert set(data.held_out()) == {"next token"}
    others = read_data(TextSettings(path=tokens, length=8, held_out=("a.txt",)), batch=2)
    assert [document.name for document in others.aside] == ["a.txt"]
    by_share = read_data(TextSettings(path=novels, length=8), batch=2)
    assert [document.name for document in by_share.aside] == ["valid/c.txt"]


def test_windows_lie_within_documents(novels):
    data = read_data(TextSettings(path=novels, length=30), batch=64)
    documents = [bytes(data.corpus.read(document, 0, document.size).astype(np.uint8)) for document in data.train]
    for step in range(3):
        ids, labels = data.batch(step)
        for row, label in zip(ids, labels, strict=True):
            window = bytes([row[0], *label.tolist()])
            assert any(window in document for document in documents)


@pytest.mark.parametrize("change", ["edit", "replace", "remove"])
def test_a_run_ends_where_its_text_changes_under_it(tmp_path, change):
    path, other = tmp_path / "a.txt", tmp_path / "b"
    path.write_bytes(b"Tom has a fox. " * 9)
    data = read_data(TextSettings(path=path, length=4), batch=2)
    data.batch(0)
    other.write_bytes(b"Ann has a hen. " * 9)
    if change == "edit":
        path.write_bytes(b"short")
    elif change == "replace":
        other.replace(path)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"a\.txt' must stay as it was when it was first read, but it (has been|is)"):
        data.batch(1)


def test_a_name_that_is_no_utf8(tmp_path):
    (tmp_path / "caf\udce9.txt").write_bytes(b"text")
    assert [document.name for document in read_corpus(tmp_path).documents] == ["caf\udce9.txt"]


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    for text in (b"one text", b"another text"):
        (tmp_path / "partial").write_bytes(text)
        (tmp_path / "partial").replace(tmp_path / "a.txt")
        corpus = read_corpus(tmp_path / "a.txt")
        assert text_of(corpus, corpus.documents[0]) == text.decode()
