"""AdamW with clipping over all parameters at once; nothing waits for the device. See ``adamw.cu``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array

from ..runtime.arrays import contiguous_aligned, empty
from ..runtime.module import Specialisation, get_kernel, type_name
from ..runtime.params import INT, LONG, POINTER, ParamStruct

CHUNK = 4096  # elements of a block
THREADS, ONE_BLOCK = 256, 1024  # of a block with a chunk; of the block that adds up all chunks
DOUBLE = np.dtype(np.float64)

PARAMETER_ARRAY = ParamStruct(
    "ParameterArray", param=POINTER, mean=POINTER, square=POINTER, grad=POINTER, copy=POINTER, size=LONG, decays=LONG
)
STATUS = ParamStruct(
    "OptimizerStatus", loss=DOUBLE, correct=DOUBLE, labels=DOUBLE, norm=DOUBLE, rate=DOUBLE, updates=DOUBLE,
    stopped=DOUBLE, grad_scale=DOUBLE, m_corrected_rate=DOUBLE, v_correction=DOUBLE, decay_factor=DOUBLE,
)  # fmt: skip
_REPORTED = STATUS.members[: STATUS.members.index("stopped") + 1]  # what of the status is for the host


@cache
def adamw_params(dtype: np.dtype) -> ParamStruct:
    """``AdamWParams`` for parameters of ``dtype``."""
    return ParamStruct(
        "AdamWParams", arrays=POINTER, chunks=POINTER, squares=POINTER, rates=POINTER, loss=POINTER, correct=POINTER,
        labels=POINTER, status=POINTER, beta1=DOUBLE, beta2=DOUBLE, clip=DOUBLE, weight_decay=DOUBLE, m_decay=dtype,
        m_gain=dtype, v_decay=dtype, v_gain=dtype, eps=dtype, chunk_count=INT, rate_count=INT,
    )  # fmt: skip


@cache
def adamw_specialisation(element: str, copy: str = "bfloat16") -> Specialisation:
    """For parameters of the type ``element``, float or double, and copies of the type ``copy``."""
    params = adamw_params(np.dtype(np.float64 if element == "double" else np.float32))
    return Specialisation(
        "optimizer/adamw.cu",
        ("gradient_squares", "adamw_prepare", "adamw_update"),
        (("ELEMENT", element), ("COPY", copy), ("CHUNK", CHUNK)),
        (PARAMETER_ARRAY, STATUS, params),
    )


class AdamWSettings(NamedTuple):
    """What stays the same for a whole run."""

    rates: Sequence[float] | np.ndarray  # the learning rate of every update, from the first
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip: float  # largest allowed norm of all gradients together


class DeviceAdamW:
    """Parameters and moments of one run on the device, updated in place, after ``step`` updates made before.

    ``params``, ``mean``, ``square``: C-contiguous float32 or float64 arrays by name; those without moments are not
    updated, and their gradients count in the norm alone. ``decays``: those whose weights decay; ``copies``: the same
    parameters in a 16-bit type, which every update writes too, or None. An update reads where its gradients are from a
    table on the device, :meth:`addresses`: one that is captured in a graph can be recorded before the table is filled
    (:meth:`bind`), which a capture does not allow.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        mean: Mapping[str, Array],
        square: Mapping[str, Array],
        decays: set[str],
        step: int,
        settings: AdamWSettings,
        copies: Mapping[str, Array] | None = None,
    ):
        import cupy

        self._names = tuple(params)
        self._dtype = next(iter(params.values())).dtype
        self._copy_type = "bfloat16" if copies is None else type_name(next(iter(copies.values())).dtype)
        self._kept = params, mean, square, copies  # their addresses are in the table
        tables: tuple[Mapping[str, Array], ...] = params, mean, square, {}, copies or {}
        self._rows = [
            [*(of[n].data.ptr if n in of else 0 for of in tables), p.size, n in decays] for n, p in params.items()
        ]
        chunks = [(i, c, n in mean) for i, n in enumerate(params) for c in range(-(-params[n].size // CHUNK))]
        self._chunks = cupy.asarray(np.array([chunk[:2] for chunk in chunks], dtype=np.int32))
        self._updated = cupy.asarray(np.array([chunk[:2] for chunk in chunks if chunk[2]], dtype=np.int32))
        self._squares = empty((len(chunks),), np.float64)
        self._rates = cupy.asarray(np.array(settings.rates, dtype=np.float64))
        self._settings = settings
        status = np.zeros(len(STATUS.members))
        status[STATUS.members.index("updates")] = step
        self._status = cupy.asarray(status)

    def addresses(self) -> Array:
        """An empty table for the addresses of one step's arrays."""
        return empty((len(self._rows), len(PARAMETER_ARRAY.members)), np.int64)

    def bind(self, addresses: Array, grads: Mapping[str, Array]) -> None:
        """Fill a table with where ``grads`` are, behind the work on the stream; not while a graph is captured."""
        import cupy

        table = np.array(self._rows, dtype=np.int64)
        table[:, PARAMETER_ARRAY.members.index("grad")] = [grads[name].data.ptr for name in self._names]
        addresses.set(table, stream=cupy.cuda.get_current_stream())

    def contiguous(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """The gradients as an update takes them: those that are views with strides copied."""
        return {name: contiguous_aligned(grads[name]) for name in self._names}

    def update(self, addresses: Array, loss: Array, correct: Array, labels: Array) -> None:
        """One AdamW step, unless loss or norm is not finite: then this and all later ones do nothing.

        ``loss``, ``correct``, ``labels``: of this step, as ``cross_entropy_and_gradient`` returns them; for
        :meth:`numbers`.
        """
        settings, blocks = self._settings, len(self._chunks)
        params = partial(
            adamw_params(self._dtype), arrays=addresses, squares=self._squares, rates=self._rates, loss=loss,
            correct=correct, labels=labels, status=self._status, beta1=settings.beta1, beta2=settings.beta2,
            clip=settings.clip, weight_decay=settings.weight_decay, m_decay=settings.beta1, m_gain=1 - settings.beta1,
            v_decay=settings.beta2, v_gain=1 - settings.beta2, eps=settings.eps, chunk_count=blocks,
            rate_count=len(settings.rates),
        )  # fmt: skip
        specialisation = adamw_specialisation(type_name(self._dtype), self._copy_type)
        every, updated = params(chunks=self._chunks), params(chunks=self._updated)
        get_kernel(specialisation, "gradient_squares")((blocks,), (THREADS,), (every,))
        get_kernel(specialisation, "adamw_prepare")((1,), (ONE_BLOCK,), (every,))
        if len(self._updated):
            get_kernel(specialisation, "adamw_update")((len(self._updated),), (THREADS,), (updated,))

    def round_others(self) -> None:
        """Round the parameters that have no moments to their copies, after another process has updated them."""
        params, mean, _, copies = self._kept
        for name, copy in (copies or {}).items():
            if name not in mean:
                copy[...] = params[name]

    def numbers(self) -> dict[str, float]:
        """The last update's loss, correct, labels, norm and rate; and updates made, stopped. Waits for the device."""
        return dict(zip(_REPORTED, self._status.get().tolist(), strict=False))
