"""A gated product: one array opens and closes another, by a sigmoid (the RAM layer's output) or by SiLU (SwiGLU)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.accelerated import accelerated
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_like
from ramnet_np.layers.activation import sigmoid_backward, sigmoid_forward, silu_backward, silu_forward


@readable
class GateContext(NamedTuple):
    """What ``gate_backward`` needs."""

    a: Array  # the gate before its activation
    b: Array  # both factors of the product are kept, as each is the other's slope
    opened: Array  # act(a) ...
    activation: Any  # ... and what the activation kept
    silu: bool


@accelerated
def gate_forward(a: Array, b: Array, *, silu: bool = False) -> tuple[Array, GateContext]:
    """Multiply ``b`` by what ``a`` opens.

        y = act(a) * b,    act(a) = sigmoid(a), or a * sigmoid(a) with ``silu``

    ``a``, ``b``: arrays of one shape. Returns y of that shape and ctx.
    Source: Shazeer, arXiv 2002.05202, for SiLU; the authors' package ramnet for the sigmoid.

    >>> import numpy as np
    >>> gate_forward(np.array([0.0, 100.0]), np.array([3.0, 3.0]))[0].tolist()
    [1.5, 3.0]
    """
    require_like("b", b, require_floats("a", a))
    opened, ctx = silu_forward(a) if silu else sigmoid_forward(a)
    return opened * b, GateContext(a, b, opened, ctx, silu)


@accelerated
def gate_backward(dy: Array, ctx: GateContext) -> tuple[Array, Array]:
    """Gradients of a and b.

    da = dy * b * act'(a)        db = dy * act(a)

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = gate_forward(np.array([0.0]), np.array([3.0]))
    >>> [d.tolist() for d in gate_backward(np.array([1.0]), ctx)]
    [[0.75], [0.5]]
    """
    require_context(ctx, GateContext, "gate_forward")
    require_like("dy", dy, ArraySpec.of(ctx.b))
    dopened = dy * ctx.b
    da = silu_backward(dopened, ctx.activation) if ctx.silu else sigmoid_backward(dopened, ctx.activation)
    return da, dy * ctx.opened
