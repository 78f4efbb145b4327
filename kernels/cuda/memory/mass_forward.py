"""The masses of the slots, forward: the launch of ``mass_forward.cu``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .layout import THREADS, Layout, places_of


@functools.cache
def mass_forward_params(acc: np.dtype) -> ParamStruct:
    """``MassForwardParams`` of mass_forward.cu."""
    return ParamStruct(
        "MassForwardParams",
        memory=memory_params(acc), given=POINTER, working=POINTER, final_mass=POINTER, decay_products=POINTER,
        writes=POINTER, change_before=POINTER, reads=POINTER, eta=POINTER, mass_before=POINTER, read_mass=POINTER,
        segments=INT, chunks_of_segment=INT,
    )  # fmt: skip


@functools.cache
def mass_forward_specialisation(
    layout: Layout, mass_aware: bool, in_shared: bool, renumbered: bool, segmented: bool = False, gradients: bool = True
) -> Specialisation:
    """``mass_forward.cu`` for a layout; ``in_shared``: whether the masses are in shared memory; ``gradients``: whether
    a backward follows."""
    defines = (
        *layout.defines, ("GRADIENTS", int(gradients)), ("MASS_AWARE", int(mass_aware)),
        ("MASS_IN_SHARED", int(in_shared)),
        ("LAZY_ZERO", int(renumbered and not in_shared)), ("SEGMENTED", int(segmented)),
    )  # fmt: skip
    params = mass_forward_params(np.dtype(f"f{layout.acc_bytes}"))
    return Specialisation("memory/mass_forward.cu", ("mass_forward",), defines, (params,))


@functools.lru_cache(maxsize=1024)
def _launch(
    layout: Layout, mass_aware: bool, renumbered: bool, rows: int, blocks: int, segmented: bool, gradients: bool
) -> Launch:
    in_shared = layout.masses_in_shared(rows)
    numbers = 1 + segmented  # of a row: its mass, and the product of 1 - eta
    shared = numbers * places_of(rows) * layout.acc_bytes if in_shared else 0
    specialisation = mass_forward_specialisation(layout, mass_aware, in_shared, renumbered, segmented, gradients)
    return Launch(specialisation, "mass_forward", (blocks,), THREADS, shared)


def mass_forward(
    call: Call,
    layout: Layout,
    memory: Any,
    kept: Kept,
    change_before: Array,
    segments: tuple[int, int],
    *,
    given: Array | None,
    final: Array | None,
    decay_products: Array | None,
) -> None:
    """eta of every write into ``kept``, and the masses before writes (and at reads).

    ``segments``: how many, and chunks of each; ``given``: (B*H, segments, rows), masses to start from, or None;
    ``final``: (B*H, rows), set to the masses at the end, and worked on where shared memory is too small; or None.
    ``decay_products``: (B*H, segments, rows), set to the products of 1 - eta, or None.
    """
    count, length = segments
    launch = _launch(
        layout, call.options.mass_aware, call.renumbered, call.rows, call.sequences * count, count > 1,
        call.options.gradients,
    )  # fmt: skip
    launch(
        mass_forward_params(call.acc)(
            memory=memory, given=given, working=final, final_mass=final, decay_products=decay_products,
            writes=kept.writes, change_before=change_before, reads=kept.mass_reads, eta=kept.eta,
            mass_before=kept.mass_before, read_mass=kept.read_mass, segments=count, chunks_of_segment=length,
        )
    )  # fmt: skip
