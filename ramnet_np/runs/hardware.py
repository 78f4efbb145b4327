"""What a program runs on, for results that record it."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.core.arrays import gpu_namespace

# Operations a second of products with dense matrices, as NVIDIA's data sheets have them: float32 (without TF32),
# bfloat16. A name that is part of another comes after it.
PEAKS = {
    "B200": (80e12, 2250e12),
    "H200": (67e12, 989e12),
    "H100 PCIe": (51e12, 756e12),
    "H100": (67e12, 989e12),
    "A100": (19.5e12, 312e12),
    "L40S": (91.6e12, 362e12),
    "L4": (30.3e12, 121e12),
    "RTX 4090": (82.6e12, 165e12),
    "V100": (15.7e12, 0.0),  # has no bfloat16
}


def peak_flops(gpu: str, dtype: str = "float32") -> float | None:
    """Operations a second that a GPU of this name can do in products of ``dtype``; None where that is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3") == 67e12, peak_flops("another") is None
    (True, True)
    """
    for name, peaks in PEAKS.items():
        if name in gpu:
            return peaks[dtype == "bfloat16"] or None
    return None


def processor() -> str:
    """The processor's name and the number of cores this process may use.

    >>> processor().endswith("cores")
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    return f"{name}, {cores} cores"


@cache
def hardware(device: str) -> dict[str, Any]:
    """Name of the GPU or of the processor, and the versions of what computes there; ``device``: "gpu" or "cpu".

    >>> sorted(hardware("cpu"))
    ['device', 'name', 'numba', 'numpy', 'python']
    """
    found: dict[str, Any] = {"device": device, "python": platform.python_version(), "numpy": np.__version__}
    if device == "gpu":
        cupy = gpu_namespace()
        runtime = cupy.cuda.runtime
        found["name"] = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        return found | {
            "cupy": cupy.__version__,
            "cuda": runtime.runtimeGetVersion(),
            "driver": runtime.driverGetVersion(),
        }
    found["name"] = processor()
    with suppress(ImportError):  # a platform without it computes by NumPy
        import numba

        found["numba"] = numba.__version__
    return found
