"""The delta rule within its chunks on the GPU: decays of the (N, N) products, a triangular inverse; ``delta.cu``.

Same mathematics as ``ramnet_np/layers/delta_rule.py`` and ``triangular.py``, where each of these is one launch.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.layers.triangular import require_power_of_two

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, type_name
from ..runtime.params import INT, POINTER, ParamStruct

MAX_TOKENS = 64  # of a chunk, as in ramnet_np/layers/heads.py
THREADS = 256

DECAY_BACKWARD = ParamStruct(
    "DecayBackwardParams", dL=POINTER, dP=POINTER, A=POINTER, P=POINTER, beta=POINTER, log_g=POINTER, dbeta=POINTER,
    dlog_g=POINTER, tokens=INT,
)  # fmt: skip


@cache
def delta_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``, float or double."""
    kernels = "apply_decay", "apply_decay_backward", "unit_lower_inverse"
    defines = ("ELEMENT", element), ("MAX_TOKENS", MAX_TOKENS), ("THREADS", THREADS)
    return Specialisation("layers/delta.cu", kernels, defines, (DECAY_BACKWARD,))


def apply_decay(kk: Array, qk: Array, beta: Array, log_g: Array) -> tuple[Array, Array, Array]:
    """A and P in the place of kk and qk (..., N, N), C-contiguous, and L; beta, log_g: (..., N, 1)."""
    below = empty(kk.shape, kk.dtype)
    kernel = get_kernel(delta_specialisation(type_name(kk.dtype)), "apply_decay")
    beta, log_g = contiguous_aligned(beta), contiguous_aligned(log_g)
    arguments = (kk, qk, beta, log_g, np.int64(kk.size), np.int32(kk.shape[-1]), below)
    kernel((-(-kk.size // THREADS),), (THREADS,), arguments)
    return kk, qk, below


def apply_decay_backward(
    dL: Array, dP: Array, A: Array, P: Array, beta: Array, log_g: Array
) -> tuple[Array, Array, Array, Array]:
    """Gradients of k.k and q.k in the place of dL and dP (..., N, N), C-contiguous, of beta and log_g (..., N, 1)."""
    tokens = dL.shape[-1]
    _require_short(tokens)
    beta, log_g = contiguous_aligned(beta), contiguous_aligned(log_g)
    dbeta, dlog_g = (empty(beta.shape, beta.dtype) for _ in range(2))
    kernel = get_kernel(delta_specialisation(type_name(dL.dtype)), "apply_decay_backward")
    params = DECAY_BACKWARD(dL=dL, dP=dP, A=A, P=P, beta=beta, log_g=log_g, dbeta=dbeta, dlog_g=dlog_g, tokens=tokens)
    kernel((dL.size // tokens**2,), (THREADS,), (params,))
    return dL, dP, dbeta, dlog_g


def unit_lower_inverse(below: Array) -> Array:
    """(I + L)^-1 of every L (..., N, N), by substitution from the first row on."""
    size = require_power_of_two(below)
    _require_short(size)
    below = contiguous_aligned(below)
    inverse = empty(below.shape, below.dtype)
    kernel = get_kernel(delta_specialisation(type_name(below.dtype)), "unit_lower_inverse")
    shared = 2 * size**2 * below.itemsize
    kernel((below.size // size**2,), (size,), (below, np.int32(size), inverse), shared_mem=shared)
    return inverse


def _require_short(tokens: int) -> None:
    if tokens > MAX_TOKENS:
        raise ValueError(f"the GPU takes chunks of at most {MAX_TOKENS} tokens, got {tokens}")
