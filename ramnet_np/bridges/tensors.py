"""PyTorch's tensors as arrays of NumPy or CuPy, and back: the same memory, never a copy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from ramnet_np.bridges.streams import cupy_stream
from ramnet_np.contract import Array


def array_of(tensor: torch.Tensor | None) -> Array:
    """A tensor's memory as a NumPy array, or as a CuPy array where it is on a GPU; None for None.

    >>> x = torch.zeros(2, 3)
    >>> array_of(x.T)[2, 1] = 5
    >>> x[1, 2].item()
    5.0
    """
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.numpy()
    import cupy

    # DLPack would take thirty times as long. The array keeps the tensor, and so the memory.
    memory = cupy.cuda.UnownedMemory(tensor.data_ptr(), tensor.nbytes, tensor, tensor.get_device())
    dtype = dtype_of(tensor.dtype)
    strides = [dtype.itemsize * stride for stride in tensor.stride()]
    return cupy.ndarray(tensor.shape, dtype, cupy.cuda.MemoryPointer(memory, 0), strides)


def tensor_of(array: Array) -> torch.Tensor:
    """The memory of a NumPy or CuPy array as a contiguous tensor.

    >>> x = np.zeros(3)
    >>> tensor_of(x)[1] = 5
    >>> x.tolist()
    [0.0, 5.0, 0.0]
    """
    if isinstance(array, (np.ndarray, np.generic)):
        return torch.from_numpy(np.asarray(array)).contiguous()
    if array.dtype.name == "bfloat16":
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16).contiguous()
    return torch.from_dlpack(array).contiguous()


@contextmanager
def as_torch_would(device: torch.device) -> Iterator[None]:
    """Let CuPy run on torch's current stream, with memory from torch's allocator; nothing on the CPU.

    >>> with as_torch_would(torch.device("cpu")):
    ...     pass
    """
    if device.type == "cpu":
        yield
        return
    import cupy

    with on_torchs_stream(device), cupy.cuda.using_allocator(_torch_allocator().malloc):
        yield


@contextmanager
def on_torchs_stream(device: torch.device) -> Iterator[None]:
    """Let CuPy run on this GPU and on torch's current stream of it, where it does not already; nothing on the CPU.

    >>> with on_torchs_stream(torch.device("cpu")):
    ...     pass
    """
    if device.type == "cpu":
        yield
        return
    import cupy

    stream = torch.cuda.current_stream(device.index).cuda_stream
    if device.index == cupy.cuda.runtime.getDevice() and stream == cupy.cuda.get_current_stream().ptr:
        yield
        return
    with cupy.cuda.Device(device.index), cupy_stream(stream):
        yield


@cache
def _torch_allocator() -> Any:
    """An allocator of CuPy's that asks torch's: one pool of memory, whose blocks belong to the stream of the call."""
    import cupy

    def allocate(size: int, gpu: int) -> int:
        return torch.cuda.caching_allocator_alloc(size, gpu, cupy.cuda.get_current_stream().ptr)

    def free(pointer: int, gpu: int, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if not ending():  # what is still cached when Python ends: torch is gone by then, and so is the memory
            torch.cuda.caching_allocator_delete(pointer)

    return cupy.cuda.PythonFunctionAllocator(allocate, free)


@cache
def dtype_of(dtype: torch.dtype) -> np.dtype:
    """NumPy's dtype for torch's.

    >>> dtype_of(torch.float32)
    dtype('float32')
    """
    if dtype == torch.bfloat16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return torch.empty(0, dtype=dtype).numpy().dtype
