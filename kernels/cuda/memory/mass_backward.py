"""The adjoints of the masses, and the gradients that depend on no channel: the launch of ``mass_backward.cu``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, memory_params
from .layout import THREADS, Layout, places_of
from .retention import require_rule


class Dots(NamedTuple):
    """Dot products over channels. ``content.cu`` leaves those with the slots before or after a chunk, of each slice;
    ``couplings.cu`` turns the first slice's into those that the masses need, over all channels."""

    dy_dot_s: Array  # (slices, B*H, chunks, CHUNK, R): of every read
    d_dot_v: Array  # (slices, B*H, chunks, CHUNK, W): of every write
    d_dot_before: Array  # (B*H, chunks, CHUNK): of a token's first write, by ``couplings.cu`` where it is heavy
    before_heavy: Array  # (B, T, H, C): content, before the chunk, of the slot of a token's heavy write; else not set
    after_heavy: Array  # (B, T, H, C): its adjoint after the chunk


class MassGrads(NamedTuple):
    """Where the gradients go."""

    dw: Array  # (B, T, H, K_w)
    dr: Array  # (B, T, H, K_r)
    dgamma: Array  # (B, T, H)
    dgiven: Array | None  # (B*H, rows)


@functools.cache
def mass_backward_params(acc: np.dtype) -> ParamStruct:
    """``MassBackwardParams`` of mass_backward.cu."""
    return ParamStruct(
        "MassBackwardParams",
        memory=memory_params(acc), d_dot_v=POINTER, d_dot_before=POINTER, dy_dot_s=POINTER, writes=POINTER,
        mass_before=POINTER, reads=POINTER, gains=POINTER, final_q=POINTER,
        dfinal_mass=POINTER, ends=POINTER, working=POINTER, dw=POINTER, dr=POINTER, dgamma=POINTER, dgiven_mass=POINTER,
        maps=POINTER, final_q_parts=INT, segments=INT, chunks_of_segment=INT,
    )  # fmt: skip


@functools.cache
def mass_backward_specialisation(
    layout: Layout, update: str, mass_aware: bool, in_shared: bool, segmented: bool = False, local_only: bool = False
) -> Specialisation:
    """``mass_backward.cu`` for a layout and a rule; ``in_shared``: whether the adjoints are in shared memory."""
    defines = (
        *layout.defines, ("UPDATE", require_rule(update)), ("MASS_AWARE", int(mass_aware)),
        ("MASS_IN_SHARED", int(in_shared)), ("SEGMENTED", int(segmented)), ("LOCAL_ONLY", int(local_only)),
    )  # fmt: skip
    params = mass_backward_params(np.dtype(f"f{layout.acc_bytes}"))
    return Specialisation("memory/mass_backward.cu", ("mass_backward",), defines, (params,))


@functools.lru_cache(maxsize=1024)
def _launch(
    layout: Layout, update: str, mass_aware: bool, rows: int, blocks: int, segmented: bool, local_only: bool
) -> Launch:
    in_shared = layout.masses_in_shared(rows)
    numbers = 2 + 2 * local_only  # of a row: q and dz, and what is left of those at the end
    shared = numbers * places_of(rows) * layout.acc_bytes if in_shared else 0
    specialisation = mass_backward_specialisation(layout, update, mass_aware, in_shared, segmented, local_only)
    return Launch(specialisation, "mass_backward", (blocks,), 2 * THREADS, shared)


def mass_backward(
    call: Call,
    layout: Layout,
    memory: Any,
    kept: Kept,
    dots: Dots,
    grads: MassGrads,
    segments: tuple[int, int],
    *,
    gains: Array | None,
    final_q: Array | None,
    dfinal_mass: Array | None,
    ends: Array | None = None,
    maps: Array | None = None,
) -> None:
    """Fill ``grads``, or with ``maps`` only that: what each segment makes of q and dz, (B*H, segments, rows, 4).

    ``segments``: how many, and chunks of each; ``gains``: what mass-aware reads add to q and dz, else None;
    ``final_q``: (parts, B*H, rows), <adjoint, content> at the end as a sum of parts, None for 0;
    ``dfinal_mass``: (B*H, rows), adjoints of the masses at the end, None for 0;
    ``ends``: (B*H, segments, rows, 2), in place of both where there are segments.
    """
    import cupy

    count, length = segments
    options, in_shared = call.options, layout.masses_in_shared(call.rows)
    working = None if in_shared else cupy.zeros((*call.state_shape, 2), dtype=call.acc)
    launch = _launch(
        layout, options.update, options.mass_aware, call.rows, call.sequences * count, count > 1,
        maps is not None,
    )  # fmt: skip
    launch(
        mass_backward_params(call.acc)(
            memory=memory, d_dot_v=dots.d_dot_v, d_dot_before=dots.d_dot_before, dy_dot_s=dots.dy_dot_s,
            writes=kept.writes, mass_before=kept.mass_before, reads=kept.reads, gains=gains, final_q=final_q,
            dfinal_mass=dfinal_mass, ends=ends, working=working, dw=grads.dw, dr=grads.dr, dgamma=grads.dgamma,
            dgiven_mass=grads.dgiven, maps=maps,
            final_q_parts=0 if final_q is None else len(final_q), segments=count, chunks_of_segment=length,
        )
    )  # fmt: skip
