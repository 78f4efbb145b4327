"""The NumPy core as a backend: the reference that every other backend is tested against."""

from __future__ import annotations

from typing import Any

from ramnet_np.backend import Backend
from ramnet_np.contract import Address, DecodeOptions, MemoryOptions, RAMState
from ramnet_np.core.decoder import decode_backward, decode_forward
from ramnet_np.core.memory import memory_backward, memory_forward, memory_write_read


def step(
    write_logits: Any,
    read_logits: Any,
    values: Any,
    gamma: Any,
    positions: Any,
    mask: Any,
    state: RAMState,
    decode: DecodeOptions,
    options: MemoryOptions,
) -> Any:
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
    write_index, w, _ = decode_forward(write_logits, decode.write_k, decode.write_renorm, decode.cape_heads, positions)
    read_index, r, _ = decode_forward(read_logits, decode.read_k, decode.read_renorm, decode.cape_heads, positions)
    return memory_write_read(Address(write_index, w), Address(read_index, r), values, gamma, mask, state, options)


BACKEND = Backend(
    name="numpy",
    decode_forward=decode_forward,
    decode_backward=decode_backward,
    memory_forward=memory_forward,
    memory_backward=memory_backward,
    step=step,
    more_kinds=("cupy",),  # the core is written through xp
)
