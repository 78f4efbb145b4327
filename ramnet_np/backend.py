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
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ramnet_np.contract import DecodeOptions

# name -> (module that holds BACKEND, packages it needs)
_REGISTRY: dict[str, tuple[str, tuple[str, ...]]] = {
    "numpy": ("ramnet_np.core.numpy_backend", ()),
    "numba": ("ramnet_np.kernels.cpu", ("numba",)),
    "cupy": ("ramnet_np.kernels.cuda.backend", ("cupy",)),
    "numba-cuda": ("ramnet_np.kernels.numba_cuda.backend", ("numba_cuda",)),
}

_loaded: dict[str, Backend] = {}  # so that a call need not look for packages again
_selected: ContextVar[str | None] = ContextVar("ramnet_np_backend", default=None)


@dataclass(frozen=True)
class Backend:
    """Four functions over arrays and a step; shapes and names as in ``ramnet_np.core.numpy_backend``, their oracle.

    ``decode_forward(logits, top_k, renorm, cape_heads, positions) -> (index, weight, saved)``
        logits (B, T, H, U, P); positions (B, T) int64, or with ``short_positions`` as the caller gave them: (T,) holds
        for every row and None counts from 0; index (B, T, H, K) int32 and weight (B, T, H, K), best first.
    ``decode_backward(dweight, saved) -> dlogits``
    ``decode_pair_forward(write_logits, read_logits, decode, positions) -> (write, read)``, each (index, weight, saved)
    ``decode_pair_backward(dwrite_weight, dread_weight, write_saved, read_saved) -> (dwrite_logits, dread_logits)``
        Optional, both or neither: what two calls of the functions above give, where a backend can do both sides at
        once. Callers use :meth:`decode_both` and :meth:`decode_both_backward`, which every backend has.
    ``memory_forward(write, read, values, gamma, mask, state, options, return_state) -> (y, state, saved)``
        write, read: Address; values (B, T, H, C); gamma a float or (B, T, H); mask (B, T) bool or None;
        state: RAMState or None; options: MemoryOptions. Inputs are left alone; the returned state is fresh.
    ``memory_backward(dy, dstate, saved) -> MemoryGrads(write_weight, read_weight, values, gamma (B, T, H), state)``
        state: None unless the forward was given one.
    ``step(write_logits, read_logits, values, gamma, positions, mask, state, decode, options) -> y``
        T = 1; decode: DecodeOptions; updates ``state`` in place.

    ``saved`` belongs to the backend: whatever its backward needs, never changed by it, so that a backward can be
    called again. Integer arrays in it are fully written: ``gradcheck`` compares them to see a selection switch.

    ``fused``: functions that the core's layers call for this backend's arrays in place of their own mathematics, where
    that is many small launches; see :func:`fused_for`. Rows are (N, D), and sums over tokens repeatable:

    ``matmul(a, b, onto=None)``; ``column_sum(rows)``: matrix product, added to ``onto`` if given; sum over rows.
    ``stacked_matmul(a, b, onto=None)``: the same of stacks (..., m, k) and (..., k, n).
    ``rmsnorm_forward(rows, weight, eps) -> (y, rstd)``; ``rmsnorm_backward(dy, rows, weight, rstd) -> (dx, dweight)``
    ``layernorm_forward(rows, weight, bias, eps) -> (y, mean, rstd)``
    ``layernorm_backward(dy, rows, weight, mean, rstd) -> (dx, dweight, dbias)``
    ``gate_forward(a, b, silu) -> act(a) * b``; ``gate_backward(dout, a, b, silu) -> (da, db)``: act is SiLU or sigmoid.
    ``scale_forward(matrix, bias, scales, tau) -> (scaled, scaled_bias)``: rows times exp(scales) / tau
    ``scale_backward(dscaled, dbias, scaled, scaled_bias, scales, tau) -> (dmatrix, dbias, dscales)``
    ``short_conv_forward(x, weight) -> y``; ``short_conv_backward(dy, x, weight) -> (dx, dweight)``: x (B, T, D) may
        begin with tokens that dy does not have.
    ``rotate(x, cos, sin) -> y``: x (B, T, H, d), cos and sin (T, 1, d/2) or (B, T, 1, d/2).
    ``softmax_rows(scores, diagonal, window, scale) -> log_sums``: scores (G, Q, J) become weights in place;
    ``softmax_rows_backward(scores, dweights, log_sums, diagonal, window, scale)``: and the gradient of the scores.
    ``delta_weigh(kk, qk, beta, log_g) -> (A, P, L)``;
    ``delta_weigh_backward(dL, dP, A, P, beta, log_g) -> (dkk, dqk, dbeta, dlog_g)``: of ``core/delta_rule.py``.
    ``unit_lower_inverse(below) -> (I + L)^-1``, L (..., N, N).
    ``cross_entropy(logits, labels, ignore_index, dlogits=None, scale=1.0) -> (loss, correct, count)``; fills dlogits.
    ``embedding_backward(dy, ids, V) -> dtable``
    ``adamw``, ``adamw_settings``: an optimiser that leaves its numbers on the device, and its constants.

    ``adopt(array)``: arrays of kind "device" only, the same memory as an array with dtype, shape and ndim as NumPy has
    them. ``total(array)``: its sum, an array of no axes.
    """

    name: str
    decode_forward: Callable[..., Any]
    decode_backward: Callable[..., Any]
    memory_forward: Callable[..., Any]
    memory_backward: Callable[..., Any]
    step: Callable[..., Any]
    array_kind: str = "numpy"  # the arrays it serves, as ``array_kind`` names them ...
    more_kinds: tuple[str, ...] = ()  # ... and others
    short_positions: bool = False
    decode_pair_forward: Callable[..., Any] | None = None
    decode_pair_backward: Callable[..., Any] | None = None
    fused: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    adopt: Callable[[Any], Any] = lambda array: array
    total: Callable[[Any], Any] = lambda array: array.sum()

    def decode_both(self, write_logits: Any, read_logits: Any, decode: DecodeOptions, positions: Any) -> tuple:
        """((index, weight, saved) of the writes, the same of the reads)."""
        if self.decode_pair_forward is not None:
            return self.decode_pair_forward(write_logits, read_logits, decode, positions)
        return (
            self.decode_forward(write_logits, decode.write_k, decode.write_renorm, decode.cape_heads, positions),
            self.decode_forward(read_logits, decode.read_k, decode.read_renorm, decode.cape_heads, positions),
        )

    def decode_both_backward(self, dwrite: Any, dread: Any, write_saved: Any, read_saved: Any) -> tuple:
        """(dwrite_logits, dread_logits), given the gradients of the weights."""
        if self.decode_pair_backward is not None:
            return self.decode_pair_backward(dwrite, dread, write_saved, read_saved)
        return self.decode_backward(dwrite, write_saved), self.decode_backward(dread, read_saved)


def register_backend(name: str, module: str, needs: tuple[str, ...] = ()) -> None:
    """Make the ``BACKEND`` of ``module`` available as ``name``; it is imported on first use.

    >>> register_backend("my-numpy", "ramnet_np.core.numpy_backend")
    >>> "my-numpy" in backends()
    True
    >>> unregister_backend("my-numpy")
    """
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

    >>> backends()["numpy"]
    'available'
    """
    return {name: why_unavailable(name) or "available" for name in _REGISTRY}


def why_unavailable(name: str) -> str | None:
    """None if the backend can be loaded here, else one sentence that says what is missing.

    ValueError for an unknown name.

    >>> why_unavailable("numpy") is None
    True
    """
    module, needs = _REGISTRY[_known(name)]
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if missing:
        return f"needs {' and '.join(missing)}, not installed ({' and '.join(map(_how_to_install, missing))})"
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"could not be loaded: {error}"
    return None


class use_backend:
    """Choose the backend for what follows, or, as a context manager, for a block.

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
    """The backend of that name. ValueError if there is none, RuntimeError (with the reason) if it cannot run here.

    >>> load_backend("numpy").name
    'numpy'
    """
    if name not in _loaded:
        reason = why_unavailable(name)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} {reason}")
        _loaded[name] = importlib.import_module(_REGISTRY[name][0]).BACKEND
    return _loaded[name]


def backend_for(array: Any, name: str | None = None) -> Backend:
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
    kinds = (backend.array_kind, *backend.more_kinds)
    if kind not in kinds:
        raise TypeError(f"backend {name!r} serves {' and '.join(kinds)} arrays, got {kind} arrays")
    return backend


def fused_for(name: str, array: Any) -> Callable[..., Any] | None:
    """The backend's own version of a layer function for ``array``, or None: then the plain mathematics serves.

    >>> import numpy as np
    >>> fused_for("rmsnorm_forward", np.zeros(1)) is None
    True
    """
    return backend_for(array).fused.get(name) if array_kind(array) == "cupy" else None


def array_kind(array: Any) -> str:
    """``"cupy"`` for CuPy arrays, ``"device"`` for others in a GPU's memory (``__cuda_array_interface__``), else
    ``"numpy"``.

    >>> import numpy as np
    >>> array_kind(np.zeros(1))
    'numpy'
    """
    array_type: type = type(array)
    return _kind_of_type(array_type)


@functools.cache
def _kind_of_type(array_type: type) -> str:
    if array_type.__module__.partition(".")[0] == "cupy":
        return "cupy"
    # ``__cuda_ndarray__``: Numba's arrays have it also under its simulator
    on_device = hasattr(array_type, "__cuda_array_interface__") or hasattr(array_type, "__cuda_ndarray__")
    return "device" if on_device else "numpy"


def _how_to_install(package: str) -> str:
    if package in ("cupy", "numba_cuda"):  # wheels are named by the CUDA that they are for
        return "pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before 580"
    return f"pip install {package}"


def _known(name: str) -> str:
    if name not in _REGISTRY:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _REGISTRY))}, got {name!r}")
    return name
