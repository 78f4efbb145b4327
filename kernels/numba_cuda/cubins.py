"""Compiled kernels, kept on disk under a name made of everything that they are compiled from.

The compiler keeps kernels too, but names one that calls device functions anew in every process, so that it never finds
it again, and does not see a change in a file that the kernel calls. Here the name is a digest of the kernel's code and,
in turn, of all functions and numbers that it uses.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .compiler import COMPILER, cuda


def cubin_of(
    function: Callable[..., None], signature: Any, most_threads: int | None, capability: tuple[int, int]
) -> tuple[str, bytes]:
    """The name and the binary of a kernel, compiled for the current device, which has this compute capability."""
    made_from = (COMPILER, capability, str(signature), most_threads, contents(function))
    name = f"{function.__name__}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]}.cubin"
    kept = _read(name)
    if kept is not None:
        return kept
    made = compiled(function, signature, most_threads)
    _write(name, made.func_name, made.cubin)
    return made.func_name, made.cubin


def compiled(function: Callable[..., None], signature: Any, most_threads: int | None) -> Any:
    """What the compiler makes of a kernel for the current device; it has ``func_name``, ``cubin`` and ``ptx``."""
    [made] = cuda.jit(signature, launch_bounds=most_threads)(function).overloads.values()
    return made


def contents(value: Any) -> Any:
    """Something whose ``repr`` changes with a value of a kernel's closure or module, and in no other process.

    >>> contents(lambda x: x + 1) == contents(lambda x: x + 2)
    False
    """
    value = getattr(value, "py_func", value)  # of a device function
    if inspect.isfunction(value) and not value.__module__.startswith("numba_cuda_mlir"):
        code, used = value.__code__, inspect.getclosurevars(value)
        names = {**used.globals, **used.nonlocals}
        uses = [(name, contents(names[name])) for name in sorted(names)]
        return code.co_code, code.co_names, code.co_varnames, [str(c) for c in code.co_consts], uses
    return getattr(value, "__name__", None) or str(value)


def _folders() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    yield Path(__file__).parent / "__pycache__"
    yield Path(os.path.expanduser("~"), ".cache", "ramnet-np")


def _read(name: str) -> tuple[str, bytes] | None:
    for folder in _folders():
        try:
            digest, _, rest = (folder / name).read_bytes().partition(b"\n")
        except OSError:
            continue
        if digest.decode(errors="replace") == hashlib.sha256(rest).hexdigest():
            function_name, _, cubin = rest.partition(b"\n")
            return function_name.decode(), cubin
    return None


def _write(name: str, function_name: str, cubin: bytes) -> None:
    """Into the first folder that takes it; none is no fault, the kernel is then compiled in every process."""
    content = function_name.encode() + b"\n" + cubin
    for folder in _folders():
        unfinished = folder / f"{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            unfinished.replace(folder / name)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()
            continue
        return
