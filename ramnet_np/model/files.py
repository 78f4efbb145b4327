"""Files that are whole or as they were before, and JSON whose faults are named.

A file is written in a folder of its writer's own, flushed to the disk and then renamed, which is atomic: whenever the
program or the machine stops, the old file or the new one lies under the name, never a part of one.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from ramnet_np.model.unfinished import unfinished


class WriteError(OSError):
    """A file could not be written. What was under its name before is still there."""


@contextmanager
def replacing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a path to write to for each of ``paths``; at the end of the block the new files take the old ones' places.

    A new file gets the mode 0666 less the umask, whatever its writer gives it; one that replaces another keeps the
    other's mode. Several files are renamed one right after the other, once all of them are on disk.
    Of programs that write the same file at once, the last to end wins. :class:`WriteError` in one sentence where a file
    cannot be written, as a device such as /dev/null, which a file would replace; then nothing has changed.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as (partial,):
    ...         _ = partial.write_text("all of it")
    ...     print([(path.name, path.read_text()) for path in Path(folder).iterdir()])
    [('a.txt', 'all of it')]
    """
    try:
        for path in paths:
            _refuse_device(path)
        with ExitStack() as folders:
            partials = tuple(folders.enter_context(unfinished(path)) / path.name for path in paths)
            modes = [_new_mode(*pair) for pair in zip(paths, partials, strict=True)]
            yield partials
            for partial, mode in zip(partials, modes, strict=True):
                sync(partial)
                if stat.S_IMODE(partial.stat().st_mode) != mode:
                    partial.chmod(mode)
            for path, partial in zip(paths, partials, strict=True):
                os.replace(partial, path)
            sync(paths[0].parent)
    except (OSError, SafetensorError) as error:
        names = " and ".join(repr(str(path)) for path in paths)
        raise WriteError(f"{names} could not be written: {why(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 into a file that is whole or as it was before; errors as :func:`replacing`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_text(Path(folder) / "a.txt", "ä")
    ...     (Path(folder) / "a.txt").read_bytes()
    b'\\xc3\\xa4'
    """
    with replacing(path) as (partial,):
        partial.write_text(text, encoding="utf-8")


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line of JSON, in one write that is on disk when this returns.

    A line that was cut off before it is ended first.

    :class:`WriteError` where the disk is full: the lines before are whole.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     append_record(Path(folder) / "results.jsonl", {"name": "a"})
    ...     (Path(folder) / "results.jsonl").read_text()
    '{"name": "a"}\\n'
    """
    line = json.dumps(record, separators=(", ", ": ")) + "\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(f"{str(path)!r} could not be written: {why(error)}") from error


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     sync(Path(folder))
    """
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folders, and some file systems cannot flush one
            _flush(path, os.O_RDONLY)
    else:
        _flush(path, os.O_RDWR)


def read_json(path: Path) -> Any:
    """The value that a JSON file holds. ValueError, naming the file, unless it is JSON in UTF-8.

    NaN and Infinity, which JSON does not have, are refused; so are nesting too deep to be read, and a name that an
    object has twice.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (Path(folder) / "a.json").write_text('{"step": 3}')
    ...     read_json(Path(folder) / "a.json")
    11
    {'step': 3}
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError(f"{str(path)!r} is damaged or not JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged or not JSON: {error}") from error


def why(error: Exception) -> str:
    """The reason that an error of the file system or of safetensors gives, without its number and file.

    >>> why(OSError(28, "No space left on device", "a.txt"))
    'No space left on device'
    """
    return getattr(error, "strerror", None) or str(error)


def _refuse_device(path: Path) -> None:
    """OSError for a name that stands for a device, a pipe or the like: a file that took its place would end it for all
    programs. So would one in place of a link as /dev/stdout, whatever that leads to."""
    if path.exists() and not path.is_dir() and (not path.is_file() or path.absolute().parent == Path("/dev")):
        raise OSError("it is no ordinary file")


def _new_mode(path: Path, partial: Path) -> int:
    partial.touch()
    return stat.S_IMODE((path if path.exists() else partial).stat().st_mode)


def _flush(path: Path, flags: int) -> None:
    number = os.open(path, flags)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a name that comes twice, Python would keep the last value in silence."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it names {name!r} twice")
        found[name] = value
    return found
