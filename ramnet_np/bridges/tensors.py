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

# what DLPack does not take under a name that both sides know goes as integers of the same size
_AS_INTEGERS = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}


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

    if tensor.dtype not in _AS_INTEGERS:
        return cupy.from_dlpack(tensor)
    integers = cupy.from_dlpack(tensor.view(_AS_INTEGERS[tensor.dtype]))
    return integers.view(_bfloat16() if tensor.dtype == torch.bfloat16 else np.dtype(bool))


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

    stream = torch.cuda.current_stream(device).cuda_stream
    with (
        cupy.cuda.Device(device.index),
        cupy_stream(stream),
        cupy.cuda.using_allocator(_torch_allocator().malloc),
    ):
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


def _bfloat16() -> np.dtype:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)
