"""Which accesses of a chunk conflict: the launch of ``conflicts.cu``."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .layout import THREADS, Layout
from .retention import require_rule

GRID = 65535  # blocks along y, or z


@functools.cache
def conflict_params(acc: np.dtype) -> ParamStruct:
    """``ConflictParams`` of conflicts.cu."""
    return ParamStruct(
        "ConflictParams",
        memory=memory_params(acc), writes=POINTER, changes=POINTER, change_before=POINTER, reads=POINTER,
        mass_reads=POINTER, first_batch=INT, first_chunk=INT,
    )  # fmt: skip


@functools.cache
def conflict_specialisation(layout: Layout, update: str, direct: bool, gradients: bool = True) -> Specialisation:
    """``conflicts.cu`` for a layout and an update rule.

    ``direct``: whether a row is its own cell; ``gradients``: whether a backward follows.
    """
    defines = (
        *layout.defines, ("UPDATE", require_rule(update)), ("DIRECT", int(direct)), ("GRADIENTS", int(gradients)),
    )  # fmt: skip
    params = conflict_params(np.dtype(f"f{layout.acc_bytes}"))
    return Specialisation("memory/conflicts.cu", ("find_conflicts",), defines, (params,))


@functools.lru_cache(maxsize=1024)
def _launch(layout: Layout, update: str, direct: bool, gradients: bool, grid: tuple[int, int, int]) -> Launch:
    return Launch(conflict_specialisation(layout, update, direct, gradients), "find_conflicts", grid, THREADS)


def find_conflicts(call: Call, layout: Layout, memory: Any, kept: Kept) -> Array:
    """Fill chains, writes and reads of ``kept``; return the changes of the mass before each chained write.

    ``memory``: :func:`~.call.fill_memory_params`. Returns (B*H, chunks, CHUNK, W, 2).
    """
    import cupy

    B, _, H, _ = call.values.shape
    chunks = kept.chunks[1] if call.packed is None else call.packed.chunks
    change_before = cupy.empty((*kept.writes.shape[:4], 2), dtype=call.acc)
    for batch, chunk in product(range(0, B, GRID), range(0, chunks, GRID)):
        grid = H, min(chunks - chunk, GRID), min(B - batch, GRID)
        _launch(layout, call.options.update, call.rows <= layout.cells, call.options.gradients, grid)(
            conflict_params(call.acc)(
                memory=memory, writes=kept.writes, changes=kept.changes, change_before=change_before,
                reads=kept.reads, mass_reads=kept.mass_reads, first_batch=batch, first_chunk=chunk,
            )
        )  # fmt: skip
    return change_before
