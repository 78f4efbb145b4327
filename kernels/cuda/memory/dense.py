"""Few slots: couplings and contents as products of dense matrices: sizes, choice and launches of ``dense_*.cu``."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .conflicts import GRID
from .layout import THREADS, Layout, SharedMemory
from .mass_backward import Dots

SLOTS_AN_ACCESS = 16  # at most: the products take as long as there are slots, chains as there are accesses
MAX_WARPS = 16  # of a block
SLICE = 16  # channels of a warp
SLOTS_OF_WARP = 64  # at most; 32 registers

PASSES = {"dense_content_forward": (True, False), "dense_content_backward_recompute": (False, True),
          "dense_content_backward": (True, True)}  # fmt: skip
"""Passes over the contents; whether they leave sums for the tokens, and dot products."""


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
    def slots_of_warp(self) -> int:
        """Slots that a warp holds; in steps of 8."""
        return -(-min(SLOTS_OF_WARP, self.slots) // 8) * 8

    @functools.cached_property
    def parts(self) -> int:
        """Warps that share out the slots."""
        return -(-self.slots // self.slots_of_warp)

    @functools.cached_property
    def matrix_bytes(self) -> int:
        """Of a matrix (tokens, slots) in shared memory."""
        return 4 * self.layout.chunk * _apart(self.parts * self.slots_of_warp)

    @functools.cached_property
    def record_bytes(self) -> int:
        """The size of ``DenseRecord``."""
        chunk = self.layout.chunk
        numbers = chunk * (chunk + 4) + self.parts * self.slots_of_warp
        return -(-(4 * numbers + 6 * chunk * sum(self.layout.accesses)) // 16) * 16

    def shared_bytes(self, sums: bool, dots: bool) -> int:
        """The size of ``PassShared`` in dense_content.cu."""
        tokens, element = self.layout.chunk, 2 if "16" in self.layout.element else 4
        rows = (4 if dots else 2) * tokens * _apart(self.slices * SLICE) * element
        change, look_up = self.matrix_bytes, self.matrix_bytes if sums else 16
        of_sums = (self.parts - 1) * self.slices * tokens * SLICE * 4 + 16 if sums else 16
        of_dots = self.slices * self.matrix_bytes if dots else 16
        return 2 * self.record_bytes + rows + change + look_up + of_sums + of_dots

    @functools.cached_property
    def couple_backward_bytes(self) -> int:
        """The size of ``DenseBackwardShared`` in dense_couplings_backward.cu."""
        tokens, rows = self.layout.chunk, 144 if "16" in self.layout.element else 272
        return 4 * self.matrix_bytes + tokens * (tokens + 1) * 4 + 2 * tokens * rows

    @functools.cached_property
    def defines(self) -> tuple[tuple[str, str | int], ...]:
        """What ``dense.cuh`` asks for."""
        return (
            *self.layout.defines, ("SLOTS", self.slots), ("SLOTS_OF_WARP", self.slots_of_warp),
            ("DENSE_RECORD_BYTES", self.record_bytes),
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
    fits = (
        dense.slices * dense.parts <= MAX_WARPS
        and max(dense.shared_bytes(True, True), dense.couple_backward_bytes) <= shared.block
    )
    return dense if fits else None


def _apart(numbers: int) -> int:
    """The length of a row in shared memory, as in dense.cuh."""
    return -(-numbers // 16) * 16 + 8


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
    source, defines = "dense_couplings", dense.defines
    if name == "dense_couple_backward":
        source, defines = f"{source}_backward", (*defines, ("COUPLE_BACKWARD_BYTES", dense.couple_backward_bytes))
    return Specialisation(f"memory/{source}.cu", (name,), defines, (DENSE_COUPLINGS,))


@functools.cache
def dense_content_specialisation(dense: Dense) -> Specialisation:
    """``dense_content.cu`` for a layout, so many slots and channels."""
    names = "FORWARD_BYTES", "RECOMPUTE_BYTES", "BACKWARD_BYTES"
    sizes = (dense.shared_bytes(*wanted) for wanted in PASSES.values())
    defines = *dense.defines, ("CHANNELS", dense.channels), *zip(names, sizes, strict=True)
    return Specialisation("memory/dense_content.cu", tuple(PASSES), defines, (DENSE_CONTENT,))


@functools.lru_cache(maxsize=1024)
def _couple_launch(dense: Dense, name: str, grid: tuple[int, int, int]) -> Launch:
    shared = 2 * dense.matrix_bytes if name == "dense_couple_forward" else dense.couple_backward_bytes
    return Launch(dense_coupling_specialisation(dense, name), name, grid, THREADS, shared)


@functools.lru_cache(maxsize=1024)
def _content_launch(dense: Dense, name: str, blocks: int) -> Launch:
    threads = 32 * dense.slices * dense.parts
    specialisation = dense_content_specialisation(dense)
    return Launch(specialisation, name, (blocks,), threads, dense.shared_bytes(*PASSES[name]))


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
