"""What holds for a call of the memory: its inputs, sizes and layout, and what every kernel is given."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, MemoryOptions, RAMState

from ..runtime.arrays import allocate_together
from ..runtime.params import INT, POINTER, ParamStruct
from .layout import CHAIN_BYTES, Layout
from .packed import PackedRow


class Segments(NamedTuple):
    """How a sequence is split: ``contents`` segments of ``chunks`` chunks, each in ``masses`` parts for the masses."""

    contents: int
    chunks: int
    masses: int

    @property
    def is_split(self) -> bool:
        """Whether masses go from segment to segment."""
        return self.contents * self.masses > 1


class Call(NamedTuple):
    """The inputs as kernels take them, and sizes. Rows are those of the working state (``renumber.py``)."""

    write: Address  # index: rows
    read: Address
    values: Array  # (B, T, H, C)
    gamma: Any  # a number, or (B, T, H)
    mask: Array | None  # (B, T)
    state: RAMState | None  # as given
    options: MemoryOptions
    rows: int  # of a sequence's state; of a packed row that is renumbered, those of the longest
    renumbered: bool
    packed: PackedRow | None  # the sequences of a packed row; their number N takes the place of B

    @property
    def batch(self) -> int:
        """B, or N of a packed row."""
        return self.values.shape[0] if self.packed is None else self.packed.sequences

    @property
    def sequences(self) -> int:
        """B * H, the sequences and heads."""
        return self.batch * self.values.shape[2]

    @property
    def has_own_rows(self) -> bool:
        """Whether each sequence has as many rows of the state as it has writes, one sequence's after another's."""
        return self.renumbered and self.packed is not None

    @property
    def rows_of_state(self) -> int:
        """Rows of a sequence's state as kernels take them: 0 where each has its own number (``StateRows``)."""
        return 0 if self.has_own_rows else self.rows

    @property
    def state_shape(self) -> tuple[int, int]:
        """(B*H, rows): rows of the state of all sequences and heads."""
        _, T, H, _ = self.values.shape
        return (H, T * self.top_k[0]) if self.has_own_rows else (self.sequences, self.rows)

    @property
    def alone(self) -> bool:
        """Whether a sequence's results must not depend on what else is in the call."""
        return self.packed is not None or self.options.batch_invariant

    def chunks(self, layout: Layout) -> tuple[int, int]:
        """(B*H, chunks), or of a packed row all chunks in one row: (1, chunks of all sequences and heads)."""
        _, T, H, _ = self.values.shape
        return (self.sequences, -(-T // layout.chunk)) if self.packed is None else (1, H * self.packed.chunks)

    @property
    def top_k(self) -> tuple[int, int]:
        """Writes and reads of a token."""
        return self.write.index.shape[3], self.read.index.shape[3]

    @property
    def acc(self) -> np.dtype:
        """The dtype of accumulators, weights and state."""
        return self.write.weight.dtype

    @property
    def constant_gamma(self) -> float:
        """gamma if it is a number, else 0, which nobody reads."""
        return self.gamma if isinstance(self.gamma, float) else 0.0

    @property
    def gamma_array(self) -> Array | None:
        """gamma per token, if it is given so."""
        return None if isinstance(self.gamma, float) else self.gamma


class Kept(NamedTuple):
    """What a chunked forward keeps of its accesses for the backward: see ``chunk.cuh`` and ``mass.cuh``."""

    writes: Array  # (B*H, chunks, CHUNK, W, 2) int32: SlotAccess
    changes: Array  # (B*H, chunks, CHUNK, W, 2): of the mass, by each write
    reads: Array  # (B*H, chunks, CHUNK, R, 2) int32: SlotAccess
    eta: Array  # (B*H, chunks, CHUNK, W)
    mass_before: Array  # (B*H, chunks, CHUNK, W)
    chains: Array  # (B*H, chunks, CHAINS)
    records: Array  # (B*H, chunks, bytes of a ChunkRecord or DenseRecord)
    mass_reads: Array | None  # (B*H, chunks, CHUNK, R, 4): MassAccess, if reads are mass-aware
    read_mass: Array | None  # (B*H, chunks, CHUNK, R), likewise
    read_share: Array | None  # (B, T, H, R): the weights that reads have by mass, likewise

    @property
    def chunks(self) -> tuple[int, int]:
        """(B*H, chunks)."""
        return self.writes.shape[:2]

    @property
    def all_chunks(self) -> int:
        """Chunks of all sequences and heads."""
        return self.chunks[0] * self.chunks[1]


def allocate_kept(call: Call, layout: Layout, record_bytes: int) -> Kept:
    """Memory for all of it, not set, in one allocation. ``record_bytes``: of what couplings leave of a chunk."""
    acc, int32, (W, R) = call.acc, np.dtype(np.int32), layout.accesses
    chunks = call.chunks(layout)
    writes, reads = (*chunks, layout.chunk, W), (*chunks, layout.chunk, R)
    wanted = [
        ((*writes, 2), int32), ((*writes, 2), acc), ((*reads, 2), int32), (writes, acc), (writes, acc),
        ((*chunks, layout.chains), np.dtype(f"u{CHAIN_BYTES}")), ((*chunks, record_bytes), np.dtype(np.uint8)),
    ]  # fmt: skip
    if call.options.mass_aware:
        wanted += [((*reads, 4), acc), (reads, acc), (call.read.weight.shape, acc)]
    arrays = allocate_together(*wanted)
    return Kept(*arrays, *([None] * (len(Kept._fields) - len(arrays))))


@functools.cache
def memory_params(acc: np.dtype) -> ParamStruct:
    """``MemoryParams`` of chunk.cuh, for accumulators of this dtype."""
    return ParamStruct(
        "MemoryParams",
        write_row=POINTER, read_row=POINTER, write_weight=POINTER, read_weight=POINTER, gamma=POINTER, mask=POINTER,
        chains=POINTER, constant_gamma=acc, eps=acc, initial_mass=acc, proxy_eps=acc, spans=POINTER,
        span_chunks=POINTER, tokens=INT, heads=INT, rows=INT, all_chunks=INT,
    )  # fmt: skip


def fill_memory_params(call: Call, kept: Kept) -> Any:
    """The struct with which those of most kernels begin."""
    _, T, H, _ = call.values.shape
    options, packed = call.options, call.packed
    return memory_params(call.acc)(
        write_row=call.write.index, read_row=call.read.index, write_weight=call.write.weight,
        read_weight=call.read.weight, gamma=call.gamma_array, mask=call.mask, chains=kept.chains,
        constant_gamma=call.constant_gamma, eps=options.eps, initial_mass=1 / options.slots,
        proxy_eps=options.proxy_eps, spans=packed and packed.spans, span_chunks=packed and packed.span_chunks, tokens=T,
        heads=H, rows=call.rows_of_state, all_chunks=kept.all_chunks,
    )  # fmt: skip
