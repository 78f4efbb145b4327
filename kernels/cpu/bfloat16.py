"""bfloat16 numbers in uint16, as ``ramnet_np/core/bfloat16.py`` makes them, in kernels: one becomes a float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import lower_builtin, type_callable

_WORD = ir.IntType(32)


def number(x: Any) -> Any:
    """``x``, or the float32 whose upper half it is if it is a uint16."""
    return np.uint32(int(x) << 16).view(np.float32) if isinstance(x, np.uint16) else x


# For Numba; a shift of eight numbers in a register is one instruction.
@type_callable(number)
def _type_of_number(context):
    def returned(x):
        return types.float32 if x == types.uint16 else x

    return returned


@lower_builtin(number, types.Float)
def _float_number(context, builder, signature, values):
    return values[0]


@lower_builtin(number, types.uint16)
def _bfloat16_number(context, builder, signature, values):
    return builder.bitcast(builder.shl(builder.zext(values[0], _WORD), ir.Constant(_WORD, 16)), ir.FloatType())
