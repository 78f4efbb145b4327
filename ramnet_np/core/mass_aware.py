"""The mass-aware read: slots that have been written more count for more, at the same total weight.

    R = sum_b r[b],  Z = sum_b r[b] z[b],   r'[a] = R * r[a] z[a] / (Z + eps)

Source: an option of the authors' package.
"""

from __future__ import annotations

from ramnet_np.contract import Array


def mass_aware_forward(r: Array, z: Array, eps: float) -> Array:
    """r' for read weights ``r`` and the masses ``z`` of the slots read, both (..., K).

    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> mass_aware_forward(np.array([0.5, 0.5]), np.array([3.0, 1.0]), eps=0.0).tolist()
    [0.75, 0.25]
    """
    n = r * z
    return r.sum(axis=-1, keepdims=True) * n / (n.sum(axis=-1, keepdims=True) + eps)


def mass_aware_backward(dr_aware: Array, r: Array, z: Array, eps: float) -> tuple[Array, Array]:
    """(dr, dz), each (..., K), given the gradient of r'.

    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> dr, dz = mass_aware_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.array([3.0, 1.0]), eps=0.0)
    >>> dr.tolist(), dz.tolist()
    ([1.125, 0.375], [0.0625, -0.1875])
    """
    n = r * z
    R = r.sum(axis=-1, keepdims=True)
    D = n.sum(axis=-1, keepdims=True) + eps
    # r' = R * n / D: through R, through n, and through the sum in D
    dR = (dr_aware * n).sum(axis=-1, keepdims=True) / D
    dn = (dr_aware - dR) * R / D
    return dn * z + dR, dn * r
