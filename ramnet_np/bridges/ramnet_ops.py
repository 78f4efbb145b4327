"""The function of the authors' package ``ramnet-ops``, computed by this library; and one call for models of ``ramnet``.

    from ramnet_np.bridges.ramnet_ops import random_access_memory_attention, use_in
    use_in(model)       # a RAMNetForCausalLM of the package ramnet

Neither package is needed to import this. Arguments, defaults and results are those of ramnet-ops 0.1.0rc2, but for
these: a masked token's output is 0; logits must be finite; what is wrong ends in a sentence of ours; ``top_k=None``
(all slots) is served everywhere; on the CPU 16-bit types are computed in float32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ramnet_np.bridges.torch import ram_attention, ram_attention_step
from ramnet_np.contract import RAMState

_FUNCTION = "random_access_memory_attention"


def random_access_memory_attention(
    w_addr: torch.Tensor,
    r_addr: torch.Tensor,
    values: torch.Tensor,
    gamma: torch.Tensor | float = 2.197,
    init_ram: tuple[torch.Tensor | None, torch.Tensor | float | None] | None = None,
    mask: torch.Tensor | None = None,
    embed_num: int = 0,
    position_ids: torch.Tensor | None = None,
    top_k: tuple[int, int] | list[int] | int | None = 8,
    top_k_re_norm: bool | tuple[bool, bool] | list[bool] = False,
    mass_aware: bool = False,
    eps: float = 1e-12,
    t_dim: int = 1,
    inplace: bool = False,
    impl_backend: str | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """:func:`ramnet_np.bridges.torch.ram_attention` with ``update="gsu"``. Returns (y, (slot, mass)).

    ``w_addr``, ``r_addr``: (..., T, ..., H, U, P); ``values``: (..., T, ..., H, C); ``gamma``: a number or
        (..., T, ..., H), where time is axis ``t_dim``. They broadcast against one another.
    ``init_ram``: (slot, mass), slot (..., H, M, C) or None for 0, mass (..., H, M), a number, or None for 1/M.
    ``mask``, ``position_ids``: (..., T, ...); ``embed_num``: how many heads use CAPE.
    ``inplace``: update slot and mass of ``init_ram`` and return them; no gradients then.
    ``impl_backend``: taken and not looked at; the kind of tensors decides.
    Raises ValueError or TypeError in one sentence.

    >>> logits = torch.zeros(2, 6, 2, 5, 4)
    >>> y, (slot, mass) = random_access_memory_attention(logits, logits, torch.ones(2, 6, 2, 3))
    >>> y.shape, slot.shape, mass.shape
    (torch.Size([2, 6, 2, 3]), torch.Size([2, 2, 1024, 3]), torch.Size([2, 2, 1024]))
    """
    slot, mass = (None, None) if init_ram is None else init_ram
    call = _rows(w_addr, r_addr, values, gamma, slot, mass, mask, position_ids, t_dim)
    order, radix = call.write.shape[-2:]
    M = radix**order
    state = _state(call, mass, M)
    positions = call.positions
    if positions is None and embed_num and state is not None:
        positions = torch.arange(call.values.shape[1], device=values.device)
    options: dict[str, Any] = {
        "update": "gsu", "top_k": M if top_k is None else top_k, "renorm": top_k_re_norm, "cape_heads": embed_num,
        "positions": positions, "mask": call.mask, "mass_aware": mass_aware, "eps": eps,
    }  # fmt: skip
    arrays = call.write, call.read, call.values, call.gamma
    if inplace:
        _check_in_place(slot, mass, state, (*arrays, slot, mass))
        assert state is not None
        y = _update(arrays, state, options)
        final = RAMState(*(part for part in (slot, mass) if isinstance(part, torch.Tensor)))
    else:
        if state is not None and call.values.shape[1] == 1 and not _has_gradients((*arrays, *state)):
            state = RAMState(*(part.clone(memory_format=torch.contiguous_format) for part in state))
            y, _ = ram_attention_step(*arrays, state=state, **options)  # the fast way for a token, on a copy
        else:
            y, state = ram_attention(*arrays, state=state, **options)
        assert state is not None
        final = RAMState(*(part.reshape(*call.batch, *part.shape[1:]) for part in state))
    y = y.to(values.dtype).reshape(*call.batch, *y.shape[1:]).movedim(-3, t_dim)
    return y, tuple(final)


def use_in(model: torch.nn.Module, operation: Callable[..., Any] = random_access_memory_attention) -> torch.nn.Module:
    """Make a model of the package ``ramnet`` compute its memory with ``operation``; returns the model.

    The layers look the operation up in their module, so this holds for every model of that module in this process.
    ``operation``: ``ramnet_ops.random_access_memory_attention`` goes back to the authors'.
    ValueError if the model has no such layer.

    >>> use_in(torch.nn.Linear(2, 2))
    Traceback (most recent call last):
        ...
    ValueError: model must hold layers RAMNetAttention of the package ramnet, got Linear without one
    """
    types = {base for layer in model.modules() for base in type(layer).__mro__ if base.__name__ == "RAMNetAttention"}
    modules = [sys.modules[layer.__module__] for layer in types]
    if not modules or not all(hasattr(module, _FUNCTION) for module in modules):
        raise ValueError(
            f"model must hold layers RAMNetAttention of the package ramnet, got {type(model).__name__} without one"
        )
    for module in modules:
        setattr(module, _FUNCTION, operation)
    return model


class _Rows(NamedTuple):
    """The tensors of a call as the operation takes them, all leading axes in one, and these axes."""

    write: torch.Tensor
    read: torch.Tensor
    values: torch.Tensor
    gamma: torch.Tensor | float
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    slot: torch.Tensor | None
    mass: torch.Tensor | None
    batch: tuple[int, ...]


# how many axes a tensor has from time on; those of a state have no time
_AXES = {"w_addr": 4, "r_addr": 4, "values": 3, "gamma": 2, "mask": 1, "position_ids": 1, "slot": 3, "mass": 2}
_OF_STATE = "slot", "mass"


def _rows(
    w_addr: Any, r_addr: Any, values: Any, gamma: Any, slot: Any, mass: Any, mask: Any, position_ids: Any, t_dim: int
) -> _Rows:
    """Time just before the heads, and everything broadcast: no copies where shapes fit and ``t_dim`` is there."""
    for name, x in (("w_addr", w_addr), ("r_addr", r_addr), ("values", values)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if slot is not None and not isinstance(slot, torch.Tensor):
        raise TypeError(f"slot of init_ram must be a torch.Tensor or None, got {type(slot).__name__}")
    named = zip(_AXES, (w_addr, r_addr, values, gamma, mask, position_ids, slot, mass), strict=True)
    given = {name: x for name, x in named if isinstance(x, torch.Tensor)}
    batch, shapes = _layout(t_dim, tuple((name, x.shape) for name, x in given.items()))
    for name, shape in shapes.items():
        x = given[name] if name in _OF_STATE else given[name].movedim(t_dim, -_AXES[name])
        given[name] = x.expand(*batch, *shape).reshape(-1, *shape)
    if values.device.type == "cpu":
        given |= {name: _at_least_float32(x) for name, x in given.items() if name not in ("mask", "position_ids")}
    return _Rows(
        given["w_addr"], given["r_addr"], given["values"], given.get("gamma", gamma),
        given["mask"].to(values.device, torch.bool) if "mask" in given else None,
        given["position_ids"].to(values.device) if "position_ids" in given else None,
        given.get("slot"), given.get("mass"), batch,
    )  # fmt: skip


@lru_cache(maxsize=1024)  # it would take longer than the token itself
def _layout(t_dim: int, given: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The leading axes of a call; and the other axes, broadcast, of those tensors that are not like that already."""
    moved: dict[str, list[int]] = {}
    elsewhere = set()  # tensors whose shape may fit, but whose time is not just before the heads
    for name, shape in given:
        axes, ndim = _AXES[name], len(shape)
        moved[name], before = list(shape), ndim - axes
        if name in _OF_STATE:
            if ndim < axes:
                raise ValueError(f"{name} of init_ram must have at least {axes} axes, got shape {tuple(shape)}")
            continue
        if ndim < axes or not -ndim <= t_dim < ndim or t_dim % ndim > before:
            raise ValueError(f"{name} must have time on axis t_dim = {t_dim}, got shape {tuple(shape)}")
        if t_dim % ndim < before:
            elsewhere.add(name)
        moved[name].insert(before, moved[name].pop(t_dim))
    batch = _broadcast([shape[: len(shape) - _AXES[name]] for name, shape in moved.items()])
    T, H = _broadcast([_token_shape(name, shape) for name, shape in moved.items()])
    U, P = _broadcast([moved["w_addr"][-2:], moved["r_addr"][-2:]])
    C = moved["values"][-1]
    whole = {
        "w_addr": (T, H, U, P), "r_addr": (T, H, U, P), "values": (T, H, C), "gamma": (T, H), "mask": (T,),
        "position_ids": (T,), "slot": (H, P**U, C), "mass": (H, P**U),
    }  # fmt: skip
    for name in _OF_STATE:
        own, wanted = moved.get(name, whole[name])[-len(whole[name]) :], whole[name]
        if not all(n in (1, m) for n, m in zip(own, wanted, strict=True)):
            raise ValueError(f"{name} of init_ram must end with axes {wanted}, got {tuple(own)}")
    return batch, {
        name: whole[name] for name, shape in given if name in elsewhere or shape != (math.prod(batch), *whole[name])
    }


def _token_shape(name: str, shape: list[int]) -> tuple[int, int]:
    """(T, H), 1 where a tensor has no such axis."""
    first = shape[len(shape) - _AXES[name]]
    if name in _OF_STATE:
        return 1, first
    return first, (1 if _AXES[name] == 1 else shape[len(shape) - _AXES[name] + 1])


def _broadcast(shapes: list[Any]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        got = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"the tensors of a call must broadcast against one another, got axes {got}") from None


def _state(call: _Rows, mass: Any, M: int) -> RAMState | None:
    """The state to start from, None for the operation's own start: slots of 0, a mass of 1/M."""
    if call.slot is None and call.mass is None and (mass is None or mass == 1 / M):
        return None
    B, _, H, C = call.values.shape
    dtype = call.values.dtype if call.values.dtype.itemsize >= 4 else torch.float32
    slots, masses = call.slot, call.mass
    if slots is None:
        slots = call.values.new_zeros(1).expand(B, H, M, C)
    if masses is None:
        masses = call.values.new_full((1,), 1 / M if mass is None else mass, dtype=dtype).expand(B, H, M)
    return RAMState(slots.to(dtype), masses.to(dtype))


def _check_in_place(slot: Any, mass: Any, state: RAMState | None, tensors: Sequence[Any]) -> None:
    """That a state can be updated where it lies."""
    if state is None or not isinstance(slot, torch.Tensor) or not isinstance(mass, torch.Tensor):
        raise TypeError("init_ram must hold two tensors with inplace=True, got None or a number")
    if _has_gradients(tensors):
        raise ValueError("inplace=True has no gradients, got tensors that require one")
    for name, given, row in (("slot", slot, state.slots), ("mass", mass, state.mass)):
        if given.data_ptr() != row.data_ptr() or given.numel() != row.numel() or not given.is_contiguous():
            raise ValueError(
                f"{name} of init_ram must be contiguous {row.dtype} of the state's whole shape with inplace=True, "
                f"got {given.dtype} of shape {tuple(given.shape)}"
            )


def _has_gradients(tensors: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in tensors)


def _update(arrays: Sequence[Any], state: RAMState, options: dict[str, Any]) -> torch.Tensor:
    """y of tokens whose writes go into ``state`` in place."""
    if arrays[2].shape[1] == 1:
        return ram_attention_step(*arrays, state=state, **options)[0]
    y, final = ram_attention(*arrays, state=state, **options)
    assert final is not None
    for part, new in zip(state, final, strict=True):
        part.copy_(new)
    return y


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
