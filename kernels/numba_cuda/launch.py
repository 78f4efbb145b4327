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

from numba import cuda, types
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
THREADS = 8 if SIMULATED else 256  # of a block whose threads do the same

_SLOTS = {  # how an argument is packed, each in 8 bytes
    types.int32: "i4x",
    types.int64: "q",
    types.uint64: "Q",
    types.float32: "f4x",
    types.float64: "d",
}

_KINDS = {types.CPointer: "pointer", types.Array: "array"}  # looked up once: a look at a type's class takes long


def record(cls: Any, **fields: Any) -> Any:
    """The Numba type of a NamedTuple whose fields have these types, as one argument of a kernel.

    >>> from typing import NamedTuple
    >>> record(NamedTuple("Sizes", [("T", Any), ("H", Any)]), T=types.int32, H=types.int32)
    Sizes(int32 x 2)
    """
    return types.BaseTuple.from_types([fields[name] for name in cls._fields], cls)


class Kernel:
    """A function of scalars, pointers (``types.CPointer``) and records of them, or of 1-d arrays for atomics."""

    def __init__(self, function: Callable[..., None], arguments: tuple[Any, ...], most_threads: int | None = None):
        self.name = function.__name__
        self.function = function
        self.arguments = arguments
        self.most_threads = most_threads
        single = _without_records(arguments, types.BaseTuple)
        self._kinds = [_KINDS.get(type(argument), "number") for argument in single]
        layout = "".join("QQqqQqq" if isinstance(a, types.Array) else _SLOTS.get(a, "Q") for a in single)
        self._pack = struct.Struct("=" + layout).pack_into
        slots = sum(7 if isinstance(a, types.Array) else 1 for a in single)
        self._values = (ctypes.c_uint64 * slots)()
        start = ctypes.addressof(self._values)
        self._addresses = (ctypes.c_void_p * slots)(*range(start, start + 8 * slots, 8))
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

        packed: list[Any] = []
        for kind, value in zip(self._kinds, _without_records(values, tuple), strict=True):
            if kind == "pointer":
                packed.append(address_of(value))
            elif kind == "array":
                size, itemsize = value.size, value.dtype.itemsize
                packed += (0, 0, size, itemsize, address_of(value), size, itemsize)
            else:
                packed.append(value)
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
            dispatcher = cuda.jit(self.signature, cache=True, launch_bounds=self.most_threads)(self.function)
            [compiled] = dispatcher.overloads.values()
            handle = compiled._codelibrary.get_cufunc().handle
        except Exception as error:  # Numba's compiler and linker have their own kinds, of many lines
            why = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise RuntimeError(
                f"the kernel {self.name} could not be compiled for this GPU ({why}); what Numba needs beside the "
                "driver comes with pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before 580"
            ) from error
        if isinstance(handle, driver.CUkernel):
            handle = _check(driver.cuKernelGetFunction(handle))
        else:
            handle = driver.CUfunction(int(handle))
        static = compiled.shared_mem_per_block
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(handle, attribute, shared_limit() - static))
        return handle

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


def _current_device() -> int:
    """Number of the device whose context is current, as it is wherever an array of CuPy or Numba was made."""
    from cuda.bindings import driver

    return int(_check(driver.cuCtxGetDevice()))


def _check(result: tuple[Any, ...]) -> Any:
    """What a call of the driver returned; RuntimeError if it failed."""
    error, *value = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA: {error.name}")
    return value[0] if value else None
