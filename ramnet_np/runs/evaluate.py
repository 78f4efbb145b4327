"""A trained language model measured on text, as the command starts it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ramnet_np.backend import use_backend
from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.checks import check_count
from ramnet_np.data.codec import BPECodec, Codec
from ramnet_np.data.corpus import Corpus, Document, HeldOut, check_held_out, chosen_names, read_corpus, some_names
from ramnet_np.model import RAMNet
from ramnet_np.model.checks import check_choice
from ramnet_np.model.files import read_json, write_text
from ramnet_np.model.network import Device
from ramnet_np.runs.text import load_codec, load_text_model, reading_bar
from ramnet_np.train.text_loss import EDGES, DocumentsLoss, documents_loss

Test = Literal["positions", "names", "needles", "slots"]


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure a language model on whole documents: nats a token, bits a byte, perplexity, and all by position.

    Some files of a folder; those that a tokenised folder kept aside; windows that each start with an empty memory:
      ramnet-np evaluate runs/book --path novels --files emma.txt kim.txt
      ramnet-np evaluate runs/book --path new.txt --no-carry-state
      ramnet-np evaluate runs/book --path tokens --tests names needles

    A document is read from its first token on, in windows, and its memory is carried from each to the next. Bits a byte
    compare models of bytes and of any tokens. A position is the number of bytes before a token in its document.
    """

    folder: tyro.conf.Positional[Path]
    """A run of `ramnet-np train text`, or one of its checkpoints."""
    path: Path
    """A text file or a folder of .txt files; or a folder of tokens of the model's tokenizer."""
    files: HeldOut | None = None
    """Which documents: their names, in which * and ? may stand for others; a number, the last by name; or a share;
    none: those that a folder of tokens kept aside, else all."""
    length: int = 1024
    """Tokens of a window."""
    carry_state: bool = True
    """Carry the memory from window to window."""
    edges: tuple[int, ...] = EDGES
    """Bytes of a document at which one range of positions ends and the next begins."""
    batch: int | None = None
    """Tokens computed at a time, in windows side by side; none: 8192, or 65536 on a GPU."""
    json: Path | None = None
    """Write the numbers into this file; tests append a line each, once."""
    tests: tuple[Test, ...] = ()
    """Tests of what a model keeps of a book, in place of the above (docs/guide/text.md)."""
    device: Device = "cpu"
    """Where the model lives; gpu needs CuPy and an NVIDIA GPU."""
    backend: str | None = None
    """Which implementation computes; none: the fastest that is installed."""

    def __post_init__(self) -> None:
        check_count("length", self.length)
        check_choice("device", self.device, Device)
        if self.batch is not None:
            check_count("batch", self.batch)
        for test in self.tests:
            check_choice("tests", test, Test)
        if self.tests and self.edges != EDGES:
            raise ValueError(f"edges must not be given with tests, whose ranges are fixed, got {self.edges}")
        if not self.carry_state and (carried := [test for test in ("needles", "slots") if test in self.tests]):
            raise ValueError(f"carry_state must be True for test {carried[0]!r}, which is of a memory that is carried")
        if self.files is not None:
            check_held_out("files", self.files)
        for low, high in zip((0, *self.edges), self.edges, strict=False):
            if not low < high:
                raise ValueError(f"edges must rise from above 0, got {self.edges}")


class Evaluation(NamedTuple):
    """What was measured."""

    documents: tuple[str, ...]
    unit: str  # of a token
    result: DocumentsLoss

    def in_words(self) -> str:
        """A line for all, and one for each range of positions."""
        loss = self.result.loss
        rows = [("bytes before the token", "bits a byte", "nats a " + self.unit, "perplexity", self.unit + "s")]
        for part in self.result.by_position:
            end = "" if part.end is None else f"{part.end:,}"
            numbers = f"{part.loss.bits_per_byte:.4f}", f"{part.loss.nats_per_token:.4f}", f"{part.loss.perplexity:.2f}"
            rows.append((f"{part.begin:,} to {end}".strip(), *numbers, f"{part.loss.tokens:,}"))
        numbers = f"{loss.bits_per_byte:.4f}", f"{loss.nats_per_token:.4f}", f"{loss.perplexity:.2f}"
        rows.append(("all", *numbers, f"{loss.tokens:,}"))
        lines = [f"{first:24}" + "".join(f"{cell:>14}" for cell in cells) for first, *cells in rows]
        return "\n".join([f"{len(self.documents):,} documents: {some_names(self.documents, 12)}", *lines])

    def record(self) -> dict[str, object]:
        """The numbers as JSON values."""
        loss = self.result.loss
        sizes = {"tokens": loss.tokens, "bytes": loss.bytes, "accuracy": loss.accuracy}
        return {"documents": self.documents, **loss.record(), **sizes, "by_position": self.result.table()}


def evaluate_text(options: EvaluateOptions, *, progress: bool = True) -> Evaluation:
    """Load the model, read the text and measure; errors, naming argument or file, before anything is computed.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> with TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     _ = Path(folder, "new.txt").write_text("Tom has a fox.")
    ...     found = evaluate_text(EvaluateOptions(Path(folder), Path(folder, "new.txt")), progress=False)
    >>> found.result.loss.tokens, round(found.result.loss.bits_per_byte, 6)
    (13, 8.0)
    """
    if options.json is not None and options.json.is_file():
        _check_replaced(options.json)
    model, corpus, documents = load_evaluated(options, progress)
    total = sum(document.size - 1 for document in documents)
    with computing(options), measuring_bar(total, corpus.codec.unit, progress) as bar:
        result = documents_loss(
            model, corpus, documents, options.length, carry=options.carry_state,
            edges=options.edges, tokens=options.batch, advance=bar.update,
        )  # fmt: skip
    found = Evaluation(tuple(document.name for document in documents), corpus.codec.unit, result)
    if options.json is not None:
        write_text(options.json, json.dumps(found.record(), indent=1) + "\n")
    return found


def _check_replaced(path: Path) -> None:
    """ValueError unless a file is empty or has the numbers of an earlier measurement: others are not lost for these."""
    if records_in(path):
        raise ValueError(f"json must be another file than {str(path)!r}, which has records of tests")
    with suppress(ValueError):  # no JSON
        if not path.stat().st_size or (isinstance(found := read_json(path), dict) and "by_position" in found):
            return
    raise ValueError(
        f"json must be a new file or one of earlier numbers, got {str(path)!r}, which is of something else"
    )


def load_evaluated(options: EvaluateOptions, progress: bool) -> tuple[RAMNet, Corpus, list[Document]]:
    """The model on its device, the text in its tokens, and the documents of it that are to be measured.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2))
    >>> with TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     _ = Path(folder, "new.txt").write_text("Tom has a fox.")
    ...     options = EvaluateOptions(Path(folder), Path(folder, "new.txt"))
    ...     [document.name for document in load_evaluated(options, progress=False)[2]]
    ['new.txt']
    """
    path = options.json
    if path is not None and ((path.exists() and not path.is_file()) or not path.parent.is_dir()):
        raise ValueError(f"json must be a file in a folder that is there, got {str(path)!r}")
    if options.device == "gpu":
        gpu_namespace()
    model, codec = load_text_model(options.folder), load_codec(options.folder)
    with reading_bar("reading", progress) as watch:
        corpus = _in_tokens_of(codec, read_corpus(options.path, watch, "path"))
    return model.to(options.device), corpus, _chosen(corpus, options.files)


def records_in(path: Path) -> list[dict[str, Any]]:
    """The records of tests in a file, a line each; what is none is left out.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "found.jsonl").write_text('{"test": "names"}\\n{"test": "nee')
    ...     records_in(Path(folder, "found.jsonl"))
    [{'test': 'names'}]
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            if isinstance(record := json.loads(line), dict) and "test" in record:
                records.append(record)
    return records


@contextmanager
def computing(options: EvaluateOptions) -> Iterator[None]:
    """The backend that is asked for, and one thread for NumPy's own products.

    >>> with computing(EvaluateOptions(Path("runs/book"), Path("novels"))):
    ...     pass
    """
    with use_backend(options.backend) if options.backend else nullcontext(), threadpool_limits(1, user_api="blas"):
        yield


def measuring_bar(total: int, unit: str, progress: bool) -> tqdm:
    """A progress bar over tokens.

    >>> measuring_bar(10, "byte", progress=False).update(1)
    """
    return tqdm(total=total, desc="measuring", unit=unit, unit_scale=True, disable=not progress)


def _in_tokens_of(codec: Codec, corpus: Corpus) -> Corpus:
    """The corpus in tokens of the model: its bytes are encoded; ValueError for the tokens of another tokenizer."""
    if isinstance(corpus.codec, BPECodec):
        if not isinstance(codec, BPECodec) or codec.text != corpus.codec.text:
            raise ValueError("path must be text, or tokens of the model's own tokenizer, got those of another")
        return corpus
    if not isinstance(codec, BPECodec):
        return corpus
    documents: list[Document] = []
    for document in corpus.documents:
        try:
            text = corpus.read(document, 0, document.size).astype("u1").tobytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{document.name!r} must be text in UTF-8 for a model of tokens, {error}") from error
        tokens = codec.encode(text)
        documents.append(Document(document.name, tokens, 0, len(tokens)))
    return Corpus(tuple(documents), np.dtype(np.int32), codec, corpus.sha256)


def _chosen(corpus: Corpus, files: HeldOut | None) -> list[Document]:
    names = [document.name for document in corpus.documents]
    wanted = set(corpus.aside or names) if files is None else set(chosen_names(names, files, "files"))
    chosen = [document for document in corpus.documents if document.name in wanted and document.size > 1]
    if not chosen:
        raise ValueError(f"path must hold documents of two tokens or more, got {some_names(names)}")
    return chosen
