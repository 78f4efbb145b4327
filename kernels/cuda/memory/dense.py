"""Few slots: couplings and contents as products of dense matrices: sizes, choice and launches of ``dense_*.cu``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .conflicts import GRID
from .layout import THREADS, Layout, SharedMemory, whole
from .mass_backward import Dots

# At most: the products take as long as there are slots, chains as there are accesses. On an H200, K 16, forward and
# backward: 64 slots take 0.79 ms by products, 1.34 by chains; 256 slots 1.74 and 1.31.
SLOTS_AN_ACCESS = 4
MAX_WARPS = 16  # of a block
SLICE = 16  # channels of a warp


class Pass(NamedTuple):
    """A pass over the contents: a kernel of ``source``."""

    source: str
    sums: bool  # whether it leaves sums for the tokens
    dots: bool  # whether it leaves dot products
    slots_of_warp: int  # with more a chunk's rows are read less often, with fewer there are more warps to be at work


PASSES = {
    "dense_content_forward": Pass("dense_content", True, False, 64),
    "dense_content_backward_recompute": Pass("dense_content_backward", False, True, 32),
    "dense_content_backward": Pass("dense_content_backward", True, True, 32),
}


@dataclass(frozen=True)
class Dense:
    """The constants that the dense kernels are compiled with, and sizes that follow; see ``dense.cuh``."""

    layout: Layout
    slots: int
    channels: int  # all C

    @functools.cached_property
    def slices(self) -> int:
        """Warps that share out the channels."""
        return -(-self.channels // SLICE)

    @functools.cached_property
    def slots_padded(self) -> int:
        """M in whole products, and in whole warps where there are several."""
        return whole(self.slots, 8 if self.slots <= 32 else 64)

    def slots_of_warp(self, name: str) -> int:
        """Slots that a warp holds in the pass ``name``."""
        return min(PASSES[name].slots_of_warp, self.slots_padded)

    def threads(self, name: str) -> int:
        """How many a block of the pass ``name`` has."""
        return 32 * self.slices * self.slots_padded // self.slots_of_warp(name)

    @functools.cached_property
    def matrix_bytes(self) -> int:
        """The size of a matrix (tokens, slots) in shared memory."""
        return 4 * self.layout.chunk * _apart(self.slots_padded)

    @functools.cached_property
    def record_bytes(self) -> int:
        """The size of ``DenseRecord``."""
        chunk = self.layout.chunk
        numbers = chunk * (chunk + 4) + self.slots_padded
        return whole(4 * numbers + 6 * chunk * sum(self.layout.accesses), 16)

    def shared_bytes(self, name: str) -> int:
        """The size of ``PassShared`` in dense_pass.cuh."""
        _, sums, dots, _ = PASSES[name]
        tokens, element = self.layout.chunk, 2 if "16" in self.layout.element else 4
        rows = (4 if dots else 2) * tokens * _apart(self.slices * SLICE) * element
        change, look_up = self.matrix_bytes, self.matrix_bytes if sums else 16
        others = self.slots_padded // self.slots_of_warp(name) - 1
        of_sums = others * self.slices * tokens * SLICE * 4 + 16 if sums else 16
        of_dots = self.slices * self.matrix_bytes if dots else 16
        return 2 * self.record_bytes + rows + change + look_up + of_sums + of_dots

    @functools.cached_property
    def defines(self) -> tuple[tuple[str, str | int], ...]:
        """What ``dense.cuh`` asks for."""
        return (
            *self.layout.defines, ("SLOTS_PADDED", self.slots_padded), ("DENSE_RECORD_BYTES", self.record_bytes),
        )  # fmt: skip


def choose_dense(layout: Layout, slots: int, channels: int, shared: SharedMemory) -> Dense | None:
    """Whether the products of dense matrices serve a call, and are faster than following chains.

    They are with up to SLOTS_AN_ACCESS slots for each of a token's accesses. Only sums in float32 go to the tensor
    cores, of at least 16 tokens, and only rows that can be copied 16 bytes at a time.
    """
    chunk, itemsize = layout.chunk, 2 if "16" in layout.element else 4
    if layout.acc_bytes != 4 or chunk < 16 or channels * itemsize % 16:
        return None
    if slots > SLOTS_AN_ACCESS * min(layout.top_k):
        return None
    dense = Dense(layout, slots, channels)
    warps = max(map(dense.threads, PASSES)) // 32
    fits = max(map(dense.shared_bytes, PASSES)) <= shared.block
    return dense if warps <= MAX_WARPS and fits else None


def _apart(numbers: int) -> int:
    """The length of a row in shared memory, as in dense.cuh."""
    return whole(numbers, 16) + 8


DENSE_COUPLINGS = ParamStruct(
    "DenseCouplingParams",
    memory=memory_params(np.dtype(np.float32)), eta=POINTER, read_weight=POINTER, records=POINTER, values=POINTER,
    dy=POINTER, dy_dot_s=POINTER, d_dot_v=POINTER, before_heavy=POINTER, after_heavy=POINTER, d_dot_before=POINTER,
    channels=INT, first_batch=INT, first_chunk=INT,
)  # fmt: skip
DENSE_CONTENT = ParamStruct(
    "DenseParams",
    memory=memory_params(np.dtype(np.float32)), records=POINTER, values=POINTER, dy=POINTER, y=POINTER, dv=POINTER,
    dy_dot_s=POINTER, d_dot_v=POINTER, before_heavy=POINTER, after_heavy=POINTER,
)  # fmt: skip


@functools.cache
def dense_coupling_specialisation(dense: Dense, name: str) -> Specialisation:
    """The source of ``name``, dense_couple_forward or dense_couple_backward, for a layout and so many slots."""
    source = {"dense_couple_forward": "dense_couplings", "dense_couple_backward": "dense_couplings_backward"}[name]
    return Specialisation(f"memory/{source}.cu", (name,), dense.defines, (DENSE_COUPLINGS,))


@functools.cache
def dense_content_specialisation(dense: Dense, name: str) -> Specialisation:
    """The source of the pass ``name``, with all passes of that source, for a layout, so many slots and channels."""
    source = PASSES[name].source
    names = tuple(other for other, its in PASSES.items() if its.source == source)
    sizes = ((f"{other.rpartition('_')[2].upper()}_BYTES", dense.shared_bytes(other)) for other in names)
    defines = (
        *dense.defines, ("CHANNELS", dense.channels), ("SLOTS_OF_WARP", dense.slots_of_warp(name)), *sizes,
    )  # fmt: skip
    return Specialisation(f"memory/{source}.cu", names, defines, (DENSE_CONTENT,))


@functools.lru_cache(maxsize=1024)
def _couple_launch(dense: Dense, name: str, grid: tuple[int, int, int]) -> Launch:
    return Launch(dense_coupling_specialisation(dense, name), name, grid, THREADS)


@functools.lru_cache(maxsize=1024)
def _content_launch(dense: Dense, name: str, blocks: int) -> Launch:
    specialisation = dense_content_specialisation(dense, name)
    return Launch(specialisation, name, (blocks,), dense.threads(name), dense.shared_bytes(name))


def dense_couple_forward(call: Call, dense: Dense, memory: Any, kept: Kept) -> None:
    """Fill the records of ``kept``, from which the contents are computed."""
    _couple("dense_couple_forward", call, dense, memory, kept)


def dense_couple_backward(call: Call, dense: Dense, memory: Any, kept: Kept, dots: Dots, dy: Array) -> None:
    """Turn ``dots`` into the dot products that the masses need."""
    _couple("dense_couple_backward", call, dense, memory, kept, dy=dy, **dots._asdict())


def _couple(name: str, call: Call, dense: Dense, memory: Any, kept: Kept, **backward: Any) -> None:
    B, _, H, C = call.values.shape
    chunks = kept.chunks[1] if call.packed is None else call.packed.chunks
    for batch, chunk in product(range(0, B, GRID), range(0, chunks, GRID)):
        grid = H, min(chunks - chunk, GRID), min(B - batch, GRID)
        _couple_launch(dense, name, grid)(
            DENSE_COUPLINGS(
                **dict.fromkeys(("dy", *Dots._fields)) | backward, memory=memory, eta=kept.eta, records=kept.records,
                read_weight=call.read.weight if kept.read_share is None else kept.read_share, values=call.values,
                channels=C, first_batch=batch, first_chunk=chunk,
            )
        )  # fmt: skip


def dense_content_pass(name: str, call: Call, dense: Dense, memory: Any, kept: Kept, **arrays: Any) -> None:
    """Launch the pass ``name``, one of PASSES, over all tokens; ``arrays``: by their names in ``DenseParams``."""
    _content_launch(dense, name, call.sequences)(
        DENSE_CONTENT(**_NO_ARRAYS | arrays, memory=memory, records=kept.records, values=call.values)
    )


_NO_ARRAYS = dict.fromkeys(("dy", "y", "dv", "dy_dot_s", "d_dot_v", "before_heavy", "after_heavy"))
