"""Tokens from logits on the GPU, one launch each, and nothing is read back; see ``sampling.cu``."""

from __future__ import annotations

from functools import cache

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, sum_dtype, type_name
from ..runtime.overlap import launch
from ..runtime.params import INT, POINTER, ParamStruct

THREADS = 1024  # of a block with a row of logits: one for each bin of a draw
ROWS = 128  # threads of a block with one row each

_DOUBLE = np.dtype(np.float64)
SAMPLING_PARAMS = ParamStruct(
    "SamplingParams", logits=POINTER, seen=POINTER, u=POINTER, weights=POINTER, tokens=POINTER, temperature=_DOUBLE,
    top_p=_DOUBLE, min_p=_DOUBLE, penalty=_DOUBLE, width=INT, top_k=INT,
)  # fmt: skip


@cache
def sampling_specialisation(element: str) -> Specialisation:
    """For logits of the type ``element``."""
    kernels = "likeliest", "draw", "mark_seen", "uniform"
    return Specialisation("layers/sampling.cu", kernels, (("ELEMENT", element),), (SAMPLING_PARAMS,))


def sample_tokens(
    logits: Array,
    u: Array = None,
    seen: Array = None,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Array:
    """One token (B,) int64 for each row of ``logits`` (B, V); -1 where the largest is not finite."""
    logits, greedy = contiguous_aligned(logits), temperature == 0
    rows, width = logits.shape
    seen = None if seen is None or repetition_penalty == 1 else contiguous_aligned(seen)
    u = None if greedy else contiguous_aligned(u)
    tokens = empty((rows,), np.int64)
    if not rows:
        return tokens
    kernel = get_kernel(sampling_specialisation(type_name(logits.dtype)), "likeliest" if greedy else "draw")
    sums = sum_dtype(logits.dtype)
    row_bytes = 0 if greedy else width * sums.itemsize
    in_shared = row_bytes <= kernel.max_dynamic_shared_size_bytes
    weights = None if in_shared else empty(logits.shape, sums)
    params = SAMPLING_PARAMS(
        logits=logits, seen=seen, u=u, weights=weights, tokens=tokens, temperature=temperature, top_p=top_p,
        min_p=min_p, penalty=repetition_penalty, width=width, top_k=min(top_k or width, width),
    )  # fmt: skip
    launch(kernel, (rows,), THREADS, params, row_bytes if in_shared else 0)
    return tokens


def mark_seen(seen: Array, tokens: Array) -> None:
    """Set ``seen`` (B, V), C-contiguous, in place where row b has token ``tokens[b]``."""
    rows, width = seen.shape
    _launch_rows("mark_seen", rows, seen, contiguous_aligned(tokens), np.int32(rows), np.int32(width))


def uniform(seeds: Array, positions: Array) -> Array:
    """One number in [0, 1) for each row, (B,) float64."""
    numbers = empty(seeds.shape, np.float64)
    positions = contiguous_aligned(positions.astype(np.int64, copy=False))
    _launch_rows("uniform", len(seeds), contiguous_aligned(seeds), positions, np.int32(len(seeds)), numbers)
    return numbers


def _launch_rows(name: str, rows: int, *arguments: object) -> None:
    """A kernel with one thread a row, which is the same for every type of logits."""
    if rows:
        get_kernel(sampling_specialisation("float"), name)((-(-rows // ROWS),), (ROWS,), arguments)
