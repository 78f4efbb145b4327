"""The compiler of the kernels, and what the other files use of it.

On a GPU it is numba-cuda-mlir. Its predecessor numba-cuda is no longer developed and does not work with NumPy 2.5 and
later, so it compiles nothing here. Under the simulator (NUMBA_ENABLE_CUDASIM=1) the kernels run as Python functions in
``numba.cuda``, which comes with Numba: numba-cuda-mlir has no simulator, and need not be installed for it. Where it is
missing and nothing is simulated, these modules can still be imported; the backend says what to install.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numba
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
COMPILER = ""  # its name and version, if there is one

if not SIMULATED and find_spec("numba_cuda_mlir") is not None:
    import numba_cuda_mlir as compiler
    from numba_cuda_mlir import carray
    from numba_cuda_mlir.numba_cuda.np.numpy_support import from_dtype

    COMPILER = f"numba-cuda-mlir {compiler.__version__}"
else:
    import numba as compiler
    from numba.np.numpy_support import from_dtype

    def carray(array: Any, shape: Any) -> Any:
        """The array itself: in the simulator pointers are arrays."""
        return array

    if SIMULATED:
        COMPILER = f"the simulator of Numba {numba.__version__}"

cuda: Any = import_module(f"{compiler.__name__}.cuda")
types: Any = compiler.types
int32, int64, uint32, uint64 = types.int32, types.int64, types.uint32, types.uint64
float32, float64 = types.float32, types.float64

__all__ = [
    "COMPILER", "SIMULATED", "carray", "cuda", "float32", "float64", "from_dtype", "int32", "int64", "types", "uint32",
    "uint64",
]  # fmt: skip
