"""One token, for inference: the launch of ``step_kernels.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import DecodeOptions, MemoryOptions, RAMState

from .arrays import NUMBERS, arrays_like, batch_stride, sum_dtype
from .decode_kernels import list_sizes
from .launch import SIMULATED, shared_limit
from .step_kernels import step_kernel

THREADS = 4 if SIMULATED else 64


def step(
    write_logits: Any,
    read_logits: Any,
    values: Any,
    gamma: Any,
    positions: Any,
    mask: Any,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Any:
    """T = 1: update ``state`` and return y (B, 1, H, C). O(K C) per head."""
    B, _, H, C = values.shape
    U, P = write_logits.shape[3:]
    arrays, dtype = arrays_like(values), sum_dtype(values.dtype)
    y = arrays.empty(values.shape, dtype)
    number = isinstance(gamma, float)
    positions = None if positions is None else arrays.plain(positions, np.int64)
    lists = max(list_sizes(U, P, k) for k in (decode.write_k, decode.read_k))
    shared = (2 * lists + decode.write_k + decode.read_k) * (dtype.itemsize + 4)
    if shared > shared_limit():
        raise ValueError(
            f"top_k must leave room for a token's lists in shared memory, got {decode.write_k, decode.read_k}"
        )
    parts = RAMState(*(arrays.plain(part, dtype) for part in state))
    step_kernel(NUMBERS[dtype])(
        B * H, THREADS, arrays.stream, *(arrays.plain(a, dtype) for a in (write_logits, read_logits, values)),
        None if number else arrays.plain(gamma, dtype), None if mask is None else arrays.plain(mask, np.bool_),
        positions, *parts, y, dtype.type(gamma if number else 0), dtype.type(options.eps), int(number),
        int(mask is not None), batch_stride(positions), int(positions is None), H, decode.cape_heads, U, P, C,
        options.slots, decode.write_k, decode.read_k, lists, int(decode.write_renorm), int(decode.read_renorm),
        int(options.update == "gsu"), int(options.mass_aware), shared=shared,
    )  # fmt: skip
    for part, worked_on in zip(state, parts, strict=True):
        if worked_on is not part:  # of another layout, so that a copy was updated
            arrays.scatter(worked_on, part)
    return arrays.plain(y, values.dtype)
