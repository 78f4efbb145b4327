"""CUDA sources to kernels: compiled by NVRTC through CuPy's ``RawModule``, once for each specialisation and device.

A specialisation is a ``.cu`` file of this folder, the constants that it is compiled with, and the kernels that it then
holds. Nothing here needs CuPy or a GPU until a kernel is asked for: the list of those used by default can be compiled
by any CUDA compiler.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import why_not_compiled
from .overlap import launch
from .params import ParamStruct

FOLDER = Path(__file__).parent.parent
FLAGS = ("-std=c++17", f"-I{FOLDER}")

# dtype name -> the type of common.cuh
_TYPES = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}


class Specialisation(NamedTuple):
    """What one module is compiled from."""

    source: str  # a file of this folder
    kernels: tuple[str, ...]  # its extern "C" kernels under these constants
    defines: tuple[tuple[str, str | int], ...]
    params: tuple[ParamStruct, ...] = ()  # the structs that its kernels take

    @property
    def options(self) -> tuple[str, ...]:
        """The compiler's options; NVRTC and nvcc take the same."""
        return (*FLAGS, *(f"-D{name}={value}" for name, value in self.defines))


@functools.cache
def type_name(dtype: Any) -> str:
    """The name that kernels know a dtype by: float, double, float16 or bfloat16."""
    name = np.dtype(dtype).name
    if name not in _TYPES:
        raise TypeError(f"the GPU kernels take {', '.join(_TYPES)}, got {name}")
    return _TYPES[name]


@functools.cache
def sum_dtype(dtype: Any) -> np.dtype:
    """The dtype of sums, weights and state: float64 for float64, else float32."""
    return np.dtype(np.float64 if type_name(dtype) == "double" else np.float32)


def get_kernel(specialisation: Specialisation, name: str) -> Any:
    """A kernel (``cupy.RawKernel``) for the current device; the first request for its module compiles it.

    Compiling and loading synchronise: ask once before capturing a graph.
    """
    import cupy

    return _kernel(specialisation, name, cupy.cuda.runtime.getDevice())


class Launch:
    """A kernel and what stays the same from launch to launch: grid, block and shared memory.

    Where a call takes microseconds, looking all that up anew would take as long. Made once for each signature of a
    call (``functools.lru_cache``), then called with the parameters: a struct (:class:`ParamStruct`).
    """

    def __init__(
        self,
        specialisation: Specialisation,
        name: str,
        grid: tuple[int, ...],
        threads: int,
        shared: int = 0,
        overlaps: bool = False,  # its kernel takes part in what overlap.py says
    ):
        self.specialisation, self.name = specialisation, name
        self.grid, self.threads, self.shared, self.overlaps = grid, threads, shared, overlaps
        self._kernels: dict[int, Any] = {}  # one for each device

    def __call__(self, *arguments: Any) -> None:
        """Launch on the current device and stream."""
        import cupy

        device = cupy.cuda.runtime.getDevice()
        kernel = self._kernels.get(device)
        if kernel is None:
            kernel = self._kernels[device] = get_kernel(self.specialisation, self.name)
        if self.overlaps:
            [params] = arguments
            launch(kernel, self.grid, self.threads, params, self.shared)
        else:
            kernel(self.grid, (self.threads,), arguments, shared_mem=self.shared)


@functools.cache
def _kernel(specialisation: Specialisation, name: str, device: int) -> Any:
    if name not in specialisation.kernels:
        raise ValueError(f"{specialisation.source} holds {', '.join(specialisation.kernels)}, not {name}")
    import cupy

    kernel = _module(specialisation, device).get_function(name)
    # Let a launch ask for as much shared memory as a block can have; what it does ask for decides what it gets.
    most = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
    kernel.max_dynamic_shared_size_bytes = most - kernel.shared_size_bytes
    return kernel


def _module(specialisation: Specialisation, device: int) -> Any:
    key = specialisation, device
    with _compiling.setdefault(key, threading.Lock()):  # threads that want the same module wait for one of them
        if key not in _modules:
            _modules[key] = _compiled(specialisation)
    return _modules[key]


_modules: dict[tuple[Specialisation, int], Any] = {}
_compiling: dict[tuple[Specialisation, int], threading.Lock] = {}


def _compiled(specialisation: Specialisation) -> Any:
    import cupy

    module = cupy.RawModule(code=_code(specialisation.source), options=specialisation.options, backend="nvrtc")
    try:
        module.compile()
    except Exception as error:  # of the compiler, of finding the compiler, of loading what it made
        what = f"{specialisation.source} ({', '.join(specialisation.kernels)})"
        raise RuntimeError(why_not_compiled(cupy, what, specialisation.options, error)) from error
    return module


def _code(source: str) -> str:
    """The file's text, ended by a digest of the headers: CuPy's cache on disk does not look into what is included."""
    digest = hashlib.sha256()
    for header in sorted(FOLDER.rglob("*.cuh")):
        digest.update(header.read_bytes())
    return f"{(FOLDER / source).read_text(encoding='utf-8')}\n// headers {digest.hexdigest()}\n"
