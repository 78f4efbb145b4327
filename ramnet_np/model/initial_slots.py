"""What a memory holds before the first token, as parameters: content and mass of every slot.

    s_0 = b                     b (H, M, C) starts at 0
    z_0 = init_mass exp(a)      a (H, M) starts at 0

So training starts from the memory that is empty, and may put there what many texts want to read. The gradients are
those of the state that the operation starts from, summed over the sequences. Neither parameter decays. Ours.
"""

from __future__ import annotations

from typing import NamedTuple

from ramnet_np.contract import Array, RAMState
from ramnet_np.core.arrays import at_least_float32, namespace_of
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.parameters import Parameter, Params, constant


class InitialSlotsContext(NamedTuple):
    """What ``initial_slots_backward`` needs."""

    mass: Array  # (H, M), z_0


def initial_slots_parameters(config: RAMNetConfig) -> dict[str, Parameter]:
    """The parameters; none without ``learned_slots``.

    >>> initial_slots_parameters(RAMNetConfig(width=8, order=2, learned_slots=True))["slots_bias"].shape
    (2, 16, 4)
    """
    if not config.learned_slots:
        return {}
    H, M, C = config.heads, config.slots, config.head_channels
    shapes = {"slots_bias": (H, M, C), "mass_scale": (H, M)}
    return {name: Parameter(shape, "initial slots", constant(0)) for name, shape in shapes.items()}


def initial_slots_forward(batch: int, params: Params, config: RAMNetConfig) -> tuple[RAMState, InitialSlotsContext]:
    """The state of ``batch`` sequences before their first tokens, in float32 or float64, and ctx.

    Cost: B H M (C + 1) numbers are written.

    >>> import numpy as np
    >>> config = RAMNetConfig(width=8, order=2, learned_slots=True)
    >>> params = {"slots_bias": np.ones((2, 16, 4)), "mass_scale": np.zeros((2, 16))}
    >>> state, ctx = initial_slots_forward(3, params, config)
    >>> state.slots.shape, float(state.mass[0, 0, 0])
    ((3, 2, 16, 4), 0.0625)
    """
    content, scale = (at_least_float32(params[name]) for name in ("slots_bias", "mass_scale"))
    xp = namespace_of(content)
    mass = xp.exp(scale) * scale.dtype.type(1 / config.slots if config.init_mass is None else config.init_mass)
    slots, masses = (xp.broadcast_to(x, (batch, *x.shape)).copy() for x in (content, mass))
    return RAMState(slots, masses), InitialSlotsContext(mass)


def initial_slots_backward(dstate: RAMState, ctx: InitialSlotsContext) -> Params:
    """Gradient of both parameters by their names, of the dtype of the state.

    ``dstate``: of :func:`initial_slots_forward`'s state.

    >>> import numpy as np
    >>> ctx = InitialSlotsContext(np.full((1, 2), 0.5))
    >>> initial_slots_backward(RAMState(np.ones((3, 1, 2, 1)), np.ones((3, 1, 2))), ctx)["mass_scale"].tolist()
    [[1.5, 1.5]]
    """
    return {"slots_bias": dstate.slots.sum(axis=0), "mass_scale": dstate.mass.sum(axis=0) * ctx.mass}
