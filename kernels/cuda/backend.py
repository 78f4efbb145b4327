"""The backend "cupy". Importing this needs CuPy and a GPU; ImportError says which of them is missing, and why."""

import cupy

from ramnet_np.backend import Backend

from .decode import decode_backward, decode_forward
from .fused import FUSED
from .memory import memory_backward, memory_forward
from .step import step

try:
    cupy.cuda.runtime.getDeviceCount()
except cupy.cuda.runtime.CUDARuntimeError as error:
    raise ImportError(
        f"CuPy {cupy.__version__} finds no NVIDIA GPU that it can use ({error}); it needs one, and a driver for the "
        "CUDA that it was built for: cupy-cuda13x for driver 580 and later, cupy-cuda12x before"
    ) from error

BACKEND = Backend(
    name="cupy",
    decode_forward=decode_forward,
    decode_backward=decode_backward,
    memory_forward=memory_forward,
    memory_backward=memory_backward,
    step=step,
    array_kind="cupy",
    fused=FUSED,
)
