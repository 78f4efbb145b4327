"""What a sparse state can be made of: sizes, numbers and tiers; and which rows it can be asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ramnet_np.contract import MemoryTiers, RAMState

MOST = 2**31 - 1  # of sequences, heads, slots and channels


def checked_shape(shape: Any) -> tuple[int, int, int, int]:
    """(B, H, M, C) as four ints. TypeError or ValueError, naming the size, otherwise.

    >>> checked_shape((1, 2, 0, 4))
    Traceback (most recent call last):
        ...
    ValueError: slots must be between 1 and 2147483647, got 0
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str) or len(shape) != 4:
        raise ValueError(f"shape must be (B, H, M, C), got {shape!r}")
    sizes = []
    for name, size, least in zip(("batch", "heads", "slots", "channels"), shape, (0, 0, 1, 0), strict=True):
        sizes.append(_whole(name, size, least, MOST))
    B, H, M, C = sizes
    if B * H * M >= 2**63:
        raise ValueError(f"batch * heads * slots must be below 2**63, which numbers every slot, got {B} * {H} * {M}")
    return B, H, M, C


def checked_dtype(dtype: Any) -> np.dtype:
    """float32 or float64, of the sums. TypeError otherwise.

    >>> checked_dtype(np.float16)
    Traceback (most recent call last):
        ...
    TypeError: dtype must be float32 or float64, which a state is summed up in, got 'float16'
    """
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in ("float32", "float64"):
        got = repr(dtype) if found is None else repr(found.name)
        raise TypeError(f"dtype must be float32 or float64, which a state is summed up in, got {got}")
    return found


def checked_mass(mass: Any, dtype: np.dtype) -> float:
    """z of a slot that was never written: finite and above 0 in ``dtype``. TypeError or ValueError otherwise.

    >>> checked_mass(1e-60, np.dtype(np.float32))
    Traceback (most recent call last):
        ...
    ValueError: initial_mass must be a finite number above 0 in float32, got 1e-60
    """
    if isinstance(mass, bool) or not isinstance(mass, int | float | np.integer | np.floating):
        raise TypeError(f"initial_mass must be a number, got {mass!r}")
    limits = np.finfo(dtype)
    if not float(limits.smallest_subnormal) <= mass <= float(limits.max):
        raise ValueError(f"initial_mass must be a finite number above 0 in {dtype}, got {mass!r}")
    return float(mass)


def check_tiers(tiers: Any) -> None:
    """TypeError or ValueError unless ``tiers`` are of sizes and a folder; whether there is room is not looked at.

    >>> check_tiers(MemoryTiers(host="64GiB"))
    Traceback (most recent call last):
        ...
    TypeError: memory.host must be a number of bytes, got '64GiB'
    """
    if not isinstance(tiers, MemoryTiers):
        raise TypeError(f"memory must be tiers, such as MemoryTiers(host=2**30), got {type(tiers).__name__}")
    for name in ("host", "disk_bytes", "gpu"):
        size = getattr(tiers, name)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int | np.integer)):
            raise TypeError(f"memory.{name} must be a number of bytes, got {size!r}")
        if size is not None and size < 0:
            raise ValueError(f"memory.{name} must be at least 0 bytes, got {size}")
    if tiers.disk is not None and not isinstance(tiers.disk, str | os.PathLike):
        raise TypeError(f"memory.disk must be a folder, got {tiers.disk!r}")
    if tiers.disk is not None and "\0" in os.fspath(tiers.disk):
        raise ValueError(f"memory.disk must be a folder, got {str(tiers.disk)!r}, which holds a null character")


def check_tiers_of_cpu(tiers: MemoryTiers) -> None:
    """ValueError for checked tiers that contradict each other, of a state in the host's memory.

    >>> check_tiers_of_cpu(MemoryTiers(host=2**20, disk_bytes=2**30))
    Traceback (most recent call last):
        ...
    ValueError: memory.disk_bytes needs a folder memory.disk, got none
    """
    if tiers.gpu is not None:
        raise ValueError(f"memory.gpu must be None for a state on the CPU, got {tiers.gpu} bytes for each layer")
    if tiers.disk is not None and tiers.host is None:
        raise ValueError("memory.host must say how many bytes stay above memory.disk, got None")
    if tiers.disk_bytes is not None and tiers.disk is None:
        raise ValueError("memory.disk_bytes needs a folder memory.disk, got none")


def checked_sequences(sequences: Any, batch: int) -> list[int]:
    """Numbers of sequences of a batch. TypeError or ValueError for what is none.

    >>> checked_sequences([0, 2], batch=2)
    Traceback (most recent call last):
        ...
    ValueError: sequences must be between 0 and 1, got 2
    """
    if not hasattr(sequences, "__iter__"):
        raise TypeError(f"sequences must be numbers of sequences, got {sequences!r}")
    return [_whole("sequences", one, 0, batch - 1) for one in sequences]


def check_dense(state: Any) -> None:
    """TypeError or ValueError unless ``state`` is a RAMState whose arrays belong together.

    >>> check_dense(RAMState(np.zeros((1, 1, 4, 2)), np.ones((1, 1, 5))))
    Traceback (most recent call last):
        ...
    ValueError: state must be slots (B, H, M, C) and mass (B, H, M), got (1, 1, 4, 2) and (1, 1, 5)
    """
    if not isinstance(state, RAMState):
        raise TypeError(f"state must be a RAMState (slots, mass), got {type(state).__name__}")
    if not all(hasattr(part, "dtype") and hasattr(part, "shape") for part in state):
        kinds = " and ".join(type(part).__name__ for part in state)
        raise TypeError(f"state must be arrays slots and mass, got {kinds}")
    slots, mass = state
    if len(slots.shape) != 4 or mass.shape != slots.shape[:3]:
        raise ValueError(f"state must be slots (B, H, M, C) and mass (B, H, M), got {slots.shape} and {mass.shape}")
    if mass.dtype != slots.dtype:
        raise TypeError(f"state must be slots and mass of one dtype, got {slots.dtype} and {mass.dtype}")


def check_keys(keys: Any, xp: Any) -> None:
    """TypeError or ValueError unless ``keys`` are an array (N,) of int64; which slots they name is not looked at.

    >>> check_keys(np.array([1.0]), np)
    Traceback (most recent call last):
        ...
    TypeError: keys must be an array of int64, got float64
    """
    if not isinstance(keys, xp.ndarray) or keys.dtype != np.int64:
        got = keys.dtype if isinstance(keys, xp.ndarray) else type(keys).__name__
        raise TypeError(f"keys must be an array of int64, got {got}")
    if keys.ndim != 1:
        raise ValueError(f"keys must have shape (N,), got {keys.shape}")


def check_rows(keys: Any, rows: Any, shape: tuple[int, int, int, int], dtype: np.dtype, xp: Any) -> None:
    """TypeError or ValueError unless ``rows`` can be stored under ``keys``. Of keys on a GPU the values are not read.

    >>> check_rows(np.array([16]), np.ones((1, 3)), (1, 1, 16, 2), np.dtype(float), np)
    Traceback (most recent call last):
        ...
    ValueError: keys must be between 0 and 15, got 16
    """
    check_keys(keys, xp)
    if not isinstance(rows, xp.ndarray) or rows.dtype != dtype:
        got = rows.dtype if isinstance(rows, xp.ndarray) else type(rows).__name__
        raise TypeError(f"rows must be an array of {dtype}, got {got}")
    if rows.shape != (len(keys), shape[3] + 1):
        raise ValueError(f"rows must have shape (N, C + 1) = {(len(keys), shape[3] + 1)}, got {rows.shape}")
    last = math.prod(shape[:3]) - 1
    if xp is np and len(keys) and not 0 <= (low := keys.min()) <= (high := keys.max()) <= last:
        raise ValueError(f"keys must be between 0 and {last}, got {low if low < 0 else high}")


def checked_block(size: Any) -> int:
    """Rows that are moved at once, at least 1. TypeError or ValueError otherwise.

    >>> checked_block(0)
    Traceback (most recent call last):
        ...
    ValueError: size must be between 1 and 9223372036854775807, got 0
    """
    return _whole("size", size, 1, 2**63 - 1)


def _whole(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
    return int(value)
