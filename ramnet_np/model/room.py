"""Room for tokens to come, where a memory grows with each: so that it stays where it is, and a CUDA graph finds it.

    keys and values   │ tokens that are there │ this one │ room ·········· │

A token is put behind those that are there, whose number is on the device. When the room is full, all of it moves to a
room of twice the size. What others see of the state is what is there, without the room.
"""

from __future__ import annotations

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.model.block import ConvState
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.mixers.softmax import KeyValueCache, KeyValueState
from ramnet_np.model.stepping import Stepper

LEAST = 256  # tokens


class Room:
    """Caches in place of the states of those layers of ``stepper`` whose memory grows; nothing where none does.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> from ramnet_np.model.stepping import read
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, heads=2, layers=1, mixer="softmax"), seed=0)
    >>> stepper, _ = read(model, np.array([[1, 2, 3]]), np.array([0]), None, None, None)
    >>> room = Room(stepper)
    >>> room.open(), stepper.state[0].keys.shape, room.open()
    (False, (1, 256, 2, 4), True)
    >>> room.close()
    >>> stepper.state[0].keys.shape
    (1, 3, 2, 4)
    """

    def __init__(self, stepper: Stepper):
        self._stepper = stepper
        self._layers = [i for i, mixer in enumerate(mixers_of(stepper.model.config)) if mixer.state_grows]
        self._caches: dict[int, KeyValueCache] = {}  # of these layers
        self._used: Array = None  # (1,) int64, of all caches
        self._size = 0  # tokens that there is room for
        self.tokens = 0  # that are there once the launches so far are done

    def open(self) -> bool:
        """Put the caches into the state, with room for one more token; whether they are where they were before."""
        if not self._layers:
            return True
        stays = self.tokens < self._size
        if not stays:
            self.close()
            self._move()
        for layer, cache in self._caches.items():
            self._put(layer, cache)
        return stays

    def close(self) -> None:
        """Leave in the state what is there, without the room."""
        for layer, cache in self._caches.items():
            self._put(layer, KeyValueState(cache.keys[:, : self.tokens], cache.values[:, : self.tokens]))

    def count(self) -> None:
        """Note on the device that every layer has taken a token."""
        if self._layers:
            self._used += 1

    def _move(self) -> None:
        """To a room whose size depends on the number of tokens alone, as then the shapes do that a token works on."""
        first = self._memory(self._layers[0]).keys
        self.tokens = first.shape[1]
        self._size = max(LEAST, 1 << self.tokens.bit_length())
        self._used = namespace_of(first).full(1, self.tokens, dtype=np.int64)
        for layer in self._layers:  # one after another: the memory of each is free before the next one moves
            keys, values = map(self._with_room, self._memory(layer))
            self._caches[layer] = KeyValueCache(keys, values, self._used)
            self._put(layer, self._caches[layer])

    def _with_room(self, part: Array) -> Array:
        room = namespace_of(part).zeros((part.shape[0], self._size, *part.shape[2:]), dtype=part.dtype)
        room[:, : self.tokens] = part
        return room

    def _memory(self, layer: int) -> KeyValueState:
        state = self._stepper.state[layer]
        return state.memory if isinstance(state, ConvState) else state

    def _put(self, layer: int, memory: KeyValueCache | KeyValueState) -> None:
        old = self._stepper.state[layer]
        self._stepper.state[layer] = old._replace(memory=memory) if isinstance(old, ConvState) else memory
