"""One piece of work after another, shared out over threads: the only parallel loop of this backend.

Numba's ``prange`` compiles its body four times over: as a function, as the body of a loop, as a wrapper of that, and
in the kernel around it. So no kernel here has a ``prange`` of its own. A kernel hands a function and its arguments to
:func:`share_out`, which passes them as two addresses to one loop that is compiled once for all kernels.

Pieces of work are independent, and what is a piece depends on shapes alone: any number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, type_callable

from .compiling import inner

_WORD = ir.IntType(64)
_PARAMETERS = (types.int64, types.int64)  # of an entry: the number of a piece, the address of the arguments


def share_out(piece: Callable[..., None], count: int, arguments: tuple[Any, ...]) -> None:
    """``piece(number, *arguments)`` for every ``number`` below ``count``, in any order, by all threads."""
    for number in range(count):
        piece(number, *arguments)


@inner(parallel=True)
def _run(entry, address, count):
    """How many pieces failed: only their working arrays can, where there is no memory for them."""
    failed = 0
    for number in prange(count):
        failed += _call(entry, np.int64(number), address)  # prange counts in uint64
    return failed


@intrinsic
def _call(typing, entry, number, address):
    """Call an entry: 0, or 1 if it failed."""

    def generate(context, builder, signature, values):
        kind = context.call_conv.get_function_type(types.none, _PARAMETERS)
        function = builder.inttoptr(values[0], kind.as_pointer())
        status, _ = context.call_conv.call_function(builder, function, types.none, _PARAMETERS, values[1:])
        return builder.zext(status.is_error, _WORD)

    return types.int64(entry, number, address), generate


# share_out for Numba. An overload in Python would be compiled once more for every kernel.
@type_callable(share_out)
def _type_of_share_out(typing):
    def returned(piece, count, arguments):
        return types.none

    return returned


@lower_builtin(share_out, types.Dispatcher, types.int64, types.BaseTuple)
def _share_out(context, builder, signature, values):
    """Call ``_run`` with an entry for ``piece`` and the address of ``arguments``, which outlives that call."""
    piece, _, arguments = signature.args
    entry = _entry(context, builder, piece, arguments)
    address = builder.ptrtoint(cgutils.alloca_once_value(builder, values[2]), _WORD)
    run = types.Dispatcher(_run)
    call = run.get_call_type(context.typing_context, (types.int64, types.int64, types.int64), {})
    failed = context.get_function(run, call)(builder, [entry, address, values[1]])
    with builder.if_then(cgutils.is_not_null(builder, failed), likely=False):
        message = "too little memory for the working arrays of a kernel on the CPU"
        context.call_conv.return_user_exc(builder, MemoryError, (message,))
    return context.get_dummy_value()


def _entry(context, builder, piece, arguments):
    """The address of a function of a number and an address, which calls ``piece`` with the arguments found there."""
    kind = context.call_conv.get_function_type(types.none, _PARAMETERS)
    function = ir.Function(builder.module, kind, builder.module.get_unique_name("entry"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    number, address = context.call_conv.decode_arguments(inside, _PARAMETERS, function)
    given = inside.load(inside.inttoptr(address, context.get_value_type(arguments).as_pointer()))
    call = piece.get_call_type(context.typing_context, (types.int64, *arguments.types), {})
    context.get_function(piece, call)(inside, [number, *cgutils.unpack_tuple(inside, given)])
    context.call_conv.return_value(inside, context.get_dummy_value())
    return builder.ptrtoint(function, _WORD)
