"""What a forward of the memory leaves for its backward, and the records of kernels that are made of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Address, Array, MemoryOptions, RAMState

from .arrays import Arrays, arrays_like, working_dtype
from .records import Accesses, AddressArrays, MassArrays, StatePass, TokenOptions


class MemoryContext(NamedTuple):
    """What ``memory_backward`` needs. W and R are K_w and K_r, padded to groups of 8 if the fast kernels serve."""

    write: Address  # index: rows of the working state
    read: Address
    accesses: Accesses  # (B*H, T, W + R)
    masses: MassArrays  # (B*H, T, W), (B*H, T, R)
    values: Array  # (B, T, H, C)
    gamma: Any  # a number, or (B, T, H)
    mask: Array | None  # (B, T)
    state: RAMState | None  # as given
    n_rows: int
    dtype: Any  # of values as they came
    options: MemoryOptions

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, T, H, C)."""
        return self.values.shape

    @property
    def widths(self) -> tuple[int, int]:
        """(W, R)."""
        W = self.masses.old_mass.shape[2]
        return W, self.accesses.row.shape[2] - W

    @property
    def arrays(self) -> Arrays:
        """How arrays of this kind are made."""
        return arrays_like(self.values)

    @property
    def address(self) -> AddressArrays:
        """The addresses, as the kernels take them."""
        return AddressArrays(self.write.index, self.read.index, self.write.weight, self.read.weight)

    @property
    def token_options(self) -> TokenOptions:
        """gamma and the mask, as the kernels take them; the number gamma rounded to their type."""
        one = isinstance(self.gamma, float)
        number = self.accesses.coef.dtype.type(self.gamma if one else 0)
        return TokenOptions(None if one else self.gamma, self.mask, number, int(one), int(self.mask is not None))


def new_context(
    write: Address,
    read: Address,
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | None,
    options: MemoryOptions,
    n_rows: int,
    widths: tuple[int, int],
) -> MemoryContext:
    """Inputs as the kernels take them, and memory for what the kernels of the masses write."""
    B, T, H, _ = values.shape
    (W, R), arrays, dtype = widths, arrays_like(values), working_dtype(values.dtype)
    write, read = (
        Address(arrays.contiguous(a.index, np.int32), arrays.contiguous(a.weight, dtype)) for a in (write, read)
    )
    return MemoryContext(
        write,
        read,
        Accesses(arrays.empty((B * H, T, W + R), np.int32), arrays.empty((B * H, T, W + R), dtype)),
        MassArrays(
            arrays.empty((B * H, T, W), dtype), arrays.empty((B * H, T, R), dtype) if options.mass_aware else None
        ),
        values=arrays.contiguous(values, dtype),
        gamma=gamma if isinstance(gamma, float) else arrays.contiguous(gamma, dtype),
        mask=None if mask is None else arrays.contiguous(mask, np.bool_),
        state=None if state is None else RAMState(*(arrays.contiguous(part, dtype) for part in state)),
        n_rows=n_rows,
        dtype=values.dtype,
        options=options,
    )


def state_pass(start: Array | None, working: Array | None, end: Array | None) -> StatePass:
    """The record of a pass that begins with the array ``start`` and leaves ``end``, each if there is one."""
    return StatePass(start, working, end, int(start is not None), int(end is not None))


def slots_of(state: RAMState | None) -> Array | None:
    """The contents of a state, if there is one."""
    return None if state is None else state.slots


def mass_of(state: RAMState | None) -> Array | None:
    """The masses of a state, if there is one."""
    return None if state is None else state.mass


class ContentResults(NamedTuple):
    """What the backward of the contents leaves for that of the masses."""

    dv: Array  # (B, T, H, C)
    d_dot_v: Array  # (slices, B*H, T, W)
    d_dot_before: Array  # (slices, B*H, T)
    dy_dot_s: Array  # (slices, B*H, T, R)
    final_dots: Array | None  # (slices, B*H, rows): <dstate, s> after the last token


class MassResults(NamedTuple):
    """What the backward of the masses leaves."""

    dw: Array  # (B, T, H, K_w)
    dr: Array  # (B, T, H, K_r)
    dgamma: Array  # (B, T, H)
