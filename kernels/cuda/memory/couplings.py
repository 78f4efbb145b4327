"""What the tokens of a chunk mean to one another, once for all channels: the launches of ``couplings*.cu``."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .conflicts import GRID
from .layout import THREADS, Layout
from .mass_backward import Dots


@functools.cache
def coupling_params(acc: np.dtype) -> ParamStruct:
    """``CouplingParams`` of couplings.cu."""
    return ParamStruct(
        "CouplingParams",
        memory=memory_params(acc), writes=POINTER, eta=POINTER, reads=POINTER, read_weight=POINTER, records=POINTER,
        values=POINTER, dy=POINTER, dy_dot_s=POINTER, d_dot_v=POINTER, before_heavy=POINTER, after_heavy=POINTER,
        d_dot_before=POINTER, channels=INT, slices=INT, first_batch=INT, first_chunk=INT,
    )  # fmt: skip


@functools.cache
def coupling_specialisation(layout: Layout, name: str, gradients: bool = True) -> Specialisation:
    """The source of the kernel ``name``, couple_forward or couple_backward, for a layout.

    ``gradients``: whether a backward follows the forward.
    """
    source = {"couple_forward": "couplings", "couple_backward": "couplings_backward"}[name]
    params = coupling_params(np.dtype(f"f{layout.acc_bytes}"))
    defines = (*layout.defines, *((("GRADIENTS", int(gradients)),) if name == "couple_forward" else ()))
    return Specialisation(f"memory/{source}.cu", (name,), defines, (params,))


@functools.lru_cache(maxsize=1024)
def _launch(layout: Layout, name: str, gradients: bool, grid: tuple[int, int, int]) -> Launch:
    return Launch(coupling_specialisation(layout, name, gradients), name, grid, THREADS)


def couple_forward(call: Call, layout: Layout, memory: Any, kept: Kept) -> None:
    """Fill the couplings, events, lists and entries of ``kept``, from which the contents are computed."""
    _couple("couple_forward", call, layout, memory, kept, None, None)


def couple_backward(call: Call, layout: Layout, memory: Any, kept: Kept, dots: Dots, dy: Array) -> None:
    """Turn the first slice of ``dots`` into the dot products over all channels that the masses need."""
    _couple("couple_backward", call, layout, memory, kept, dots, dy)


def _couple(
    name: str, call: Call, layout: Layout, memory: Any, kept: Kept, dots: Dots | None, dy: Array | None
) -> None:
    B, _, H, C = call.values.shape
    chunks = kept.chunks[1] if call.packed is None else call.packed.chunks
    for batch, chunk in product(range(0, B, GRID), range(0, chunks, GRID)):
        grid = H, min(chunks - chunk, GRID), min(B - batch, GRID)
        _launch(layout, name, call.options.gradients, grid)(
            coupling_params(call.acc)(
                memory=memory, writes=kept.writes, eta=kept.eta, reads=kept.reads,
                read_weight=call.read.weight if kept.read_share is None else kept.read_share, records=kept.records,
                values=call.values, dy=dy, dy_dot_s=dots and dots.dy_dot_s, d_dot_v=dots and dots.d_dot_v,
                before_heavy=dots and dots.before_heavy, after_heavy=dots and dots.after_heavy,
                d_dot_before=dots and dots.d_dot_before, channels=C, slices=layout.slices,
                first_batch=batch, first_chunk=chunk,
            )
        )  # fmt: skip
