"""The two things that the operation passes around: sparse addresses and the memory they point into."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Address(NamedTuple):
    """A K-hot address per token and head: which slots, and how much of each.

    ``index``: (B, T, H, K) int32, distinct slots within a token and head, best first. ``weight``: (B, T, H, K).
    Source: paper eq. 5.

    >>> from ramnet_np.core.attention import decode_address
    >>> index, weight = decode_address(np.zeros((1, 1, 1, 3, 2)), top_k=2)  # all slots alike: the smaller numbers
    >>> index.ravel().tolist(), weight.ravel().tolist()
    ([0, 1], [0.125, 0.125])
    """

    index: Any
    weight: Any


class RAMState(NamedTuple):
    """The memory of every head: what each slot holds, and how much it has been written.

    ``slots``: (B, H, M, C), the content s; ``mass``: (B, H, M), the mass z. Source: spec section 4.

    >>> state = RAMState.initial(batch=1, heads=2, slots=16, channels=4)
    >>> state.slots.shape, state.mass.shape, float(state.mass[0, 0, 0])
    ((1, 2, 16, 4), (1, 2, 16), 0.0625)
    """

    slots: Any
    mass: Any

    @classmethod
    def initial(
        cls, batch: int, heads: int, slots: int, channels: int, dtype: Any = np.float32, xp: Any = np
    ) -> RAMState:
        """The state before the first token: s = 0, z = 1/M."""
        return cls(
            xp.zeros((batch, heads, slots, channels), dtype=dtype),
            xp.full((batch, heads, slots), 1.0 / slots, dtype=dtype),
        )
