"""The folder of a run: one program at a time writes to it, and a run that is there is lost only to a whole new one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ramnet_np.model.files import why
from ramnet_np.train.checkpoint import Checkpoint, checkpoint_step, checkpoints_in, latest_checkpoint, save_checkpoint
from ramnet_np.train.metrics import MetricsWriter, NoMetrics, read_metrics

LOCK = ".lock"


class RunFolder:
    """Where a run leaves its checkpoints and metrics; made by :func:`run_folder`."""

    def __init__(self, out: Path):
        self.checkpoints, self.metrics = out / "checkpoints", out / "metrics.jsonl"
        self._old_metrics = out / ".metrics.jsonl.replaced"
        self._saved = False

    @contextmanager
    def begin(self, resume_step: int | None) -> Iterator[MetricsWriter]:
        """Entered once a step has shown that the run can run: only then is anything in the folder changed.

        A run that is replaced gets hidden names, until :meth:`save` has written the first checkpoint of the new one. It
        is put back where the block ends before. ``resume_step``: the step that is gone on from; None for a new run.
        """
        try:
            if resume_step is None:
                for old in checkpoints_in(self.checkpoints):  # the newest last: until then it can be resumed from
                    old.rename(old.with_name(f".{old.name}.replaced"))
                if self.metrics.exists():
                    os.replace(self.metrics, self._old_metrics)
            with MetricsWriter(self.metrics, resume_step) as metrics:
                yield metrics
        finally:
            if not self._saved:
                self.put_back()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, and delete what it replaces."""
        save_checkpoint(self.checkpoints, checkpoint)
        self._saved = True
        self._old_metrics.unlink(missing_ok=True)

    def put_back(self) -> None:
        """Give a run its names again whose replacement ended before it had a checkpoint."""
        hidden = list(self.checkpoints.glob(".step-*.replaced"))
        if not hidden or checkpoints_in(self.checkpoints):
            return
        for old in hidden:
            old.rename(old.with_name(old.name.removeprefix(".").removesuffix(".replaced")))
        if self._old_metrics.exists():
            os.replace(self._old_metrics, self.metrics)


class OthersFolder(RunFolder):
    """The folder of a run that another rank writes: everything here leaves it as it is."""

    @contextmanager
    def begin(self, resume_step: int | None) -> Iterator[MetricsWriter]:
        yield NoMetrics()

    def save(self, checkpoint: Checkpoint) -> None:
        pass


@contextmanager
def run_folder(out: Path, *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Hold ``out`` for a run, and make sure before any work is done that the run can live there.

    An error in one sentence where ``out`` is in use by another program (see :func:`held_folder`), where it has no
    checkpoint to ``resume`` from, or where it holds a run that is neither resumed nor to be overwritten. What is there
    is not changed, save that a run gets its names back whose replacement was killed before it had a checkpoint.

    >>> with run_folder(Path("/dev/null/run"), resume=False, overwrite=False):
    ...     pass
    Traceback (most recent call last):
        ...
    OSError: out must be a folder that can be written to, got '/dev/null/run': Not a directory
    """
    if resume and overwrite:
        raise ValueError("resume and overwrite must not both be set: one goes on with a run, the other replaces it")
    folder = RunFolder(out)
    nothing = FileNotFoundError(f"nothing to resume: no checkpoint below {str(folder.checkpoints)!r}")
    if resume and not out.is_dir():  # a slip of the pen makes no folder
        raise nothing
    with held_folder(out):
        _require_ours(folder, overwrite)
        folder.put_back()  # what a program that was killed had hidden
        last = latest_checkpoint(folder.checkpoints)
        if resume and last is None:
            raise nothing
        if last is not None and not resume and not overwrite:
            raise ValueError(
                f"out must be a new folder, but {str(out)!r} holds a run at step {checkpoint_step(last)}; "
                "resume it, overwrite it or choose another folder"
            )
        yield folder


@contextmanager
def held_folder(out: Path) -> Iterator[None]:
    """Make ``out`` if it is missing and lock it for this program until the block ends.

    The lock is one of the operating system's, on a file ``.lock``: it goes with the program that holds it, also where
    that is killed. ValueError where another program, or another run of this one, holds it; OSError where ``out`` cannot
    be written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, held_folder(Path(folder)), held_folder(Path(folder)):
    ...     pass  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: out must be a folder that no other run writes to, but process ... holds '...'
    """
    path = out / LOCK
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise OSError(f"out must be a folder that can be written to, got {str(out)!r}: {why(error)}") from error
    try:
        with suppress(OSError):  # a full disk: the lock holds without the name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open, and an empty lock does no harm
            path.unlink()
        with suppress(OSError):
            file.close()


def _locked(path: Path) -> IO[str]:
    """The file, open and locked. ValueError, naming the holder, where it is locked already."""
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _lock(file):
            with suppress(OSError), file:
                file.seek(0)
                holder = file.read() or "another one"
            raise ValueError(
                f"out must be a folder that no other run writes to, but {holder} holds {str(path.parent)!r}"
            )
        if _is_at(file, path):
            return file
        file.close()  # its holder removed it in between


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> bool:
    """Whether the lock was free; True too on a file system that has no locks."""
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(2**30)  # a byte behind the text, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks here
        return True
    return True


def _require_ours(folder: RunFolder, overwrite: bool) -> None:
    """What has the names of ours must be ours: a folder of checkpoints, and metrics that a run wrote."""
    if folder.checkpoints.exists() and not folder.checkpoints.is_dir():
        raise ValueError(f"{str(folder.checkpoints)!r} must be a folder of checkpoints, got a file")
    if folder.checkpoints.is_dir() and not os.access(folder.checkpoints, os.W_OK | os.X_OK):
        raise OSError(f"{str(folder.checkpoints)!r} must be a folder that can be written to")
    if folder.metrics.is_dir():
        raise ValueError(f"{str(folder.metrics)!r} must be a file of metrics, got a folder")
    if folder.metrics.exists() and not (overwrite and checkpoints_in(folder.checkpoints)):
        read_metrics(folder.metrics)
