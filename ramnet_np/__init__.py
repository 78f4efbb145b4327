"""RAM-Net in plain NumPy and fast kernels: linear attention over a large, sparsely addressed memory.

The operation is :func:`ram_attention_forward`, its gradient :func:`ram_attention_backward`, one token of it for
inference :func:`ram_attention_step`. Names and shapes follow the paper, arXiv 2602.11958:

    B, T, H  batch, tokens, heads        U, P  digits of an address and values of a digit
    M = P**U slots of one head           K, C  selected slots, channels of a value
"""

from ramnet_np.backend import backends, use_backend
from ramnet_np.contract import Address, RAMState
from ramnet_np.core.attention import (
    RAMAttentionGrads,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
)

__all__ = [
    "Address",
    "RAMAttentionGrads",
    "RAMState",
    "backends",
    "decode_address",
    "ram_attention_backward",
    "ram_attention_forward",
    "ram_attention_step",
    "use_backend",
]


def __getattr__(name: str) -> str:
    """``__version__``, when it is asked for: reading it takes as long as importing all the rest."""
    if name == "__version__":
        from importlib.metadata import version

        return version("ramnet-np")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
