"""CAPE, the cyclic address positional embedding: slots that drift by one place per token.

    [P_t(a)]_i = a[(i + t) mod M]        what content addresses as slot j is found at slot (j - t) mod M

Writes and reads shift alike, so a head with CAPE addresses relative to the present: content slot j at token t is
content slot j + d at token t + d. Only indices move; weights and gradients do not know.
Source: paper eq. 6.
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of


def cape_shift(index: Array, positions: Array, cape_heads: int, slots: int) -> Array:
    """Shift the slots of the first ``cape_heads`` heads to where they are at their token's position.

    ``index``: (B, T, H, K) content slots; ``positions``: (B, T) integers t; returns (B, T, H, K) int32.

    >>> import numpy as np
    >>> cape_shift(np.array([[[[5], [5]]]]), np.array([[7]]), cape_heads=1, slots=16).ravel().tolist()
    [14, 5]
    """
    xp = namespace_of(index)
    shifted = index.astype(xp.int32)
    if cape_heads:
        t = positions[:, :, None, None].astype(xp.int64) % slots  # at once: j - t would wrap near -2**63
        shifted[:, :, :cape_heads] = (index[:, :, :cape_heads] - t) % slots
    return shifted
