"""The operation as PyTorch's custom operators: what autograd, ``torch.compile`` and autocast see.

``ramnet_np::ram_attention``, its backward and ``ramnet_np::ram_attention_step`` take tensors on the CPU or on one GPU.
A fake kernel beside each says which tensors come out, so that ``torch.compile`` takes the operator as a whole.

A forward returns one more tensor, its *ticket*. What the backward needs, the ``RAMAttentionContext``, is no tensor and
has no size that could be known beforehand, so it waits here under the ticket's address. Autograd saves the ticket as it
saves any tensor; when the ticket's memory is given back, its context goes with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ramnet_np.backend import load_backend, selected_backend
from ramnet_np.bridges.tensors import array_of, as_torch_would, dtype_of, on_torchs_stream, tensor_of
from ramnet_np.contract import RAMState
from ramnet_np.core.attention import (
    RAMAttentionContext,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
)
from ramnet_np.core.option_checks import check_options
from ramnet_np.forked import use_gpu

_ARRAYS = (
    "Tensor write_logits, Tensor read_logits, Tensor values, Tensor? gamma, Tensor? positions, Tensor? mask, {state}"
)
_GIVEN = _ARRAYS.format(state="Tensor? slots, Tensor? mass")
_UPDATED = _ARRAYS.format(state="Tensor(a!) slots, Tensor(b!) mass")
_OPTIONS = (
    "float gamma_number, str update, int write_k, int read_k, bool write_renorm, bool read_renorm, int cape_heads, "
    "bool mass_aware, float eps"
)
_ARRAY_COUNT = 8


class _Kept(NamedTuple):
    """What waits for a backward."""

    ctx: RAMAttentionContext
    options: tuple[Any, ...]  # the forward's other arguments: offsets of packed sequences, and what is no tensor
    places: list[int]  # where the arrays lie that ``ctx`` refers to


_waiting: dict[int, _Kept] = {}  # by the address of the ticket


def _ticket_for(kept: _Kept) -> torch.Tensor:
    memory = np.zeros(1, dtype=np.int64)  # the tensor keeps it, and nothing else does
    address = memory.ctypes.data
    _waiting[address] = kept
    weakref.finalize(memory, _waiting.pop, address).atexit = False
    return torch.from_numpy(memory)


def _context_of(ticket: torch.Tensor, inputs: Sequence[torch.Tensor | None]) -> RAMAttentionContext:
    """The context that the ticket stands for; computed again where ``inputs`` lie elsewhere than in the forward.

    A compiler may compute an input again for the backward instead of keeping it. It may then have used the memory that
    the context refers to for something else.
    """
    kept = _waiting.get(ticket.data_ptr())
    if kept is None:
        raise RuntimeError(
            "the backward of ram_attention needs the ticket that its forward saved itself, got a copy "
            "(as hooks on saved tensors make them); torch.utils.checkpoint saves memory without copies"
        )
    return kept.ctx if kept.places == _places(inputs) else _run(inputs, kept.options)[2]


def _places(inputs: Sequence[torch.Tensor | None]) -> list[int]:
    """Addresses of what a context refers to: values and gamma, on a GPU also logits and state."""
    write_logits, read_logits, values, gamma, _, _, slots, mass = inputs
    assert values is not None
    of_gpu = [] if values.device.type == "cpu" else [write_logits, read_logits, slots, mass]
    return [tensor.data_ptr() for tensor in (values, gamma, *of_gpu) if tensor is not None]


def _run(inputs: Sequence[torch.Tensor | None], options: Sequence[Any]) -> tuple[Any, ...]:
    """The library's forward. Positions and mask are copied: compilers compute them again rather than keep them."""
    small = [None if tensor is None else tensor.clone() for tensor in inputs[4:6]]
    cu_seqlens, *common, batch_invariant, proxy_eps, return_state, backend = options
    arrays, named = _arguments([*inputs[:4], *small, *inputs[6:]], common)
    return ram_attention_forward(
        *arrays, **named, proxy_eps=proxy_eps, return_state=return_state, cu_seqlens=array_of(cu_seqlens),
        batch_invariant=batch_invariant, backend=backend,
    )  # fmt: skip


def _arguments(tensors: Sequence[torch.Tensor | None], options: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The library's arguments for those of an operator: arrays by position, the rest by name."""
    write_logits, read_logits, values, gamma, positions, mask, slots, mass = map(array_of, tensors)
    number, update, write_k, read_k, write_renorm, read_renorm, cape_heads, mass_aware, eps = options
    named = {
        "update": update,
        "top_k": (write_k, read_k),
        "renorm": (write_renorm, read_renorm),
        "cape_heads": cape_heads,
        "positions": positions,
        "mask": mask,
        "state": None if slots is None else RAMState(slots, mass),
        "mass_aware": mass_aware,
        "eps": eps,
    }
    return [write_logits, read_logits, values, number if gamma is None else gamma], named


@torch.library.custom_op(
    "ramnet_np::ram_attention",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? cu_seqlens, {_OPTIONS}, bool batch_invariant, float proxy_eps, bool return_state, "
    "str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
def forward(*inputs: Any) -> tuple[torch.Tensor, ...]:
    """y, the slots and mass of the state (empty without ``return_state``) and the ticket."""
    tensors, options = inputs[:_ARRAY_COUNT], inputs[_ARRAY_COUNT:]
    with as_torch_would(inputs[2].device):
        y, state, ctx = _run(tensors, options)
        parts = map(tensor_of, state) if state is not None else [inputs[2].new_empty(0) for _ in range(2)]
        return tensor_of(y), *parts, _ticket_for(_Kept(ctx, options, _places(tensors)))


@forward.register_fake
def _(*inputs: Any) -> tuple[torch.Tensor, ...]:
    write_logits, values, cu_seqlens, return_state = inputs[0], inputs[2], inputs[_ARRAY_COUNT], inputs[-2]
    B, _, H, U, P = write_logits.shape
    if cu_seqlens is not None:
        B = cu_seqlens.shape[0] - 1  # a state for each of the packed sequences
    of_state = values.new_empty(0, dtype=_dtype_of_state(values.dtype) if return_state else values.dtype)
    return (
        values.new_empty(values.shape),
        of_state.new_empty((B, H, P**U, values.shape[3]) if return_state else (0,)),
        of_state.new_empty((B, H, P**U) if return_state else (0,)),
        torch.empty(1, dtype=torch.int64, device="cpu"),
    )


@torch.library.custom_op(
    "ramnet_np::ram_attention_backward",
    mutates_args=(),
    schema=f"(Tensor? dy, Tensor? dslots, Tensor? dmass, Tensor ticket, {_GIVEN}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def backward(
    dy: torch.Tensor | None,
    dslots: torch.Tensor | None,
    dmass: torch.Tensor | None,
    ticket: torch.Tensor,
    *inputs: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """Gradients of the logits, values, gamma (() if it was a number), slots and mass (empty without a state).

    ``inputs`` are the forward's tensors. The context refers to their memory; as arguments they stay as they are until
    this runs, or come anew.
    """
    values = inputs[2]
    assert values is not None
    with as_torch_would(values.device):
        ctx = _context_of(ticket, inputs)
        B, H, M, C = ctx.state_shape
        dstate = None
        if dslots is not None or dmass is not None:
            dtype = _dtype_of_state(values.dtype)
            dstate = RAMState(
                array_of(values.new_zeros((B, H, M, C), dtype=dtype) if dslots is None else dslots),
                array_of(values.new_zeros((B, H, M), dtype=dtype) if dmass is None else dmass),
            )
        d = ram_attention_backward(array_of(torch.zeros_like(values) if dy is None else dy), ctx, dstate)
        of_state = [values.new_empty(0) for _ in range(2)] if d.state is None else map(tensor_of, d.state)
        return *map(tensor_of, (d.write_logits, d.read_logits, d.values, d.gamma)), *of_state


@backward.register_fake
def _(dy: Any, dslots: Any, dmass: Any, ticket: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
    write_logits, read_logits, values, gamma, _, _, slots, mass = inputs
    of_gamma = values.new_empty(()) if gamma is None else gamma.new_empty(gamma.shape)
    of_state = [values.new_empty(0) if part is None else part.new_empty(part.shape) for part in (slots, mass)]
    return *(x.new_empty(x.shape) for x in (write_logits, read_logits, values)), of_gamma, *of_state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_ARRAY_COUNT], output[3])
    ctx.returned_state = inputs[-2]
    ctx.other_inputs = len(inputs) - _ARRAY_COUNT


def _differentiate(ctx: Any, dy: Any, dslots: Any, dmass: Any, _: Any) -> tuple[Any, ...]:
    *inputs, ticket = ctx.saved_tensors
    without = [None] * ctx.other_inputs
    if not ctx.returned_state:  # gradients of the empty tensors in its place
        dslots = dmass = None
    if dy is None and dslots is None and dmass is None:
        return *[None] * _ARRAY_COUNT, *without
    dwrite, dread, dvalues, dgamma, dfirst_slots, dfirst_mass = backward(dy, dslots, dmass, ticket, *inputs)
    of_state = (None, None) if inputs[6] is None else (dfirst_slots, dfirst_mass)
    return dwrite, dread, dvalues, None if inputs[3] is None else dgamma, None, None, *of_state, *without


forward.register_autograd(_differentiate, setup_context=_save)


# Not a custom_op: that would add 0.2 ms of Python to a call whose kernel takes 8 us.
_STEP = "ramnet_np::ram_attention_step"
torch.library.define(_STEP, f"({_UPDATED}, {_OPTIONS}, str? backend) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_launches: dict[Any, Callable[..., bool] | None] = {}  # by all that the checks of a step on a GPU look at
_REMEMBERED = 1024


@torch.library.register_kernel(_STEP, ("cpu", "cuda"))
def _step(*inputs: Any) -> torch.Tensor:
    """y of one token; slots and mass are updated in place.

    The first step of a kind on a GPU goes through the library, which checks it; the later ones are its launch alone.
    """
    tensors, options = inputs[:_ARRAY_COUNT], inputs[_ARRAY_COUNT:]
    *_, values, _, _, _, slots, mass = tensors
    torch.autograd.graph.increment_version((slots, mass))
    if values.device.type == "cpu":
        return _checked_step(tensors, options)
    seen = [None if x is None else (x.shape, x.dtype, x.get_device()) for x in tensors]
    kind = (*seen, slots.is_contiguous(), mass.is_contiguous(), options, selected_backend())
    launch = _launches.get(kind)
    y = None if launch is None else _launched_step(launch, tensors)
    if y is None:
        y = _checked_step(tensors, options)
        if kind not in _launches:
            if len(_launches) >= _REMEMBERED:
                _launches.clear()
            _launches[kind] = _launch_of(tensors, options)
    return y


def _checked_step(tensors: Sequence[Any], options: Sequence[Any]) -> torch.Tensor:
    """The library's step."""
    with as_torch_would(tensors[2].device):
        arrays, named = _arguments(tensors, options[:-1])
        y, _ = ram_attention_step(*arrays, **named, backend=options[-1])
        return tensor_of(y)


def _launch_of(tensors: Sequence[Any], options: Sequence[Any]) -> Callable[..., bool] | None:
    """The launch for steps like this one, which was checked; None where they must go through the library."""
    logits, _, values, gamma, positions, _, slots, mass = tensors
    number, update, write_k, read_k, write_renorm, read_renorm, cape_heads, mass_aware, eps, backend = options
    prepare = load_backend(backend or selected_backend() or "cupy").step_by_address
    whole = slots.is_contiguous() and mass.is_contiguous() and values.numel() > 0
    if prepare is None or not whole or (positions is not None and positions.dtype != torch.int64):
        return None
    decode, memory = check_options(
        slots.shape[2], slots.shape[1], update=update, top_k=(write_k, read_k), renorm=(write_renorm, read_renorm),
        cape_heads=cape_heads, mass_aware=mass_aware, eps=eps, proxy_eps=0.0,
    )  # fmt: skip
    stride = int(positions is not None and positions.ndim == 2)  # one position for each sequence, or for all
    constant = number if gamma is None else None
    return prepare(tuple(logits.shape), values.shape[3], dtype_of(values.dtype), constant, stride, decode, memory)


def _launched_step(launch: Callable[..., bool], tensors: Sequence[Any]) -> torch.Tensor | None:
    """y by ``launch``; None if it does not take arrays that lie where these do."""
    use_gpu()
    arrays = [None if x is None else x.contiguous() for x in tensors]
    values: Any = arrays[2]
    y = torch.empty_like(values, memory_format=torch.contiguous_format)
    logits, reads, content, gamma, positions, mask, slots, mass = (0 if x is None else x.data_ptr() for x in arrays)
    with on_torchs_stream(values.device):
        launched = launch(logits, reads, content, gamma, mask, positions, slots, mass, y.data_ptr())
    return y if launched else None


@torch.library.register_fake(_STEP)
def _(*inputs: Any) -> torch.Tensor:
    return inputs[2].new_empty(inputs[2].shape)


step = torch.ops.ramnet_np.ram_attention_step.default


def _dtype_of_state(dtype: torch.dtype) -> torch.dtype:
    """As the library has it: sums over many tokens have at least 32 bits."""
    return dtype if dtype.itemsize >= 4 else torch.float32
