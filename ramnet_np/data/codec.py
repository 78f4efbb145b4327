"""From text to tokens and back: the bytes as they are, or the pieces of a byte-level BPE.

    text      Tom, Tom
    bytes     T o m , _ T o m            256 tokens, one byte each
    pieces    Tom  ,  _Tom               of a trained tokenizer, several bytes each

Both spell every text and lose nothing: the bytes of the tokens, one after another, are the bytes of the text. So
bits per byte of a model of pieces and of a model of bytes compare.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BYTES = 256  # tokens of a model of bytes
_EXPECTED = "tokenizer.json must hold a byte-level BPE as `ramnet-np tokenize` writes it"
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that a byte-level BPE writes as they are


class Codec(Protocol):
    """What turns text into tokens and tokens into bytes."""

    unit: str  # what a token is called: "byte" or "token"
    vocab: int  # number of tokens
    token_bytes: NDArray[np.int64]  # (vocab,) how many bytes each token stands for

    def encode(self, text: str) -> NDArray[np.int32]:
        """The tokens of ``text``, (N,)."""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for."""


class ByteCodec:
    """Every byte is a token.

    >>> ByteCodec().encode("Tom").tolist(), ByteCodec().piece(84)
    ([84, 111, 109], b'T')
    """

    unit, vocab, token_bytes = "byte", BYTES, np.ones(BYTES, np.int64)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The bytes of ``text`` in UTF-8; errors as :func:`prompt_bytes`."""
        return np.frombuffer(prompt_bytes(text), dtype=np.uint8).astype(np.int32)

    def piece(self, token: int) -> bytes:
        """One byte."""
        return bytes([token])


class BPECodec:
    """The pieces of a byte-level BPE, as its ``tokenizer.json`` lists them.

    ``text``: what that file holds. ValueError unless it is a byte-level BPE without further tokens, as
    ``ramnet-np tokenize`` writes it. The library `tokenizers` is needed to encode, not to decode.
    Source: Sennrich et al., arXiv 1508.07909; bytes in place of letters: Radford et al., "Language Models are
    Unsupervised Multitask Learners" (2019), section 2.2.

    >>> model = {"type": "BPE", "vocab": {"a": 0, "Ġ": 1, "Ġa": 2}, "merges": [["Ġ", "a"]]}
    >>> codec = BPECodec(json.dumps({"model": model, "decoder": {"type": "ByteLevel"}, "added_tokens": []}))
    >>> codec.vocab, codec.piece(2), codec.token_bytes.tolist()
    (3, b' a', [1, 1, 2])
    """

    unit = "token"

    def __init__(self, text: str):
        self.text = text
        self._pieces = _pieces(text)
        self.vocab = len(self._pieces)
        self.token_bytes = np.array([len(piece) for piece in self._pieces], dtype=np.int64)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The pieces of ``text``. RuntimeError where `tokenizers` is missing.

        ValueError for what is no Unicode, and where the pieces do not spell the text, as those of an edited tokenizer.
        """
        try:
            wanted = text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text must be Unicode for a model of pieces, got the byte or surrogate {text[error.start]!a} at "
                f"character {error.start}"
            ) from error
        tokens = self._tokenizer.encode(text).ids
        if b"".join(map(self.piece, tokens)) != wanted:
            raise ValueError(f"{_EXPECTED}, got one whose pieces do not spell every text")
        return np.array(tokens, dtype=np.int32)

    def piece(self, token: int) -> bytes:
        """The bytes of a piece."""
        return self._pieces[token]

    @cached_property
    def _tokenizer(self) -> Any:
        library = tokenizers_library()
        try:
            return library.Tokenizer.from_str(self.text)
        except Exception as error:  # the library raises no other class
            raise ValueError(f"{_EXPECTED}, got what the library tokenizers does not read ({error})") from error


def read_codec(path: Path) -> BPECodec:
    """The codec of the ``tokenizer.json`` at ``path``. ValueError, naming the file, unless it is one of ours.

    >>> read_codec(Path("/dev/null"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: '/dev/null': tokenizer.json must hold a byte-level BPE as `ramnet-np tokenize` writes it, got ...
    """
    try:
        return BPECodec(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r}: {_EXPECTED}, got what is no UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def tokenizers_library() -> Any:
    """The module `tokenizers`. RuntimeError, saying how to install it, where it is missing.

    >>> tokenizers_library().__name__  # doctest: +SKIP
    'tokenizers'
    """
    try:
        import tokenizers
    except ImportError as error:
        raise RuntimeError(
            f"the library tokenizers, which makes tokens of text, must be installed: pip install 'ramnet-np[text]' "
            f"({error})"
        ) from error
    return tokenizers


def decoded(codec: Codec, tokens: Iterable[int]) -> Iterator[str]:
    """The text of ``tokens``, a string for each token: empty where a character is still incomplete, and a last one.

    Bytes that are no UTF-8 become the replacement character.

    >>> list(decoded(ByteCodec(), "né".encode()))
    ['n', '', 'é', '']
    """
    decoder = TextDecoder(codec)
    for token in tokens:
        yield decoder.feed(token)
    yield decoder.end()


class TextDecoder:
    """The text of tokens that come one by one.

    >>> decoder = TextDecoder(ByteCodec())
    >>> [decoder.feed(byte) for byte in "né".encode()], decoder.end()
    (['n', '', 'é'], '')
    """

    def __init__(self, codec: Codec):
        self._codec, self._decoder = codec, codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """What is whole with one more token: nothing where a character is still incomplete."""
        return self._decoder.decode(self._codec.piece(token))

    def end(self) -> str:
        """What is left of an incomplete character."""
        return self._decoder.decode(b"", final=True)


def prompt_bytes(prompt: str) -> bytes:
    """UTF-8. Bytes of the command line that are none come as lone surrogates, and become the bytes that they were.

    >>> prompt_bytes("é"), prompt_bytes("\\udcff")
    (b'\\xc3\\xa9', b'\\xff')
    """
    try:
        return prompt.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(f"prompt must be text, got the lone surrogate {prompt[at]!a} at character {at}") from error


def _pieces(text: str) -> list[bytes]:
    """The bytes of every token of a ``tokenizer.json``."""
    try:
        stored = json.loads(text)
        is_ours = (stored["model"]["type"], stored["decoder"]["type"]) == ("BPE", "ByteLevel")
        vocab: dict[str, int] = stored["model"]["vocab"]
        if not is_ours or stored.get("added_tokens") or sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("another tokenizer, or tokens beside the pieces")
        byte_of = _byte_of_letter()
        pieces = [bytes(byte_of[letter] for letter in piece) for piece in sorted(vocab, key=vocab.__getitem__)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{_EXPECTED}, got something else ({error!r})") from error
    if b"" in pieces or not pieces:
        raise ValueError(f"{_EXPECTED}, got a token without bytes")
    return pieces


def _byte_of_letter() -> dict[str, int]:
    """How a byte-level BPE writes bytes: the printable ones as they are, the others from U+0100 on."""
    others = (byte for byte in range(BYTES) if byte not in _PRINTABLE)
    return {chr(byte): byte for byte in _PRINTABLE} | {chr(BYTES + n): byte for n, byte in enumerate(others)}
