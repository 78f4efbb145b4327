"""Tests of what a language model keeps of a book, each a table and a line of JSON. For ``ramnet-np evaluate --tests``.

    positions   the loss by the bytes of the book before the token
    names       the loss on proper names, by the distance to the mention before     runs/book_tests.py
    needles     facts that are planted and asked for                                runs/book_tests.py
    slots       which slots are written, how long they keep what they hold          runs/slot_tests.py

A memory that grows with every token, as that of softmax attention, is not carried through books, and is asked for
needles up to ``MOST_TOKENS`` back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.corpus import Corpus, Document
from ramnet_np.model import RAMNet
from ramnet_np.model.files import append_record, read_json
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.state_file import fingerprint
from ramnet_np.runs.book_tests import ASKED_AFTER, names_table, needles_table, tokens_to_last_fact
from ramnet_np.runs.evaluate import EvaluateOptions, computing, load_evaluated, measuring_bar, records_in
from ramnet_np.runs.hardware import hardware
from ramnet_np.runs.slot_tests import slots_table, windows_read
from ramnet_np.train.slot_use import has_slots
from ramnet_np.train.text_loss import EDGES
from ramnet_np.train.token_loss import documents_nats

MOST_TOKENS = 16_000  # to a needle, of a model whose memory grows
BEGINS = b'{"test": '  # a record
RUN = "run.json"  # beside a model that an experiment left: the settings of its run

Advance = Callable[[int], Any]
Tables = dict[str, list[dict[str, Any]]]  # by way: "windows", "carried"


class Found(NamedTuple):
    """What a test found."""

    record: dict[str, Any]  # JSON values

    def in_words(self) -> str:
        """A table for each way in which the memory was used.

        >>> tables = {"carried": [{"begin": 0, "nats": 1.5}]}
        >>> print(Found({"test": "names", "model": "a", "tables": tables}).in_words())
        names, a, carried
                  begin            nats
                      0          1.5000
        """
        parts = []
        for way, rows in self.record["tables"].items():
            lines = [f"{self.record['test']}, {self.record['model']}, {way}"]
            cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)] if rows else []
            parts.append("\n".join([*lines, *("".join(f"{cell:>15} " for cell in row).rstrip() for row in cells)]))
        return "\n".join(parts)


def run_book_tests(options: EvaluateOptions, *, progress: bool = True) -> list[Found]:
    """Make the tests that ``options`` name and append their records; those that are there are not made again.

    Errors, naming argument or file, before anything is computed.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> with TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     _ = Path(folder, "new.txt").write_text("Tom has a fox.")
    ...     options = EvaluateOptions(Path(folder), Path(folder, "new.txt"), tests=("positions",))
    ...     [found] = run_book_tests(options, progress=False)
    >>> [round(row["bits_per_byte"], 3) for row in found.record["tables"]["carried"]]
    [8.0]
    """
    model, corpus, documents = load_evaluated(options, progress)
    _check(options, model, corpus, documents)
    about = _about(options, model, corpus, documents)
    done = _done(options.json)
    found = []
    with computing(options):
        for test in dict.fromkeys(options.tests):
            if (key := _key({**about, "test": test})) in done:
                found.append(Found(done[key]))
                continue
            started = time.perf_counter()
            with measuring_bar(0, corpus.codec.unit, progress) as bar:
                tables = _tables(test, model, corpus, documents, options, bar.update)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            seconds = round(time.perf_counter() - started, 2)
            record = {"test": test, **about, "tables": tables, "seconds": seconds, "date": now}
            if options.json is not None:
                append_record(options.json, record)
            found.append(Found(record))
    return found


def _check(options: EvaluateOptions, model: RAMNet, corpus: Corpus, documents: Sequence[Document]) -> None:
    """Refuse a test that could not be made: the others may take hours, and would be lost."""
    if "slots" in options.tests:
        if not has_slots(model):
            raise ValueError(f"tests must not name slots for a model without them, got mixer {model.config.mixer!r}")
        windows_read(documents, options.length)
    if "needles" in options.tests:
        tokens_to_last_fact(corpus, documents, _asked_after(model))


def _tables(
    test: str, model: RAMNet, corpus: Corpus, documents: Sequence[Document], options: EvaluateOptions, advance: Advance
) -> Tables:
    if test == "slots":
        return {"carried": slots_table(model, corpus, documents, options.length, advance=advance)}
    if test == "needles":
        asked = _asked_after(model)
        table = needles_table(model, corpus, documents, options.length, asked_after=asked, advance=advance)
        return {"carried": table}
    tables: Tables = {}
    for way in ("windows", "carried") if options.carry_state and not _grows(model) else ("windows",):
        nats = documents_nats(
            model, corpus, documents, options.length, carry=way == "carried", tokens=options.batch, advance=advance
        )
        make = names_table if test == "names" else positions_table
        tables[way] = make(corpus, documents, nats)
    return tables


def _grows(model: RAMNet) -> bool:
    return any(mixer.state_grows for mixer in mixers_of(model.config))


def _asked_after(model: RAMNet) -> list[int]:
    """How many tokens before their questions needles are planted."""
    return [tokens for tokens in ASKED_AFTER if tokens <= MOST_TOKENS or not _grows(model)]


def positions_table(
    corpus: Corpus, documents: Sequence[Document], nats: dict[str, NDArray[np.float64]]
) -> list[dict[str, Any]]:
    """The loss by the bytes of a document before the token, a row for each range that occurs.

    >>> from ramnet_np.data.corpus import text_corpus
    >>> corpus = text_corpus(b"Tom has a fox.")
    >>> positions_table(corpus, corpus.documents, {"text": np.full(13, np.log(2))})[0]["tokens"]
    13
    """
    sums = np.zeros((len(EDGES) + 1, 3))
    for document in documents:
        sizes = corpus.codec.token_bytes[corpus.read(document, 0, document.size)]
        number = np.searchsorted(EDGES, np.cumsum(sizes)[:-1], side="right")
        for column, values in enumerate((np.ones(len(number)), sizes[1:], nats[document.name])):
            sums[:, column] += np.bincount(number, weights=values, minlength=len(sums))
    return [
        {"begin": begin, "end": end, "tokens": int(tokens), "bits_per_byte": total / size / float(np.log(2))}
        for begin, end, (tokens, size, total) in zip((0, *EDGES), (*EDGES, None), sums.tolist(), strict=True)
        if tokens
    ]


def _about(options: EvaluateOptions, model: RAMNet, corpus: Corpus, documents: Sequence[Document]) -> dict[str, Any]:
    """What a record says beside its tables."""
    run = options.folder / RUN
    return {
        "model": options.folder.name,
        "weights": fingerprint(model),  # folders of several models may have one name, and one folder several models
        "run": read_json(run) if run.is_file() else None,
        "parameters": model.num_parameters(),
        "sha256": corpus.sha256,
        "documents": [document.name for document in documents],
        "length": options.length,
        "carry_state": options.carry_state,
        "hardware": hardware(options.device),
    }


def _key(record: dict[str, Any]) -> str:
    decides = ("test", "model", "weights", "run", "sha256", "documents", "length", "carry_state")
    return json.dumps([record.get(name) for name in decides])


def _done(path: Path | None) -> dict[str, dict[str, Any]]:
    """The records of a file by their keys; what was cut off is left out. ValueError for a file of something else."""
    if path is None or not path.is_file():
        return {}
    records = records_in(path)
    if not records and not BEGINS.startswith(path.read_bytes()[: len(BEGINS)]):  # else the first was cut off
        raise ValueError(f"json must be a file of records of tests, a line each, got {str(path)!r}, which has none")
    return {_key(record): record for record in records}


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)
