"""A folder of tokens, as ``ramnet-np tokenize`` writes it: plain files that other programs can read.

tokens.bin        the tokens of all documents one after another, little-endian unsigned integers of 2 or 4 bytes
tokenizer.json    the byte-level BPE, in the format of the library `tokenizers`
manifest.json     vocabulary, dtype, and of every document the name, tokens, bytes and SHA-256 of its text
SHA256SUMS        the checksums of the three: `sha256sum -c SHA256SUMS` checks them, and so does every run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TOKENS, TOKENIZER, MANIFEST, SUMS = "tokens.bin", "tokenizer.json", "manifest.json", "SHA256SUMS"
FORMAT = 1
MOST_TOKENS = 2**32  # of a vocabulary, which the numbers of tokens.bin hold


class Manifest(NamedTuple):
    """What a reader of tokens needs of ``manifest.json``."""

    vocab: int
    dtype: np.dtype
    documents: tuple[tuple[str, int], ...]  # name and tokens of each, in the order of tokens.bin
    held_out: tuple[str, ...]  # names of documents that the tokenizer has not seen


def smallest_dtype(vocab: int) -> np.dtype:
    """The dtype of the numbers in ``tokens.bin``: two bytes each if these hold the vocabulary, else four.

    >>> smallest_dtype(8192).str, smallest_dtype(65537).str
    ('<u2', '<u4')
    """
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def read_manifest(folder: Path) -> Manifest:
    """What ``folder`` holds, as far as its manifest and the size of ``tokens.bin`` tell.

    FileNotFoundError for a missing file; ValueError for a manifest that is damaged, of another program or version, or
    does not fit the tokens beside it.

    >>> read_manifest(Path("/no/such/folder"))
    Traceback (most recent call last):
        ...
    FileNotFoundError: a folder of tokens must hold manifest.json, but '/no/such/folder' does not
    """
    for name in (MANIFEST, TOKENS, TOKENIZER, SUMS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"a folder of tokens must hold {name}, but {str(folder)!r} does not")
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        manifest = _manifest(stored)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{str(path)!r} must be a manifest of format {FORMAT} as `ramnet-np tokenize` writes it, got another file "
            f"or a damaged one ({error!r})"
        ) from error
    wanted = manifest.dtype.itemsize * sum(size for _, size in manifest.documents)
    if (got := (folder / TOKENS).stat().st_size) != wanted:
        raise ValueError(f"{str(folder / TOKENS)!r} must have {wanted:,} bytes as its manifest says, got {got:,}")
    return manifest


def require_checksums(folder: Path, sha256: Callable[[Path], str]) -> str:
    """ValueError, naming the file, unless the files of ``folder`` have the checksums of SHA256SUMS; returns its own.

    ``sha256``: computes that of a file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, SUMS).write_text("".join(f"0  {name}\\n" for name in (TOKENS, TOKENIZER, MANIFEST)))
    ...     require_checksums(Path(folder), lambda path: "0")[:8]
    'ec0f974b'
    """
    text = (folder / SUMS).read_bytes()
    sums = {}
    for line in text.decode(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    for name in (MANIFEST, TOKENIZER, TOKENS):
        if name not in sums:
            raise ValueError(
                f"{str(folder / SUMS)!r} must have the checksum of {name}, got {', '.join(sums) or 'none'}"
            )
        if sha256(folder / name) != sums[name]:
            raise ValueError(f"{str(folder / name)!r} is damaged: its SHA-256 is not the one of {SUMS}")
    return hashlib.sha256(text).hexdigest()


def _manifest(stored: Any) -> Manifest:
    """The manifest of the JSON value. ValueError, KeyError or TypeError unless it is one."""
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']!r}")
    vocab, dtype = stored["vocab"], np.dtype(stored["dtype"]).newbyteorder("<")
    is_count = isinstance(vocab, int) and not isinstance(vocab, bool) and 0 < vocab <= MOST_TOKENS
    if not is_count or dtype != smallest_dtype(vocab):
        raise ValueError(f"vocab {vocab!r} of dtype {stored['dtype']!r}")
    documents = tuple((one["name"], one["tokens"]) for one in stored["documents"])
    for name, size in documents:
        if not isinstance(name, str) or not isinstance(size, int) or size < 0:
            raise ValueError(f"document {name!r} of {size!r} tokens")
    names = {name for name, _ in documents}
    held_out = tuple(stored["held_out"])
    if not documents or len(names) < len(documents) or not names.issuperset(held_out):
        raise ValueError("documents without names of their own")
    return Manifest(vocab, dtype, documents, held_out)
