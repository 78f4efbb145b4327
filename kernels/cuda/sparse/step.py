"""One token over a sparse state on the GPU: the launch of a dense state, which finds its rows in a table."""

from __future__ import annotations

from typing import Any

from ramnet_np.contract import DecodeOptions, MemoryOptions

from ..runtime.arrays import contiguous_aligned, ptr, token_strides
from ..step.step import MAX_FUSED_K, step_plan
from .rows import DeviceRows


def sparse_step(
    write_logits: Any,
    read_logits: Any,
    values: Any,
    gamma: Any,
    positions: Any,
    mask: Any,
    state: Any,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Any:
    """T = 1: update the rows of ``state`` and return y (B, 1, H, C); NotImplemented where step.cu serves no such K or P

    MemoryError where there is no room for the rows that the token may add; then nothing has changed.
    """
    import cupy

    if not isinstance(state.rows, DeviceRows) or max(*decode.top_k, write_logits.shape[4]) > MAX_FUSED_K:
        return NotImplemented
    y = cupy.empty(values.shape, dtype=values.dtype)
    if not y.size:
        return y
    number, gamma = (gamma, None) if isinstance(gamma, float) else (None, contiguous_aligned(gamma))
    launch, fill = step_plan(
        write_logits.shape, values.shape[3], values.dtype, number, token_strides(positions)[0], decode, options, True
    )
    state.rows.prepare(new_rows(values.shape, decode.write_k))
    write_logits, read_logits, values = map(contiguous_aligned, (write_logits, read_logits, values))
    mask = None if mask is None else contiguous_aligned(mask)
    launch(
        fill(
            write_logits.data.ptr, read_logits.data.ptr, values.data.ptr, ptr(gamma), ptr(mask), ptr(positions),
            state.rows.table.data.ptr, y.data.ptr,
        )
    )  # fmt: skip
    return y


def new_rows(shape: tuple[int, ...], write_k: int) -> int:
    """How many rows a token of values (B, 1, H, C) adds at most."""
    return shape[0] * shape[2] * write_k
