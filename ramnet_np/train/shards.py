"""AdamW's moments shared out over ranks: each keeps those of its own parameters, updates these, and sends them to all.

    every rank   sums of all gradients ─▶ clip by their norm ─▶ AdamW on own parameters ─▶ all parameters to all ranks

    moments on a rank     8 bytes for each of its own parameters, about 8 P / N, where without shards it is 8 P
    sent in a step        4 (N - 1) / N P bytes by a rank, beside the sum of the gradients

The update of a parameter needs its own moments and the norm of all gradients, which every rank has. So a sharded run
has the bits of one that is not, with the same number of ranks.
Source: Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models" (arXiv 1910.02054),
section 5.1: its first stage, P_os.
"""

from __future__ import annotations

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model.parameters import Params
from ramnet_np.train.optim import AdamWState
from ramnet_np.train.ranks import Ranks

_ALIGNED = 64  # numbers: where a parameter begins, so that kernels can read it as it is


def owners(params: Params, size: int) -> dict[str, int]:
    """The rank that updates each parameter: from the largest on, each goes to the rank that has least so far.

    So no rank has more than the average and one parameter.

    >>> import numpy as np
    >>> owners({"a": np.zeros(2), "b": np.zeros(5), "c": np.zeros(4)}, 2)
    {'a': 1, 'b': 0, 'c': 1}
    """
    loads, found = [0] * size, {}
    for name in sorted(params, key=lambda name: -params[name].size):
        found[name] = loads.index(min(loads))
        loads[found[name]] += params[name].size
    return {name: found[name] for name in params}


def own(params: Params, ranks: Ranks) -> Params:
    """Those that this rank updates.

    >>> import numpy as np
    >>> from ramnet_np.train.ranks import ONE
    >>> list(own({"a": np.zeros(2)}, ONE))
    ['a']
    """
    of = owners(params, ranks.size)
    return {name: param for name, param in params.items() if of[name] == ranks.rank}


class Shards:
    """The parameters of all ranks in one array, those of rank 0 first, so that each rank's are sent at once.

    ``params``: their values are copied; ``params`` then takes their place.

    >>> import numpy as np
    >>> from ramnet_np.train.ranks import ONE
    >>> shards = Shards(ONE, {"a": np.ones(2), "b": np.zeros((1, 3))})
    >>> shards.send()
    >>> {name: param.tolist() for name, param in shards.params.items()}
    {'a': [1.0, 1.0], 'b': [[0.0, 0.0, 0.0]]}
    """

    def __init__(self, ranks: Ranks, params: Params):
        first = next(iter(params.values()))
        self._ranks, self._owners = ranks, owners(params, ranks.size)
        starts, self._bounds, end = {}, [0], 0
        for rank in range(ranks.size):
            for name in (n for n, owner in self._owners.items() if owner == rank):
                starts[name] = end
                end += params[name].size + -params[name].size % _ALIGNED
            self._bounds.append(end)
        self._array = namespace_of(first).zeros(end, first.dtype)
        self.params = {n: self._array[starts[n] : starts[n] + p.size].reshape(p.shape) for n, p in params.items()}
        for name, param in params.items():
            self.params[name][...] = param

    def send(self) -> None:
        """Give every rank the parameters of all ranks, behind an update."""
        for rank in range(self._ranks.size):
            part = self._array[self._bounds[rank] : self._bounds[rank + 1]]
            if part.size:
                self._ranks.broadcast(part, root=rank)

    def whole(self, state: AdamWState) -> AdamWState:
        """``state`` with the moments of all ranks, on the host. Every rank calls this; it is complete on rank 0."""
        return AdamWState(state.step, self._gathered(state.mean), self._gathered(state.square))

    def _gathered(self, moments: Params) -> Params:
        found = {}
        for name, param in self.params.items():
            is_own = self._owners[name] == self._ranks.rank
            array: Array = moments[name] if is_own else namespace_of(param).empty_like(param)
            self._ranks.broadcast(array, root=self._owners[name])
            self._ranks.wait()
            if self._ranks.rank == 0:
                found[name] = on_host(array)
        return found
