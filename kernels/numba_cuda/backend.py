"""The backend "numba-cuda". Importing this needs numba-cuda-mlir and a GPU, or Numba's simulator; else ImportError."""

from __future__ import annotations

from typing import Any

from ramnet_np.backend import Backend, array_kind, by_side

from ..cuda.layers import LAYERS
from ..gpu_errors import explain_out_of_memory
from . import decode
from .arrays import DEVICE, NUMBERS, working_dtype
from .compiler import COMPILER, SIMULATED, cuda
from .copy_kernels import SUM_THREADS, total_kernel
from .gpus import gpu_of, on_gpu
from .memory import memory_backward, memory_forward
from .step import step

if not COMPILER:
    raise ImportError(
        "numba-cuda-mlir, which compiles its kernels, is not installed (pip install 'ramnet-np[cuda13]', or "
        "'ramnet-np[cuda12]' for drivers before 580)"
    )
if not SIMULATED and not cuda.is_available():
    raise ImportError(f"{COMPILER} finds no NVIDIA GPU or driver that it can use")


def from_foreign(array: Any) -> Any:
    """The same memory as an array that this backend computes with: CuPy's stay, others become Numba's device arrays."""
    if array_kind(array) != "device" or hasattr(array, "__cuda_ndarray__"):
        return array
    return cuda.as_cuda_array(array)


def total(array: Any) -> Any:
    """The sum of an array, an array of no axes on the device."""
    if array_kind(array) == "cupy":
        return array.sum()
    result = DEVICE.empty((1,), working_dtype(array.dtype))
    array = DEVICE.contiguous(array, result.dtype)
    total_kernel(NUMBERS[result.dtype])(1, SUM_THREADS, DEVICE.stream, array, result, array.size)
    return result.reshape(())


decode_forward, decode_backward = by_side(decode.decode_forward, decode.decode_backward)
_of_a_sequence = explain_out_of_memory("reduce B or T, or leave out the returned state with return_state=False")

BACKEND = Backend(
    name="numba-cuda",
    decode_forward=_of_a_sequence(decode_forward),
    decode_backward=_of_a_sequence(decode_backward),
    memory_forward=_of_a_sequence(memory_forward),
    memory_backward=_of_a_sequence(memory_backward),
    step=explain_out_of_memory("reduce B")(step),
    array_kind="device",
    also_serves=("cupy",),
    accepts_short_positions=True,
    layers=LAYERS,
    from_foreign=from_foreign,
    gpu_of=gpu_of,
    on_gpu=on_gpu,
    total=total,
    made_by=f"run by {COMPILER}" if SIMULATED else f"compiled by {COMPILER}",
)
