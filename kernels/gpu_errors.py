"""What both GPU backends say when the memory of the GPU runs out, or when an earlier error has lost the GPU."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any


def explain_out_of_memory(advice: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function say in which call the GPU's memory ran out, at how many bytes, and what to reduce."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def explained(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except MemoryError as error:  # cupy.cuda.memory.OutOfMemoryError is one
                asked = str(error).rstrip(".").removeprefix("Out of memory ")
                raise MemoryError(f"the GPU ran out of memory in {function.__name__}, {asked}; {advice}") from error

        return explained

    return decorate


# Errors of a kernel that end the context: whatever the process asks of the GPU afterwards fails with the same error.
_ENDS_THE_CONTEXT = {
    "illegaladdress", "misalignedaddress", "invalidaddressspace", "illegalinstruction", "invalidpc",
    "hardwarestackerror", "launchfailure", "launchfailed", "launchtimeout", "assert", "eccuncorrectable",
    "contextisdestroyed", "contained", "tensorentrapped",
}  # fmt: skip


def why_lost(error: BaseException) -> str | None:
    """A sentence if ``error`` is what CUDA answers once an earlier kernel has failed, else None.

    >>> why_lost(RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"))
    'an earlier error has lost the GPU for this process (cudaErrorIllegalAddress): start a new one'
    >>> why_lost(RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: another toolchain")) is None
    True
    """
    for name in re.findall(r"(?:cudaError|CUDA_ERROR_)\w+", str(error)):
        if re.sub("cudaError|CUDA_ERROR_|_", "", name).lower() in _ENDS_THE_CONTEXT:
            return f"an earlier error has lost the GPU for this process ({name}): start a new one"
    return None
