"""A folder beside a file for what is not finished yet: each writer has its own, so that two never share one.

It lies beside the file because a rename is atomic only within one file system. Its writer holds a lock of the operating
system on it, which goes with the program, also where that is killed. So the next writer of the same file can tell what
was left behind from what another one is still writing. By such a lock, programs also write files that belong together
in turn.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DAY = 24 * 60 * 60  # seconds
_MOMENT = 0.05  # seconds, between two looks at a lock
_ENDING = r"\.([0-9a-f]{8}\.)?partial"  # version 0.1 had one name for all writers, without digits


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``, for what is to get that name. It goes, with all in it, when the block ends.

    What programs that have ended left unfinished for the same ``path`` goes too; see :func:`remove_abandoned`. OSError
    where there can be no new folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with unfinished(Path(folder) / "a.txt") as own, unfinished(Path(folder) / "a.txt") as another:
    ...         print(own != another, own.name[:7], own.name[-8:])
    ...     list(Path(folder).iterdir())
    True .a.txt. .partial
    []
    """
    remove_abandoned(path.parent, re.escape(path.name))
    folder, lock = _locked_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Programs go through such a block for one ``folder`` one after the other, where locks can tell.

    OSError where there is no such folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, in_turn(Path(folder)):
    ...     list(Path(folder).iterdir())
    []
    """
    while True:
        with suppress(BlockingIOError):
            lock = _lock(folder)
            break
        time.sleep(_MOMENT)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove what was left unfinished in ``folder`` for files whose names match ``name``, a regular expression.

    That is what no running program holds a lock on. Where locks cannot tell (on Windows, on file systems that have
    none), it is what nobody has written to for a day. What cannot be removed stays.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / ".a.txt.0123abcd.partial").mkdir()  # as a program leaves it that is killed
    ...     remove_abandoned(Path(folder), "a.txt")
    ...     list(Path(folder).iterdir())
    []
    """
    pattern = re.compile(rf"\.({name}){_ENDING}")
    with suppress(OSError):
        for left in list(folder.iterdir()):
            if pattern.fullmatch(left.name):
                with suppress(OSError):
                    _remove_if_abandoned(left)


def _remove_if_abandoned(left: Path) -> None:
    lock = _lock(left) if left.is_dir() else None
    if lock is not None:
        shutil.rmtree(left, ignore_errors=True)
        os.close(lock)  # only now: a writer that made the folder just before finds it locked, or gone
    elif time.time() - max(path.stat().st_mtime for path in (left, *left.rglob("*"))) > _DAY:
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    while True:
        folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        folder.mkdir()
        with suppress(BlockingIOError, FileNotFoundError):  # another writer takes it for one that was left behind
            lock = _lock(folder)
            if lock is None or folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder, until the number that is returned is closed. BlockingIOError where another holds it.

    None where there are no locks on folders.
    """
    try:
        import fcntl
    except ImportError:  # Windows, a browser
        return None
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return number
