"""The peers of the GPU backend: the authors' CUDA kernels, and torch's causal attention.

Only benchmarks import torch, and a user starts them on purpose.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from .cpu import Shape
from .gpu_shapes import GAMMA, Dtype, draw, itemsize

# name of a shape -> B, T, H, d of the attention in a Transformer of the same size
ATTENTION = {"paper 340M": (16, 4096, 16, 64)}


def load_authors() -> Any:
    """The operation of the package ``ramnet-ops``; ImportError if it or torch is not installed."""
    import torch  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ramnet_ops import random_access_memory_attention
    return random_access_memory_attention


def measure_authors(
    operation: Any, shape: Shape, k: int, dtype: Dtype, repeats: int, alike: bool = False
) -> dict[str, float]:
    """Medians in ms of forward, and of forward and backward; and the peak memory in MiB, inputs included."""
    import torch

    half = itemsize(dtype) == 2  # DLPack does not take NumPy's bfloat16, so 16-bit types go as integers
    arrays = [torch.from_dlpack(a.view(np.int16) if half else a) for a in draw(shape, dtype, alike=alike)]
    if half:
        arrays = [a.view(getattr(torch, dtype)) for a in arrays]
    *inputs, dy = arrays

    def attend(*leaves: Any) -> Any:
        return operation(*leaves, GAMMA, embed_num=shape.H // 2, top_k=k)[0]

    row = _measure(attend, inputs, dy, repeats)
    row["MiB"] += sum(a.nbytes for a in arrays) / 2**20  # the inputs are in CuPy's pool
    return row


def measure_attention(name: str, repeats: int) -> dict[str, float]:
    """The same measurement for ``scaled_dot_product_attention``, causal, in bfloat16."""
    import torch

    B, T, H, d = ATTENTION[name]
    q, k, v, dy = (torch.randn(B, H, T, d, device="cuda", dtype=torch.bfloat16) for _ in range(4))

    def attend(*leaves: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

    return _measure(attend, [q, k, v], dy, repeats)


def _measure(attend: Callable[..., Any], inputs: list[Any], dy: Any, repeats: int) -> dict[str, float]:
    import torch

    def forward() -> Any:
        with torch.no_grad():
            return attend(*inputs)

    def both() -> Any:
        leaves = [a.detach().requires_grad_() for a in inputs]
        attend(*leaves).backward(dy)
        return leaves

    def median(call: Callable[[], Any]) -> float:
        for _ in range(3):
            call()
        times = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return float(np.median(times))

    row = {"fwd": median(forward), "fwd+bwd": median(both)}
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    row["MiB"] = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.empty_cache()
    return row
