"""Compiled kernels on disk, so that each is compiled once on a machine; and a word before the first time.

Numba's own cache would not do: it takes a kernel for current while its own file is the same, though functions that it
calls in other files have changed; it fails where a file holds a type that has moved since, where no folder can be
written to, and where two processes give different kernels the same name. Here a file is good only for the sources, the
versions and the types that it was made from. If it holds anything else, or cannot be read, the kernel is compiled.

Numba says which folder: $NUMBA_CACHE_DIR, else ``__pycache__`` beside the kernels, else one in the user's cache. Where
none of them can be written to, every process compiles its kernels. A folder that others can write to, as the one for
temporary files, is no place for code that will run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import logging
import pickle
import sys
import time
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import caching, serialize
from numba.core.compiler import CompileResult

# Older ones end the process where a kept kernel is read.
if tuple(map(int, numba.__version__.split(".")[:2])) < (0, 68):
    raise ImportError(f"Numba is {numba.__version__}, 0.68 or later is needed (pip install --upgrade numba)")

_log = logging.getLogger("ramnet_np")  # where a program sets up no logging, Python shows warnings on stderr
_PAUSE = 10.0  # seconds without a compilation, after which the next one is announced again
_last_compilation = -_PAUSE
_DIGEST = hashlib.sha256().digest_size  # bytes, before the content of a file: a flipped bit of machine code would run
WHY_NOT_KEPT = "no folder to keep them in can be written to (NUMBA_CACHE_DIR)"
_FOLDERS = (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator)


class KernelCache(caching._Cache):
    """The compiled forms of one kernel: what Numba asks for them and gives them to. A file for each tuple of types."""

    def __init__(self, function: Callable[..., Any]):
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        file = function.__code__.co_filename
        found = (locator.from_function(function, file) for locator in _FOLDERS)  # None: it cannot be written to
        folders = (Path(locator.get_cache_path()) for locator in found if locator is not None)
        self._folder = next(folders, None)

    @property
    def cache_path(self) -> str | None:
        """The folder, or None."""
        return None if self._folder is None else str(self._folder)

    def load_overload(self, signature: Any, target: Any) -> CompileResult | None:
        """The kernel for a tuple of types; None, and a word to the user, where Numba has to compile it."""
        target.refresh()
        if self._folder is not None:
            with contextlib.suppress(Exception):  # no file, or a damaged one, which can raise anything
                written = self._path(signature, target.codegen()).read_bytes()
                digest, content = written[:_DIGEST], written[_DIGEST:]
                if digest == hashlib.sha256(content).digest():
                    stamp, compiled = pickle.loads(content)
                    if stamp == source_stamp():
                        return CompileResult._rebuild(target, *pickle.loads(compiled))
        _announce(self._folder)
        return None

    def save_overload(self, signature: Any, compiled: CompileResult) -> None:
        """Keep a kernel that was just compiled. Where it cannot be kept, the next process compiles it again."""
        global _last_compilation
        _last_compilation = time.monotonic()
        if self._folder is None or compiled.library.has_dynamic_globals:
            return
        path = self._path(signature, compiled.library.codegen)
        unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        # RuntimeError: a Ctrl-C just when LLVM handed over its code leaves Numba without a copy to keep.
        with contextlib.suppress(OSError, RuntimeError):
            content = pickle.dumps((source_stamp(), serialize.dumps(compiled._reduce())))
            try:
                unfinished.write_bytes(hashlib.sha256(content).digest() + content)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)

    def _path(self, signature: Any, codegen: Any) -> Path:
        """The file for a tuple of types on this machine; another version of the sources writes over it."""
        assert self._folder is not None
        made_for = hashlib.sha256(repr((signature, codegen.magic_tuple())).encode()).hexdigest()[:16]
        return self._folder / f"{self._name}-{sys.implementation.cache_tag}-{made_for}.kernel"

    def enable(self) -> None:
        """Numba asks for it; the cache is always on."""

    disable = flush = enable


@cache
def source_stamp() -> bytes:
    """What compiled kernels depend on: every source of this backend, and the versions of what compiles them."""
    stamp = hashlib.sha256(repr((sys.version, np.__version__, numba.__version__)).encode())
    for folder, pattern in ((__package__, ".py"), ("ramnet_np", "contract.py")):
        sources = (file for file in importlib.resources.files(folder).iterdir() if file.name.endswith(pattern))
        for source in sorted(sources, key=lambda source: source.name):
            stamp.update(source.name.encode() + source.read_bytes())
    return stamp.digest()


def _announce(folder: Path | None) -> None:
    """Say that kernels are being compiled, unless it was just said."""
    if time.monotonic() - _last_compilation >= _PAUSE:
        kept = "once" if folder else f"in every process: {WHY_NOT_KEPT}"
        _log.warning("compiling kernels for the CPU, 10 to 15 s, %s", kept)
