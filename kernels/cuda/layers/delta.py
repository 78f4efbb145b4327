"""The delta rule within its chunks on the GPU: what weighs the (N, N) products, a triangular inverse; ``delta.cu``.

Same mathematics as ``ramnet_np/layers/delta_rule.py`` and ``triangular.py``, where each of these is one launch.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, type_name

LONGEST = 64  # tokens of a chunk


@cache
def delta_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``, float or double."""
    kernels = "delta_weigh", "delta_weigh_backward", "unit_lower_inverse"
    return Specialisation("layers/delta.cu", kernels, (("ELEMENT", element),))


def delta_weigh(kk: Any, qk: Any, beta: Any, log_g: Any) -> tuple[Any, Any, Any]:
    """A and P in the place of kk and qk (..., N, N), C-contiguous, and L; beta, log_g: (..., N, 1)."""
    import cupy

    below = cupy.empty(kk.shape, dtype=kk.dtype)
    kernel = get_kernel(delta_specialisation(type_name(kk.dtype)), "delta_weigh")
    beta, log_g = contiguous_aligned(beta), contiguous_aligned(log_g)
    arguments = (kk, qk, beta, log_g, np.int64(kk.size), np.int32(kk.shape[-1]), below)
    kernel((-(-kk.size // 256),), (256,), arguments)
    return kk, qk, below


def delta_weigh_backward(dL: Any, dP: Any, A: Any, P: Any, beta: Any, log_g: Any) -> tuple[Any, Any, Any, Any]:
    """Gradients of k.k and q.k in the place of dL and dP (..., N, N), C-contiguous, of beta and log_g (..., N, 1)."""
    import cupy

    tokens = _tokens(dL)
    dbeta, dlog_g = (cupy.empty(beta.shape, dtype=beta.dtype) for _ in range(2))
    kernel = get_kernel(delta_specialisation(type_name(dL.dtype)), "delta_weigh_backward")
    arguments = (dL, dP, A, P, contiguous_aligned(beta), contiguous_aligned(log_g), np.int32(tokens), dbeta, dlog_g)
    kernel((dL.size // tokens**2,), (256,), arguments)
    return dL, dP, dbeta, dlog_g


def unit_lower_inverse(below: Any) -> Any:
    """(I + L)^-1 of every L (..., N, N), by substitution from the first row on."""
    import cupy

    below = contiguous_aligned(below)
    size = _tokens(below)
    inverse = cupy.empty(below.shape, dtype=below.dtype)
    kernel = get_kernel(delta_specialisation(type_name(below.dtype)), "unit_lower_inverse")
    shared = 2 * size**2 * below.itemsize
    kernel((below.size // size**2,), (size,), (below, np.int32(size), inverse), shared_mem=shared)
    return inverse


def _tokens(matrices: Any) -> int:
    tokens: int = matrices.shape[-1]
    if tokens > LONGEST:
        raise ValueError(f"the GPU takes chunks of at most {LONGEST} tokens, got {tokens}")
    return tokens
