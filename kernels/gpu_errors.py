"""What both GPU backends say when the memory of the GPU runs out."""

from __future__ import annotations

import functools
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
