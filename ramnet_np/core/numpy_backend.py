"""The NumPy core as a backend: the reference that every other backend is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramnet_np.backend import Backend
from ramnet_np.contract import Address, Array, DecodeOptions, MemoryOptions, RAMState
from ramnet_np.core import decoder
from ramnet_np.core.memory import memory_backward, memory_forward, memory_write_read


def decode_forward(
    logits: tuple[Array, ...], top_k: tuple[int, ...], renorm: tuple[bool, ...], cape_heads: int, positions: Array
) -> Sequence[tuple[Array, Array, Any]]:
    """Decode the sides of a call: writes and reads, or one side alone. A backend may do both at once.

    ``logits``: of every side, (B, T, H, U, P); ``top_k``, ``renorm``: as many; ``positions``: (B, T) int64, or as the
    caller gave them for a backend with ``accepts_short_positions``.
    Returns of every side index (B, T, H, K) int32, weight (B, T, H, K), best first, and what its backward needs.
    Arguments are taken as checked (``core/checks.py``). Source: paper eq. 4 to 6.

    >>> import numpy as np
    >>> write, read = decode_forward((np.zeros((1, 1, 1, 2, 2)),) * 2, (1, 3), (False, True), 0, np.array([[0]]))
    >>> write[0].ravel().tolist(), read[0].ravel().tolist()
    ([0], [0, 1, 2])
    """
    sides = zip(logits, top_k, renorm, strict=True)
    return [decoder.decode_forward(side, k, divide, cape_heads, positions) for side, k, divide in sides]


def decode_backward(dweights: tuple[Array, ...], saved: tuple[Any, ...]) -> Sequence[Array]:
    """Gradient of the logits of every side, (B, T, H, U, P), given those of the weights, (B, T, H, K).

    ``saved``: what :func:`decode_forward` returned last, of the same sides. Source: docs/mathematics.md.

    >>> import numpy as np
    >>> [(_, weight, saved)] = decode_forward((np.zeros((1, 1, 1, 1, 2)),), (1,), (False,), 0, np.array([[0]]))
    >>> [dlogits] = decode_backward((np.ones_like(weight),), (saved,))
    >>> dlogits.ravel().tolist()
    [0.25, -0.25]
    """
    return [decoder.decode_backward(dweight, ctx) for dweight, ctx in zip(dweights, saved, strict=True)]


def step(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array,
    positions: Array | None,
    mask: Array | None,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Array:
    """Decode, write and read one token (T = 1), updating ``state`` in place; returns y (B, 1, H, C).

    Shapes and errors as in :func:`ramnet_np.ram_attention_step`, which checks the arguments.

    >>> import numpy as np
    >>> from ramnet_np.core.attention import ram_attention_step
    >>> state = RAMState.initial(batch=1, heads=1, slots=4, channels=1, dtype=np.float64)
    >>> logits = np.zeros((1, 1, 1, 2, 2))
    >>> y, _ = ram_attention_step(logits, logits, np.ones((1, 1, 1, 1)), top_k=1, state=state, backend="numpy")
    >>> y.ravel().tolist()
    [0.14285714285681633]
    """
    write, read = decode_forward((write_logits, read_logits), decode.top_k, decode.renorm, decode.cape_heads, positions)
    return memory_write_read(Address(*write[:2]), Address(*read[:2]), values, gamma, mask, state, options)


BACKEND = Backend(
    name="numpy",
    decode_forward=decode_forward,
    decode_backward=decode_backward,
    memory_forward=memory_forward,
    memory_backward=memory_backward,
    step=step,
    also_serves=("cupy",),  # the core is written through xp
)
