"""The memories that a run carries from one window to the next, a row of every array for each row of the batch.

The arrays stay where they are: a step reads them and writes the new state into them, so that a CUDA graph finds them at
the addresses that it was captured with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ramnet_np.contract import Array
from ramnet_np.core.arrays import at_least_float32, namespace_of, on_host
from ramnet_np.data.batches import StreamBatch
from ramnet_np.model import RAMNet


class CarriedState:
    """The state of ``batch`` rows of text, as :meth:`~ramnet_np.model.network.RAMNet.initial_state` makes it.

    ``saved``: the arrays of an earlier :meth:`arrays`, to go on from. ValueError for a mixer whose state takes shape
    with its tokens, and for arrays that are of another model or batch.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> carried = CarriedState(model, batch=3)
    >>> {name: array.shape for name, array in carried.arrays().items()}
    {'0.0': (3, 2, 16, 4), '0.1': (3, 2, 16)}
    """

    def __init__(self, model: RAMNet, batch: int, saved: dict[str, Array] | None = None):
        self.batch = batch
        self._state = model.initial_state(batch)
        self._initial = model.initial_state(1)
        if saved is not None:
            self._restore(saved)

    def begin(self, start: Array) -> None:
        """Empty the memory of the rows whose ``start`` (B,), on the arrays' device, is 0: a document begins there."""
        begins = start == 0

        def empty(array: Array, initial: Array) -> None:
            rows = begins.reshape(-1, *(1,) * (array.ndim - 1))
            namespace_of(array).copyto(array, initial, where=rows)  # no indexing by a mask: it would wait for the GPU

        _each(empty, self._state, self._initial)

    def rows(self, begin: int, end: int) -> list[Any]:
        """The state of some rows, as views."""
        return map_arrays(lambda array: array[begin:end], self._state)

    def put(self, begin: int, end: int, state: list[Any]) -> None:
        """Replace the state of some rows."""

        def put(array: Array, new: Array) -> None:
            array[begin:end] = new

        _each(put, self._state, state)

    def arrays(self) -> dict[str, Array]:
        """Every array by a name, for a checkpoint, those in 16 bits as float32."""
        return {name: at_least_float32(array) for name, array in named_arrays(self._state)}

    def _restore(self, saved: dict[str, Array]) -> None:
        own = self.arrays()
        for name in sorted(own.keys() | saved.keys()):
            wanted, got = (None if x is None else (x.shape, x.dtype) for x in (own.get(name), saved.get(name)))
            if wanted != got:
                raise ValueError(
                    f"the carried state must be of this model and batch: array {name!r} must be of shape and dtype "
                    f"{wanted}, got {got}"
                )
        for name, array in named_arrays(self._state):
            array[...] = namespace_of(array).asarray(saved[name])


def carried_from(model: RAMNet, batch: StreamBatch, saved: dict[str, Array] | None) -> CarriedState:
    """The state for the first batch of a call; ``saved``: as :class:`CarriedState` takes it, None where a run begins.

    ValueError for a batch that goes on in the middle of a document whose memory is not there.

    >>> import numpy as np
    >>> carried_from(None, StreamBatch(np.zeros((1, 2)), np.zeros((1, 2)), np.array([4])), None)
    Traceback (most recent call last):
        ...
    ValueError: start must be 0 where no memory is carried yet, got 4: the checkpoint has no memories to go on from
    """
    if saved is None and (first := int(on_host(batch.start).max())):
        raise ValueError(
            f"start must be 0 where no memory is carried yet, got {first}: the checkpoint has no memories to go on from"
        )
    return CarriedState(model, len(batch.ids), saved)


def map_arrays(function: Callable[..., Any], *states: Any) -> Any:
    """States of one structure, lists and tuples of arrays, with ``function`` of their arrays in the places of these.

    >>> import numpy as np
    >>> map_arrays(lambda a, b: a + b, [np.ones(1), (np.ones(1),)], [np.ones(1), (np.zeros(1),)])
    [array([2.]), (array([1.]),)]
    """
    first = states[0]
    if not isinstance(first, list | tuple):
        return function(*states)
    parts = [map_arrays(function, *parts) for parts in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)


def named_arrays(state: Any, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of a state, each named by its place.

    >>> import numpy as np
    >>> [name for name, _ in named_arrays([np.ones(1), (np.ones(1), np.ones(1))])]
    ['0', '1.0', '1.1']
    """
    if isinstance(state, list | tuple):
        for i, part in enumerate(state):
            yield from named_arrays(part, f"{prefix}.{i}" if prefix else str(i))
    else:
        yield prefix, state


def _each(function: Callable[..., None], *states: Any) -> None:
    map_arrays(function, *states)
