"""The memory token after token, for any K: the launches of ``plain.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array, MemoryGrads, RAMState

from ..runtime.arrays import allocate_together
from ..runtime.module import Launch, Specialisation, sum_dtype, type_name
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call
from .layout import shared_memory
from .retention import require_rule

PART_BYTES = 16 * 1024  # of the teams' parts of a sum over accesses, at most, where one team would need less


@functools.cache
def plain_params(acc: np.dtype) -> ParamStruct:
    """``PlainParams`` of plain.cuh, which says what each is."""
    return ParamStruct(
        "PlainParams",
        write_row=POINTER, read_row=POINTER, write_weight=POINTER, read_weight=POINTER, values=POINTER, gamma=POINTER,
        mask=POINTER, content=POINTER, mass=POINTER, y=POINTER, dy=POINTER, dcontent=POINTER, dmass=POINTER, q=POINTER,
        mass_before=POINTER, before_first=POINTER, dw=POINTER, dr=POINTER, dv=POINTER, dgamma=POINTER, spans=POINTER,
        constant_gamma=acc, eps=acc, proxy_eps=acc, initial_mass=acc,
        tokens=INT, heads=INT, rows=INT, writes=INT, reads=INT, has_dstate=INT,
    )  # fmt: skip


def _teams(channels: int, itemsize: int, threads: int) -> int:
    """``TEAMS`` of plain.cuh."""
    vector = 16 // itemsize
    while channels % vector:
        vector //= 2
    return threads // min(32, 1 << (channels // vector - 1).bit_length())


def plain_threads(channels: int, itemsize: int) -> int:
    """Threads of a block: fewer where C is so large that the teams' parts would take too much shared memory."""
    threads = 512
    while threads > 32 and _teams(channels, itemsize, threads) * channels * itemsize > PART_BYTES:
        threads //= 2
    return threads


def plain_shared_bytes(writes: int, reads: int, channels: int, itemsize: int) -> int:
    """The bytes of ``TokenData`` in plain.cuh."""
    parts = _teams(channels, itemsize, plain_threads(channels, itemsize)) * channels
    return (parts + 3 * (writes + reads) + 2 * max(writes, reads)) * itemsize + 4 * 2 * (writes + reads)


def require_block_fits(top_k: tuple[int, int], channels: int, itemsize: int, limit: int) -> None:
    """ValueError where a block would need more than ``limit`` bytes of shared memory.

    >>> require_block_fits((128, 128), 100_000, 4, 227 * 1024)
    Traceback (most recent call last):
        ...
    ValueError: values must have fewer channels for top_k=(128, 128) on this GPU, got 100000 (397 of 227 KiB of a block)
    """
    wanted = plain_shared_bytes(*top_k, channels, itemsize) + itemsize  # and dot_before of plain.cu
    if wanted > limit:
        raise ValueError(
            f"values must have fewer channels for top_k={top_k} on this GPU, got {channels} "
            f"({-(-wanted // 1024)} of {limit // 1024} KiB of a block)"
        )


@functools.cache
def plain_specialisation(dtype: np.dtype, channels: int, update: str, mass_aware: bool) -> Specialisation:
    """``plain.cu`` for values of a dtype with so many channels, and an update rule."""
    defines = (
        ("ELEMENT", type_name(dtype)), ("UPDATE", require_rule(update)), ("CHANNELS", channels),
        ("THREADS", plain_threads(channels, sum_dtype(dtype).itemsize)),
        ("MASS_AWARE", int(mass_aware)),
    )  # fmt: skip
    params = plain_params(sum_dtype(dtype))
    return Specialisation("memory/plain.cu", ("plain_forward", "plain_backward"), defines, (params,))


def plain_forward(call: Call, content: Array, mass: Array) -> Array:
    """y (B, T, H, C). ``content`` (B*H, rows, C) and ``mass`` (B*H, rows) become the state after the last token."""
    import cupy

    y = cupy.empty_like(call.values)
    _launch("plain_forward", call, content=content, mass=mass, y=y)
    return y


def plain_backward(dy: Array, dstate: RAMState | None, content: Array, mass: Array, call: Call) -> MemoryGrads:
    """Every gradient. ``content`` and ``mass``: the state before the first token; they are changed.

    ``dy``: (B, T, H, C); ``dstate``: the gradient of the state after the last token, or None.
    """
    import cupy

    _, _, H, C = call.values.shape
    acc = call.acc
    if dstate is None:
        dcontent, dmass = cupy.zeros(content.shape, dtype=acc), cupy.zeros(mass.shape, dtype=acc)
    else:
        dcontent, dmass = dstate.slots.reshape(content.shape).copy(), dstate.mass.reshape(mass.shape).copy()
    q = cupy.zeros(mass.shape, dtype=acc)
    dw, dr, mass_before, before_first = allocate_together(
        (call.write.weight.shape, acc), (call.read.weight.shape, acc), (call.write.weight.shape, acc),
        (call.values.shape, acc),
    )  # fmt: skip
    dv, dgamma = cupy.empty_like(call.values), cupy.empty(call.values.shape[:3], dtype=call.values.dtype)
    _launch(
        "plain_backward", call, content=content, mass=mass, dy=dy, dcontent=dcontent, dmass=dmass, q=q,
        mass_before=mass_before, before_first=before_first, dw=dw, dr=dr, dv=dv, dgamma=dgamma,
        has_dstate=dstate is not None,
    )  # fmt: skip
    dgiven = None
    if call.state is not None:
        dgiven = RAMState(dcontent.reshape(call.batch, H, call.rows, C), dmass.reshape(call.batch, H, call.rows))
    return MemoryGrads(dw, dr, dv, dgamma, dgiven)


_NOTHING: dict[str, Any] = dict.fromkeys(
    ("y", "dy", "dcontent", "dmass", "q", "mass_before", "before_first", "dw", "dr", "dv", "dgamma")
) | {"has_dstate": 0}


def _launch(name: str, call: Call, **arrays: Any) -> None:
    """Launch with a block for each (batch, head)."""
    _, T, H, C = call.values.shape
    writes, reads = call.top_k
    options = call.options
    specialisation = plain_specialisation(call.values.dtype, C, options.update, options.mass_aware)
    if not call.sequences:
        return
    params = plain_params(call.acc)(
        **_NOTHING | arrays, write_row=call.write.index, read_row=call.read.index, write_weight=call.write.weight,
        read_weight=call.read.weight, values=call.values, gamma=call.gamma_array, mask=call.mask,
        constant_gamma=call.constant_gamma, eps=options.eps, proxy_eps=options.proxy_eps,
        initial_mass=1 / options.slots, spans=call.packed and call.packed.spans, tokens=T, heads=H,
        rows=call.rows_of_state, writes=writes, reads=reads,
    )  # fmt: skip
    itemsize = call.acc.itemsize
    require_block_fits(call.top_k, C, itemsize, shared_memory(call.values.device.id).block)
    shared = plain_shared_bytes(writes, reads, C, itemsize)
    Launch(specialisation, name, (call.sequences,), plain_threads(C, itemsize), shared)(params)
