"""One token on the GPU: decode, write and read, updating the state in place; see ``step.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.backend import DecodeOptions, MemoryOptions
from ramnet_np.core.state import RAMState

from .arrays import plain
from .decode import decode_forward
from .module import Specialisation, get_kernel, sum_dtype, type_name

NULL = np.uint64(0)


@functools.cache
def step_specialisation(element: str) -> Specialisation:
    """``step.cu`` for values of the type ``element``."""
    return Specialisation("step.cu", ("step",), (("ELEMENT", element),))


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
    import cupy

    B, _, H, C = values.shape
    write_slot, w, _ = decode_forward(write_logits, decode.write_k, decode.write_renorm, decode.cape_heads, positions)
    read_slot, r, _ = decode_forward(read_logits, decode.read_k, decode.read_renorm, decode.cape_heads, positions)
    values, slots, mass = plain(values), plain(state.slots), plain(state.mass)
    y = cupy.empty((B, 1, H, C), dtype=values.dtype)
    if not B:
        return y
    constant, sums = isinstance(gamma, float), sum_dtype(values.dtype)
    threads = min(256, max(32, -(-max(C, decode.write_k, decode.read_k) // 32) * 32))
    get_kernel(step_specialisation(type_name(values.dtype)), "step")(
        (B * H,),
        (threads,),
        (
            write_slot, w, np.int32(decode.write_k), read_slot, r, np.int32(decode.read_k), values,
            NULL if constant else plain(gamma), sums.type(gamma if constant else 0),
            NULL if mask is None else plain(mask), np.int32(H), np.int32(C), np.int64(options.slots),
            np.int32(options.mass_aware), sums.type(options.eps), np.int32(options.update == "gsu"), slots, mass, y,
        ),
        shared_mem=(decode.write_k + decode.read_k) * sums.itemsize,
    )  # fmt: skip
    for part, worked_on in ((state.slots, slots), (state.mass, mass)):
        if worked_on is not part:  # of another layout, so that a copy was updated
            part[...] = worked_on
    return y
