"""One token through a RAM layer in one call: norm, projections, memory and way out, for few heads and small matrices.

These are the parts of ``products.py`` and ``step.py``, one behind the other. What is larger is worth several threads,
and calls of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState

from .arrays import flat_gamma, flat_positions, mask_array
from .compiling import kernel
from .products import NOTHING, SHORT, WORTH_A_KERNEL, are_few, fit, matrices_fit, normed, some_products
from .retention import kernel_options
from .step import HEADS_PER_PIECE, NO_TABLE, Table, step_heads


def ram_step(
    x: Array,
    norm: Array,
    norm_eps: float,
    weights: tuple[Array, ...],
    biases: tuple[Array | None, ...],
    out: Array,
    out_bias: Array | None,
    gamma: float,
    positions: Array | None,
    state: RAMState,
    digits: tuple[int, int, int],
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Any:
    """x + ram(rmsnorm(x)) O^T + o, or NotImplemented for what is not served; then ``state`` is as it was."""
    H, U, P = digits
    if not are_few(x) or type(state) is not RAMState or len(x) * H > HEADS_PER_PIECE:
        return NotImplemented
    if sum([w.size for w in weights]) < WORTH_A_KERNEL or sum([w.nbytes for w in weights]) >= SHORT:
        return NotImplemented
    none, _ = NOTHING[x.dtype]
    (B, D), M, C = x.shape, P**U, state.slots.shape[-1]
    outputs = (H * U * P,), (H * U * P,), (H * C,), (D,)
    added = [none if bias is None else bias for bias in (*biases, out_bias)]
    shapes = [(0,) if bias is none else shape for bias, shape in zip(added, outputs, strict=True)]
    inner = [shape + x.shape[1:] for shape in outputs[:3]]
    if not fit(x.dtype, (x, norm, *state, *added), (x.shape, (D,), (B, H, M, C), (B, H, M), *shapes)):
        return NotImplemented
    if not matrices_fit(x.dtype, (*weights, out), (*inner, (D, H * C))):
        return NotImplemented
    if decode.cape_heads and (positions is None or not fit(np.dtype(np.int64), [positions], [(B, 1)])):
        return NotImplemented
    y, at = np.empty(x.shape, dtype=x.dtype), flat_positions(positions, decode.cape_heads)
    maps = weights, tuple(added[:3]), out, added[3]
    token, memory = (flat_gamma(gamma, x), at, mask_array(None)), (tuple(state), tuple(NO_TABLE))
    settings = digits, tuple(decode), kernel_options(options, x.dtype)
    done = _ram_step(x, norm, x.dtype.type(norm_eps), maps, token, memory, settings, y)
    return y if done else NotImplemented


@kernel
def _ram_step(x, norm, eps, maps, token, memory, settings, y):
    """Whether the logits were finite, without which nothing is written."""
    weights, biases, out, out_bias = maps
    gamma, positions, mask = token
    state, table = memory
    digits, decode, rule = settings
    H, U, P = digits
    B, dtype = x.shape[0], y.dtype
    write, read = np.empty((B, 1, H, U, P), dtype), np.empty((B, 1, H, U, P), dtype)
    values, recalled = np.empty((B, 1, H, out.shape[1] // H), dtype), np.empty((B, 1, H, out.shape[1] // H), dtype)
    # 1. projections
    projected = write.reshape(B, -1), read.reshape(B, -1), values.reshape(B, -1)
    outputs = weights[0].shape[0] + weights[1].shape[0] + weights[2].shape[0]
    some_products(0, normed(x, norm, eps), weights, biases, x[:0], projected, outputs)
    if not (np.isfinite(write).all() and np.isfinite(read).all()):
        return False
    # 2. memory
    inputs = write, read, values, gamma, positions, mask
    step_heads(0, inputs, DecodeOptions(*decode), rule, RAMState(*state), Table(*table), recalled)
    # 3. out
    some_products(0, recalled.reshape(B, -1), (out,), (out_bias,), x, (y,), out.shape[0])
    return True
