"""The short causal convolution: every channel mixes its last few tokens with weights of its own."""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.require import ArraySpec, readable, require_array, require_context, require_like, require_width


@readable
class ShortConvContext(NamedTuple):
    """What ``short_conv_backward`` needs."""

    x: Array  # (B, S + T, D): the S tokens before these first
    weight: Array  # (D, width)
    y: ArraySpec


class ShortConvGrads(NamedTuple):
    """One gradient per input."""

    x: Array
    weight: Array


@accelerated
def short_conv_forward(x: Array, weight: Array, before: Array | None = None) -> tuple[Array, ShortConvContext]:
    """Sum the last tokens of each channel, the newest under the last weight.

        y[t, c] = sum_i weight[c, width-1-i] * x[t-i, c],    i = 0 .. width - 1

    ``x``: (B, T, D); ``weight``: (D, width); ``before``: (B, S, D), the S <= width - 1 tokens that came before these,
    taken as constant; tokens before those are 0. Returns y (B, T, D) and ctx. Cost: 2 width operations an element.
    ValueError or TypeError where shapes or dtypes do not fit.
    Source: Fu et al., arXiv 2212.14052 (the shift of H3), as DeltaNet (arXiv 2406.06484) has it.

    >>> import numpy as np
    >>> x = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    >>> short_conv_forward(x, np.array([[10.0, 1.0]]))[0].ravel().tolist()  # the token, and ten times the last one
    [1.0, 12.0, 23.0]
    """
    require_short_conv(x, weight, before)
    if before is not None:
        x = namespace_of(x).concatenate([before, x], axis=1)
    # every token under the last weight, and those i places earlier under the one i before it
    y = x * weight[:, -1]
    for i in range(1, min(weight.shape[1], x.shape[1])):
        y[:, i:] += x[:, :-i] * weight[:, -1 - i]
    if before is not None:
        y = y[:, before.shape[1] :]
    return y, ShortConvContext(x, weight, ArraySpec.of(y))


@accelerated
def short_conv_backward(dy: Array, ctx: ShortConvContext) -> ShortConvGrads:
    """Gradients of x and weight.

        dx[t, c] = sum_i weight[c, width-1-i] * dy[t+i, c]
        dweight[c, width-1-i] = sum over tokens of dy[t, c] * x[t-i, c]
    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = short_conv_forward(np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), np.array([[10.0, 1.0]]))
    >>> dx, dweight = short_conv_backward(np.ones_like(y), ctx)
    >>> dx.ravel().tolist(), dweight.tolist()
    ([11.0, 11.0, 1.0], [[3.0, 6.0]])
    """
    require_context(ctx, ShortConvContext, "short_conv_forward")
    require_like("dy", dy, ctx.y)
    xp = namespace_of(dy)
    x, weight = ctx.x, ctx.weight
    before = x.shape[1] - dy.shape[1]
    dx = dy * weight[:, -1]
    dweight = xp.zeros_like(weight)
    for i in range(weight.shape[1]):
        if 0 < i < dy.shape[1]:
            dx[:, :-i] += dy[:, i:] * weight[:, -1 - i]
        late = max(0, i - before)  # the first so many tokens have no i-th token before them
        if late < dy.shape[1]:
            reached = x[:, before + late - i : x.shape[1] - i]
            dweight[:, -1 - i] = xp.einsum("btd,btd->d", dy[:, late:], reached)
    return ShortConvGrads(dx, dweight)


def require_short_conv(x: Array, weight: Array, before: Array) -> None:
    """ValueError or TypeError unless ``x`` (B, T, D), ``weight`` (D, width) and ``before`` (B, S, D) or None fit.

    >>> import numpy as np
    >>> require_short_conv(np.zeros((1, 3, 2)), np.zeros((2, 4)), np.zeros((1, 4, 2)))
    Traceback (most recent call last):
        ...
    ValueError: before must hold at most 3 tokens, as the weight reaches, got 4
    """
    require_array("weight", weight)
    if weight.ndim != 2 or weight.shape[1] == 0:
        raise ValueError(f"weight must have shape (D, width), width at least 1, got {weight.shape}")
    require_width("x", x, weight.shape[0], weight)
    if x.ndim != 3:
        raise ValueError(f"x must have shape (B, T, D), got {x.shape}")
    if before is None:
        return
    S = require_array("before", before).shape[1:2]
    require_like("before", before, ArraySpec.of(x)._replace(shape=(x.shape[0], *S, x.shape[2])))
    if before.shape[1] >= weight.shape[1]:
        raise ValueError(
            f"before must hold at most {weight.shape[1] - 1} tokens, as the weight reaches, got {before.shape[1]}"
        )
