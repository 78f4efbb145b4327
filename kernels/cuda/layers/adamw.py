"""AdamW with clipping over all parameters at once; nothing waits for the device. See ``adamw.cu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..runtime.arrays import contiguous_aligned
from ..runtime.module import Specialisation, get_kernel, type_name

CHUNK = 4096  # elements of a block
_NAMES = ("gradient_squares", "adamw_decide", "adamw_update")
_NUMBERS = ("loss", "right", "labels", "norm", "rate", "updates", "stopped")  # the first of them are for the host
_ALL_NUMBERS = 11


@cache
def adamw_specialisation(element: str) -> Specialisation:
    """For parameters of the type ``element``, float or double."""
    return Specialisation("layers/adamw.cu", _NAMES, (("ELEMENT", element),))


class AdamWSettings(NamedTuple):
    """What stays the same for a whole run."""

    rates: Sequence[float]  # the learning rate of every update, from the first
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float  # largest allowed norm of all gradients together


class DeviceAdamW:
    """Parameters and moments of one run on the device, updated in place, after ``step`` updates made before.

    ``params``, ``mean``, ``square``: C-contiguous float32 or float64 arrays by name; ``decays``: those whose weights
    decay. An update reads where its gradients are from a table on the device, :meth:`addresses`: one that is captured
    in a graph can be recorded before the table is filled (:meth:`bind`), which a capture does not allow.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        mean: Mapping[str, Any],
        square: Mapping[str, Any],
        decays: set[str],
        step: int,
        settings: AdamWSettings,
    ):
        import cupy

        self._names = tuple(params)
        self._dtype = next(iter(params.values())).dtype
        self._kept = params, mean, square  # their addresses are in the table
        self._rows = [
            [params[n].data.ptr, mean[n].data.ptr, square[n].data.ptr, 0, params[n].size, n in decays] for n in params
        ]
        chunks = [(i, c) for i, n in enumerate(params) for c in range(-(-params[n].size // CHUNK))]
        self._chunks = cupy.asarray(np.array(chunks, dtype=np.int32))
        self._squares = cupy.empty(len(chunks), dtype=np.float64)
        self._rates = cupy.asarray(np.array(settings.rates, dtype=np.float64))
        self._settings = settings
        numbers = np.zeros(_ALL_NUMBERS)
        numbers[_NUMBERS.index("updates")] = step
        self._numbers = cupy.asarray(numbers)

    def addresses(self) -> Any:
        """An empty table for the addresses of one step's arrays."""
        import cupy

        return cupy.empty((len(self._rows), len(self._rows[0])), dtype=np.int64)

    def bind(self, addresses: Any, grads: Mapping[str, Any]) -> None:
        """Fill a table with where ``grads`` are, behind the work on the stream; not while a graph is captured."""
        import cupy

        table = np.array(self._rows, dtype=np.int64)
        table[:, 3] = [grads[name].data.ptr for name in self._names]
        addresses.set(table, stream=cupy.cuda.get_current_stream())

    def contiguous(self, grads: Mapping[str, Any]) -> dict[str, Any]:
        """The gradients as an update takes them: those that are views with strides copied."""
        return {name: contiguous_aligned(grads[name]) for name in self._names}

    def update(self, addresses: Any, loss: Any, right: Any, labels: Any) -> None:
        """One AdamW step, unless loss or norm is not finite: then this and all later ones do nothing.

        ``loss``, ``right``, ``labels``: of this step, as ``cross_entropy`` returns them; for :meth:`numbers`.
        """
        o, number = self._settings, self._dtype.type
        specialisation = adamw_specialisation(type_name(self._dtype))
        blocks = len(self._chunks)
        get_kernel(specialisation, "gradient_squares")((blocks,), (256,), (addresses, self._chunks, self._squares))
        arguments = (
            self._squares, np.int32(blocks), self._rates, np.int32(len(o.rates)), loss, right, labels,
            np.float64(o.beta1), np.float64(o.beta2), np.float64(o.clip), np.float64(o.weight_decay), self._numbers,
        )  # fmt: skip
        get_kernel(specialisation, "adamw_decide")((1,), (1024,), arguments)
        constants = map(number, (o.beta1, o.beta2, 1 - o.beta1, 1 - o.beta2, o.eps))
        arguments = (addresses, self._chunks, self._numbers, *constants)
        get_kernel(specialisation, "adamw_update")((blocks,), (256,), arguments)

    def numbers(self) -> dict[str, float]:
        """Of the last update: loss, right, labels, norm, rate; and updates made, stopped. Waits for the device."""
        return dict(zip(_NUMBERS, self._numbers.get().tolist(), strict=False))
