"""What tests of the Numba CUDA backend share: in the simulator they run anywhere, small; else they need a GPU."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda.compiler import SIMULATED, cuda

from tests.operation_cases import Case, Inputs, run

NEEDS_GPU = [] if SIMULATED else [pytest.mark.gpu]
NEEDS_SIMULATOR = pytest.mark.skipif(not SIMULATED, reason="NUMBA_ENABLE_CUDASIM=1 chooses the simulator")
if SIMULATED:
    from tests.kernels.simulator import take_turns

    take_turns()


def sized(case: Case) -> Case:
    """The case as it is on a GPU, or what is left of it that the simulator computes in a second."""
    if not SIMULATED:
        return case
    small = replace(case, B=min(case.B, 2), T=min(case.T, 3 if case.H > 2 else 5), C=min(case.C, 3))
    if case.state or case.dstate:  # with M slots each to be given or returned
        small = replace(small, U=min(case.U, 5 if case.P < 4 else 3))
    if isinstance(case.K, int):
        small = replace(small, K=min(case.K, small.slots))
    return small


def on_host(value: Any) -> Any:
    """A NumPy array of any array on the device."""
    return value.copy_to_host() if hasattr(value, "copy_to_host") else value.get()


def to_device(array: Any) -> Any:
    """Numba's device array of an array of any layout."""
    return cuda.to_device(np.ascontiguousarray(array))


def on_device(inputs: Inputs, runner: Any = run, convert: Any = to_device) -> dict[str, np.ndarray]:
    """Results of the backend, on the host, from Numba's arrays or those that ``convert`` makes."""
    return {name: on_host(value) for name, value in runner(inputs, "numba-cuda", convert).items()}
