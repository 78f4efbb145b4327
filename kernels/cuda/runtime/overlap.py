"""Launches that begin while the one before them still runs (CUDA: programmatic dependent launch).

    launch k        its weights │ x ········ y │
    launch k + 1         its weights ········· │ x ········ y │

A kernel that takes part asks for what no launch before it writes, its weights, lets the next launch begin
(``let_next_launch_begin`` of overlap.cuh), and waits until the launch before it has ended (``wait_for_launch_before``).
Every thread waits, so a launch that has ended says that all before it have. Beside a launch that was made otherwise, a
kernel that takes part begins when that has ended, and the other way round.

This is done within ``ramnet_np.contract.weights_stay`` alone, on GPUs from compute capability 9.0 on with a
driver of CUDA 12.3 or later; elsewhere the same kernel is launched as any other. The bits are the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import numpy as np

from ramnet_np.contract import weights_are_staying

CAPABILITY, DRIVER = 90, 12030  # of the first GPUs and of the first driver that overlap launches within a graph
_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = (("id", ctypes.c_int), ("value", ctypes.c_int * 17))  # a union of 64 bytes, aligned to 8


class _Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


def launch(kernel: Any, grid: tuple[int, ...], threads: int, params: Any, shared: int = 0, early: bool = True) -> None:
    """Launch ``kernel`` (``cupy.RawKernel``), which takes the struct ``params``, on the current stream.

    ``shared``: bytes of dynamic shared memory; ``early``: whether no launch just before wrote what it reads early.
    """
    import cupy

    if not (early and weights_are_staying() and _possible(cupy.cuda.runtime.getDevice())):
        kernel(grid, (threads,), (params,), shared_mem=shared)
        return
    attribute = _Attribute(_SERIALIZATION)
    attribute.value[1] = 1  # behind the padding
    stream = cupy.cuda.get_current_stream().ptr
    config = _Config((*grid, 1, 1)[:3], (threads, 1, 1), shared, stream, ctypes.pointer(attribute), 1)
    struct = np.array(params)
    arguments = (ctypes.c_void_p * 1)(struct.ctypes.data)
    status = _driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(kernel.kernel.ptr), arguments, None)
    if status:
        raise RuntimeError(f"the driver refused to launch {kernel.name} beside the launch before it, error {status}")


@functools.cache
def _possible(device: int) -> bool:
    import cupy

    capability = int(cupy.cuda.Device(device).compute_capability)
    return capability >= CAPABILITY and cupy.cuda.runtime.driverGetVersion() >= DRIVER


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
