"""A parameter before there is a model: its shape, its initial value, its line in the count table.

Every mechanism with parameters declares them beside its forward, as a dictionary from a name to a :class:`Parameter`;
:mod:`~ramnet_np.model.layout` puts the dictionaries of a whole model together. Weights of linear maps are
(outputs, inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ramnet_np.contract import Array

Params = dict[str, Array]
Shape = tuple[int, ...]
Initial = Callable[[np.random.Generator, Shape], np.ndarray]

_Value = TypeVar("_Value")


class Parameter(NamedTuple):
    """What is known of a parameter from the configuration alone."""

    shape: Shape
    kind: str  # what it is counted as, for example "values"
    initial: Initial  # draws float32 or float64 values of that shape


def normal(std: float) -> Initial:
    """Initial values drawn from N(0, ``std``).

    >>> bool(np.isclose(normal(0.5)(np.random.default_rng(0), (10000,)).std(), 0.5, rtol=0.05))
    True
    """
    return lambda rng, shape: rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def constant(value: float) -> Initial:
    """The same initial value everywhere; nothing is drawn.

    >>> constant(3)(np.random.default_rng(0), (2,)).tolist()
    [3.0, 3.0]
    """
    return lambda _, shape: np.full(shape, value, dtype=np.float32)


def init_parameters(parameters: Mapping[str, Parameter], seed: int, dtype: Any) -> Params:
    """Initial values for ``parameters``, drawn one after the other in their order.

    The draws do not depend on ``dtype``, so a float64 model starts at the values of the float32 model.
    Source: the authors' package ramnet.

    >>> init_parameters({"norm.weight": Parameter((2,), "norms", constant(1))}, seed=0, dtype=np.float64)
    {'norm.weight': array([1., 1.])}
    """
    rng = np.random.default_rng(seed)
    return {
        name: parameter.initial(rng, parameter.shape).astype(np.float32, copy=False).astype(dtype, copy=False)
        for name, parameter in parameters.items()
    }


def shapes_of(parameters: Mapping[str, Parameter]) -> dict[str, Shape]:
    """The shapes alone.

    >>> shapes_of({"norm.weight": Parameter((2,), "norms", constant(1))})
    {'norm.weight': (2,)}
    """
    return {name: parameter.shape for name, parameter in parameters.items()}


class Grouped(dict[str, Any]):
    """Parameters that stay as they are: what ``subset`` takes out of them is taken out once.

    >>> params = Grouped({"attn.w": 1, "mlp.w": 2})
    >>> subset(params, "attn.") is subset(params, "attn.")
    True
    """

    def __init__(self, params: Mapping[str, Any]):
        super().__init__(params)
        self.groups: dict[str, Grouped] = {}


def subset(params: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """The parameters under ``prefix``, by the rest of their names.

    >>> subset({"attn.w": 1, "mlp.w": 2}, "attn.")
    {'w': 1}
    """
    if isinstance(params, Grouped) and prefix in params.groups:
        return params.groups[prefix]
    found = {name[len(prefix) :]: value for name, value in params.items() if name.startswith(prefix)}
    if isinstance(params, Grouped):
        found = params.groups[prefix] = Grouped(found)
    return found


def add_prefix(prefix: str, params: Mapping[str, _Value]) -> dict[str, _Value]:
    """``params`` under longer names: the inverse of :func:`subset`.

    >>> add_prefix("attn.", {"w": 1})
    {'attn.w': 1}
    """
    return {prefix + name: value for name, value in params.items()}
