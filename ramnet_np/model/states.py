"""The states of several sequences as one batch, apart again, and as arrays with names.

A layer's state is an array whose first axis is the batch, a sparse state, or a tuple of such; each mixer knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.model.block import ConvState


def each_array(function: Callable[..., Any], *states: Any) -> Any:
    """A state like ``states``, which are alike, made of what ``function`` returns for the arrays at each place.

    ``states``: of a layer, or lists with one for each layer.

    >>> import numpy as np
    >>> each_array(np.add, [(np.ones(1), np.zeros(1))], [(np.ones(1), np.ones(1))])
    [(array([2.]), array([1.]))]
    """
    first = states[0]
    if isinstance(first, list | tuple):
        parts = [each_array(function, *place) for place in zip(*states, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return function(*states)


def arrays_of(state: Any) -> list[Array]:
    """The arrays of a state, in order.

    >>> import numpy as np
    >>> [a.tolist() for a in arrays_of([(np.ones(1), np.zeros(1)), np.ones(2)])]
    [[1.0], [0.0], [1.0, 1.0]]
    """
    if isinstance(state, list | tuple):
        return [array for part in state for array in arrays_of(part)]
    return [state]


def lose_sparse(state: Any, error: BaseException) -> None:
    """Note in the sparse states among ``state`` that ``error`` ended a pass which some layers had already written.

    >>> memory = SparseRAMState.initial(1, 1, 4, 2)
    >>> lose_sparse([memory], MemoryError("no more"))
    >>> memory.copy()
    Traceback (most recent call last):
        ...
    ValueError: state must be whole, got one that a segment left half written: no more
    """
    for memory in arrays_of(state):
        if isinstance(memory, SparseRAMState):
            memory.lose(error)


def rows_of(state: list[Any], rows: Sequence[int]) -> list[Any]:
    """Some sequences of a batch, as copies; a sparse state of all of them is itself, as a copy may not fit.

    >>> import numpy as np
    >>> rows_of([np.array([[1], [2], [3]])], [2, 0])[0].tolist()
    [[3], [1]]
    """
    wanted = list(rows)

    def some(array: Any) -> Any:
        if not isinstance(array, SparseRAMState):
            return array[wanted]
        return array if wanted == list(range(array.shape[0])) else array.take(wanted)

    return each_array(some, state)


def stacked(states: Sequence[list[Any]]) -> list[Any]:
    """One batch of all sequences: ``states`` must be alike, see :func:`alike`.

    >>> import numpy as np
    >>> stacked([[np.array([[1]])], [np.array([[2], [3]])]])[0].tolist()
    [[1], [2], [3]]
    """
    if len(states) == 1:
        return states[0]

    def joined(*arrays: Any) -> Any:
        if isinstance(arrays[0], SparseRAMState):
            return SparseRAMState.joined(arrays)
        return namespace_of(*arrays).concatenate(arrays)

    return each_array(joined, *states)


def alike(a: list[Any], b: list[Any]) -> bool:
    """Whether the sequences of two batches can step together: keys and values of different lengths cannot.

    >>> import numpy as np
    >>> alike([np.ones((1, 3))], [np.ones((2, 3))]), alike([np.ones((1, 3))], [np.ones((1, 4))])
    (True, False)
    """
    return [array.shape[1:] for array in arrays_of(a)] == [array.shape[1:] for array in arrays_of(b)]


def with_whole_windows(state: list[Any], width: int) -> list[Any]:
    """The state with zeros for the tokens that short convolutions of ``width`` tokens would see before the first.

    >>> import numpy as np
    >>> state = [ConvState(np.ones((1, 1, 1)), np.ones(1))]
    >>> with_whole_windows(state, 3)[0].inputs.ravel().tolist()
    [0.0, 1.0]
    """

    def padded(layer: Any) -> Any:
        if not isinstance(layer, ConvState) or layer.inputs.shape[1] == width - 1:
            return layer
        B, S, D = layer.inputs.shape
        xp = namespace_of(layer.inputs)
        before = xp.zeros((B, width - 1 - S, D), dtype=layer.inputs.dtype)
        return layer._replace(inputs=xp.concatenate([before, layer.inputs], axis=1))

    return [padded(layer) for layer in state]
