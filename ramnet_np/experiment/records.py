"""Results as JSONL: one record a run, appended when the run has ended, so that whatever is in the file is whole.

A record has ``name``, ``grid``, ``settings`` (all that decides the result), ``status`` ("finished", "reached stop_at"
or "diverged"), ``validation`` and ``accuracy`` (by setting, and "mean"), ``steps``, ``epochs``, ``seconds`` of wall
time, ``tokens_per_second`` while training, ``state_elements``, ``parameters``, ``version``, ``hardware``, ``date`` of
its end, ``session`` (which invocation of the program trained it) and ``gpu``; runs with the same two shared that GPU.
Where a run took several invocations, ``calls`` has session, gpu, date and seconds of each, and ``seconds`` is the sum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ramnet_np.experiment.points import GridRun, run_from

Record = dict[str, Any]


# what is read from a record, and its type
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "grid": str, "status": str, "date": str, "version": str, "quick": bool, "settings": dict,
    "accuracy": dict, "validation": dict, "hardware": dict, "steps": int, "tokens_per_second": int,
    "state_elements": int, "epochs": (int, float), "seconds": (int, float),
}  # fmt: skip
_CALL = {"date": str, "seconds": (int, float)}
_HARDWARE = {"name": str, "device": str, "numpy": str, "python": str}
_GPU = {"cuda": int, "cupy": str}
# ... and of the tables of a text's record: bits a byte by the position, and the use of slots by layer
RANGE = {"begin": (int, type(None)), "end": (int, type(None)), "bits_per_byte": (int, float)}
_SLOTS = {"step": int, "layers": list}
_USE = {"touched": (int, float), "entropy": (int, float)}


def read_records(paths: Iterable[Path | str]) -> list[Record]:
    """The records of some files, in order. FileNotFoundError for a missing file, ValueError for one that is no text.

    Lines that were cut off, or that are no record, are left out. So are repeated lines: one file may have begun as a
    copy of another.

    >>> read_records([])
    []
    """
    lines: dict[str, None] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"no results file at {path}")
        try:
            lines |= dict.fromkeys(path.read_bytes().decode().splitlines())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} must hold JSON objects, a line each, got what is no UTF-8 ({error})") from error
    records = []
    for line in lines:
        with suppress(ValueError, RecursionError):  # no JSON, or a number of more digits than Python reads
            record = json.loads(line)
            if _is_record(record):
                records.append(record)
    return records


def _is_record(value: Any) -> bool:
    """Whether a JSON value is a record: each part of it that tables and figures use, and a grid that names files."""
    if not has(value, _FIELDS):
        return False
    diverged, search = value["status"] == "diverged", value["settings"].get("search", False)
    calls, hardware = value.get("calls", []), value["hardware"]
    is_text = value["settings"].get("task") == "text"
    needed = ("mean", "bits_per_byte", "nats") if is_text else ("mean",)
    return (
        Path(value["grid"]).name == value["grid"] != ""
        and _are_scores(value["validation"], () if diverged else needed)
        and _are_scores(value["accuracy"], () if diverged or search else needed)
        and has(hardware, _HARDWARE | (_GPU if hardware.get("device") == "gpu" else {}))
        and isinstance(value.get("parameters", None if is_text else 0), int)
        and isinstance(search, bool)
        and isinstance(calls, list)
        and all(_is_call(call) for call in (value, *calls))
        and _has_tables(value)
    )


def has(value: Any, types: Mapping[str, Any]) -> bool:
    """Whether a JSON value is an object with all these parts, each of its type.

    >>> has({"a": 1}, {"a": int}), has({"a": 1}, {"b": int}), has([], {})
    (True, False, False)
    """
    return isinstance(value, dict) and all(name in value and isinstance(value[name], t) for name, t in types.items())


def _is_call(value: Any) -> bool:
    names = (value.get(name, "") for name in ("session", "gpu")) if isinstance(value, dict) else ()
    return has(value, _CALL) and _is_date(value["date"]) and all(isinstance(name, str | None) for name in names)


def _has_tables(value: dict[str, Any]) -> bool:
    """Whether what a record of a text may have beside its scores, if it has it, is what pages can show."""
    ways, measured = value.get("by_position", {}), value.get("slots", [])
    return (
        isinstance(ways, dict)
        and all(isinstance(rows, list) and all(has(row, RANGE) for row in rows) for rows in ways.values())
        and ("carried" not in ways or "carried bits_per_byte" in value["accuracy"])
        and isinstance(measured, list)
        and all(
            has(one, _SLOTS) and all(layer == {} or has(layer, _USE) for layer in one["layers"]) for one in measured
        )
    )


def _are_scores(scores: dict[str, Any], needed: tuple[str, ...]) -> bool:
    numbers = all(isinstance(score, int | float) and math.isfinite(score) for score in scores.values())
    return numbers and all(name in scores for name in needed)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def run_of(record: Record) -> GridRun | None:
    """The run that a record belongs to, or None where this version does not know its settings.

    >>> run_of({"settings": {"name": "a"}}) is None
    True
    """
    try:
        return run_from(record["settings"])
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
