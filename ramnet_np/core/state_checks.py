"""What a state must be, to start from and to be updated in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.sparse_state import SparseRAMState


def check_state(name: str, state: Any, shape: tuple[int, int, int, int], like: Array, packed: bool = False) -> None:
    """A RAMState with slots (B, H, M, C) and mass (B, H, M), of the dtype of the sums; ``packed``: N instead of B.

    Or a SparseRAMState of that shape.

    TypeError or ValueError otherwise.

    >>> state = RAMState.initial(batch=1, heads=2, slots=16, channels=3)
    >>> check_state("state", state, (1, 2, 16, 4), np.zeros(1, np.float32))
    Traceback (most recent call last):
        ...
    ValueError: state.slots must have shape (B, H, M, C) = (1, 2, 16, 4), got (1, 2, 16, 3)
    """
    if not isinstance(state, RAMState | SparseRAMState):
        raise TypeError(f"{name} must be a RAMState (slots, mass), got {type(state).__name__}")
    dtype = like.dtype if like.dtype.itemsize >= 4 else np.dtype(np.float32)
    if isinstance(state, SparseRAMState):
        state.require_whole()
        if packed:
            raise ValueError(f"cu_seqlens must be None where {name} is a SparseRAMState, got packed sequences")
        if state.xp is not namespace_of(like):
            raise TypeError(f"{name} must be a state for arrays of values, got one for {state.xp.__name__} arrays")
        if state.shape != shape or state.dtype != dtype:
            raise ValueError(f"{name} must have shape (B, H, M, C) = {shape} and be {dtype}, got {state!r}")
        return
    first = "N" if packed else "B"
    for part, array, expected, axes in (
        ("slots", state.slots, shape, f"({first}, H, M, C)"),
        ("mass", state.mass, shape[:3], f"({first}, H, M)"),
    ):
        if array_kind(array) != array_kind(like) or not hasattr(array, "dtype"):
            raise TypeError(f"{name}.{part} must be an array of the kind of values, got {type(array).__name__}")
        if array.shape != expected:
            raise ValueError(f"{name}.{part} must have shape {axes} = {expected}, got {array.shape}")
        if array.dtype != dtype:
            raise TypeError(f"{name}.{part} must be {dtype}, got {array.dtype}")


def check_in_place(name: str, state: RAMState | SparseRAMState) -> None:
    """ValueError unless the arrays of a checked state can be updated in place: writeable, of memory of their own.

    Arrays on a GPU are not looked at.

    >>> mass = np.full((1, 1, 4), 0.25)
    >>> check_in_place("state", RAMState(np.broadcast_to(0.0, (1, 1, 4, 2)), mass))
    Traceback (most recent call last):
        ...
    ValueError: state.slots must be writeable to be updated in place, got a read-only array
    >>> check_in_place("state", RAMState(mass[..., None], mass))
    Traceback (most recent call last):
        ...
    ValueError: state.slots and state.mass must not share memory to be updated in place
    """
    if isinstance(state, SparseRAMState):
        return
    slots, mass = state
    if not isinstance(slots, np.ndarray):
        return
    for part, array in (("slots", slots), ("mass", mass)):
        flags = array.flags
        if not flags.writeable:
            raise ValueError(f"{name}.{part} must be writeable to be updated in place, got a read-only array")
        if not flags.c_contiguous and overlaps_itself(array):
            raise ValueError(
                f"{name}.{part} must hold every element in memory of its own to be updated in place, "
                f"got strides {array.strides} for shape {array.shape}"
            )
    if np.may_share_memory(slots, mass) and np.shares_memory(slots, mass):
        raise ValueError(f"{name}.slots and {name}.mass must not share memory to be updated in place")


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements of ``array`` may lie at one place in memory, as after ``np.broadcast_to``.

    Slices, transposes and other views of an ordinary array never do: from its smallest stride to its largest, each
    steps over all that the smaller ones reach. Where that does not hold, the answer is yes.

    >>> x = np.zeros((4, 6))
    >>> overlaps_itself(x[::-2, 1::3].T), overlaps_itself(np.broadcast_to(x, (2, 4, 6)))
    (False, True)
    """
    reach = array.itemsize  # bytes from the first to the last that the axes so far reach
    for stride, size in sorted((abs(stride), size) for stride, size in zip(array.strides, array.shape, strict=True)):
        if size == 0:
            return False
        if size > 1 and stride < reach:
            return True
        reach += stride * (size - 1)
    return False
