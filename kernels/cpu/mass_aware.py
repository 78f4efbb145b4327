"""The mass-aware read of one token: ``ramnet_np/core/mass_aware.py``, which explains it, over the K slots read.

n_k = r_k * z_k    R = sum(r)    D = sum(n) + eps    r'_k = R * n_k / D
"""

from __future__ import annotations

from .compiling import inner


@inner
def mass_aware_forward(weight, mass, eps):
    """Read weights r become r', in place. ``weight``, ``mass``: (K,)."""
    total_r = total_n = eps - eps
    for k in range(weight.size):
        total_r += weight[k]
        weight[k] *= mass[k]
        total_n += weight[k]
    for k in range(weight.size):
        weight[k] = total_r * weight[k] / (total_n + eps)


@inner
def mass_aware_backward(dweight, weight, mass, eps, dmass):
    """The gradient of r' becomes that of r, in place; ``dmass``: that of the masses. All (K,), ``weight`` is r."""
    total_r = total_n = dtotal_r = eps - eps
    for k in range(weight.size):
        r = weight[k]
        total_r += r
        total_n += r * mass[k]
        dtotal_r += dweight[k] * r * mass[k]
    D = total_n + eps
    dtotal_r /= D
    for k in range(weight.size):
        dn = (dweight[k] - dtotal_r) * total_r / D
        dweight[k] = dn * mass[k] + dtotal_r
        dmass[k] = dn * weight[k]
