"""How a layer's fast version is found: by its name, where the backend of the arrays has one.

The mathematics of a layer is written once, for NumPy and CuPy arrays. Where that would be many small launches on a GPU,
a backend may hold a fast version of the function: same name, same parameters, same results and refusals. It stands in
``Backend.layers`` under the function's name; ``tests/test_signatures.py`` compares the two. A context belongs to the
function that made it: a fast version may keep other arrays than the mathematics does. A fast version that serves some
calls only returns NotImplemented for the others, as Python's operators do, and the mathematics is called.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ramnet_np.backend import Backend, array_kind, backend_for, load_backend, selected_backend, use_backend
from ramnet_np.core.placement import on_gpu_of_arrays

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

ACCELERATED: dict[str, Callable[..., Any]] = {}
"""The mathematics of every function that may have a fast version, by its name."""


def accelerated(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Call the fast version of ``function`` for CuPy arrays where their backend has one; else ``function`` itself.

    The arrays are looked for among the arguments and at the head of contexts. NumPy arrays are served by the
    mathematics alone, and no backend is loaded for them, see :func:`accelerated_everywhere`; ``use_backend("numpy")``
    asks for the mathematics on CuPy arrays too.
    ValueError for a second function of the same name.

    >>> import numpy as np
    >>> @accelerated
    ... def double(x):
    ...     return x + x
    >>> double(np.ones(2)).tolist(), ACCELERATED.pop("double")(3)
    ([2.0, 2.0], 6)
    """
    name = _register(function)

    @on_gpu_of_arrays
    @functools.wraps(function)  # an error names the arguments
    def on_gpu(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for argument in (*args, *kwargs.values()):
            array = argument[0] if isinstance(argument, tuple) and argument else argument
            if array_kind(array) == "cupy":
                result = backend_for(array).layers.get(name, function)(*args, **kwargs)
                return function(*args, **kwargs) if result is NotImplemented else result
        return function(*args, **kwargs)

    @functools.wraps(function)
    def dispatched(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        # a token on a CPU calls dozens of these: nothing more is looked up where the first argument tells
        first = args[0] if args else None
        head = first[0] if isinstance(first, tuple) and first else first
        return function(*args, **kwargs) if type(head) is np.ndarray else on_gpu(*args, **kwargs)

    return dispatched


def accelerated_everywhere(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """As :func:`accelerated`, for NumPy arrays too: their backend is loaded and may hold a fast version.

    The first argument must be an array.

    >>> import numpy as np
    >>> @accelerated_everywhere
    ... def triple(x):
    ...     return x + x + x
    >>> triple(np.ones(2)).tolist(), ACCELERATED.pop("triple")(3)
    ([3.0, 3.0], 9)
    """
    name = _register(function)
    for_numpy: dict[str | None, Callable[..., _Result]] = {}  # by the selected backend: looked up once

    @on_gpu_of_arrays
    @functools.wraps(function)  # an error names the arguments
    def elsewhere(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        result = backend_for(args[0]).layers.get(name, function)(*args, **kwargs)
        return function(*args, **kwargs) if result is NotImplemented else result

    @functools.wraps(function)
    def dispatched(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if type(args[0]) is not np.ndarray:
            return elsewhere(*args, **kwargs)
        selected = selected_backend()
        if selected not in for_numpy:
            for_numpy[selected] = _backend_on_host(args[0], selected).layers.get(name, function)
        result = for_numpy[selected](*args, **kwargs)
        return function(*args, **kwargs) if result is NotImplemented else result

    return dispatched


def _backend_on_host(array: np.ndarray, selected: str | None) -> Backend:
    """The selected backend, or the array's own where that serves GPUs alone: a GPU's memory has tables of NumPy's."""
    if selected is None or "numpy" in load_backend(selected).kinds:
        return backend_for(array)
    with use_backend(None):
        return backend_for(array)


def _register(function: Callable[..., Any]) -> str:
    name = function.__name__
    if name in ACCELERATED:
        raise ValueError(f"two accelerated functions are called {name!r}; a fast version is found by this name")
    ACCELERATED[name] = function
    return name
