"""How functions of this backend are compiled: as a kernel, which Python calls, or as a part of kernels.

The time of the first call is a compiler's, so nothing is compiled that is not needed: parts get no wrappers for calls
from Python, and only kernels are kept on disk (``cache.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import njit

from .cache import KernelCache
from .threads import parallel_call

# error_model "numpy": 0 / 0 is NaN, as in the core, and no exception, which a thread could not raise.
_OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}


def inner(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Decorate a part of kernels, compiled with them. It has no wrapper, so a call from Python would end the process:
    call its ``py_func`` there.
    """
    if function is None:
        return functools.partial(inner, **options)
    return njit(**_OPTIONS, no_cpython_wrapper=True, **options)(function)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a kernel that one thread runs."""
    compiled = njit(**_OPTIONS)(function)
    if compiled is not function:  # else compilation is switched off: NUMBA_DISABLE_JIT
        compiled._cache = KernelCache(function)
    return compiled


def parallel_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Decorate a kernel that shares its work out over threads (``share.py``); ``.compiled`` is what Numba made."""
    compiled = kernel(function)
    call: Any = functools.wraps(function)(parallel_call(compiled))
    call.compiled = compiled
    return call
