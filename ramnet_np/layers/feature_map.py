"""Feature maps: what queries and keys pass before a memory that is a matrix uses them.

elu        elu(x) + 1        Katharopoulos et al., arXiv 2006.16236: never negative, so features can be normalised
relu       max(x, 0)         Qin et al., arXiv 2202.08791 (cosFormer): never negative, too
silu       x sigmoid(x)      Yang et al., arXiv 2412.06464 (DeltaNet's keys); Dao and Gu, arXiv 2405.21060 (Mamba-2)
identity   x                 Sun et al., arXiv 2307.08621 (RetNet); Yang et al., arXiv 2312.06635 (GLA)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_floats, require_like
from ramnet_np.layers.activation import ACTIVATIONS, Activation

FeatureMap = Literal["elu", "relu", "silu", "identity"]


@readable
class EluPlusOneContext(NamedTuple):
    """What ``elu_plus_one_backward`` needs."""

    y: Array  # the slope is min(y, 1)


@readable
class IdentityContext(NamedTuple):
    """What ``identity_backward`` needs."""

    y: ArraySpec


@on_gpu_of_arrays
def elu_plus_one_forward(x: Array) -> tuple[Array, EluPlusOneContext]:
    """y = x + 1 above 0, exp(x) below; never negative.

    >>> import numpy as np
    >>> elu_plus_one_forward(np.array([-1.0, 0.0, 2.0]))[0].round(3).tolist()
    [0.368, 1.0, 3.0]
    """
    require_floats("x", x)
    xp = namespace_of(x)
    y = xp.minimum(x, 0)
    xp.exp(y, out=y)
    y += xp.maximum(x, 0)
    return y, EluPlusOneContext(y)


@on_gpu_of_arrays
def elu_plus_one_backward(dy: Array, ctx: EluPlusOneContext) -> Array:
    """dx = dy * min(y, 1): the slope is 1 above 0 and exp(x) = y below, the smaller of the two on either side.

    ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = elu_plus_one_forward(np.array([-1.0, 0.0, 2.0]))
    >>> elu_plus_one_backward(np.ones(3), ctx).round(3).tolist()
    [0.368, 1.0, 1.0]
    """
    require_context(ctx, EluPlusOneContext, "elu_plus_one_forward")
    require_like("dy", dy, ArraySpec.of(ctx.y))
    return dy * namespace_of(dy).minimum(ctx.y, 1)


@on_gpu_of_arrays
def identity_forward(x: Array) -> tuple[Array, IdentityContext]:
    """y = x, the array itself.

    >>> import numpy as np
    >>> identity_forward(np.array([-1.0, 2.0]))[0].tolist()
    [-1.0, 2.0]
    """
    require_floats("x", x)
    return x, IdentityContext(ArraySpec.of(x))


@on_gpu_of_arrays
def identity_backward(dy: Array, ctx: IdentityContext) -> Array:
    """dx = dy, the array itself. ValueError unless ``dy`` has the shape and dtype of y.

    >>> import numpy as np
    >>> y, ctx = identity_forward(np.array([-1.0, 2.0]))
    >>> identity_backward(np.array([5.0, 6.0]), ctx).tolist()
    [5.0, 6.0]
    """
    require_context(ctx, IdentityContext, "identity_forward")
    require_like("dy", dy, ctx.y)
    return dy


FEATURE_MAPS: dict[str, Activation] = {
    "elu": Activation(elu_plus_one_forward, elu_plus_one_backward),
    "relu": ACTIVATIONS["relu"],
    "silu": ACTIVATIONS["silu"],
    "identity": Activation(identity_forward, identity_backward),
}
NEVER_NEGATIVE = ("elu", "relu")  # only the sum of such features can be divided by
