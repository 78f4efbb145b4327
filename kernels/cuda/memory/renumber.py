"""Rows for the slots that a sequence uses, so that time and memory follow the accesses and not M."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import Address, Array

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, LONG, POINTER, UNSIGNED, ParamStruct
from .packed import PackedRow

THREADS = 256
RENUMBER_PARAMS = ParamStruct(
    "RenumberParams",
    slots=POINTER, mask=POINTER, rows=POINTER, keys=POINTER, uses=POINTER, state=POINTER, spans=POINTER,
    span_of_token=POINTER, count=LONG, rows_of_state=LONG, cells=UNSIGNED, tokens=INT, heads=INT, top_k=INT, writes=INT,
    words=INT,
)  # fmt: skip
RENUMBER = Specialisation(
    "memory/renumber.cu",
    ("renumber_writes", "renumber_reads", "renumber_seen", "renumber_clear"),
    (("THREADS", THREADS),),
    (RENUMBER_PARAMS,),
)


def renumber(
    write: Address, read: Address, mask: Array | None, slots: int, packed: PackedRow | None
) -> tuple[Address, Address]:
    """The same addresses with rows for slots.

    A slot's row is the number t * K_w + k of its first write, below T * K_w; -1 for a read of a slot that nothing was
    written to yet, and for a write that no later read sees. Tokens where ``mask`` (B, T) is False do neither.
    """
    import cupy

    B, T, H, Kw = write.index.shape
    if packed is None:
        cells = 1 << (2 * T * Kw - 1).bit_length()  # so that at most half of a hash table is taken
        hashed = slots > cells
        cells = min(cells, slots)
    else:
        cells, hashed = 2 * T * Kw, True  # each sequence has its part
    keys = _all_bits(B * H, cells) if hashed else None
    table = {
        "keys": keys, "uses": _all_bits(B * H, cells, 2), "cells": cells, "mask": mask, "writes": Kw, **_spans(packed)
    }  # fmt: skip
    writes, reads = contiguous_aligned(write.index), contiguous_aligned(read.index)
    write_rows, read_rows = cupy.empty_like(writes), cupy.empty_like(reads)
    _launch("renumber_writes", writes, **table)
    _launch("renumber_reads", reads, **table, rows=read_rows)
    _launch("renumber_seen", writes, **table, rows=write_rows)
    return Address(write_rows, write.weight), Address(read_rows, read.weight)


def clear_rows(write: Address, state: Array, packed: PackedRow | None) -> None:
    """Set those rows of ``state`` (B*H, rows, C) to 0 that renumbered writes have; the others are left as they are."""
    _, rows, channels = state.shape
    _launch(
        "renumber_clear", write.index, rows_of_state=rows, words=channels * state.itemsize // 4, state=state,
        writes=write.index.shape[3], **_spans(packed),
    )  # fmt: skip


def _spans(packed: PackedRow | None) -> dict[str, Any]:
    """The members of ``RenumberParams`` that tell the sequences of a packed row."""
    return {} if packed is None else {"spans": packed.spans, "span_of_token": packed.span_of_token}


def _all_bits(*shape: int) -> Array:
    """-1 everywhere."""
    import cupy

    numbers = cupy.empty(shape, dtype=np.int32)
    if numbers.size:
        numbers.data.memset_async(0xFF, numbers.nbytes)
    return numbers


_NOTHING: dict[str, Any] = {
    "mask": None, "spans": None, "span_of_token": None, "rows": None, "keys": None, "uses": None, "state": None,
    "rows_of_state": 0, "cells": 0, "writes": 0, "words": 0,
}  # fmt: skip


def _launch(name: str, index: Array, **values: Any) -> None:
    """Launch a kernel with a thread for each access of ``index`` (B, T, H, K)."""
    _, T, H, K = index.shape
    if index.size:
        sizes = {"slots": index, "count": index.size, "tokens": T, "heads": H, "top_k": K}
        Launch(RENUMBER, name, (-(-index.size // THREADS),), THREADS)(RENUMBER_PARAMS(**_NOTHING | values | sizes))
