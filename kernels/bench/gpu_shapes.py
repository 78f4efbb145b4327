"""The shapes of the GPU benchmarks, inputs for them, and the floor: a time that no kernel can go below."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ramnet_np.contract import Array

from .cpu import Shape, traffic

Dtype = Literal["float32", "bfloat16", "float16"]

# name -> shape, K
SHAPES: dict[str, tuple[Shape, int]] = {
    "paper 340M": (Shape(16, 4096, 16, 5, 4, 64), 8),
    "quarter batch": (Shape(4, 4096, 16, 5, 4, 64), 8),
    "MQAR": (Shape(64, 256, 2, 5, 4, 64), 8),
    "MQAR wide": (Shape(256, 256, 4, 5, 4, 32), 8),
    "one long row": (Shape(1, 65536, 16, 5, 4, 64), 8),
    "many slots": (Shape(4, 4096, 16, 8, 4, 64), 8),
    "top-32": (Shape(4, 4096, 16, 5, 4, 64), 32),
    "MQAR, M 256": (Shape(256, 256, 4, 4, 4, 32), 16),
    "MQAR, M 64": (Shape(256, 256, 4, 3, 4, 32), 16),
    "alike": (Shape(8, 4096, 16, 5, 4, 64), 8),
}
ALIKE = {"alike"}  # shapes whose tokens share slots as much as those of a new paper-340m do
STEP = Shape(0, 1, 16, 5, 4, 64)  # one token; B is in STEP_BATCHES
STEP_BATCHES = (1, 16, 256)
GAMMA = 0.0  # for the gated sparse update, the authors' only rule; 0 makes it a moving average


def floors(shape: Shape, dtype: Dtype, bandwidth: float) -> tuple[float, float]:
    """Milliseconds to move the inputs and outputs of a forward, and of a forward and backward, each read or written
    once at ``bandwidth`` bytes per second.

    >>> [round(ms, 2) for ms in floors(SHAPES["paper 340M"][0], "float32", 3.03e12)]
    [0.23, 0.61]
    """
    forward, both = (1e3 * traffic(shape, gradients) * itemsize(dtype) / 4 / bandwidth for gradients in (False, True))
    return forward, both


def itemsize(dtype: Dtype) -> int:
    """Bytes of an element."""
    return 4 if dtype == "float32" else 2


def numpy_dtype(name: Dtype) -> np.dtype:
    """The dtype with this name; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def draw(shape: Shape, dtype: Dtype, seed: int = 0, alike: bool = False) -> list[Array]:
    """Random write logits, read logits, values and dy, on the device.

    ``alike``: half of the logits' variance is common to all tokens, writes and reads of a head. At K 8 and M 1024, 410
    of the 512 accesses of 32 tokens then share their slots with others.
    """
    import cupy

    B, T, H, U, P, C = shape
    rng = cupy.random.default_rng(seed)
    sizes = ((B, T, H, U, P), (B, T, H, U, P), (B, T, H, C), (B, T, H, C))
    arrays = [rng.standard_normal(size, dtype=np.float32) for size in sizes]
    if alike:
        common = rng.standard_normal((H, U, P), dtype=np.float32)
        arrays[0] += common
        arrays[1] += common
    return [array.astype(numpy_dtype(dtype)) for array in arrays]
