"""Metrics: one JSON object a line, so that a run can be read while it writes and survives being stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of

Record = dict[str, Any]


def hits(logits: Array, labels: Array) -> Array:
    """How many rows of ``logits`` (N, V) have their largest entry at their label (N,); on a GPU an array without axes.

    >>> import numpy as np
    >>> int(hits(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    1
    """
    return namespace_of(logits, labels).count_nonzero(logits.argmax(axis=-1) == labels)


class MetricsWriter:
    """Appends records to a JSONL file, each flushed at once.

    With ``resume_step``, records of later steps (written after the checkpoint that is resumed from) and a half-written
    last line are dropped first: the file ends up as if the run had never stopped. Without it the file starts empty.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        kept = [] if resume_step is None else [r for r in read_metrics(path) if r["step"] <= resume_step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(_line(r) for r in kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(_line(record))
        self._file.flush()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


def read_metrics(path: Path | str) -> list[Record]:
    """The records of a metrics file, in order; a last line that was cut off while being written is left out.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     with MetricsWriter(path, resume_step=None) as log:
    ...         log.write({"step": 1, "kind": "train", "loss": 2.5})
    ...     print(read_metrics(path))
    [{'step': 1, 'kind': 'train', 'loss': 2.5}]
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no metrics file at {path}")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of {path} must be a JSON object, got {line[:40]!r}") from error
    return records


def _line(record: Record) -> str:
    return json.dumps(record, separators=(", ", ": ")) + "\n"
