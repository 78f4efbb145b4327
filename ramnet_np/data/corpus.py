"""Documents on disk, read piece by piece: a file, a folder of .txt files, or a folder that ``ramnet-np tokenize`` made.

Nothing is read before it is wanted: a document is a range of numbers in a file that is mapped into memory, so a corpus
may be larger than the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.checks import check_count, check_real
from ramnet_np.data.codec import ByteCodec, Codec, read_codec
from ramnet_np.data.tokens import MANIFEST, TOKENIZER, TOKENS, read_manifest, require_checksums

Watch = Callable[[int], Any]  # told how many bytes have been read since it was last told
Version = tuple[int, ...]  # of a file: another one where it has been changed or replaced
HeldOut = int | float | tuple[str, ...]

_MAPPED_AT_ONCE = 64  # files: every map takes one of the few that a program may have open
_CHUNK = 2**22  # bytes hashed at a time


class Document(NamedTuple):
    """A range of tokens."""

    name: str
    source: Path | NDArray[Any]  # a file of numbers, or the numbers themselves
    begin: int  # its first token in the source
    size: int  # tokens
    version: Version | None = None  # of the file when its checksum was taken


@dataclass(frozen=True)
class Corpus:
    """Documents, and how their tokens are to be read."""

    documents: tuple[Document, ...]
    dtype: np.dtype  # of the numbers in the files
    codec: Codec
    sha256: str  # of all that was read
    aside: tuple[str, ...] = ()  # names of documents that the tokenizer has not seen

    def read(self, document: Document, begin: int, end: int) -> NDArray[np.int32]:
        """Tokens ``begin`` to ``end`` of a document, fewer where it is shorter.

        ValueError where the file is no longer the one that was read: its tokens would be those of another text.

        >>> corpus = text_corpus(b"some text")
        >>> corpus.read(corpus.documents[0], 5, 100).tobytes()[::4]
        b'text'
        """
        source = document.source
        tokens = source if isinstance(source, np.ndarray) else _mapped(*_unchanged(source, document), self.dtype)
        return tokens[document.begin + begin : document.begin + min(end, document.size)].astype(np.int32)


def text_corpus(text: bytes, name: str = "text") -> Corpus:
    """A corpus of one document: the bytes given. ValueError for none.

    >>> text_corpus(b"some text").documents[0].size
    9
    """
    if not text:
        raise ValueError("text must hold something to learn from, got none")
    tokens = np.frombuffer(text, dtype=np.uint8)
    return Corpus((Document(name, tokens, 0, len(text)),), tokens.dtype, ByteCodec(), hashlib.sha256(text).hexdigest())


def read_corpus(path: Path, watch: Watch = lambda n: None, argument: str = "data.path") -> Corpus:
    """The corpus at ``path``: any file or a folder of .txt files, both as bytes, or a folder of tokens.

    A folder's .txt files are taken with those of the folders in it, in the order of their names, without hidden ones.
    Every byte is read once, for the checksum by which a run is resumed on the same data; ``watch`` is told how far.
    ``argument``: what an error calls the path.
    FileNotFoundError or ValueError, naming the file, for what is missing, empty, damaged or of another kind.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "one.txt").write_text("Tom has a fox.")
    ...     [(document.name, document.size) for document in read_corpus(Path(folder)).documents]
    [('one.txt', 14)]
    """
    if path.is_dir() and (path / MANIFEST).exists():
        return _tokens(path, watch)
    files = text_files(path, argument)
    versions = [_version(file) for _, file in files]
    digests = [file_sha256(file, watch) for _, file in files]
    if path.is_file():
        sha256 = digests[0]
    else:
        lines = (f"{digest}  {name}\n" for digest, (name, _) in zip(digests, files, strict=True))
        sha256 = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
    documents = tuple(
        Document(name, file, 0, file.stat().st_size, version)
        for (name, file), version in zip(files, versions, strict=True)
    )
    return Corpus(documents, np.dtype(np.uint8), ByteCodec(), sha256)


def text_files(path: Path, argument: str = "data.path") -> list[tuple[str, Path]]:
    """Name and path of a file, or of the .txt files below a folder, sorted by name; errors as :func:`read_corpus`.

    ``argument``: what an error calls the path.

    >>> text_files(Path("/no/such/folder"))
    Traceback (most recent call last):
        ...
    FileNotFoundError: data.path must be a file or a folder, got '/no/such/folder'
    """
    if path.is_file():
        if not path.stat().st_size:
            raise ValueError(f"{argument} must be a file with something in it, but {str(path)!r} is empty")
        return [(path.name, path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{argument} must be a file or a folder, got {str(path)!r}")
    found = {file.relative_to(path): file for file in path.rglob("*.txt") if file.is_file()}
    names = {name.as_posix(): file for name, file in found.items() if not any(p.startswith(".") for p in name.parts)}
    files = [(name, names[name]) for name in sorted(names) if names[name].stat().st_size]
    if not files:
        raise ValueError(f"{argument} must hold .txt files with something in them, but {str(path)!r} has none")
    return files


def file_sha256(path: Path, watch: Watch = lambda n: None) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    >>> file_sha256(Path("/dev/null"))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            watch(len(chunk))
    return digest.hexdigest()


def check_held_out(argument: str, held_out: Any) -> None:
    """TypeError or ValueError unless ``held_out`` is a share, a count or names.

    >>> check_held_out("data.held_out", 1.5)
    Traceback (most recent call last):
        ...
    ValueError: data.held_out must lie between 0 and 1, got 1.5
    """
    if isinstance(held_out, tuple):
        if not held_out or not all(isinstance(name, str) and name for name in held_out):
            raise ValueError(f"{argument} must name files, got {held_out!r}")
    elif isinstance(held_out, int) and not isinstance(held_out, bool):
        check_count(argument, held_out)
    else:
        check_real(argument, held_out)
        if not 0 < held_out < 1:
            raise ValueError(f"{argument} must lie between 0 and 1, got {held_out}")


def chosen_names(names: Sequence[str], chosen: HeldOut, argument: str) -> tuple[str, ...]:
    """Which of several documents ``chosen`` means, in their order.

    A share below 1: of the documents, the last by name, at least one. A count: so many, the last by name. Strings:
    the documents of these names, in which * and ? stand for what they stand for in a shell.
    ValueError, which calls it ``argument``, where a name fits none.

    >>> names = ["a.txt", "b.txt", "valid/c.txt"]
    >>> chosen_names(names, 1, "held_out"), chosen_names(names, ("a*",), "held_out")
    (('valid/c.txt',), ('a.txt',))
    """
    if not isinstance(chosen, tuple):
        count = chosen if isinstance(chosen, int) else max(1, round(chosen * len(names)))
        return tuple(names[max(0, len(names) - count) :])
    for pattern in chosen:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{argument} must name documents, got {pattern!r}, which fits none of {some_names(names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in chosen))


def held_out_names(names: Sequence[str], held_out: HeldOut, argument: str = "data.held_out") -> tuple[str, ...]:
    """As :func:`chosen_names`; ValueError where nothing would be left to train on.

    >>> held_out_names(["a.txt"], 1)
    Traceback (most recent call last):
        ...
    ValueError: data.held_out must leave documents to train on, got 1 of a.txt
    """
    chosen = chosen_names(names, held_out, argument)
    if len(chosen) == len(names):
        raise ValueError(f"{argument} must leave documents to train on, got {held_out!r} of {some_names(names)}")
    return chosen


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> some_names(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _tokens(folder: Path, watch: Watch) -> Corpus:
    """The corpus of a folder that ``ramnet-np tokenize`` made, once its checksums are known to be right."""
    version = _version(folder / TOKENS)
    manifest = read_manifest(folder)
    sha256 = require_checksums(folder, lambda path: file_sha256(path, watch))
    codec = read_codec(folder / TOKENIZER)
    if codec.vocab != manifest.vocab:
        raise ValueError(f"{str(folder / TOKENIZER)!r} must have {manifest.vocab} tokens, got {codec.vocab}")
    begins = np.cumsum([0, *(size for _, size in manifest.documents)]).tolist()
    documents = tuple(
        Document(name, folder / TOKENS, begin, size, version)
        for (name, size), begin in zip(manifest.documents, begins, strict=False)
    )
    return Corpus(documents, manifest.dtype, codec, sha256, manifest.held_out)


def _version(path: Path) -> Version | None:
    """None for a file that is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _unchanged(path: Path, document: Document) -> tuple[Path, Version]:
    """The document's file and its version. ValueError unless it is as it was when its checksum was taken."""
    version = _version(path)
    if version is None or version != document.version:
        fate = "is gone" if version is None else "has been changed"
        raise ValueError(f"{str(path)!r} must stay as it was when it was first read, but it {fate}")
    return path, version


@lru_cache(maxsize=_MAPPED_AT_ONCE)
def _mapped(path: Path, version: Version, dtype: np.dtype) -> NDArray[Any]:
    """The numbers of that version of a file."""
    return np.memmap(path, dtype=dtype, mode="r")
