"""Rotary positions: pairs of channels turn with the token's position, so that products see differences of positions."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import fused_for
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.checks import check_positions
from ramnet_np.core.require import Like, require_like

BASE = 10_000.0


class RotaryContext(NamedTuple):
    """What ``rotary_backward`` needs."""

    cos: Any  # (T, 1, d/2), or (B, T, 1, d/2)
    sin: Any
    y: Like


def rotary_forward(
    x: Any, positions: Any = None, base: float = BASE, *, angles: RotaryContext | None = None
) -> tuple[Any, RotaryContext]:
    """Turn the i-th pair of channels of the token at position t by the angle t * base**(-2i/d).

        (y[i], y[i + d/2]) = (x[i] cos - x[i + d/2] sin,  x[i] sin + x[i + d/2] cos),    i = 0 .. d/2 - 1

    The product of a query at t and a key at t' then depends on t - t' alone, besides on what they hold.
    ``x``: (B, T, H, d), d even; ``positions``: (T,) or (B, T) integers, None counts from 0. ``angles``: the ctx of
    another x of that shape at the same positions, whose angles serve again. Returns y of x's shape and ctx.
    ValueError for an odd d, positions of another shape, or angles of another x; TypeError for positions that are no
    integers.
    Source: Su et al., arXiv 2104.09864, eq. 34; a pair is channel i of one half and of the other.

    >>> import numpy as np
    >>> y, ctx = rotary_forward(np.tile([1.0, 0.0], (1, 3, 1, 1)))  # an arrow, at positions 0, 1, 2
    >>> y[0, :, 0].round(3).tolist()
    [[1.0, 0.0], [0.54, 0.841], [-0.416, 0.909]]
    """
    xp = namespace_of(x)
    if getattr(x, "ndim", None) != 4 or x.shape[-1] % 2:
        raise ValueError(f"x must have shape (B, T, H, d) with an even d, got {getattr(x, 'shape', type(x).__name__)}")
    if angles is not None:
        require_like("x", x, angles.y)
        return _turned(xp, x, angles.cos, angles.sin), angles
    B, T, _, d = x.shape
    positions = xp.arange(T) if positions is None else check_positions(positions, (B, T), x)
    # 1. angles, in float64: a position times a frequency can be large
    frequency = base ** (xp.arange(0, d, 2, dtype=xp.float64) / -d)
    angle = positions[..., None, None] * frequency
    ctx = RotaryContext(xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype), Like.of(x))
    # 2. turn
    return _turned(xp, x, ctx.cos, ctx.sin), ctx


def rotary_backward(dy: Any, ctx: RotaryContext) -> Any:
    """Gradient of x: dy turned back, as the transpose of a rotation is its inverse.

        (dx[i], dx[i + d/2]) = (dy[i] cos + dy[i + d/2] sin,  -dy[i] sin + dy[i + d/2] cos)
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1, 3, 1, 4))
    >>> y, ctx = rotary_forward(x)
    >>> np.allclose(rotary_backward(y, ctx), x)
    True
    """
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    return _turned(xp, dy, ctx.cos, -ctx.sin)


def _turned(xp: Any, x: Any, cos: Any, sin: Any) -> Any:
    if fused := fused_for("rotate", x):
        return fused(x, cos, sin)
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return xp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
