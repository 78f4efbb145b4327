"""On which GPU a call runs: on that of its arrays, whichever GPU is current.

CuPy allocates and launches on the current GPU. A kernel that is launched there with addresses of another GPU ends in an
illegal memory access, after which the process can use no GPU at all. So every public function that takes arrays is
decorated with :func:`on_gpu_of_arrays`: it looks the arrays up before anything is launched, makes their GPU the current
one for the time of the call, and refuses arrays of two GPUs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_gpu_of_arrays(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run ``function`` on the GPU that its CuPy arrays are on; ValueError if they are on several GPUs.

    Arrays are looked for among the arguments, in tuples, lists and dictionaries of them (states, contexts, gradients),
    and in the ``params`` of a model. For NumPy arrays this costs well below a microsecond.

    >>> @on_gpu_of_arrays
    ... def double(x):
    ...     return x + x
    >>> double(np.ones(2)).tolist()
    [2.0, 2.0]
    """

    @functools.wraps(function)
    def placed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if args and type(args[0]) is np.ndarray:  # the others are NumPy arrays too, or will be refused
            return function(*args, **kwargs)
        gpus = _gpus_of((*args, *kwargs.values()))
        if not gpus:
            return function(*args, **kwargs)
        if len(gpus) > 1:
            raise ValueError(_on_several(function, args, kwargs))
        import cupy

        if gpus[0] == cupy.cuda.runtime.getDevice():
            return function(*args, **kwargs)
        with cupy.cuda.Device(gpus[0]):
            return function(*args, **kwargs)

    return placed


def _gpus_of(values: Iterable[Any]) -> list[int]:
    """The numbers of the GPUs that hold arrays among ``values``, each once. Runs before every launch: kept short."""
    found: list[int] = []
    for value in values:
        kind = type(value)
        holds = _HOLDS.get(kind) or _what_it_holds(kind)
        if holds == "nothing":
            continue
        if holds == "an array":
            gpu = value.data.device_id
            if gpu not in found:
                found.append(gpu)
        else:
            found += [gpu for gpu in _gpus_of(_within(value)) if gpu not in found]
    return found


_HOLDS: dict[type, str] = {}  # type -> "an array" of a GPU, "nothing" of the kind, or "more": see _within


def _what_it_holds(kind: type) -> str:
    if issubclass(kind, (np.ndarray, np.generic, str, bytes, int, float, type(None))):
        holds = "nothing"
    elif kind.__module__.partition(".")[0] == "cupy" and hasattr(kind, "data"):
        holds = "an array"
    else:
        holds = "more"
    return _HOLDS.setdefault(kind, holds)


def _within(value: Any) -> Iterable[Any]:
    """What else to look at: the parts of a tuple or list, the values of a dictionary, the parameters of a model."""
    if isinstance(value, tuple | list):
        return value
    value = getattr(value, "params", value)
    return value.values() if isinstance(value, Mapping) else ()


def _on_several(function: Callable[..., Any], args: Any, kwargs: Any) -> str:
    """Which arguments are on which GPU, in a sentence."""
    places = []
    for name, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
        if gpus := _gpus_of([value]):
            places.append(f"{name} on GPU {' and '.join(map(str, gpus))}")
    return f"all arrays of a call must be on one GPU, got {', '.join(places)}"
