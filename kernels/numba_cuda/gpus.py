"""Which GPU holds an array of any library, and how work gets there.

``__cuda_array_interface__`` says at which address an array lies, not on which GPU. All GPUs of a process share one
range of addresses, so the driver knows. Numba allocates and launches on the current GPU. A kernel that ran elsewhere
would end in an illegal memory access, after which the process can use no GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ramnet_np.backend import array_kind

from .compiler import SIMULATED, cuda


def gpu_of(array: Any) -> int | None:
    """The number of the GPU that holds ``array``; None for what is no array on a GPU, or holds nothing."""
    kind = array_kind(array)
    if kind == "cupy":
        return array.data.device_id
    if kind != "device" or SIMULATED:
        return None
    from cuda.bindings import driver

    address = array.__cuda_array_interface__["data"][0]
    ordinal = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, gpu = driver.cuPointerGetAttribute(ordinal, address)
    return gpu if error == driver.CUresult.CUDA_SUCCESS else None


def on_gpu(gpu: int) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, for Numba and for every library that follows the driver, and then restores it."""
    return nullcontext() if SIMULATED else cuda.gpus[gpu]
