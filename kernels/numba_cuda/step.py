"""One token, for inference: the launch of ``step_kernel.py``."""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState

from .arrays import NUMBERS, arrays_like, batch_stride, working_dtype
from .compiler import SIMULATED
from .decode_generic import Positions, list_sizes
from .launch import shared_limit
from .records import TokenOptions
from .step_kernel import StepInputs, StepSizes, StepState, step_kernel

THREADS = 4 if SIMULATED else 64


def step(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array,
    positions: Array | None,
    mask: Array | None,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Array:
    """T = 1: update ``state`` and return y (B, 1, H, C). O(K C) per head."""
    B, _, H, C = values.shape
    U, P = write_logits.shape[3:]
    arrays, dtype = arrays_like(values), working_dtype(values.dtype)
    one_gamma = isinstance(gamma, float)
    positions = None if positions is None else arrays.contiguous(positions, np.int64)
    list_size = max(list_sizes(U, P, k) for k in (decode.write_k, decode.read_k))
    shared = (2 * list_size + decode.write_k + decode.read_k) * (dtype.itemsize + 4)
    if shared > shared_limit():
        raise ValueError(
            f"top_k must leave room for a token's lists in shared memory, got {decode.write_k, decode.read_k}"
        )
    y = arrays.empty(values.shape, dtype)
    parts = StepState(*(arrays.contiguous(part, dtype) for part in state))
    token_options = TokenOptions(
        None if one_gamma else arrays.contiguous(gamma, dtype),
        None if mask is None else arrays.contiguous(mask, np.bool_),
        dtype.type(gamma if one_gamma else 0), int(one_gamma), int(mask is not None),
    )  # fmt: skip
    sizes = StepSizes(
        1, H, U, P, options.slots, decode.cape_heads, C, decode.write_k, decode.read_k, int(decode.write_renorm),
        int(decode.read_renorm), int(options.mass_aware), list_size,
    )  # fmt: skip
    step_kernel(NUMBERS[dtype], options.update)(
        B * H, THREADS, arrays.stream,
        StepInputs(*(arrays.contiguous(a, dtype) for a in (write_logits, read_logits, values))), token_options,
        Positions(positions, batch_stride(positions), int(positions is None)), parts, y, dtype.type(options.eps), sizes,
        shared=shared,
    )  # fmt: skip
    for part, updated in zip(state, parts, strict=True):
        if updated is not part:  # of another layout, so that a copy was updated
            arrays.scatter(updated, part)
    return arrays.contiguous(y, values.dtype)
