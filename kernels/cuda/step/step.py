"""One token on the GPU: decode, write and read, updating the state in place; see ``step.cu``.

Up to K = P = 64 that is one launch, compiled for U, P, K and C; beyond, two of the decoder and one for the memory.
What the launch needs beside its arrays is worked out once for each signature of a call: ``_plan``.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import DecodeOptions, MemoryOptions, RAMState

from ..address.decode import decode_forward
from ..runtime.arrays import NULL, null_or, plain, token_strides
from ..runtime.module import Launch, Specialisation, struct, sum_dtype, type_name

MOST = 64  # K and P of the fused kernel


@functools.cache
def step_specialisation(
    element: str, order: int, radix: int, write_k: int, read_k: int, channels: int
) -> Specialisation:
    """``step.cu`` for values of the type ``element``: fused if it can be, else given the addresses."""
    if max(radix, write_k, read_k) > MOST:
        return Specialisation("step/step.cu", ("step_addressed",), (("ELEMENT", element),))
    return Specialisation(
        "step/step.cu",
        ("step",),
        (
            ("ELEMENT", element), ("ORDER", order), ("RADIX", radix), ("WRITES", write_k), ("READS", read_k),
            ("CHANNELS", channels), ("THREADS", _threads(element, write_k + read_k, channels)),
        ),
    )  # fmt: skip


def _threads(element: str, events: int, channels: int) -> int:
    """Of a block: two rows a thread, 16 bytes of each; at least the two warps that decode."""
    wide = 16 // (8 if element == "double" else 4)
    while channels % wide:
        wide //= 2
    wanted = events * (channels // wide) // 2
    return min(256, max(64, -(-wanted // 32) * 32))


@functools.lru_cache(maxsize=1024)
def _plan(
    shape: tuple[int, ...],  # of logits
    channels: int,
    dtype: np.dtype,
    gamma: float | None,  # None: an array
    batch_stride: int,  # of positions
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Launch:
    B, _, H, U, P = shape
    sums = sum_dtype(dtype).type
    write_k, read_k, write_renorm, read_renorm, cape_heads = decode
    specialisation = step_specialisation(type_name(dtype), U, P, write_k, read_k, channels)
    [name] = specialisation.kernels
    number, eps = sums(0 if gamma is None else gamma), sums(options.eps)
    mass_aware, gsu = np.int32(options.mass_aware), np.int32(options.update == "gsu")
    if name == "step":
        constants = struct(
            batch_stride=np.int64(batch_stride), one_gamma=number, eps=eps, heads=np.uint32(H),
            cape_heads=np.uint32(cape_heads), write_renorm=np.int32(write_renorm), read_renorm=np.int32(read_renorm),
            mass_aware=mass_aware, gsu=gsu,
        )  # fmt: skip
        threads = _threads(type_name(dtype), write_k + read_k, channels)
        return Launch(specialisation, name, (B * H,), threads, (constants,))
    sizes = np.int32(write_k), np.int32(read_k), np.int32(H), np.int32(channels), np.int64(options.slots)
    threads = min(256, max(32, -(-max(channels, write_k, read_k) // 32) * 32))
    shared = (write_k + read_k) * np.dtype(sums).itemsize
    return Launch(specialisation, name, (B * H,), threads, (number, *sizes, mass_aware, eps, gsu), shared)


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

    y = cupy.empty(values.shape, dtype=values.dtype)
    if not y.size:
        return y
    number, gamma = (gamma, NULL) if isinstance(gamma, float) else (None, plain(gamma))
    launch = _plan(
        write_logits.shape, values.shape[3], values.dtype, number, token_strides(positions)[0], decode, options
    )
    slots, mass = plain(state.slots), plain(state.mass)
    values = plain(values)
    mask = NULL if mask is None else plain(mask)
    if launch.name == "step":
        launch(plain(write_logits), plain(read_logits), values, gamma, mask, null_or(positions), slots, mass, y)
    else:
        top_k, renorm = (decode.write_k, decode.read_k), (decode.write_renorm, decode.read_renorm)
        write, read = decode_forward((write_logits, read_logits), top_k, renorm, decode.cape_heads, positions)
        launch(write[0], write[1], read[0], read[1], values, gamma, mask, slots, mass, y)
    for part, worked_on in ((state.slots, slots), (state.mass, mass)):
        if worked_on is not part:  # of another layout, so that a copy was updated
            part[...] = worked_on
    return y
