"""Softmax attention over a sliding window, as a mixer: the layer of softmax.py, which looks back ``window`` tokens.

State: the keys and values of the window, W (d_k + C) elements a head, all touched by every token.
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.model.checks import check_integer
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.mixers.interface import CallOptions, Mixer, StateSize, Variant
from ramnet_np.model.mixers.softmax import (
    KeyValueState,
    SoftmaxLayerContext,
    check_rotary,
    key_value_state_size,
    softmax_layer_backward,
    softmax_layer_forward,
    softmax_parameters,
)
from ramnet_np.model.parameters import Params


def window_layer_forward(
    x: Array,
    params: Params,
    config: RAMNetConfig,
    layer: int = 0,
    *,
    state: KeyValueState | None = None,
    options: CallOptions | None = None,
) -> tuple[Array, KeyValueState | None, SoftmaxLayerContext | None]:
    """As :func:`~ramnet_np.model.mixers.softmax.softmax_layer_forward`, within ``config.window`` tokens.

    >>> import numpy as np
    >>> from ramnet_np.model.parameters import init_parameters
    >>> config = RAMNetConfig(width=8, heads=2, mixer="window", window=3)
    >>> params = init_parameters(MIXER.parameters(config, 0), seed=0, dtype=np.float64)
    >>> _, state, _ = window_layer_forward(np.ones((1, 5, 8)), params, config, options=CallOptions(return_state=True))
    >>> state.keys.shape  # the token that comes next is the third
    (1, 2, 2, 4)
    """
    return softmax_layer_forward(x, params, config, layer, state=state, options=options, window=config.window)


def _state_size(config: RAMNetConfig, context: int) -> StateSize:
    return key_value_state_size(config, min(config.window, context))


def _check(config: RAMNetConfig) -> None:
    check_integer("window", config.window, 1)
    check_rotary(config, "window")


MIXER = Mixer(
    name="window",
    variants=(Variant("window", "sliding window"),),
    parameters=softmax_parameters,
    forward=window_layer_forward,
    backward=softmax_layer_backward,
    state_size=_state_size,
    check=_check,
)
