"""What can be missing or run out on a GPU, each said in one sentence with what to install or change."""

from __future__ import annotations

import importlib
from typing import Any

from ...gpu_errors import why_lost

WHEELS = "cupy-cuda13x for driver 580 and later, cupy-cuda12x before"


def import_cupy() -> Any:
    """The module ``cupy``; ImportError if its libraries do not load or it finds no GPU.

    What it finds is what the driver allows: CUDA's answer to "how many GPUs" is an error for a missing driver, for one
    too old for the CUDA that CuPy was built for, and for a machine without a GPU.
    """
    try:
        cupy = importlib.import_module("cupy")
    except Exception as error:  # CuPy wraps what its libraries raise, in several lines
        raise ImportError(
            f"CuPy is installed but does not import ({_last_line(error)}); it may be built for another CUDA: remove "
            f"every cupy package and install one, {WHEELS}"
        ) from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise ImportError(_why_no_gpu(cupy, error)) from error
    if count == 0:
        raise ImportError(_why_no_gpu(cupy, None))
    return cupy


def _why_no_gpu(cupy: Any, error: Exception | None) -> str:
    try:
        driver = cupy.cuda.runtime.driverGetVersion()
    except cupy.cuda.runtime.CUDARuntimeError:
        driver = 0
    built_for = cupy.cuda.runtime.runtimeGetVersion()
    if driver == 0:
        return f"CuPy {cupy.__version__} finds no NVIDIA driver; it needs an NVIDIA GPU and its driver: {WHEELS}"
    if driver // 1000 < built_for // 1000:
        return (
            f"the NVIDIA driver serves CUDA {_version(driver)}, too old for CuPy {cupy.__version__} with CUDA "
            f"{_version(built_for)}: update the driver or install the CuPy for it, {WHEELS}"
        )
    reason = f" ({_last_line(error)})" if error else ""
    return (
        f"CuPy {cupy.__version__} finds no NVIDIA GPU{reason}; see what nvidia-smi lists and what CUDA_VISIBLE_DEVICES "
        "leaves visible"
    )


def why_not_compiled(cupy: Any, what: str, options: tuple[str, ...], error: Exception) -> str:
    """Why ``what`` did not become a kernel: its compiler is missing or refuses it, the driver refuses the result, or
    the GPU was lost before.
    """
    if lost := why_lost(error):
        return f"{what} could not be loaded: {lost}"
    if isinstance(error, cupy.cuda.compiler.CompileException):
        lines = str(error).splitlines()
        first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
        return f"{what} could not be compiled with {' '.join(options)}: {first.strip()}"
    if "nvrtc" in str(error).lower():
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return (
            f"{what} could not be compiled, as NVRTC, CUDA's compiler at run time, does not load "
            f"({_last_line(error)}): pip install 'cupy-cuda{major}x[ctk]', or install the CUDA {major} toolkit"
        )
    return (
        f"{what} was compiled but not loaded ({_last_line(error)}): the driver may be older than NVRTC; update it, or "
        "install the NVRTC of its CUDA"
    )


def _last_line(error: BaseException) -> str:
    """What lies at the bottom of an error, without the lines of advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def _version(number: int) -> str:
    """A version of CUDA from its number: 12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
