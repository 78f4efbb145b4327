"""From a Python function to a kernel that runs: compiled when first launched, launched by one call of the driver.

Arrays go to kernels as pointers, so that a kernel is compiled once for each type of numbers, whatever the shapes, and
so that a launch is short: Numba's own takes apart every array in Python. Here the arguments are packed into one buffer
and ``cuLaunchKernel`` is called, a few microseconds in all. Arguments that belong together are one record, a
NamedTuple: the compiler makes single parameters of its fields. Under Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the
same functions run in Python, on arrays.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

from ..gpu_errors import why_lost
from .compiler import COMPILER, SIMULATED, cuda, types
from .cubins import cubin_of

THREADS = 8 if SIMULATED else 256  # of a block whose threads do the same

_SLOTS = {  # how an argument is packed, each in 8 bytes
    types.int32: "i4x",
    types.int64: "q",
    types.uint64: "Q",
    types.float32: "f4x",
    types.float64: "d",
}


def record(cls: Any, **fields: Any) -> Any:
    """The Numba type of a NamedTuple whose fields have these types, as one argument of a kernel.

    >>> from typing import NamedTuple
    >>> record(NamedTuple("Sizes", [("T", Any), ("H", Any)]), T=types.int32, H=types.int32)
    Sizes(int32 x 2)
    """
    return types.BaseTuple.from_types([fields[name] for name in cls._fields], cls)


class Kernel:
    """A function of scalars, pointers (``types.CPointer``) and records of them."""

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...], most_threads: int | None = None):
        self.name = function.__name__
        self.function = function
        self.arguments = arguments
        self.most_threads = most_threads
        single = _without_records(arguments, types.BaseTuple)
        self._are_pointers = [isinstance(argument, types.CPointer) for argument in single]
        self._pack = struct.Struct("=" + "".join(_SLOTS.get(a, "Q") for a in single)).pack_into
        self._values = (ctypes.c_uint64 * len(single))()
        start = ctypes.addressof(self._values)
        self._addresses = (ctypes.c_void_p * len(single))(*range(start, start + 8 * len(single), 8))
        self._packing = threading.Lock()  # the buffer is one for all threads of Python
        self._on_device: dict[int, Any] = {}

    @property
    def signature(self) -> Any:
        """As Numba takes it."""
        return types.void(*self.arguments)

    def __call__(self, blocks: int, threads: int, stream: int, *values: Any, shared: int = 0) -> None:
        """Launch on the stream of that address. Arrays as values: contiguous, of the argument's type; or None."""
        if blocks == 0:
            return
        if SIMULATED:
            self._simulate(blocks, threads, shared, values)
            return
        from cuda.bindings import driver

        single = zip(self._are_pointers, _without_records(values, tuple), strict=True)
        packed = [address_of(value) if is_pointer else value for is_pointer, value in single]
        device = _current_device()
        if device not in self._on_device:
            self._on_device[device] = self._load()
        function = self._on_device[device]
        with self._packing:
            self._pack(self._values, 0, *packed)
            where = ctypes.addressof(self._addresses)
            _check(driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, stream, where, 0))

    def _load(self) -> Any:
        """Compiled for the current device, with leave to use all of its shared memory. RuntimeError if that fails."""
        from cuda.bindings import driver

        try:
            name, cubin = cubin_of(self.function, self.signature, self.most_threads, _capability_of(_current_device()))
        except Exception as error:  # the compiler and its libraries have their own kinds, of many lines
            why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise RuntimeError(
                f"the kernel {self.name} could not be compiled by {COMPILER} under NumPy {np.__version__} ({why})"
                f"{_advice(error)}"
            ) from error
        function = _check(driver.cuModuleGetFunction(_check(driver.cuModuleLoadData(cubin)), name.encode()))
        attributes = driver.CUfunction_attribute
        static = _check(driver.cuFuncGetAttribute(attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function))
        dynamic = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(function, dynamic, shared_limit() - static))
        return function

    def _simulate(self, blocks: int, threads: int, shared: int, values: tuple[Any, ...]) -> None:
        cuda.jit(self.function)[blocks, threads, 0, shared](*map(_flat, values))


def kernel(*arguments: Any, most_threads: int | None = None) -> Callable[[Callable[..., None]], Kernel]:
    """Makes a :class:`Kernel` of the function below it, whose arguments have these types.

    ``most_threads`` of a block: the compiler then knows how many registers each may have.
    """
    return lambda function: Kernel(function, arguments, most_threads)


def _without_records(values: Iterable[Any], record_class: Any) -> list[Any]:
    """Values or types of arguments, with those of a record's fields in its place."""
    single: list[Any] = []
    for value in values:
        if isinstance(value, record_class):
            single += value
        else:
            single.append(value)
    return single


def _flat(value: Any) -> Any:
    """An argument for the simulator, in which arrays have one axis, as pointers do."""
    if isinstance(value, tuple):
        return type(value)(*map(_flat, value))
    return value.ravel() if getattr(value, "ndim", 0) > 0 else value


def address_of(array: Any) -> int:
    """Where an array lies in device memory; 0 for None."""
    if array is None:
        return 0
    data: Any = getattr(array, "data", None)
    if hasattr(data, "ptr"):  # CuPy
        return data.ptr
    return array.__cuda_array_interface__["data"][0]


def shared_limit() -> int:
    """Bytes of shared memory that a block may have on the current device; of an H100 under the simulator."""
    return 227 * 1024 if SIMULATED else _shared_limit_of(_current_device())


@cache
def _shared_limit_of(device: int) -> int:
    from cuda.bindings import driver

    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    return int(_check(driver.cuDeviceGetAttribute(attribute, device)))


@cache
def _capability_of(device: int) -> tuple[int, int]:
    from cuda.bindings import driver

    attributes = driver.CUdevice_attribute
    names = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"
    major, minor = (int(_check(driver.cuDeviceGetAttribute(getattr(attributes, name), device))) for name in names)
    return major, minor


def _advice(error: Exception) -> str:
    """What to do about an error of the compiler, where that is known."""
    from cuda.pathfinder import DynamicLibNotFoundError

    if isinstance(error, DynamicLibNotFoundError):
        return "; pip install 'ramnet-np[cuda13]' brings NVIDIA's libraries, 'ramnet-np[cuda12]' for drivers before 580"
    return ""


def _current_device() -> int:
    """Number of the device whose context is current, as it is wherever an array of CuPy or Numba was made."""
    from cuda.bindings import driver

    return int(_check(driver.cuCtxGetDevice()))


def _check(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned; RuntimeError if it failed."""
    error, *value = result
    if int(error) != 0:
        raise RuntimeError(why_lost(RuntimeError(error.name)) or f"CUDA: {error.name}")
    return value[0] if value else None
