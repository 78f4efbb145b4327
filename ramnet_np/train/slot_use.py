"""How evenly a text uses the slots: what shows whether a memory has collapsed into a few of them.

    m[a]      = sum of the weights with which the tokens write slot a
    touched   = share of the slots with m[a] >= 0.01
    entropy   = -sum_a p[a] log p[a] / log M,  p = m / sum m        1: all slots alike, 0: a single one

Both are means over the heads of a layer; a head without CAPE counts by its slots, one with CAPE by its contents before
they are moved, as moving alone would touch every slot.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ramnet_np.contract import Array
from ramnet_np.core.arrays import on_host
from ramnet_np.model import RAMNet
from ramnet_np.model.mixers import mixers_of

LEAST = 0.01  # of a weight that counts as a touch
WINDOWS = 4  # sequences that are looked at while a run trains


def slot_use(model: RAMNet, ids: Array) -> list[dict[str, float]]:
    """``touched`` and ``entropy`` of the writes of every layer from empty memories; {} for a layer without slots.

    ``ids``: (B, T), on the model's device. Memory: addresses of all layers.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2, radix=2, top_k=4), seed=0)
    >>> [sorted(layer) for layer in slot_use(model, np.array([[1, 2, 3]]))]
    [['entropy', 'touched']]
    """
    config, found = model.config, list[dict[str, float]]()
    for number, addresses in enumerate(model.trace(ids)):
        if "write" not in addresses:
            found.append({})
            continue
        index, weight = (on_host(part) for part in addresses["write"])
        mass = written_mass(index, weight.astype(np.float64), config.slots, config.cape_heads(number))
        found.append({"touched": float((mass >= LEAST).mean()), "entropy": mean_entropy(mass)})
    return found


def has_slots(model: RAMNet) -> bool:
    """Whether a layer of ``model`` has slots.

    >>> from ramnet_np.model import RAMNetConfig
    >>> has_slots(RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, mixer="delta")))
    False
    """
    return any(mixer.addresses for mixer in mixers_of(model.config))


def written_mass(
    index: NDArray[np.int32], weight: NDArray[np.float64], slots: int, cape_heads: int = 0, first: int = 0
) -> NDArray[np.float64]:
    """m of every head and slot, (H, M).

    ``index``, ``weight``: (B, T, H, K), positions counted from ``first``; the first ``cape_heads`` heads use CAPE.

    >>> written_mass(np.array([[[[0]], [[1]]]]), np.ones((1, 2, 1, 1)), slots=2).tolist()
    [[1.0, 1.0]]
    >>> written_mass(np.array([[[[0]], [[1]]]]), np.ones((1, 2, 1, 1)), slots=2, cape_heads=1).tolist()
    [[2.0, 0.0]]
    """
    H, T = index.shape[2], index.shape[1]
    moved = index.astype(np.int64)
    moved[:, :, :cape_heads] += (first + np.arange(T))[:, None, None]  # CAPE lands at a - t: back to the content's slot
    flat = moved % slots + np.arange(H)[:, None] * slots
    return np.bincount(flat.ravel(), weights=weight.ravel(), minlength=H * slots).astype(np.float64).reshape(H, slots)


def mean_entropy(mass: NDArray[np.float64]) -> float:
    """The entropy of each row of m (H, M), as a share of log M: their mean.

    >>> mean_entropy(np.array([[1.0, 1.0], [1.0, 0.0]]))
    0.5
    """
    if mass.shape[1] == 1:
        return 1.0
    shares = [row[row > 0] / row.sum() for row in mass]
    return float(np.mean([-(p * np.log(p)).sum() / math.log(mass.shape[1]) for p in shares]))
