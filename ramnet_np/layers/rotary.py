"""Rotary positions: pairs of channels turn with the token's position, so that products see differences of positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.checks import check_positions
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_like

BASE = 10_000.0


@readable
class RotaryContext(NamedTuple):
    """What ``rotary_backward`` needs."""

    cos: Array  # (T, 1, d/2), or (B, T, 1, d/2)
    sin: Array
    y: ArraySpec


@on_gpu_of_arrays
def rotary_forward(
    x: Array, positions: Array | None = None, base: float = BASE, *, angles: RotaryContext | None = None
) -> tuple[Array, RotaryContext]:
    """Turn the i-th pair of channels of the token at position t by the angle t * base**(-2i/d).

        (y[i], y[i + d/2]) = (x[i] cos - x[i + d/2] sin,  x[i] sin + x[i + d/2] cos),    i = 0 .. d/2 - 1

    The product of a query at t and a key at t' then depends on t - t' alone, besides on what they hold.
    ``x``: (B, T, H, d), d even; ``positions``: (T,) or (B, T) integers, None counts from 0. ``angles``: the ctx of
    another x of that shape at the same positions, whose angles serve again. Returns y of x's shape and ctx.
    An angle is right to about t times 1e-16, which float32 shows from positions of 10**9 on.
    ValueError for an odd d, positions of another shape, a base that is not above 0, or angles of another x; TypeError
    for positions that are no integers.
    Source: Su et al., arXiv 2104.09864, eq. 34; a pair is channel i of one half and of the other.

    >>> import numpy as np
    >>> y, ctx = rotary_forward(np.tile([1.0, 0.0], (1, 3, 1, 1)))  # an arrow, at positions 0, 1, 2
    >>> y[0, :, 0].round(3).tolist()
    [[1.0, 0.0], [0.54, 0.841], [-0.416, 0.909]]
    """
    xp = namespace_of(x)
    if getattr(x, "ndim", None) != 4 or x.shape[-1] % 2:
        raise ValueError(f"x must have shape (B, T, H, d) with an even d, got {getattr(x, 'shape', type(x).__name__)}")
    require_floats("x", x)
    if not 0 < base < math.inf:
        raise ValueError(f"base must be above 0 and finite, got {base}")
    if angles is not None:
        require_like("x", x, angles.y)
        return rotate(x, angles.cos, angles.sin), angles
    B, T, _, d = x.shape
    positions = xp.arange(T) if positions is None else check_positions(positions, (B, T), x)
    # 1. angles, in float64: a position times a frequency can be large
    frequency = base ** (xp.arange(0, d, 2, dtype=xp.float64) / -d)
    angle = positions[..., None, None] * frequency
    wide = np.promote_types(x.dtype, np.float32)
    ctx = RotaryContext(xp.cos(angle).astype(wide), xp.sin(angle).astype(wide), ArraySpec.of(x))
    # 2. turn
    return rotate(x, ctx.cos, ctx.sin), ctx


@on_gpu_of_arrays
def rotary_backward(dy: Array, ctx: RotaryContext) -> Array:
    """Gradient of x: dy turned back, as the transpose of a rotation is its inverse.

        (dx[i], dx[i + d/2]) = (dy[i] cos + dy[i + d/2] sin,  -dy[i] sin + dy[i + d/2] cos)
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1, 3, 1, 4))
    >>> y, ctx = rotary_forward(x)
    >>> np.allclose(rotary_backward(y, ctx), x)
    True
    """
    require_context(ctx, RotaryContext, "rotary_forward")
    require_like("dy", dy, ctx.y)
    return rotate(dy, ctx.cos, -ctx.sin)


@accelerated
def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn the pairs of channels of ``x`` (B, T, H, d) by the angles of ``cos`` and ``sin``.

        (y[i], y[i + d/2]) = (x[i] cos - x[i + d/2] sin,  x[i] sin + x[i + d/2] cos)

    ``cos``, ``sin``: (T, 1, d/2) or (B, T, 1, d/2), of float32 for an x of 16 bits. Returns y of x's shape.

    >>> import numpy as np
    >>> rotate(np.array([1.0, 0.0]).reshape(1, 1, 1, 2), np.zeros((1, 1, 1)), np.ones((1, 1, 1))).ravel().tolist()
    [0.0, 1.0]
    """
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned = namespace_of(x).concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(x.dtype, copy=False)
