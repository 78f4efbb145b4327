"""One token on the GPU: decode, write and read, updating the state in place.

Up to K = P = 64 that is one launch (``step.cu``), compiled for U, P, K and C; beyond, two of the decoder and one for
the memory (``step_plain.cu``). What the launch needs beside its arrays is worked out once for each signature of a call,
in ``step_plan``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ramnet_np.contract import DecodeOptions, MemoryOptions, RAMState

from ..address.decode import decode_forward
from ..memory.retention import require_rule
from ..runtime.arrays import ALIGNMENT, contiguous_aligned, ptr, token_strides
from ..runtime.module import Launch, Specialisation, sum_dtype, type_name
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct

MAX_FUSED_K = 64  # K and P of step.cu


@functools.cache
def step_params(acc: np.dtype, sparse: bool = False) -> ParamStruct:
    """``StepParams`` of step.cu, for accumulators of this dtype."""
    memory = {"table": POINTER} if sparse else {"s": POINTER, "z": POINTER}
    return ParamStruct(
        "StepParams",
        write_logits=POINTER, read_logits=POINTER, values=POINTER, gamma=POINTER, mask=POINTER, positions=POINTER,
        **memory, y=POINTER, batch_stride=LONG, constant_gamma=acc, eps=acc,
        heads=UNSIGNED, cape_heads=UNSIGNED, write_renorm=INT, read_renorm=INT, mass_aware=INT,
    )  # fmt: skip


@functools.cache
def plain_step_params(acc: np.dtype) -> ParamStruct:
    """``PlainStepParams`` of step_plain.cu, for accumulators of this dtype."""
    return ParamStruct(
        "PlainStepParams",
        write_index=POINTER, read_index=POINTER, write_weight=POINTER, read_weight=POINTER, values=POINTER,
        gamma=POINTER, mask=POINTER, s=POINTER, z=POINTER, y=POINTER, slots=LONG, constant_gamma=acc, eps=acc,
        writes=INT, reads=INT, heads=INT, channels=INT, mass_aware=INT,
    )  # fmt: skip


@functools.cache
def step_specialisation(
    element: str, order: int, radix: int, write_k: int, read_k: int, channels: int, update: str, row: str | None = None
) -> Specialisation:
    """``step.cu`` for values of the type ``element`` if it serves U, P, K and C, else ``step_plain.cu``.

    ``row``: the type of contents in the rows of a sparse state, which step.cu alone can find; None: a dense state.
    """
    acc = np.dtype(np.float64 if element == "double" else np.float32)
    if max(radix, write_k, read_k) > MAX_FUSED_K:
        return Specialisation(
            "step/step_plain.cu", ("step_plain",), (("ELEMENT", element), ("UPDATE", update)), (plain_step_params(acc),)
        )
    return Specialisation(
        "step/step.cu",
        ("step",),
        (
            ("ELEMENT", element), ("ORDER", order), ("RADIX", radix), ("WRITES", write_k), ("READS", read_k),
            ("CHANNELS", channels), ("THREADS", _threads(element, write_k + read_k, channels)), ("UPDATE", update),
            ("SPARSE", int(row is not None)), ("ROW", row or type_name(acc)),
        ),
        (step_params(acc, row is not None),),
    )  # fmt: skip


def _threads(element: str, accesses: int, channels: int) -> int:
    """The threads of a block: each has two rows, 16 bytes of each; at least the two warps that decode."""
    wide = 16 // (8 if element == "double" else 4)
    while channels % wide:
        wide //= 2
    wanted = accesses * (channels // wide) // 2
    return min(256, max(64, -(-wanted // 32) * 32))


@functools.lru_cache(maxsize=1024)
def step_plan(
    shape: tuple[int, ...],  # of logits
    channels: int,
    dtype: np.dtype,
    gamma: float | None,  # None: an array
    batch_stride: int,  # of positions
    decode: DecodeOptions,
    options: MemoryOptions,
    row: str | None = None,
) -> tuple[Launch, Callable[..., Any]]:
    """The launch for calls of one signature, and what makes its parameters from the addresses of the arrays."""
    B, _, H, U, P = shape
    write_k, read_k, write_renorm, read_renorm, cape_heads = decode
    specialisation = step_specialisation(
        type_name(dtype), U, P, write_k, read_k, channels, require_rule(options.update), row
    )
    [name], [params] = specialisation.kernels, specialisation.params
    constants = {
        "constant_gamma": 0 if gamma is None else gamma, "eps": options.eps, "heads": H,
        "mass_aware": options.mass_aware,
    }  # fmt: skip
    if name == "step":
        fill = params.partial(
            **constants, batch_stride=batch_stride, cape_heads=cape_heads, write_renorm=write_renorm,
            read_renorm=read_renorm,
        )  # fmt: skip
        threads = _threads(type_name(dtype), write_k + read_k, channels)
        return Launch(specialisation, name, (B * H,), threads, overlaps=True), fill
    fill = params.partial(**constants, slots=options.slots, writes=write_k, reads=read_k, channels=channels)
    threads = min(256, max(32, -(-max(channels, write_k, read_k) // 32) * 32))
    return Launch(specialisation, name, (B * H,), threads, (write_k + read_k) * sum_dtype(dtype).itemsize), fill


def step_by_address(*signature: Any) -> Callable[..., bool] | None:
    """A step that takes addresses; None where it is more than one launch. ``signature``: as of :func:`step_plan`.

    For callers that have checked a call of this signature and hold arrays of another library, all contiguous. The
    step runs on the current device and stream; False: the addresses are not multiples of 16, and nothing was launched.
    """
    launch, fill = step_plan(*signature)
    if launch.name != "step":
        return None

    def step_at(
        write_logits: int, read_logits: int, values: int, gamma: int, mask: int, positions: int, slots: int, mass: int,
        y: int,
    ) -> bool:  # fmt: skip
        if (write_logits | read_logits | values | gamma | slots | mass | y) % ALIGNMENT:
            return False
        launch(fill(write_logits, read_logits, values, gamma, mask, positions, slots, mass, y))
        return True

    return step_at


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
    number, gamma = (gamma, None) if isinstance(gamma, float) else (None, contiguous_aligned(gamma))
    launch, fill = step_plan(
        write_logits.shape, values.shape[3], values.dtype, number, token_strides(positions)[0], decode, options
    )
    slots, mass = contiguous_aligned(state.slots), contiguous_aligned(state.mass)
    values = contiguous_aligned(values)
    mask = None if mask is None else contiguous_aligned(mask)
    if launch.name == "step":
        write_logits, read_logits = contiguous_aligned(write_logits), contiguous_aligned(read_logits)
        params = fill(
            write_logits.data.ptr, read_logits.data.ptr, values.data.ptr, ptr(gamma), ptr(mask), ptr(positions),
            slots.data.ptr, mass.data.ptr, y.data.ptr,
        )  # fmt: skip
    else:
        top_k, renorm = (decode.write_k, decode.read_k), (decode.write_renorm, decode.read_renorm)
        write, read = decode_forward((write_logits, read_logits), top_k, renorm, decode.cape_heads, positions)
        params = fill(
            write[0].data.ptr, read[0].data.ptr, write[1].data.ptr, read[1].data.ptr, values.data.ptr, ptr(gamma),
            ptr(mask), slots.data.ptr, mass.data.ptr, y.data.ptr,
        )  # fmt: skip
    launch(params)
    for part, worked_on in ((state.slots, slots), (state.mass, mass)):
        if worked_on is not part:  # of another layout, so that a copy was updated
            part[...] = worked_on
    return y
