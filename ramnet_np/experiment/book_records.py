"""What a page shows beside runs: records of tests on books and of models that were timed alone, a JSON line each.

``ramnet-np evaluate --tests`` and ``python -m ramnet_np.kernels.bench.points`` write them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ramnet_np.experiment.records import RANGE, has

Book = dict[str, Any]  # the record of a test on books
Speed = dict[str, Any]  # the record of a model that was timed

# what tables and figures use of a record, and its type
_NUMBER = (int, float)
_BOOK = {"test": str, "model": str, "tables": dict}
_SPEED = {
    "point": str, "quick": bool, "parameters": int, "ms": _NUMBER, "tokens/s": _NUMBER, "token_ms": _NUMBER,
    "batch": int, "length": int, "dtype": str, "device": str, "versions": dict, "date": str,
}  # fmt: skip
# ... and of a row of a test's tables
_ROWS: dict[str, dict[str, Any]] = {
    "positions": RANGE | {"tokens": int},
    "names": RANGE | {"mentions": int},
    "needles": {"tokens": int, "asked": int, "accuracy": _NUMBER},
    "slots": {"layer": int},
}


def read_books(paths: Sequence[Path]) -> list[Book]:
    """The records of tests on books in some files; other lines are left out.

    >>> read_books([])
    []
    """
    return [record for record in _lines(paths) if _is_book(record)]


def read_speeds(paths: Sequence[Path]) -> list[Speed]:
    """The last record of each model that was timed alone; other lines, and models of a reduced grid, are left out.

    >>> read_speeds([])
    []
    """
    return list({one["point"]: one for one in _lines(paths) if _is_speed(one) and not one["quick"]}.values())


def _is_speed(value: Any) -> bool:
    return has(value, _SPEED) and isinstance(value.get("GiB", 0.0), _NUMBER)


def _is_book(value: Any) -> bool:
    if not has(value, _BOOK) or value["test"] not in _ROWS:
        return False
    tables, row_types = value["tables"], _ROWS[value["test"]]
    return bool(
        (set(tables) == {"carried"} if value["test"] == "slots" else tables)
        and all(isinstance(rows, list) and all(has(row, row_types) for row in rows) for rows in tables.values())
    )


def _lines(paths: Sequence[Path]) -> Iterator[Any]:
    """The JSON values of some files, a line each."""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, RecursionError):  # no JSON, or a number of more digits than Python reads
                yield json.loads(line)
