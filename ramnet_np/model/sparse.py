"""The sparse memory of a model: every layer has a state that holds touched slots only, and they share the tiers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import MemoryTiers, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.sparse_checks import check_tiers
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.model.block import ConvState
from ramnet_np.model.call_checks import mixers_with_slots
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers import mixers_of


def sparse_state(model: Any, batch: int, tiers: MemoryTiers | None = None) -> list[Any]:
    """The state of every layer of ``model``, a RAMNet, before the first token of ``batch`` sequences; it is sparse.

    ``tiers``: where the rows of all layers together may be; each layer has an equal share. Tokens that go on from this
    state have positions: ``model.forward_with_state(ids, state, positions=np.arange(T))``.
    ValueError for a mixer without slots, learned slots, or tiers too small for its layers. Source: paper section 7.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=15), seed=0)
    >>> _, [memory] = model.forward_with_state(np.array([[1, 2]]), sparse_state(model, 1), positions=np.arange(2))
    >>> memory.shape, 0 < memory.written <= 32
    ((1, 2, 1073741824, 4), True)
    """
    config, xp = model.config, namespace_of(*model.params.values())
    dtype = next(iter(model.params.values())).dtype
    _require_slots(config)
    tiers = MemoryTiers() if tiers is None else tiers
    check_tiers(tiers)
    share = tiers.shared(config.layers)
    shape = batch, config.heads, config.slots, config.head_channels
    state: list[Any] = []
    for _ in range(config.layers):
        numbers = dtype if dtype.itemsize > 4 else np.dtype(np.float32)  # of 16-bit models too
        memory = SparseRAMState(shape, numbers, xp, initial_mass=config.init_mass, tiers=share)
        inputs = xp.zeros((batch, max(config.short_conv - 1, 0), config.width), dtype=dtype)
        state.append(ConvState(inputs, memory) if config.short_conv else memory)
    return state


def with_tiers(state: list[Any], tiers: MemoryTiers, config: RAMNetConfig) -> list[Any]:
    """The state of a model of this ``config`` in other tiers: a copy, of a dense state too.

    >>> dense = [RAMState.initial(batch=1, heads=1, slots=16, channels=2)]
    >>> with_tiers(dense, MemoryTiers(), RAMNetConfig())
    [SparseRAMState(B=1, H=1, M=16, C=2, float32, 0 slots written)]
    """
    _require_slots(config)
    check_tiers(tiers)
    share = tiers.shared(len(state))

    def moved(layer: Any) -> Any:
        if isinstance(layer, ConvState):
            return layer._replace(memory=moved(layer.memory))
        if isinstance(layer, RAMState):
            return SparseRAMState.of_dense(layer, share, config.init_mass)
        return layer.take(range(layer.shape[0]), share)

    return [moved(layer) for layer in state]


def _require_slots(config: RAMNetConfig) -> None:
    if without := [mixer.name for mixer in mixers_of(config) if mixer.addresses is None]:
        raise ValueError(f"mixer must be {mixers_with_slots()} for a sparse memory, got {without[0]!r}")
    if config.learned_slots:
        raise ValueError("learned_slots must be False for a sparse memory, whose slots all start alike, got True")
