"""Metrics: one JSON object a line, so that a run can be read while it writes and survives being stopped."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.data.batches import Batch
from ramnet_np.model import RAMNet
from ramnet_np.model.files import WriteError, why, write_text
from ramnet_np.train.ranks import ONE, Ranks

Record = dict[str, Any]


def hits(logits: Array, labels: Array) -> Array:
    """How many rows of ``logits`` (N, V) have their largest entry at their label (N,); on a GPU an array without axes.

    >>> import numpy as np
    >>> int(hits(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    1
    """
    return namespace_of(logits, labels).count_nonzero(logits.argmax(axis=-1) == labels)


def evaluate(
    model: RAMNet, held_out: Mapping[str, Batch], tokens: int | None = None, ranks: Ranks = ONE
) -> dict[str, float]:
    """Accuracy over the labelled tokens of each held-out set, and their plain "mean".

    ``tokens``: how many at a time; None: 8192, or 65536 on a GPU, which small pieces would leave idle.
    ``ranks``: those that share the sequences of each set; each has the result.
    Sets hold ids and labels, (N, T). A GPU is waited for once, at the end.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> ids = np.arange(12).reshape(3, 4) % 8
    >>> sorted(evaluate(model, {"a": Batch(ids, ids), "b": Batch(ids, ids)}))
    ['a', 'b', 'mean']
    """
    xp = namespace_of(*model.params.values())
    tokens = tokens or (8192 if xp is np else 65536)
    correct, counted = {}, {}
    for name, whole in held_out.items():
        ids, labels = (x[ranks.rank :: ranks.size] for x in whole)
        rows = max(1, tokens // ids.shape[1])
        correct[name] = counted[name] = 0
        for i in range(0, len(ids), rows):
            wanted = labels[i : i + rows].ravel()
            labelled = np.flatnonzero(wanted >= 0)
            # no backward follows: with "block" a forward keeps only what goes into each block
            logits, _ = model.forward(xp.asarray(ids[i : i + rows]), select=xp.asarray(labelled), recompute="block")
            correct[name] += hits(logits, xp.asarray(wanted[labelled]))
            counted[name] += len(labelled)
    sums = np.array([[int(count) for count in correct.values()], list(counted.values())])
    ranks.all_reduce(sums)
    accuracy = {name: int(right) / max(1, int(of)) for name, right, of in zip(correct, *sums, strict=True)}
    return accuracy | {"mean": sum(accuracy.values()) / len(accuracy)}


class Measured(NamedTuple):
    """What a measurement on held-out data finds."""

    accuracy: dict[str, float]  # per set and "mean"
    more: Mapping[str, Any] = MappingProxyType({})  # further numbers, as JSON values, for the metrics


@dataclass(frozen=True)
class Meter:
    """What turns tokens a second into arithmetic a second."""

    flops_per_token: float  # of a forward and a backward
    peak: float | None = None  # operations a second that the device can do; None where that is not known

    def shown(self, tokens_per_second: float) -> str:
        """Model operations a second, and their share of the peak.

        >>> Meter(2e9, peak=1e15).shown(10_000), Meter(2e6).shown(10_000)
        ('20.0T (2.0%)', '20.0G')
        """
        flops = self.flops_per_token * tokens_per_second
        share = f" ({flops / self.peak:.1%})" if self.peak else ""
        return (f"{flops / 1e12:.1f}T" if flops >= 1e12 else f"{flops / 1e9:.1f}G") + share


class MetricsWriter:
    """Appends records to a JSONL file, each passed on at once.

    With ``resume_step``, records of later steps (written after the checkpoint that is resumed from) and a half-written
    last line are dropped first: the file ends up as if the run had never stopped. Without it the file starts empty.
    WriteError, an OSError, where the disk is full.
    """

    def __init__(self, path: Path, resume_step: int | None = None):
        kept: list[Record] = []
        if resume_step is not None and path.exists():
            kept = [r for r in read_metrics(path) if r["step"] <= resume_step]
        write_text(path, "".join(_line(r) for r in kept))
        self._path = path
        self._file = path.open("ab", buffering=0)  # what could not be written is not tried again on closing

    def write(self, record: Record) -> None:
        line = _line(record).encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise WriteError(f"{str(self._path)!r} could not be written: {why(error)}") from error

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise WriteError(f"{str(self._path)!r} could not be written: {why(error)}") from error

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


class NoMetrics(MetricsWriter):
    """Writes nothing: for a rank whose numbers another one writes."""

    def __init__(self) -> None:
        pass

    def write(self, record: Record) -> None:
        pass

    def sync(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


def read_metrics(path: Path | str) -> list[Record]:
    """The records of a metrics file, in order; a last line that was cut off while being written is left out.

    FileNotFoundError without the file; ValueError where it holds anything but records of steps.

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
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must hold JSON objects, a line each, got what is no UTF-8 ({error})") from error
    records, lines = [], text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if number == len(lines) and not text.endswith("\n") and line[0] in "{\0":  # what a power cut leaves, too
                break
            raise ValueError(f"line {number} of {path} must be a JSON object, got {line[:40]!r}") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"line {number} of {path} must be a record of a step, got {line[:40]!r}")
        records.append(record)
    return records


def _line(record: Record) -> str:
    return json.dumps(record, separators=(", ", ": ")) + "\n"
