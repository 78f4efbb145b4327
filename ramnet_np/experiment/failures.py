"""What is kept of a run that failed: a text in ``failed``, beside the results, with the traceback and the settings.

The process that trains says what went wrong; the program that writes the results writes the text, so that hosts of a
cluster need not share a folder. A later failure of the same run replaces it, a result removes it.
"""

from __future__ import annotations

import json
import os
import platform
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import ramnet_np
from ramnet_np.experiment.one_run import file_name
from ramnet_np.experiment.points import GridRun
from ramnet_np.model.files import write_text
from ramnet_np.model.network import Device
from ramnet_np.runs.hardware import hardware


class Failure(NamedTuple):
    """Why a run failed, as its process tells it."""

    why: str  # the error in one line
    traceback: str = ""  # none where the process ended without an error of Python's
    place: dict[str, Any] | None = None  # host, GPU, hardware and versions, as far as they can still be asked for


def failure_of(error: BaseException, device: Device) -> Failure:
    """What to keep of an error, in the process that it ended a run of.

    >>> failure = failure_of(MemoryError("no room"), "cpu")
    >>> failure.why, failure.traceback, failure.place["device"]
    ('MemoryError: no room', 'MemoryError: no room\\n', 'cpu')
    """
    place: dict[str, Any] = {"host": platform.node()}
    if device == "gpu":
        place["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with suppress(Exception):  # a GPU that an error made unusable does not answer
        place |= hardware(device)
    why = " ".join(f"{type(error).__name__}: {error}".split())
    return Failure(why, "".join(traceback.format_exception(error)), place)


def report_of(run: GridRun, out: Path) -> Path:
    """Where the text of a run is: a file of its own, the same on every device.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> report_of(load_grid("mqar-order").points[0].base, Path("runs")).parent.name
    'failed'
    """
    return out / "failed" / f"{file_name(run)}.txt"


def write_failure(run: GridRun, failure: Failure, step: int, out: Path) -> Path:
    """Write the text of a run, and return its path. ``step``: of its last report. OSError where it cannot be written.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.experiment.grid import load_grid
    >>> run = load_grid("mqar-order").points[0].base
    >>> with TemporaryDirectory() as folder:
    ...     text = write_failure(run, Failure("MemoryError: no room"), 50, Path(folder)).read_text()
    >>> text.splitlines()[0] == f"{run.label}: MemoryError: no room"
    True
    """
    path = report_of(run, out)
    lines = [
        f"{run.label}: {failure.why}",
        f"at {datetime.now(UTC).isoformat(timespec='seconds')}, after step {step} of {run.train.steps} or later",
        f"ramnet_np {ramnet_np.__version__}",
        *(f"{name} {value}" for name, value in (failure.place or {}).items()),
        "",
        failure.traceback or "no traceback: the process ended without one\n",
        f"settings {json.dumps(run.settings, indent=1)}",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "\n".join(lines) + "\n")
    return path


def forget_failure(run: GridRun, out: Path) -> None:
    """Remove the text of a run that has a result now, and the folder with the last one.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> forget_failure(load_grid("mqar-order").points[0].base, Path("no such folder"))
    """
    path = report_of(run, out)
    with suppress(OSError):  # none was there, or others are
        path.unlink()
        path.parent.rmdir()
