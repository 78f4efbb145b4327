"""On which GPU a call runs: on that of its arrays, whichever GPU is current.

CuPy allocates and launches on the current GPU. A kernel that is launched there with addresses of another GPU ends in an
illegal memory access, after which the process can use no GPU at all. So every public function that takes arrays is
decorated with :func:`on_gpu_of_arrays`: it looks the arrays up before anything is launched, makes their GPU the current
one for the time of the call, and refuses arrays of two GPUs. A context says by its arrays, or by an ``ArraySpec``, on
which GPU its forward ran. The operation takes arrays of other libraries too: :func:`on_gpu_of_foreign_arrays`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ramnet_np.backend import Backend, array_kind, backend_for
from ramnet_np.contract import RAMState
from ramnet_np.core.require import ArraySpec
from ramnet_np.forked import use_gpu

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def on_gpu_of_arrays(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run ``function`` on the GPU that its CuPy arrays are on; ValueError if they are on several GPUs.

    Arrays are looked for among the arguments, in states and lists of them, in dictionaries, and in the ``params`` of a
    model. Where CuPy was never imported nothing is looked for.

    >>> import numpy as np
    >>> @on_gpu_of_arrays
    ... def double(x):
    ...     return x + x
    >>> double(np.ones(2)).tolist()
    [2.0, 2.0]
    """

    @functools.wraps(function)
    def placed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        cupy = sys.modules.get("cupy")
        if cupy is None:
            return function(*args, **kwargs)
        gpus = _gpus_of((*args, *kwargs.values()) if kwargs else args, cupy.ndarray)
        if not gpus:
            return function(*args, **kwargs)
        use_gpu()
        if len(gpus) > 1:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            raise ValueError(_on_several({name: _gpus_of([a], cupy.ndarray) for name, a in arguments.items()}))
        if gpus[0] == cupy.cuda.runtime.getDevice():
            return function(*args, **kwargs)
        with cupy.cuda.Device(gpus[0]):
            return function(*args, **kwargs)

    return placed


def on_gpu_of_foreign_arrays(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run ``function`` on the GPU of its arrays of kind "device"; ValueError if its arrays are on several GPUs.

    Such arrays say at which address they lie, not on which GPU. The backend that serves them asks the driver.

    >>> import numpy as np
    >>> @on_gpu_of_foreign_arrays
    ... def double(x):
    ...     return x + x
    >>> double(np.ones(2)).tolist()
    [2.0, 2.0]
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def placed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for foreign in (*args, *kwargs.values()):
            if type(foreign) not in _NOT_FOREIGN and array_kind(foreign) == "device":
                break
        else:
            return function(*args, **kwargs)
        arguments = signature.bind(*args, **kwargs).arguments
        ctx = arguments.get("ctx")
        backend = getattr(ctx, "backend", None) or backend_for(foreign, arguments.get("backend"))
        places = {name: _gpus_of_foreign(value, backend) for name, value in arguments.items()}
        gpus = set().union(*places.values())
        if len(gpus) > 1:
            raise ValueError(_on_several(places))
        with backend.on_gpu(*gpus) if gpus else nullcontext():
            return function(*args, **kwargs)

    return placed


def _gpus_of(values: Iterable[Any], array_type: Any) -> list[int]:
    """The numbers of the GPUs that hold arrays among ``values``, each once. Runs before every launch: kept short."""
    found: list[int] = []
    for value in values:
        if isinstance(value, array_type):
            gpu = value.data.device_id
            if gpu not in found:
                found.append(gpu)
        elif type(value) is RAMState:
            found += [gpu for gpu in _gpus_of(value, array_type) if gpu not in found]
        elif type(value) is ArraySpec:
            if value.gpu is not None and value.gpu not in found:
                found.append(value.gpu)
        elif type(value) not in _PLAIN:
            found += [gpu for gpu in _gpus_of(_parts(value), array_type) if gpu not in found]
    return found


def _gpus_of_foreign(value: Any, backend: Backend) -> set[int]:
    """The numbers of the GPUs that hold an array, or the arrays of a state or of a context."""
    if isinstance(value, tuple):
        return set().union(*(_gpus_of_foreign(part, backend) for part in value))
    gpu = backend.gpu_of(value)
    return set() if gpu is None else {gpu}


_PLAIN = {bool, int, float, str, type(None)}
_NOT_FOREIGN = {*_PLAIN, np.ndarray, RAMState}  # told by their types, which is quick


def _parts(value: Any) -> Iterable[Any]:
    """The arrays of a state or context, the arrays and states of a list or dictionary, the parameters of a model."""
    if isinstance(value, tuple):
        return [part for part in value if hasattr(part, "data") or type(part) is ArraySpec]  # of a context
    params = getattr(value, "params", value)
    return params.values() if isinstance(params, Mapping) else value if isinstance(value, list) else ()


def _on_several(places: Mapping[str, Iterable[int]]) -> str:
    """Which arguments are on which GPU, in a sentence."""
    named = [f"{name} on GPU {' and '.join(map(str, gpus))}" for name, gpus in places.items() if gpus]
    return f"all arrays of a call must be on one GPU, got {', '.join(named)}"
