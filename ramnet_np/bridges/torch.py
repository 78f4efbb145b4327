"""The operation for PyTorch: tensors in, tensors out, with autograd.

    from ramnet_np.bridges.torch import ram_attention
    y, state = ram_attention(write_logits, read_logits, values, gamma, cape_heads=2)

Tensors on the CPU run on the backend "numba" (or "numpy"), in float32 or float64; tensors on a CUDA GPU on "cupy", also
in float16 and bfloat16, on torch's current stream and with memory from torch's allocator. Only positions and
mask are copied.
``torch.compile`` takes the operation as one operator.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch

from ramnet_np.bridges import torch_ops
from ramnet_np.contract import DecodeOptions, RAMState
from ramnet_np.core.option_checks import check_bool, check_options


def ram_attention(
    write_logits: torch.Tensor,
    read_logits: torch.Tensor,
    values: torch.Tensor,
    gamma: float | torch.Tensor = 1.0,
    *,
    update: str = "pdma",
    top_k: int | tuple[int, int] = 8,
    renorm: bool | tuple[bool, bool] = False,
    cape_heads: int = 0,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    state: RAMState | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    proxy_eps: float = 0.0,
    return_state: bool = True,
    cu_seqlens: torch.Tensor | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, RAMState | None]:
    """:func:`ramnet_np.ram_attention_forward` on tensors. Returns (y, state), which autograd differentiates.

    Arguments, shapes and defaults as there. ``gamma`` may also be a tensor of no axes. ``state`` is a ``RAMState`` of
    tensors; gradients flow into it and out of the returned one. ``cu_seqlens``, int32 or int64, may be on either side:
    on the CPU it saves a wait for the GPU.
    Under autocast float32 and 16-bit inputs are cast to autocast's dtype on a GPU and to float32 on the CPU; the state
    is left as it is.
    Gradients are first derivatives; they are the same bits on every run, also without deterministic algorithms.
    Raises ValueError or TypeError in one sentence naming the argument.

    >>> logits = torch.zeros(1, 6, 2, 5, 4, requires_grad=True)  # B=1, T=6, H=2, U=5, P=4: M = 1024 slots
    >>> y, state = ram_attention(logits, logits, torch.ones(1, 6, 2, 3))
    >>> y.sum().backward()
    >>> y.shape, state.slots.shape, logits.grad.shape
    (torch.Size([1, 6, 2, 3]), torch.Size([1, 2, 1024, 3]), torch.Size([1, 6, 2, 5, 4]))
    """
    tensors = _tensors(write_logits, read_logits, values, gamma, positions, mask, state)
    options = _options(
        tensors, gamma, update=update, top_k=top_k, renorm=renorm, cape_heads=cape_heads, mass_aware=mass_aware,
        eps=eps, proxy_eps=proxy_eps, batch_invariant=batch_invariant,
    )  # fmt: skip
    _check_plain(return_state, backend)
    if cu_seqlens is not None and not isinstance(cu_seqlens, torch.Tensor):
        raise TypeError(f"cu_seqlens must be a torch.Tensor, got {type(cu_seqlens).__name__}")
    y, slots, mass, _ = torch_ops.forward(
        *tensors, cu_seqlens, *options, batch_invariant, float(proxy_eps), return_state, backend
    )
    return y, RAMState(slots, mass) if return_state else None


def ram_attention_step(
    write_logits: torch.Tensor,
    read_logits: torch.Tensor,
    values: torch.Tensor,
    gamma: float | torch.Tensor = 1.0,
    *,
    state: RAMState,
    update: str = "pdma",
    top_k: int | tuple[int, int] = 8,
    renorm: bool | tuple[bool, bool] = False,
    cape_heads: int = 0,
    positions: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    backend: str | None = None,
) -> tuple[torch.Tensor, RAMState]:
    """:func:`ramnet_np.ram_attention_step` on tensors: one token (T = 1), UPDATES ``state`` IN PLACE.

    Arguments as there. It has no gradient: call it under ``torch.no_grad()``, or with tensors that need none. Returns y
    (B, 1, H, C) and state, the same object.
    Raises ValueError, TypeError or RuntimeError in one sentence; then nothing is changed.

    >>> logits, values = torch.zeros(1, 1, 2, 5, 4), torch.ones(1, 1, 2, 3)
    >>> state = RAMState(torch.zeros(1, 2, 1024, 3), torch.full((1, 2, 1024), 1 / 1024))
    >>> y, state = ram_attention_step(logits, logits, values, state=state)
    >>> y.shape, (state.mass[0, 0] > 1 / 1024).sum().item()  # eight slots were written
    (torch.Size([1, 1, 2, 3]), 8)
    """
    if state is None:
        raise TypeError("state must be a RAMState of tensors to update in place, got None")
    tensors = _tensors(write_logits, read_logits, values, gamma, positions, mask, state)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            "ram_attention_step has no gradient, got tensors that require one: call it under torch.no_grad(), "
            "or use ram_attention"
        )
    options = _options(
        tensors, gamma, update=update, top_k=top_k, renorm=renorm, cape_heads=cape_heads, mass_aware=mass_aware,
        eps=eps, proxy_eps=0.0,
    )  # fmt: skip
    _check_plain(True, backend)
    return torch_ops.step(*tensors, *options, backend), state


def _tensors(
    write_logits: Any, read_logits: Any, values: Any, gamma: Any, positions: Any, mask: Any, state: Any
) -> list[torch.Tensor | None]:
    """The tensors of a call as the operator takes them, None for what is not given; a gamma of no axes for all tokens.

    What the operator could not even be called with ends in a sentence here, the rest in the library's.
    """
    if state is not None and not isinstance(state, RAMState):
        raise TypeError(f"state must be a RAMState (slots, mass) of tensors, got {type(state).__name__}")
    slots, mass = (None, None) if state is None else state
    named = {"write_logits": write_logits, "read_logits": read_logits, "values": values}
    if isinstance(gamma, torch.Tensor):
        named["gamma"] = gamma
    optional = {"positions": positions, "mask": mask, "state.slots": slots, "state.mass": mass}
    named |= {name: given for name, given in optional.items() if given is not None}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or not (tensor.is_cpu or tensor.is_cuda):
            raise TypeError(
                f"{name} must be a dense tensor on the CPU or a CUDA GPU, got {tensor.layout} on {tensor.device}"
            )
        if tensor.device != write_logits.device:
            raise ValueError(
                "all tensors of a call must be on one device, "
                f"got write_logits on {write_logits.device}, {name} on {tensor.device}"
            )
    if write_logits.ndim != 5:
        raise ValueError(f"write_logits must have 5 axes (B, T, H, U, P), got shape {tuple(write_logits.shape)}")
    if isinstance(gamma, torch.Tensor) and gamma.ndim == 0:
        named["gamma"] = gamma.to(values.dtype).expand(write_logits.shape[:3])
    named |= _under_autocast({name: x for name, x in named.items() if name not in optional})
    for name, tensor in named.items():
        _check_dtype(name, tensor)
    return [named.get(name) for name in ("write_logits", "read_logits", "values", "gamma", *optional)]


def _under_autocast(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in autocast's dtype where it is on; on the CPU, whose kernels have no 16-bit types, in float32."""
    device = tensors["values"].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device) if device == "cuda" else torch.float32
    casts = (torch.float32, torch.float16, torch.bfloat16)  # as autocast itself: float64 stays
    return {name: x.to(dtype) if x.dtype in casts else x for name, x in tensors.items()}


def _check_dtype(name: str, tensor: torch.Tensor) -> None:
    """16-bit types and float8 have no place on the CPU: NumPy does not know all of them."""
    if name in ("positions", "mask") or tensor.dtype in (torch.float32, torch.float64):
        return
    if tensor.device.type == "cpu":
        raise TypeError(f"{name} must be float32 or float64 on the CPU, got {tensor.dtype}")
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def _options(tensors: list[Any], gamma: Any, **named: Any) -> tuple[Any, ...]:
    """The operator's arguments that are no tensors, but for its last; checked, unless this is being compiled."""
    if not isinstance(gamma, (torch.Tensor, Real)):
        raise TypeError(f"gamma must be a number or a torch.Tensor, got {type(gamma).__name__}")
    if torch.compiler.is_compiling():  # what is wrong is said when the operator runs
        decode = DecodeOptions(*_pair(named["top_k"]), *_pair(named["renorm"]), named["cape_heads"])
    else:
        _, _, H, U, P = tensors[0].shape
        decode, _ = check_options(P**U, H, **named)
    number = 0.0 if isinstance(gamma, torch.Tensor) else float(gamma)
    return number, named["update"], *decode, named["mass_aware"], float(named["eps"])


def _check_plain(return_state: Any, backend: Any) -> None:
    check_bool("return_state", return_state)
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend must be a name or None, got {backend!r}")


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
