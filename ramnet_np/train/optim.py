"""AdamW and gradient clipping: plain functions on dictionaries of arrays, name -> array.

Everything here works in place and through the arrays' own library, so parameters, gradients and moments may be NumPy or
CuPy arrays alike. Only elementwise operations and sums of a fixed order are used: same inputs, same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import memory_of, namespace_of
from ramnet_np.core.placement import on_gpu_of_arrays
from ramnet_np.core.require import ArraySpec, require_like

Arrays: TypeAlias = dict[str, Array]

ADAMW_EPS = 1e-8
_SAFE_SQUARES = 1e-24  # sums of squares above it lose nothing that counts to squares below float32's least, 1e-45


class AdamWState(NamedTuple):
    """What AdamW remembers between steps."""

    step: int  # updates made so far; corrects the moments for having started at zero
    mean: Arrays  # m: running mean of the gradient
    square: Arrays  # v: running mean of its square


@on_gpu_of_arrays
def adamw_init(params: Arrays) -> AdamWState:
    """The state before the first update: both moments zero, shaped and typed like ``params``.

    >>> import numpy as np
    >>> state = adamw_init({"w": np.ones((2, 2))})
    >>> state.step, state.mean["w"].tolist()
    (0, [[0.0, 0.0], [0.0, 0.0]])
    """
    xp = namespace_of(*params.values())
    mean, square = ({name: xp.zeros_like(p) for name, p in params.items()} for _ in range(2))
    return AdamWState(0, mean, square)


def has_weight_decay(name: str, param: Array) -> bool:
    """Whether weight decay applies: to matrices, not to norms, biases, scales, short convolutions or any vector.

    Decay would pull a short convolution towards letting nothing through.

    >>> import numpy as np
    >>> matrix = np.zeros((2, 5))
    >>> [has_weight_decay(f"model.layers.0.attn.{name}", matrix) for name in ("o_proj.weight", "w_scale")]
    [True, False]
    """
    kind = name.rpartition(".")[2]
    return param.ndim >= 2 and not ("norm" in name or "conv" in name or kind.endswith(("bias", "scale")))


@on_gpu_of_arrays
def adamw_update(
    params: Arrays,
    grads: Arrays,
    state: AdamWState,
    learning_rate: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = ADAMW_EPS,
    weight_decay: float = 0.0,
) -> AdamWState:
    """One AdamW step; ``params`` and the moments of ``state`` change in place, the advanced state is returned.

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * weight_decay * p - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    t = 1 at the first step. The decay is decoupled: it never enters the moments. It applies where
    :func:`has_weight_decay` says so.
    ``grads`` must name the same arrays as ``params`` and is left alone. Second moments are kept in the dtype of the
    parameters: a float32 gradient past 1e19 makes them infinite, so clip what may grow so large.
    ValueError or TypeError, before anything is changed, for names, shapes or dtypes that do not fit, and for
    parameters or moments that are read-only or share memory.
    Cost: nine passes over each parameter and two scratch arrays of its size.
    Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (arXiv 1711.05101), algorithm 2.

    >>> import numpy as np
    >>> params = {"w": np.array([[1.0, -1.0]])}
    >>> state = adamw_update(params, {"w": np.array([[0.5, -2.0]])}, adamw_init(params), learning_rate=0.1)
    >>> params["w"].round(6).tolist()  # the first step is lr * sign(g)
    [[0.9, -0.9]]
    """
    _check_update(params, grads, state)
    xp = namespace_of(*params.values())
    step = state.step + 1
    # p moves by lr * m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps): both corrections are scalars
    rate = learning_rate / (1 - beta1**step)
    root = 1 / math.sqrt(1 - beta2**step)
    for name, p in params.items():
        g, m, v = grads[name], state.mean[name], state.square[name]
        scaled = g * (1 - beta1)
        m *= beta1
        m += scaled
        xp.multiply(g, g, out=scaled)
        scaled *= 1 - beta2
        v *= beta2
        v += scaled
        if weight_decay and has_weight_decay(name, p):
            p *= 1 - learning_rate * weight_decay
        denominator = xp.sqrt(v)
        denominator *= root
        denominator += eps
        xp.divide(m, denominator, out=scaled)
        scaled *= rate
        p -= scaled
    return state._replace(step=step)


@on_gpu_of_arrays
def global_norm(grads: Arrays) -> float:
    """The Euclidean norm of all gradients taken as one vector, summed in float64; NaN or inf where a gradient is.

    Where squares overflow or vanish in the gradients' dtype, they are taken relative to the largest gradient.

    >>> import numpy as np
    >>> global_norm({"a": np.array([3.0]), "b": np.array([[4.0]])})
    5.0
    >>> round(global_norm({"a": np.full(4, 1e30, np.float32)}) / 1e30, 6)
    2.0
    """
    xp = namespace_of(*grads.values())
    with np.errstate(over="ignore"):
        total = sum(float(xp.square(g).sum(dtype=xp.float64)) for g in grads.values())
    if _SAFE_SQUARES < total < math.inf:
        return math.sqrt(total)
    largest = max((float(xp.abs(g).max()) for g in grads.values() if g.size), default=0.0)
    if not 0 < largest < math.inf:
        return math.sqrt(total)
    return largest * math.sqrt(sum(float(xp.square(g / largest).sum(dtype=xp.float64)) for g in grads.values()))


@on_gpu_of_arrays
def clip_by_global_norm(grads: Arrays, max_norm: float) -> float:
    """Scale all gradients, in place, so that their global norm is at most ``max_norm``; returns the norm before.

        g = g * min(1, max_norm / norm)

    A norm that is not finite leaves the gradients as they are, for the caller to see.
    Source: Pascanu et al., "On the difficulty of training recurrent neural networks" (arXiv 1211.5063), section 3.2.
    ValueError unless ``max_norm`` is above 0, and for gradients that are read-only or one array under two names.

    >>> import numpy as np
    >>> grads = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    >>> clip_by_global_norm(grads, 1.0), grads["a"].round(6).tolist()
    (5.0, [0.6])
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    _require_in_place(grads=grads)
    norm = global_norm(grads)
    if math.isfinite(norm) and norm > max_norm:
        for g in grads.values():
            g *= max_norm / norm
    return norm


def _require_in_place(**named: Arrays) -> None:
    """ValueError unless every array can be changed in place: writeable, and none of them twice."""
    seen: dict[tuple[int, int], str] = {}
    for name, arrays in named.items():
        for key, array in arrays.items():
            label = f"{name}[{key!r}]"
            if isinstance(array, np.ndarray) and not array.flags.writeable:
                raise ValueError(f"{label} must be writeable to be changed in place, got a read-only array")
            if array.size and (first := seen.setdefault(memory_of(array), label)) != label:
                raise ValueError(f"{first} and {label} must be two arrays to be changed in place, got one")


def _check_update(params: Arrays, grads: Arrays, state: AdamWState) -> None:
    for name, arrays in (("grads", grads), ("mean", state.mean), ("square", state.square)):
        if params.keys() != arrays.keys():
            odd = sorted(params.keys() ^ arrays.keys())[0]
            raise ValueError(f"{name} must name the same arrays as params, {odd!r} is in one of them only")
        for key, array in arrays.items():
            require_like(f"{name}[{key!r}]", array, ArraySpec.of(params[key]))
    _require_in_place(params=params, mean=state.mean, square=state.square)
