"""Results as JSONL: one record a run, appended when the run has ended, so that whatever is in the file is whole.

A record has ``name``, ``grid``, ``settings`` (all that decides the result), ``status`` ("finished", "reached stop_at"
or "diverged"), ``validation`` and ``accuracy`` (by setting, and "mean"), ``steps``, ``epochs``, ``seconds`` of wall
time, ``tokens_per_second`` while training, ``state_elements``, ``parameters``, ``version``, ``hardware``, ``date`` of
its end, ``session`` (which invocation of the program trained it) and ``gpu``; runs with the same two shared that GPU.
Where a run took several invocations, ``calls`` has session, gpu, date and seconds of each, and ``seconds`` is the sum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ramnet_np.experiment.grid import GridRun, run_from

Record = dict[str, Any]


def append_record(path: Path, record: Record) -> None:
    """Add a line, in one write that is on disk when this returns; a line that was cut off before it is ended first.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     append_record(Path(folder) / "results.jsonl", {"name": "a"})
    ...     read_records([Path(folder) / "results.jsonl"])
    [{'name': 'a'}]
    """
    line = json.dumps(record, separators=(", ", ": ")) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(paths: Iterable[Path | str]) -> list[Record]:
    """The records of some files, in order. FileNotFoundError for a missing file.

    Lines that were cut off are left out. So are repeated lines: one file may have begun as a copy of another.

    >>> read_records([])
    []
    """
    lines: dict[str, None] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no results file at {path}")
        lines |= dict.fromkeys(path.read_text(encoding="utf-8").splitlines())
    records = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def run_of(record: Record) -> GridRun | None:
    """The run that a record belongs to, or None where this version does not know its settings.

    >>> run_of({"settings": {"name": "a"}}) is None
    True
    """
    try:
        return run_from(record["settings"])
    except (KeyError, TypeError, ValueError):
        return None
