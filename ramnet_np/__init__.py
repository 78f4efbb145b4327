"""RAM-Net in plain NumPy and fast kernels: linear attention over a large, sparsely addressed memory.

The operation is :func:`ram_attention_forward`, its gradient :func:`ram_attention_backward`, one token of it for
inference :func:`ram_attention_step`. Names and shapes follow the paper, arXiv 2602.11958:

    B, T, H  batch, tokens, heads        U, P  digits of an address and values of a digit
    M = P**U slots of one head           K, C  selected slots, channels of a value

The language model is :class:`RAMNet`, made from a :class:`RAMNetConfig`, which :func:`preset` returns by name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ramnet_np import gradcheck
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

# Where each name lives. None is imported before it is asked for: NumPy takes time, and in that time the command would
# answer Ctrl-C with a traceback.
_HOME = {
    **dict.fromkeys(("backends", "use_backend"), "backend"),
    **dict.fromkeys(("Address", "MemoryTiers", "RAMState"), "contract"),
    **dict.fromkeys(("RAMAttentionGrads", "decode_address"), "core.attention"),
    **dict.fromkeys(("ram_attention_backward", "ram_attention_forward", "ram_attention_step"), "core.attention"),
    "SparseRAMState": "core.sparse_state",
    **dict.fromkeys(("RAMNet", "RAMNetConfig", "preset"), "model"),
}

# gradcheck can be called as its function can.
_ROOMS = ("backend", "contract", "core", "gradcheck", "model")


def __getattr__(name: str) -> Any:
    """A public name, when it is first asked for."""
    if name in _HOME:
        value = getattr(import_module(f"ramnet_np.{_HOME[name]}"), name)
    elif name in _ROOMS:
        value = import_module(f"ramnet_np.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("ramnet-np")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    ours = {*globals(), *__all__, *_ROOMS, "__version__"}
    return sorted(ours - {"Any", "TYPE_CHECKING", "import_module"})  # a completion would offer these
