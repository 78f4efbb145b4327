"""Elementwise activations: sigmoid, ReLU, SiLU, GELU; each a forward and a backward."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_like


@readable
class SigmoidContext(NamedTuple):
    """What ``sigmoid_backward`` needs."""

    y: Array  # the slope is y (1 - y)


@readable
class ReLUContext(NamedTuple):
    """What ``relu_backward`` needs."""

    positive: Array  # bool, where x > 0
    y: ArraySpec


@readable
class SiLUContext(NamedTuple):
    """What ``silu_backward`` needs."""

    x: Array
    s: Array  # sigmoid(x): exponentials cost more than memory


@readable
class GELUContext(NamedTuple):
    """What ``gelu_backward`` needs."""

    x: Array
    cdf: Array  # the normal distribution function at x: kept, as erf is dear


@on_gpu_of_arrays
def sigmoid_forward(x: Array) -> tuple[Array, SigmoidContext]:
    """y = 1 / (1 + exp(-x)).

    >>> import numpy as np
    >>> sigmoid_forward(np.array([-1000.0, 0.0, 1000.0]))[0].tolist()
    [0.0, 0.5, 1.0]
    """
    require_floats("x", x)
    y = _sigmoid(x)
    return y, SigmoidContext(y)


@on_gpu_of_arrays
def sigmoid_backward(dy: Array, ctx: SigmoidContext) -> Array:
    """dx = dy * y * (1 - y).

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> y, ctx = sigmoid_forward(np.array([0.0, 1000.0]))
    >>> sigmoid_backward(np.ones(2), ctx).tolist()
    [0.25, 0.0]
    """
    require_context(ctx, SigmoidContext, "sigmoid_forward")
    require_like("dy", dy, ArraySpec.of(ctx.y))
    dx = 1 - ctx.y
    dx *= ctx.y
    dx *= dy
    return dx


@on_gpu_of_arrays
def relu_forward(x: Array) -> tuple[Array, ReLUContext]:
    """y = max(x, 0).

    >>> import numpy as np
    >>> relu_forward(np.array([-1.0, 2.0]))[0].tolist()
    [0.0, 2.0]
    """
    require_floats("x", x)
    y = namespace_of(x).maximum(x, 0)
    return y, ReLUContext(x > 0, ArraySpec.of(y))


@on_gpu_of_arrays
def relu_backward(dy: Array, ctx: ReLUContext) -> Array:
    """dx = dy where x > 0, else 0.

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> y, ctx = relu_forward(np.array([-1.0, 2.0]))
    >>> relu_backward(np.array([5.0, 5.0]), ctx).tolist()
    [0.0, 5.0]
    """
    require_context(ctx, ReLUContext, "relu_forward")
    require_like("dy", dy, ctx.y)
    return dy * ctx.positive


@on_gpu_of_arrays
def silu_forward(x: Array) -> tuple[Array, SiLUContext]:
    """y = x * sigmoid(x), also called Swish.

    >>> import numpy as np
    >>> silu_forward(np.array([0.0, 2.0]))[0].round(4).tolist()
    [0.0, 1.7616]
    """
    require_floats("x", x)
    s = _sigmoid(x)
    return x * s, SiLUContext(x, s)


@on_gpu_of_arrays
def silu_backward(dy: Array, ctx: SiLUContext) -> Array:
    """dx = dy * s * (1 + x * (1 - s)), s = sigmoid(x).

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> y, ctx = silu_forward(np.array([0.0, 2.0]))
    >>> silu_backward(np.ones(2), ctx).round(4).tolist()
    [0.5, 1.0908]
    """
    require_context(ctx, SiLUContext, "silu_forward")
    require_like("dy", dy, ArraySpec.of(ctx.x))
    dx = 1 - ctx.s
    dx *= ctx.x
    dx += 1
    dx *= ctx.s
    dx *= dy
    return dx


@on_gpu_of_arrays
def gelu_forward(x: Array) -> tuple[Array, GELUContext]:
    """y = x * Phi(x), Phi the distribution function of a standard normal number (the exact form, not the tanh one).

    Source: Hendrycks and Gimpel, arXiv 1606.08415.

    >>> import numpy as np
    >>> gelu_forward(np.array([0.0, 2.0]))[0].round(4).tolist()
    [0.0, 1.9545]
    """
    require_floats("x", x)
    cdf = _erf(x * 2**-0.5)
    cdf += 1
    cdf *= 0.5
    return x * cdf, GELUContext(x, cdf)


@on_gpu_of_arrays
def gelu_backward(dy: Array, ctx: GELUContext) -> Array:
    """dx = dy * (Phi(x) + x * phi(x)), phi = exp(-x**2 / 2) / sqrt(2 pi).

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> y, ctx = gelu_forward(np.array([0.0, 2.0]))
    >>> gelu_backward(np.ones(2), ctx).round(4).tolist()
    [0.5, 1.0852]
    """
    require_context(ctx, GELUContext, "gelu_forward")
    require_like("dy", dy, ArraySpec.of(ctx.x))
    xp = namespace_of(dy)
    dx = xp.square(ctx.x)
    dx *= -0.5
    xp.exp(dx, out=dx)
    dx *= (2 * np.pi) ** -0.5
    dx *= ctx.x
    dx += ctx.cdf
    dx *= dy
    return dx


class Activation(NamedTuple):
    """A forward and its backward."""

    forward: Callable[[Array], tuple[Array, Any]]
    backward: Callable[[Array, Any], Array]


ACTIVATIONS = {
    "gelu": Activation(gelu_forward, gelu_backward),
    "silu": Activation(silu_forward, silu_backward),
    "relu": Activation(relu_forward, relu_backward),
    "sigmoid": Activation(sigmoid_forward, sigmoid_backward),
}


def _sigmoid(x: Array) -> Array:
    xp = namespace_of(x)
    y = xp.negative(x)
    # below about -88 (float32) exp(-x) overflows to inf, and 1 / inf is the right answer, 0
    with np.errstate(over="ignore"):
        xp.exp(y, out=y)
    y += 1
    return xp.reciprocal(y, out=y)


def _erf(x: Array) -> Array:
    """The error function, which NumPy lacks: SciPy's, or Python's, number by number, where SciPy is missing."""
    if namespace_of(x) is not np:
        from cupyx.scipy.special import erf
    elif importlib.util.find_spec("scipy"):
        from scipy.special import erf
    else:
        return np.vectorize(math.erf, otypes=[x.dtype])(x)
    return erf(x)
