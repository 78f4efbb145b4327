"""A folder of text becomes a folder of tokens: a byte-level BPE is trained on it, then every file is encoded.

    *.txt ──▶ byte-level BPE ──▶ tokens.bin, tokenizer.json, manifest.json, SHA256SUMS        data/tokens.py

The BPE splits text into words as GPT-2 does, and joins the pair of pieces that stands side by side most often, again
and again, until there are ``vocab`` pieces. The library `tokenizers` trains and encodes, on all cores.
Source: Sennrich et al., arXiv 1508.07909; on bytes: Radford et al., "Language Models are Unsupervised Multitask
Learners" (2019), section 2.2.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from ramnet_np.data.checks import check_count
from ramnet_np.data.codec import BYTES, BPECodec, tokenizers_library
from ramnet_np.data.corpus import HeldOut, check_held_out, file_sha256, held_out_names, some_names, text_files
from ramnet_np.data.tokens import FORMAT, MANIFEST, SUMS, TOKENIZER, TOKENS, smallest_dtype
from ramnet_np.model.files import replacing
from ramnet_np.train.folder import held_folder

MOST_PIECES = 2**20  # no tokenizer has more, and the library reserves memory for as many as it is asked for
_PIECE = 2**20  # bytes of text that are encoded as one string
_AT_ONCE = 16  # strings that are encoded together, on all cores
# A word never begins before and ends behind such a place: a string cut here is split into words as the whole would be.
_CUT = re.compile(rb"[!-~](?=[ \t\r\n])")

Files = Sequence[tuple[str, Path]]  # name and path of each


@dataclass(frozen=True)
class TokenizeOptions:
    """Turn a folder of .txt files into tokens: train a byte-level BPE on them, and encode every file.

    Tokenize, with a twentieth of the files held out or with some by name; then train:
      ramnet-np tokenize novels --out tokens
      ramnet-np tokenize novels --out tokens --held-out emma.txt kim.txt
      ramnet-np train text --preset file --data.path tokens

    A token is several bytes of text, so a model of tokens sees further at each length than one of bytes, which needs no
    such step. OUT gets tokens.bin (all documents one after another), tokenizer.json, manifest.json (names, sizes,
    checksums) and SHA256SUMS. The same files give the same bytes. The library tokenizers is needed:
    pip install 'ramnet-np[text]'.
    """

    folder: tyro.conf.Positional[Path]
    """The .txt files in it and in the folders below are the documents; or one file."""
    out: Path = Path("tokens")
    """Folder for the four files; it is made if missing."""
    vocab: int = 8192
    """Pieces of the tokenizer, the 256 bytes among them; a small text may have fewer."""
    held_out: HeldOut = 0.05
    """Files that the tokenizer does not see, and that runs measure on: a share of them or a number, the last by name;
    or names, in which * and ? may stand for others. A single file has none."""
    overwrite: bool = False
    """Replace the tokens that OUT holds."""

    def __post_init__(self) -> None:
        check_count("vocab", self.vocab, BYTES + 1, MOST_PIECES)
        check_held_out("held_out", self.held_out)


class Tokenized(NamedTuple):
    """What was written."""

    out: Path
    vocab: int
    documents: int
    tokens: int
    bytes: int
    held_out: tuple[str, ...]

    def in_words(self) -> str:
        """For the end of the command.

        >>> print(Tokenized(Path("tokens"), 8192, 2, 1000, 3800, ("b.txt",)).in_words())
        2 documents of 3,800 bytes: 1,000 tokens of 8,192 pieces, 3.80 bytes a token; held out: b.txt
        in tokens: tokens.bin, tokenizer.json, manifest.json, SHA256SUMS
        """
        return (
            f"{self.documents:,} documents of {self.bytes:,} bytes: {self.tokens:,} tokens of {self.vocab:,} pieces, "
            f"{self.bytes / self.tokens:.2f} bytes a token; held out: {some_names(self.held_out) or 'none'}\n"
            f"in {self.out}: {TOKENS}, {TOKENIZER}, {MANIFEST}, {SUMS}"
        )


def tokenize_folder(options: TokenizeOptions, *, progress: bool = True) -> Tokenized:
    """Train the tokenizer and write the tokens.

    Nothing is written before all files are known to be text. RuntimeError without the library; ValueError,
    FileNotFoundError or OSError, naming argument or file, else.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     _ = Path(folder, "one.txt").write_text("Tom has a fox. " * 9)
    ...     tokenize_folder(TokenizeOptions(Path(folder), Path(folder, "tokens")), progress=False).bytes
    135
    """
    library, out, progress_off = tokenizers_library(), options.out, not progress
    files = text_files(options.folder, "folder")
    names = [name for name, _ in files]
    if len(files) == 1 and not isinstance(options.held_out, float):
        raise ValueError(f"held_out must be a share where there is one file, got {options.held_out!r}")
    aside = held_out_names(names, options.held_out, "held_out") if len(files) > 1 else ()
    _require_free(out, options.overwrite)
    for name, path in tqdm(files, desc="checking", unit="file", delay=1.0, leave=False, disable=progress_off):
        for _ in _strings(name, path):
            pass
    seen = [(name, path) for name, path in files if name not in aside]
    with held_folder(out):  # now, as training takes minutes
        tokenizer = _trained(library, seen, options.vocab, progress)
        return _written(tokenizer, files, aside, out, progress)


def _written(tokenizer: Any, files: Files, aside: tuple[str, ...], out: Path, progress: bool) -> Tokenized:
    """Encode the files and write the folder."""
    codec = BPECodec(tokenizer.to_str(pretty=True))
    with replacing(*(out / name for name in (TOKENS, TOKENIZER, MANIFEST, SUMS))) as (tokens, model, manifest, sums):
        with tokens.open("wb") as file:
            documents = _encode_all(tokenizer, codec, files, file, progress)
        model.write_text(codec.text, encoding="utf-8")
        sizes = {what: sum(one[what] for one in documents) for what in ("tokens", "bytes")}
        dtype = smallest_dtype(codec.vocab).name
        stored = {"format": FORMAT, "vocab": codec.vocab, "dtype": dtype, **sizes, "held_out": aside}
        manifest.write_text(json.dumps(stored | {"documents": documents}, indent=1) + "\n", encoding="utf-8")
        written = {TOKENS: tokens, TOKENIZER: model, MANIFEST: manifest}
        sums.write_text("".join(f"{file_sha256(path)}  {name}\n" for name, path in written.items()), encoding="utf-8")
    return Tokenized(out, codec.vocab, len(documents), sizes["tokens"], sizes["bytes"], aside)


def _require_free(out: Path, overwrite: bool) -> None:
    """ValueError unless ``out`` is a folder, or can become one, in which nothing of another kind would be replaced."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a folder, got {str(out)!r}, which is a file")
    if not out.is_dir():
        return
    there = [name for name in (TOKENS, TOKENIZER, MANIFEST, SUMS) if (out / name).exists()]
    if there and not overwrite:
        raise ValueError(f"out must be a new folder, but {str(out)!r} holds {there[0]}; overwrite it or choose another")


def _trained(library: Any, files: Files, vocab: int, progress: bool) -> Any:
    """A tokenizer of the library, trained on the files in their order."""
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    texts = (text for name, path in files for text in _strings(name, path))
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def _encode_all(tokenizer: Any, codec: BPECodec, files: Files, out: IO[bytes], progress: bool) -> list[dict[str, Any]]:
    """Write the tokens of all files; returns what the manifest has of each."""
    documents = []
    total = sum(path.stat().st_size for _, path in files)
    with tqdm(total=total, desc="encoding", unit="B", unit_scale=True, disable=not progress) as bar:
        for name, path in files:
            digest, sizes = hashlib.sha256(), np.zeros(2, np.int64)  # tokens, and bytes that they stand for
            strings = _strings(name, path, digest.update)
            while some := list(islice(strings, _AT_ONCE)):
                for ids in _encoded(tokenizer, some):
                    out.write(ids.astype(smallest_dtype(codec.vocab)).tobytes())
                    size = int(codec.token_bytes[ids].sum())
                    sizes += len(ids), size
                    bar.update(size)
            if sizes[1] != path.stat().st_size:
                raise ValueError(f"{name!r} has {path.stat().st_size:,} bytes, its tokens stand for {sizes[1]:,}")
            documents.append({"name": name, "tokens": int(sizes[0]), "bytes": int(sizes[1])})
            documents[-1]["sha256"] = digest.hexdigest()
    return documents


def _encoded(tokenizer: Any, strings: list[str]) -> Iterator[NDArray[np.int64]]:
    for encoding in tokenizer.encode_batch_fast(strings):
        yield np.array(encoding.ids, dtype=np.int64)


def _strings(name: str, path: Path, watch: Callable[[bytes], Any] = len) -> Iterator[str]:
    """The text of a file in pieces that are cut between words; ``watch`` is given the bytes of each.

    ValueError, naming the file and the place, where it is no UTF-8.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = 0
        while begin < len(data):
            cut = _CUT.search(data, min(begin + _PIECE, len(data)))
            end = cut.end() if cut else len(data)
            piece = data[begin:end]
            try:
                text = piece.decode()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{name!r} must be text in UTF-8, got byte {piece[error.start]:#04x} at {begin + error.start:,}; "
                    "a model of bytes takes any file, without this step"
                ) from error
            watch(piece)
            yield text
            begin = end
