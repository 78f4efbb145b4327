"""What the arguments of one call of a model must be, beside what the layers ask of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array, RAMState
from ramnet_np.core.arrays import memory_of, namespace_of
from ramnet_np.core.checks import check_mask, check_positions, full_positions
from ramnet_np.core.packed import check_cu_seqlens, packed_positions
from ramnet_np.core.require import require_array, require_ids
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.model.block import ConvState, check_block_state
from ramnet_np.model.config import RAMNetConfig, of_layer
from ramnet_np.model.count import state_elements
from ramnet_np.model.live_tokens import live_tokens
from ramnet_np.model.memory import require_memory
from ramnet_np.model.mixers import MIXERS, CallOptions, mixers_of

_SAME_SLOTS = "state must hold other slots for every layer, got two layers with the same"
WORTH_ASKING = 2**28  # bytes from which on the system is asked whether it has them


def check_ids(ids: Array, vocab: int, like: Array) -> None:
    """ValueError or TypeError unless ``ids`` are tokens (B, T) below ``vocab``, on the device of ``like``.

    >>> check_ids(np.array([1]), 8, np.zeros(1))
    Traceback (most recent call last):
        ...
    ValueError: ids must have shape (B, T) with at least one token, got (1,)
    """
    require_ids("ids", ids, vocab)
    namespace_of(ids, like)
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"ids must have shape (B, T) with at least one token, got {ids.shape}")


def check_one_per_layer(state: Any, layers: int) -> None:
    """ValueError unless ``state`` is a list or tuple of as many states.

    >>> check_one_per_layer([None], 2)
    Traceback (most recent call last):
        ...
    ValueError: state must hold one state per layer (2), got 1
    """
    got = len(state) if isinstance(state, list | tuple) else type(state).__name__
    if got != layers:
        raise ValueError(f"state must hold one state per layer ({layers}), got {got}")


def check_states(state: list[Any], config: RAMNetConfig, batch: int, positions: Array | None, like: Array) -> None:
    """ValueError or TypeError unless a step can update ``state``: looked at in every layer before any changes.

    ``batch``: B; ``like``: an array of the model's dtype and device.

    >>> check_states([], RAMNetConfig(layers=2), 1, None, np.zeros(1, np.float32))
    Traceback (most recent call last):
        ...
    ValueError: state must hold one state per layer (2), got 0
    """
    cape = any(mixer.addresses and config.cape_heads(i) for i, mixer in enumerate(mixers_of(config)))
    if positions is None and cape:
        raise ValueError("positions must say where these tokens are, as heads use CAPE, got None")
    check_one_per_layer(state, config.layers)
    slots = []
    for i, memory in enumerate(state):
        check_block_state(f"state[{i}]", memory, of_layer(config, i), batch, like)
        slots += _slots_in(memory)
    if len(set(map(memory_of, slots))) < len(slots):
        raise ValueError(_SAME_SLOTS)
    _check_sparse_apart(state)


def _check_sparse_apart(state: Sequence[Any]) -> None:
    """ValueError where two layers would update one sparse state."""
    parts = [getattr(memory, "memory", memory) for memory in state]
    sparse = [id(part) for part in parts if isinstance(part, SparseRAMState)]
    if len(set(sparse)) < len(sparse):
        raise ValueError(_SAME_SLOTS)


def _slots_in(memory: Any) -> list[Array]:
    """The arrays of the slots, which a layer's step changes where they are; other memories are replaced."""
    memory = memory.memory if isinstance(memory, ConvState) else memory
    return list(memory) if isinstance(memory, RAMState) and memory.slots.size else []


def check_state_memory(config: RAMNetConfig, batch: int, tokens: int, like: Array) -> None:
    """MemoryError where a state to be returned, which has all slots, does not fit.

    ``like``: an array of the model's dtype and device.

    >>> check_state_memory(RAMNetConfig(), 1, 1, np.zeros(1, np.float32))
    """
    needed = batch * state_elements(config, tokens) * like.dtype.itemsize
    if needed > WORTH_ASKING:
        require_memory(needed, "the state of this model", "gpu" if array_kind(like) == "cupy" else "cpu")


def check_options(config: RAMNetConfig, options: CallOptions, has_state: bool = False) -> None:
    """ValueError for what the model's mixer cannot do. ``has_state``: one is given, or to be returned.

    >>> check_options(RAMNetConfig(mixer="delta"), CallOptions(backend="numba"))
    Traceback (most recent call last):
        ...
    ValueError: backend must be None for mixer 'delta', which NumPy or CuPy computes as the arrays are, got 'numba'
    """
    slots = [mixer.addresses is not None for mixer in mixers_of(config)]
    for name in ("mask", "cu_seqlens"):
        if getattr(options, name) is not None and any(slots) and not all(slots):
            raise ValueError(f"{name} must be None for a hybrid, got one with {config.mixer!r} and {config.hybrid!r}")
        if getattr(options, name) is not None and has_state and (not all(slots) or config.short_conv):
            raise ValueError(
                f"{name} must be None where a state is given or returned, unless mixer is {mixers_with_slots()} and "
                f"short_conv 0, got one with mixer {config.mixer!r} and short_conv {config.short_conv}"
            )
    if options.backend is not None and not any(slots):
        raise ValueError(
            f"backend must be None for mixer {config.mixer!r}, which NumPy or CuPy computes as the arrays are, "
            f"got {options.backend!r}"
        )


def checked_options(
    config: RAMNetConfig, options: CallOptions, ids: Array, state: Sequence[Any] | None, like: Array
) -> CallOptions:
    """The options of a call for checked ids (B, T) that starts from ``state``; see :func:`with_live_tokens`.

    ``like``: a parameter of the model. ValueError, TypeError or MemoryError where a call cannot be made so.

    >>> checked_options(RAMNetConfig(layers=2), CallOptions(), np.zeros((1, 5), int), [None], np.zeros(1, np.float32))
    Traceback (most recent call last):
        ...
    ValueError: state must hold one state per layer (2), got 1
    """
    check_options(config, options, state is not None or options.return_state)
    # mixers with slots look themselves; what is not used is to be right, too
    if not all(mixer.addresses for mixer in mixers_of(config)):
        check_positions(options.positions, ids.shape, like)
    options = with_live_tokens(config, options, ids, like)
    if state is None and options.return_state:
        batch = ids.shape[0] if options.cu_seqlens is None else len(options.cu_seqlens) - 1
        check_state_memory(config, batch, ids.shape[1], like)
    if state is not None:
        check_one_per_layer(state, config.layers)
        _check_sparse_apart(state)
    return options


def with_live_tokens(config: RAMNetConfig, options: CallOptions, ids: Array, like: Array) -> CallOptions:
    """Checked options for ids (B, T) with their offsets checked, and with where layers have the tokens of masked or
    packed rows moved to. ``like``: an array of the model's device.

    >>> options = CallOptions(cu_seqlens=[0, 2, 5])
    >>> moved = with_live_tokens(RAMNetConfig(mixer="delta"), options, np.zeros((1, 5), int), np.zeros(1))
    >>> moved.layer_rows.shape
    (2, 3)
    """
    if options.mask is None and options.cu_seqlens is None:
        return options
    if options.mask is not None:
        check_mask(options.mask, ids.shape, array_kind(like))
    offsets = None if options.cu_seqlens is None else check_cu_seqlens(options.cu_seqlens, ids.shape)
    if MIXERS[config.mixer].addresses is not None:
        positions = options.positions
        if offsets is not None and positions is None:
            positions = packed_positions(offsets, like)
        conv_rows = None
        if config.short_conv:
            conv_rows = live_tokens(ids.shape, options.mask, offsets).one_row(config.short_conv - 1, like)
        return options._replace(positions=positions, cu_seqlens=offsets, conv_rows=conv_rows)
    rows = live_tokens(ids.shape, options.mask, offsets).rows(like)
    positions = options.positions
    if positions is not None or offsets is None:  # packed sequences count from 0, and so do their rows
        positions = rows.apart(full_positions(check_positions(positions, ids.shape, like), ids.shape, like))
    return options._replace(mask=None, cu_seqlens=None, positions=positions, layer_rows=rows)


def mixers_with_slots() -> str:
    """Their names, for an error.

    >>> mixers_with_slots()
    "'ram'"
    """
    return " or ".join(repr(name) for name, mixer in MIXERS.items() if mixer.addresses is not None)


def check_select(select: Array, ids: Array) -> Array:
    """``select`` over the flattened tokens: (B*T,) bool or (N,) integers, on the CPU known to be distinct.

    >>> check_select(np.array([0, 0]), np.array([[1, 2]]))
    Traceback (most recent call last):
        ...
    ValueError: select must name every token once at most, got one that is named twice
    """
    if hasattr(select, "dtype"):
        require_array("select", select)
    kind = getattr(getattr(select, "dtype", None), "kind", None)
    if not ((kind == "b" and select.shape == ids.shape) or (kind in ("i", "u") and select.ndim == 1)):
        got = f"{select.dtype} of shape {select.shape}" if hasattr(select, "shape") else type(select).__name__
        raise ValueError(f"select must be bool of the shape of ids {ids.shape} or (N,) integers, got {got}")
    namespace_of(ids, select)  # both on one device
    if kind != "b" and array_kind(select) == "numpy" and select.size:
        if select.min() < 0 or select.max() >= ids.size:
            raise ValueError(f"select must lie between 0 and {ids.size - 1}, got {select.min()} to {select.max()}")
        # a row that is taken twice would get the gradient of one of the two alone
        if not (select[1:] > select[:-1]).all() and len(np.unique(select)) < len(select):
            raise ValueError("select must name every token once at most, got one that is named twice")
    return select.reshape(-1)
