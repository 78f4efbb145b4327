"""Gated products on the GPU, one launch each: see ``gate.cu``."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.require import ArraySpec, require_like

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, type_name

THREADS, EACH = 256, 4  # of a block, and elements of a thread


class GateContext(NamedTuple):
    """What ``gate_backward`` needs: the activation is computed again, which costs less than keeping it."""

    a: Array
    b: Array
    silu: bool


@cache
def gate_specialisation(element: str) -> Specialisation:
    """For arrays of the type ``element``."""
    defines = ("ELEMENT", element), ("EACH", EACH)
    return Specialisation("layers/gate.cu", ("gate_forward", "gate_backward"), defines)


def gate_forward(a: Array, b: Array, *, silu: bool = False) -> tuple[Array, GateContext]:
    """act(a) * b, act the sigmoid or, with ``silu``, a * sigmoid(a); arrays of one shape."""
    require_like("b", b, ArraySpec.of(a))
    ctx = GateContext(a, b, silu)
    a, b = contiguous_aligned(a), contiguous_aligned(b)
    y = empty(a.shape, a.dtype)
    _launch("gate_forward", y, (a, b, np.int64(y.size), np.int32(silu), y))
    return y, ctx


def gate_backward(dy: Array, ctx: GateContext) -> tuple[Array, Array]:
    """da, db."""
    require_like("dy", dy, ArraySpec.of(ctx.b))
    dy, a, b = contiguous_aligned(dy), contiguous_aligned(ctx.a), contiguous_aligned(ctx.b)
    da, db = (empty(a.shape, a.dtype) for _ in range(2))
    _launch("gate_backward", a, (dy, a, b, np.int64(a.size), np.int32(ctx.silu), da, db))
    return da, db


def _launch(name: str, like: Array, arguments: tuple[Any, ...]) -> None:
    if like.size:
        kernel = get_kernel(gate_specialisation(type_name(like.dtype)), name)
        kernel((-(-like.size // (THREADS * EACH)),), (THREADS,), arguments)
