"""Reads that weigh by mass: the launches of ``mass_aware.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .layout import THREADS, Layout


@functools.cache
def mass_aware_params(acc: np.dtype) -> ParamStruct:
    """``MassAwareParams`` of mass_aware.cu."""
    return ParamStruct(
        "MassAwareParams",
        memory=memory_params(acc), reads=POINTER, read_mass=POINTER, read_share=POINTER, dy_dot_s=POINTER,
        gains=POINTER, dr=POINTER,
    )  # fmt: skip


@functools.cache
def mass_aware_specialisation(layout: Layout) -> Specialisation:
    """``mass_aware.cu`` for a layout."""
    kernels = ("mass_aware_forward", "mass_aware_backward")
    params = mass_aware_params(np.dtype(f"f{layout.acc_bytes}"))
    return Specialisation("memory/mass_aware.cu", kernels, layout.defines, (params,))


@functools.lru_cache(maxsize=1024)
def _launch(layout: Layout, name: str, blocks: int) -> Launch:
    return Launch(mass_aware_specialisation(layout), name, (blocks,), THREADS)


def mass_aware_forward(call: Call, layout: Layout, memory: Any, kept: Kept) -> None:
    """Fill ``kept.read_share`` with the weights that reads have by mass."""
    _launch(layout, "mass_aware_forward", kept.all_chunks)(
        mass_aware_params(call.acc)(
            memory=memory, reads=kept.reads, read_mass=kept.read_mass, read_share=kept.read_share, dy_dot_s=None,
            gains=None, dr=None,
        )
    )  # fmt: skip


def mass_aware_backward(call: Call, layout: Layout, memory: Any, kept: Kept, dy_dot_s: Array, dr: Array) -> Array:
    """Fill ``dr`` (B, T, H, K_r) from <dy, s> of every read; return what reads add to q and dz of their slots.

    ``dy_dot_s``: (B*H, chunks, CHUNK, R). Returns (B*H, chunks, CHUNK, R, 2).
    """
    import cupy

    gains = cupy.empty((*kept.reads.shape[:4], 2), dtype=call.acc)
    _launch(layout, "mass_aware_backward", kept.all_chunks)(
        mass_aware_params(call.acc)(
            memory=memory, reads=kept.reads, read_mass=kept.read_mass, read_share=None, dy_dot_s=dy_dot_s, gains=gains,
            dr=dr,
        )
    )  # fmt: skip
    return gains
