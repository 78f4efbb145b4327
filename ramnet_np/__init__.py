"""RAM-Net in plain NumPy and fast kernels: linear attention over a large, sparsely addressed memory.

The operation is :func:`ram_attention_forward`, its gradient :func:`ram_attention_backward`, one token of it for
inference :func:`ram_attention_step`. Names and shapes follow the paper, arXiv 2602.11958:

    B, T, H  batch, tokens, heads        U, P  digits of an address and values of a digit
    M = P**U slots of one head           K, C  selected slots, channels of a value

The language model is :class:`RAMNet`, made from a :class:`RAMNetConfig`, which :func:`preset` returns by name.
"""

from typing import TYPE_CHECKING, Any

from ramnet_np.backend import backends, use_backend
from ramnet_np.contract import Address, MemoryTiers, RAMState
from ramnet_np.core.attention import (
    RAMAttentionGrads,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
)
from ramnet_np.core.sparse_state import SparseRAMState

if TYPE_CHECKING:
    from ramnet_np import gradcheck
    from ramnet_np.model import RAMNet, RAMNetConfig, preset

__all__ = [
    "Address",
    "MemoryTiers",
    "RAMAttentionGrads",
    "RAMNet",
    "RAMNetConfig",
    "RAMState",
    "SparseRAMState",
    "backends",
    "decode_address",
    "gradcheck",
    "preset",
    "ram_attention_backward",
    "ram_attention_forward",
    "ram_attention_step",
    "use_backend",
]

_OF_MODEL = ("RAMNet", "RAMNetConfig", "preset")


def __getattr__(name: str) -> Any:
    """What takes longer to import than the operation, when it is asked for: the model, gradcheck, the version."""
    if name in _OF_MODEL:
        from ramnet_np import model

        return getattr(model, name)
    if name == "gradcheck":  # a package that can be called as its function can
        import ramnet_np.gradcheck

        return ramnet_np.gradcheck
    if name == "__version__":
        from importlib.metadata import version

        return version("ramnet-np")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
