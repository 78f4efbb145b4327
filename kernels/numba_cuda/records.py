"""Arguments of kernels that belong together: records of arrays and numbers, each described once.

A NamedTuple as an argument costs nothing: its fields become single parameters of the compiled kernel. The functions
here give the Numba types of the records, for one type of numbers.

Shapes: (B*H, T, W + R) means W writes and R reads of a token, K_w and K_r padded to groups of 8.
"""

from typing import Any, NamedTuple

from .compiler import cuda, int32, types
from .launch import record

INDICES, FLAGS = types.CPointer(int32), types.CPointer(types.uint8)


class AddressArrays(NamedTuple):
    """The addresses as the decoder leaves them; the slot of a read is -1 where nothing is ever written."""

    write_slot: Any  # (B, T, H, K_w)
    read_slot: Any  # (B, T, H, K_r)
    write_weight: Any  # (B, T, H, K_w)
    read_weight: Any  # (B, T, H, K_r)


def address_arrays(number):
    """Type of :class:`AddressArrays`."""
    numbers = types.CPointer(number)
    return record(AddressArrays, write_slot=INDICES, read_slot=INDICES, write_weight=numbers, read_weight=numbers)


class TokenOptions(NamedTuple):
    """gamma and the mask, each given or not."""

    gamma: Any  # (B, T, H)
    mask: Any  # (B, T)
    gamma_number: Any  # the gamma of every token, if ``one_gamma``
    one_gamma: Any
    masked: Any  # whether there is a mask


def token_options(number):
    """Type of :class:`TokenOptions`."""
    return record(
        TokenOptions, gamma=types.CPointer(number), mask=FLAGS, gamma_number=number, one_gamma=int32, masked=int32
    )


@cuda.jit(device=True)
def token_of(bh, t, sizes):
    """Where token t of a (batch, head) lies in arrays (B, T, ..), (B, T, H, ..) and (B*H, T, ..)."""
    token = bh // sizes.H * sizes.T + t
    return token, token * sizes.H + bh % sizes.H, bh * sizes.T + t


@cuda.jit(device=True)
def gamma_at(options, at):
    """The gamma of a token and head, ``at`` of (B, T, H)."""
    return options.gamma_number if options.one_gamma != 0 else options.gamma[at]


@cuda.jit(device=True)
def takes_part(options, token):
    """Whether token number ``token`` of (B, T) is not masked."""
    return options.masked == 0 or options.mask[token] != 0


class Accesses(NamedTuple):
    """Every access of every token: the row of the state that it goes to, and eta of a write or the weight of a read."""

    row: Any  # (B*H, T, W + R)
    coef: Any  # (B*H, T, W + R)


def accesses_type(number):
    """Type of :class:`Accesses`."""
    return record(Accesses, row=INDICES, coef=types.CPointer(number))


class MassArrays(NamedTuple):
    """The masses that accesses find."""

    old_mass: Any  # (B*H, T, W): before a write
    read_mass: Any  # (B*H, T, R): at a mass-aware read, or None


def mass_arrays(number):
    """Type of :class:`MassArrays`."""
    return record(MassArrays, old_mass=types.CPointer(number), read_mass=types.CPointer(number))


class StatePass(NamedTuple):
    """The state that a pass begins with, works on and leaves: contents (B*H, rows, C) or masses (B*H, rows).

    In reverse it is the adjoint of the state: ``start`` belongs to the last token, ``end`` to the first.
    """

    start: Any
    working: Any  # device memory, where the state does not fit into shared memory
    end: Any
    has_start: Any  # else the state begins with zeros, or the initial mass
    has_end: Any


def state_pass(number):
    """Type of :class:`StatePass`."""
    numbers = types.CPointer(number)
    return record(StatePass, start=numbers, working=numbers, end=numbers, has_start=int32, has_end=int32)


class MassSizes(NamedTuple):
    """Sizes that the kernels of the masses are not compiled for."""

    tokens: Any  # B * H * T
    T: Any
    H: Any
    n_rows: Any
    Kw: Any
    Kr: Any


MASS_SIZES = record(MassSizes, **dict.fromkeys(MassSizes._fields, int32))


class ContentSizes(NamedTuple):
    """Sizes that the kernels of the contents are not compiled for."""

    T: Any
    H: Any
    C: Any
    n_rows: Any
    slices: Any  # of the channels
    heads: Any  # B * H


CONTENT_SIZES = record(ContentSizes, **dict.fromkeys(ContentSizes._fields, int32))


class PlainSizes(NamedTuple):
    """Sizes of a call that the plain kernels serve: W and R are K_w and K_r as they are."""

    T: Any
    H: Any
    C: Any
    n_rows: Any
    W: Any
    R: Any
    aware: Any  # whether reads are mass-aware


PLAIN_SIZES = record(PlainSizes, **dict.fromkeys(PlainSizes._fields, int32))


class ContentDots(NamedTuple):
    """What the passes over the contents leave for the masses' gradients: sums over each slice of channels."""

    d_dot_v: Any  # (slices, B*H, T, W): <d, v> of every write
    d_dot_before: Any  # (slices, B*H, T): <d, content before> of a token's first write
    dy_dot_s: Any  # (read_slices, B*H, T, R): <dy, s> of every read
    slices: Any
    read_slices: Any


def content_dots(number):
    """Type of :class:`ContentDots`."""
    numbers = types.CPointer(number)
    return record(ContentDots, d_dot_v=numbers, d_dot_before=numbers, dy_dot_s=numbers, slices=int32, read_slices=int32)


class TokenArrays(NamedTuple):
    """What the passes of the backward read of each token and channel, (B, T, H, C)."""

    values: Any
    dy: Any
    before: Any  # what the first write of each token found: the recomputation writes it, the backward reads it


def token_arrays(number):
    """Type of :class:`TokenArrays`."""
    numbers = types.CPointer(number)
    return record(TokenArrays, values=numbers, dy=numbers, before=numbers)


class StateDots(NamedTuple):
    """<dstate, s> of every row after the last token, if the gradient of the final state is given."""

    dstate: Any  # (B*H, rows, C)
    dots: Any  # (slices, B*H, rows)
    wanted: Any


def state_dots(number):
    """Type of :class:`StateDots`."""
    numbers = types.CPointer(number)
    return record(StateDots, dstate=numbers, dots=numbers, wanted=int32)


class ContentGradients(NamedTuple):
    """What the backward of the contents leaves."""

    dv: Any  # (B, T, H, C)
    d_dot_v: Any  # (slices, B*H, T, W): <d, v> over the slice, of every write
    d_dot_before: Any  # (slices, B*H, T): <d, content before> over the slice, of a token's first write


def content_gradients(number):
    """Type of :class:`ContentGradients`."""
    numbers = types.CPointer(number)
    return record(ContentGradients, dv=numbers, d_dot_v=numbers, d_dot_before=numbers)


class WeightGradients(NamedTuple):
    """Gradients of the write weights and of gamma."""

    dw: Any  # (B, T, H, K_w)
    dgamma: Any  # (B, T, H)


def weight_gradients(number):
    """Type of :class:`WeightGradients`."""
    numbers = types.CPointer(number)
    return record(WeightGradients, dw=numbers, dgamma=numbers)


class SlopeNumbers(NamedTuple):
    """What the slopes of retention need beside w and gamma."""

    eps: Any
    proxy_eps: Any
    smallest: Any  # the floor of 1 - w


def slope_numbers(number):
    """Type of :class:`SlopeNumbers`."""
    return record(SlopeNumbers, eps=number, proxy_eps=number, smallest=number)
