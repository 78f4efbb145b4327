"""Which implementation serves an array.

A backend is a module with one attribute ``BACKEND``, a :class:`Backend`: decode forward and backward, memory forward
and backward, and a one-token step. The NumPy core is one of them and the oracle for the others. Nothing here imports
a backend until it is asked for, so the core runs where Numba, CuPy or CUDA are missing.

The choice, in order: the ``backend=`` argument of the call, the innermost :func:`use_backend`, the kind of array.
A backend that cannot serve a call raises and says why; there is no silent fallback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from ramnet_np.contract import Address, Array, DecodeOptions, MemoryGrads, MemoryOptions, RAMState
from ramnet_np.forked import use_gpu

# name -> (module that holds BACKEND, packages it needs)
_REGISTRY: dict[str, tuple[str, tuple[str, ...]]] = {
    "numpy": ("ramnet_np.core.numpy_backend", ()),
    "numba": ("ramnet_np.kernels.cpu", ("numba",)),
    "cupy": ("ramnet_np.kernels.cuda.backend", ("cupy",)),
    "numba-cuda": ("ramnet_np.kernels.numba_cuda.backend", ("numba",)),
}

_loaded: dict[str, Backend] = {}  # so that a call need not look for packages again
_selected: ContextVar[str | None] = ContextVar("ramnet_np_backend", default=None)


class DecodeForward(Protocol):
    """Logits to addresses; ``decode_forward`` of ``core/numpy_backend.py`` says what is taken and returned."""

    def __call__(
        self,
        logits: tuple[Array, ...],
        top_k: tuple[int, ...],
        renorm: tuple[bool, ...],
        cape_heads: int,
        positions: Array | None,
    ) -> Sequence[tuple[Array, Array, Any]]: ...


class DecodeBackward(Protocol):
    """Gradients of the weights to gradients of the logits; see ``decode_backward`` of ``core/numpy_backend.py``."""

    def __call__(self, dweights: tuple[Array, ...], saved: tuple[Any, ...]) -> Sequence[Array]: ...


class MemoryForward(Protocol):
    """Writes and reads of a sequence; see ``memory_forward`` of ``core/memory.py``."""

    def __call__(
        self,
        write: Address,
        read: Address,
        values: Array,
        gamma: float | Array,
        mask: Array | None,
        state: RAMState | None,
        options: MemoryOptions,
        return_state: bool,
        cu_seqlens: Any = None,
    ) -> tuple[Array, RAMState | None, Any]: ...


class MemoryBackward(Protocol):
    """Gradients of a memory's inputs; see ``memory_backward`` of ``core/memory.py``."""

    def __call__(self, dy: Array, dstate: RAMState | None, ctx: Any) -> MemoryGrads: ...


class Step(Protocol):
    """One token, which updates the state in place; see ``step`` of ``core/numpy_backend.py``."""

    def __call__(
        self,
        write_logits: Array,
        read_logits: Array,
        values: Array,
        gamma: float | Array,
        positions: Array | None,
        mask: Array | None,
        state: RAMState,
        decode: DecodeOptions,
        options: MemoryOptions,
    ) -> Array: ...


@dataclass(frozen=True, repr=False)
class Backend:
    """The five functions of the operation, and the arrays that they serve.

    Shapes, results and errors stand on the functions of the same names in ``ramnet_np.core.numpy_backend``, the oracle
    of every other backend. A forward leaves its inputs alone and returns new arrays; what it returns last belongs to
    the backend: its backward needs it and never changes it, so that a backward can be called again. Integer arrays in
    it are fully written: ``gradcheck`` compares them to see a selection switch.
    """

    name: str  # a context that is pickled or copied keeps its backend as this name
    decode_forward: DecodeForward
    decode_backward: DecodeBackward
    memory_forward: MemoryForward
    memory_backward: MemoryBackward
    step: Step
    array_kind: str = "numpy"  # the arrays it serves, as ``array_kind`` names them ...
    also_serves: tuple[str, ...] = ()  # ... and others
    accepts_short_positions: bool = False  # takes positions as the caller gave them: (T,), or None to count from 0
    # what holds the rows of a sparse state on a GPU, with the methods of ``core/tiered_rows.py``, and one token over a
    # sparse state, as ``sparse_step`` of ``core/sparse_memory.py``, or NotImplemented; None: the core's serve
    sparse_rows: Callable[..., Any] | None = None
    sparse_step: Callable[..., Array] | None = None
    # memory_forward with ``arriving``, what says when contents of the given state are there; None: they must be there
    sparse_forward: Callable[..., tuple[Array, RAMState | None, Any]] | None = None
    # a function of addresses that makes a step of a checked signature, or None: ``kernels/cuda/step/step.py``
    step_by_address: Callable[..., Callable[..., bool] | None] | None = None
    layers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # fast layers: ``core/accelerated.py``
    # arrays of kind "device" only: the same memory as an array with dtype, shape and ndim as NumPy has them
    from_foreign: Callable[[Array], Array] = lambda array: array
    # the GPU that holds an array, None where none does; and what makes a GPU the current one for the time of a block
    gpu_of: Callable[[Array], int | None] = lambda array: None
    on_gpu: Callable[[int], AbstractContextManager[Any]] = lambda gpu: nullcontext()
    total: Callable[[Array], Array] = lambda array: array.sum()  # the sum of an array, an array of no axes
    made_by: str = ""  # what ``backends`` adds to "available", such as the compiler

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all arrays that it serves."""
        return self.array_kind, *self.also_serves

    def __repr__(self) -> str:
        return f"Backend({self.name!r})"

    def __reduce__(self) -> tuple[Callable[[str], Backend], tuple[str]]:
        return load_backend, (self.name,)


def by_side(
    forward: Callable[..., tuple[Array, Array, Any]], backward: Callable[..., Array]
) -> tuple[DecodeForward, DecodeBackward]:
    """``decode_forward`` and ``decode_backward`` of a backend that decodes one side, writes or reads, at a time.

    ``forward(logits, top_k, renorm, cape_heads, positions) -> (index, weight, saved)``;
    ``backward(dweight, saved) -> dlogits``.

    >>> import numpy as np
    >>> from ramnet_np.core import decoder
    >>> decode, _ = by_side(decoder.decode_forward, decoder.decode_backward)
    >>> sides = decode((np.zeros((1, 1, 1, 2, 2)),) * 2, (1, 3), (False, False), 0, np.array([[0]]))
    >>> [index.shape for index, weight, saved in sides]
    [(1, 1, 1, 1), (1, 1, 1, 3)]
    """

    def decode_forward(
        logits: tuple[Array, ...],
        top_k: tuple[int, ...],
        renorm: tuple[bool, ...],
        cape_heads: int,
        positions: Array | None,
    ) -> Sequence[tuple[Array, Array, Any]]:
        sides = zip(logits, top_k, renorm, strict=True)
        return [forward(side, k, divide, cape_heads, positions) for side, k, divide in sides]

    def decode_backward(dweights: tuple[Array, ...], saved: tuple[Any, ...]) -> Sequence[Array]:
        return [backward(dweight, ctx) for dweight, ctx in zip(dweights, saved, strict=True)]

    return decode_forward, decode_backward


def register_backend(name: str, module: str, needs: tuple[str, ...] = ()) -> None:
    """Make the ``BACKEND`` of ``module`` available as ``name``; it is imported on first use.

    ValueError for a name that another module has: a call would not know which of them is meant.

    >>> register_backend("my-numpy", "ramnet_np.core.numpy_backend")
    >>> "my-numpy" in backends()
    True
    >>> unregister_backend("my-numpy")
    """
    if name in _REGISTRY and _REGISTRY[name][0] != module:
        raise ValueError(f"name must not be that of another backend, got {name!r}, which is {_REGISTRY[name][0]}")
    _REGISTRY[name] = (module, needs)


def unregister_backend(name: str) -> None:
    """Forget a backend that was added with :func:`register_backend`.

    ValueError for a name that is not registered.

    >>> unregister_backend("never")
    Traceback (most recent call last):
        ...
    ValueError: backend must be one of 'numpy', 'numba', 'cupy', 'numba-cuda', got 'never'
    """
    _REGISTRY.pop(_known(name))
    _loaded.pop(name, None)


def backends() -> dict[str, str]:
    """Every backend's name and whether it can run here: ``"available"``, or the reason why not.

    Where it matters which compiler makes the kernels, this follows: ``"available, compiled by numba-cuda-mlir 0.6.0"``.

    >>> backends()["numpy"]
    'available'
    """
    return {name: why_unavailable(name) or _available(name) for name in _REGISTRY}


def _available(name: str) -> str:
    made_by = load_backend(name).made_by
    return f"available, {made_by}" if made_by else "available"


def why_unavailable(name: str) -> str | None:
    """None if the backend can be loaded here, else one sentence that says what is missing.

    ValueError for an unknown name.

    >>> why_unavailable("numpy") is None
    True
    """
    module, needs = _REGISTRY[_known(name)]
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if missing and sys.platform == "emscripten":
        return f"needs {' and '.join(missing)}, which browsers do not have"
    if missing:
        return f"needs {' and '.join(missing)}, not installed ({' and '.join(map(_how_to_install, missing))})"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"could not be loaded: {error}"
    return None


class use_backend:
    """Choose the backend for what follows, or, as a context manager, for a block.

    The choice holds in the thread that makes it, and in asyncio's tasks that are started from there. A thread started
    later does not have it (unless Python hands it on, as free-threaded builds from 3.14 do): choose there again, give
    each call ``backend=``, or start it as ``Thread(target=contextvars.copy_context().run, args=(function,))``.

    Raises ValueError for an unknown name and RuntimeError for a backend that cannot run here.

    >>> with use_backend("numpy"):
    ...     selected_backend()
    'numpy'
    >>> selected_backend() is None  # None: follow the arrays
    True
    """

    def __init__(self, name: str | None):
        if name is not None:
            load_backend(name)
        self._token = _selected.set(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _selected.reset(self._token)


def selected_backend() -> str | None:
    """The name that :func:`use_backend` chose, or None when the arrays decide.

    >>> with use_backend("numpy"):
    ...     selected_backend()
    'numpy'
    """
    return _selected.get()


def load_backend(name: str) -> Backend:
    """The backend of that name.

    ValueError if there is none. RuntimeError (with the reason) if it cannot run here, or if it needs a GPU in a process
    that was forked after the GPU was used.

    >>> load_backend("numpy").name
    'numpy'
    """
    if _known(name) not in _loaded:
        reason = why_unavailable(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} {reason}")
        _loaded[name] = importlib.import_module(_REGISTRY[name][0]).BACKEND
    backend = _loaded[name]
    if backend.array_kind != "numpy":
        use_gpu()
    return backend


def backend_for(array: Array, name: str | None = None) -> Backend:
    """The backend that serves ``array``: the one named, else the one selected, else by the kind of array.

    ValueError for an unknown name, RuntimeError for one that cannot run here, TypeError where the kinds do not fit.

    >>> import numpy as np
    >>> backend_for(np.zeros(1), "numpy").name
    'numpy'
    """
    kind = array_kind(array)
    name = name or selected_backend()
    if name is None:
        if kind != "numpy":
            name = "cupy" if kind == "cupy" else "numba-cuda"
        else:
            name = "numba" if "numba" in _loaded or why_unavailable("numba") is None else "numpy"
    backend = load_backend(name)
    if kind not in backend.kinds:
        raise TypeError(f"backend {name!r} serves {' and '.join(backend.kinds)} arrays, got {kind} arrays")
    return backend


def array_kind(array: Array) -> str:
    """Whose arrays these are: ``"numpy"``, ``"cupy"``, or ``"device"`` for others in a GPU's memory
    (``__cuda_array_interface__``).

    Any other array is of no kind that a backend serves, and goes by its type: ``"torch.Tensor"`` on the CPU, or
    ``"numpy.MaskedArray"``, whose mask nothing here would heed. What is no array at all counts as NumPy's.

    >>> import numpy as np
    >>> array_kind(np.zeros(1)), array_kind(np.ma.zeros(1))
    ('numpy', 'numpy.MaskedArray')
    """
    array_type: type = type(array)
    kind = _kind_of_type(array_type)
    if not kind:  # some classes of arrays give these attributes to their instances alone
        if hasattr(array, "__cuda_array_interface__"):
            return "device"
        return _type_name(array_type) if hasattr(array, "dtype") and hasattr(array, "shape") else "numpy"
    if kind == "device" and not hasattr(array, "__cuda_ndarray__") and not hasattr(array, "__cuda_array_interface__"):
        return _type_name(array_type)  # the class has the property for its arrays on the CPU too, where it raises
    return kind


@functools.cache
def _kind_of_type(array_type: type) -> str:
    """As :func:`array_kind`; "" where the type alone does not tell."""
    if array_type.__module__.partition(".")[0] == "cupy":
        return "cupy"
    # ``__cuda_ndarray__``: Numba's arrays have it also under its simulator
    if hasattr(array_type, "__cuda_array_interface__") or hasattr(array_type, "__cuda_ndarray__"):
        return "device"
    if any(_type_name(base) in ("numpy.MaskedArray", "numpy.matrix") for base in array_type.__mro__):
        return _type_name(array_type)
    of_numpy = any(_type_name(base) in ("numpy.ndarray", "numpy.generic") for base in array_type.__mro__)
    return "numpy" if of_numpy else ""


def _type_name(array_type: type) -> str:
    return f"{array_type.__module__.partition('.')[0]}.{array_type.__qualname__}"


def _how_to_install(package: str) -> str:
    if package == "cupy":  # its wheels are named by the CUDA that they are for
        return "pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before 580"
    return f"pip install {package}"


def _known(name: str) -> str:
    if not isinstance(name, str) or name not in _REGISTRY:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _REGISTRY))}, got {name!r}")
    return name
