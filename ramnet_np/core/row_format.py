"""How a row of a sparse memory is kept: C contents and a mass as they are, or the contents in 16 bits.

    float32, float64    C + 1 numbers
    bfloat16            C contents rounded to bfloat16, one unused if C is odd, then the mass, two halves of a float32

Half the bytes are moved between tiers then, and half the room is taken. A content is rounded each time it is stored, to
nearest, ties to even, so what a memory holds does not depend on tiers, but it is not what float32 would hold. The mass
stays float32, as small weights would not change a larger mass in bfloat16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.bfloat16 import from_bfloat16, to_bfloat16

FORMATS = (None, "bfloat16")


class RowFormat(NamedTuple):
    """Rows of ``channels`` contents and a mass, numbers of ``dtype``; ``stored``: None as they are, or "bfloat16".

    >>> rows = RowFormat(2, np.dtype(np.float32), "bfloat16")
    >>> packed = rows.pack(np.array([[1.0, 1.001, 0.3]], np.float32))
    >>> packed.dtype, packed.shape, rows.unpack(packed).round(4).tolist()
    (dtype('uint16'), (1, 4), [[1.0, 1.0, 0.30000001192092896]])
    """

    channels: int
    dtype: np.dtype
    stored: str | None

    def initial(self, mass: float) -> np.ndarray:
        """The row of a slot that was never written, as it is kept."""
        row = np.zeros((1, self.channels + 1), dtype=self.dtype)
        row[:, -1] = mass
        return self.pack(row)[0]

    def pack(self, rows: Array) -> Array:
        """``rows`` (N, C + 1) as they are kept, (N, W)."""
        if self.stored is None:
            return rows
        xp, C = namespace_of(rows), self.channels
        packed = xp.zeros((len(rows), C + C % 2 + 2), dtype=np.uint16)
        packed[:, :C] = to_bfloat16(rows[:, :C])
        mass = xp.ascontiguousarray(rows[:, C]).view(np.uint32)
        packed[:, -2], packed[:, -1] = mass & np.uint32(0xFFFF), mass >> np.uint32(16)
        return packed

    def unpack(self, packed: Array) -> Array:
        """The rows (N, C + 1) that are kept as ``packed`` (N, W)."""
        if self.stored is None:
            return packed
        xp, C = namespace_of(packed), self.channels
        rows = xp.empty((len(packed), C + 1), dtype=self.dtype)
        rows[:, :C] = from_bfloat16(packed[:, :C])
        rows.view(np.uint32)[:, C] = packed[:, -2].astype(np.uint32) | packed[:, -1].astype(np.uint32) << np.uint32(16)
        return rows


def row_format(channels: int, dtype: Any, stored: str | None) -> RowFormat:
    """The format of rows of C = ``channels`` contents, of a state of this ``dtype``; ValueError for one there is not.

    >>> row_format(64, np.float32, "bfloat16").initial(0.25).nbytes
    132
    """
    if stored not in FORMATS:
        raise ValueError(f"memory.rows must be bfloat16 or None, got {stored!r}")
    if stored is not None and dtype != np.float32:
        raise ValueError(f"memory.rows must be None for a state of {dtype}, got {stored!r}")
    return RowFormat(channels, np.dtype(dtype), stored)
