"""What passes between the operation and a backend: addresses, the state, gradients, and the options of a call.

And what a caller promises a backend for a while: :func:`weights_stay`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Array: TypeAlias = Any
"""An array of NumPy, CuPy or another library that a backend serves: Python's types have no name for "any of these"."""


class Address(NamedTuple):
    """A K-hot address per token and head: which slots, and how much of each.

    ``index``: (B, T, H, K) int32, distinct slots within a token and head, best first. ``weight``: (B, T, H, K).
    Source: paper eq. 5.

    >>> from ramnet_np.core.attention import decode_address
    >>> index, weight = decode_address(np.zeros((1, 1, 1, 3, 2)), top_k=2)  # all slots alike: the smaller numbers
    >>> index.ravel().tolist(), weight.ravel().tolist()
    ([0, 1], [0.125, 0.125])
    """

    index: Array
    weight: Array


class RAMState(NamedTuple):
    """The memory of every head: what each slot holds, and how much it has been written.

    ``slots``: (B, H, M, C), the content s; ``mass``: (B, H, M), the mass z. Source: docs/mathematics.md.

    >>> state = RAMState.initial(batch=1, heads=2, slots=16, channels=4)
    >>> state.slots.shape, state.mass.shape, float(state.mass[0, 0, 0])
    ((1, 2, 16, 4), (1, 2, 16), 0.0625)
    """

    slots: Array
    mass: Array

    @classmethod
    def initial(
        cls, batch: int, heads: int, slots: int, channels: int, dtype: Any = np.float32, xp: Any = np
    ) -> RAMState:
        """The state before the first token: s = 0, z = 1/M. ValueError for a size below 0, or no slots."""
        sizes = {"batch": batch, "heads": heads, "slots": slots, "channels": channels}
        for name, size in sizes.items():
            if size < (name == "slots"):
                raise ValueError(f"{name} must be at least {int(name == 'slots')}, got {size}")
        return cls(
            xp.zeros((batch, heads, slots, channels), dtype=dtype),
            xp.full((batch, heads, slots), 1.0 / slots, dtype=dtype),
        )


class MemoryTiers(NamedTuple):
    """Where the rows of a sparse state (B, H, M, C) may be, and how many bytes of them.

    A capacity counts contents and masses; what finds them takes about a tenth more. Source: paper section 7.

    >>> MemoryTiers(host=2**30).shared(2).host
    536870912
    """

    host: int | None = None  # bytes in the host's memory; None: no limit
    disk: Path | None = None  # a folder for what does not fit there; None: there must be room for all
    disk_bytes: int | None = None  # bytes in that folder; None: no limit
    gpu: int | None = None  # bytes on the GPU, of a state there; None: no limit
    rows: str | None = None  # "bfloat16": contents are rounded to 16 bits where they are kept; None: as they are

    def shared(self, parts: int) -> MemoryTiers:
        """The tiers of one of ``parts`` states, such as those of a model's layers, that share these."""
        sizes = (self.host, self.disk_bytes, self.gpu)
        host, disk_bytes, gpu = (None if size is None else size // parts for size in sizes)
        return MemoryTiers(host, self.disk, disk_bytes, gpu, self.rows)


class SlotNumbers(NamedTuple):
    """Which slots a segment touches, and their numbers in its accesses."""

    write: Array  # (B, T, H, K_w) int32, in place of the slots of the writes ...
    read: Array  # (B, T, H, K_r) ... and of the reads
    keys: Array  # (N,) int64: (b * H + h) * M + slot, by heads and then by numbers
    start: np.ndarray  # (B*H + 1,) int64, on the host: head b * H + h has keys[start[bh] : start[bh + 1]]
    written: (
        np.ndarray
    )  # (B*H,) int64, on the host: how many of a head's numbers, the first ones, are of slots that are written


class MemoryGrads(NamedTuple):
    """Gradients of a memory's inputs; ``gamma`` per token and head (B, T, H), ``state`` None unless one was given."""

    write_weight: Array
    read_weight: Array
    values: Array
    gamma: Array
    state: RAMState | None


class MemoryOptions(NamedTuple):
    """The choices of the memory update that hold for a whole call (PDMA or GSU, the read, the constants)."""

    slots: int  # M = P**U, the size of one head's memory
    update: str = "pdma"  # the name of an update rule: ``RULES`` of core/retention.py
    mass_aware: bool = False
    eps: float = 1e-12
    proxy_eps: float = 0.0
    batch_invariant: bool = False  # a sequence's bits do not depend on what else the batch holds
    gradients: bool = True  # a backward follows; if not, a forward may leave out what only that needs


class DecodeOptions(NamedTuple):
    """How logits become addresses, for writes and for reads."""

    write_k: int
    read_k: int
    write_renorm: bool
    read_renorm: bool
    cape_heads: int

    @property
    def top_k(self) -> tuple[int, int]:
        """K of writes and of reads."""
        return self.write_k, self.read_k

    @property
    def renorm(self) -> tuple[bool, bool]:
        """Whether the kept weights of writes, and of reads, are divided by their sum."""
        return self.write_renorm, self.read_renorm


@contextmanager
def weights_stay() -> Iterator[None]:
    """Within this block no call writes weights: a kernel may read its own while the launch before it still runs.

    >>> with weights_stay():
    ...     inside = weights_are_staying()
    >>> inside, weights_are_staying()
    (True, False)
    """
    before = weights_are_staying()
    _weights.stay = True
    try:
        yield
    finally:
        _weights.stay = before


def weights_are_staying() -> bool:
    """Whether this thread is within :func:`weights_stay`.

    >>> with weights_stay():
    ...     weights_are_staying()
    True
    """
    return getattr(_weights, "stay", False)


_weights = threading.local()
