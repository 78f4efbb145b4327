"""The operation: write logits, read logits and values in, what was read out.

    w_t, r_t = decode(write_logits_t), decode(read_logits_t)       core/decoder.py
    s_t, z_t = write(s_{t-1}, z_{t-1}; w_t, v_t)                   core/memory.py
    y_t      = read(s_t, z_t; r_t)

These functions check their arguments, choose a backend and call its parts. Source: paper eq. 4 to 7.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ramnet_np.backend import Backend, array_kind, backend_for
from ramnet_np.contract import Address, Array, MemoryOptions, RAMState
from ramnet_np.core.checks import check_attention, check_logits, check_positions, full_positions
from ramnet_np.core.option_checks import check_bool, check_cape_heads, check_top_k
from ramnet_np.core.placement import on_gpu_of_arrays, on_gpu_of_foreign_arrays
from ramnet_np.core.require import ArraySpec, readable, require_context, require_like
from ramnet_np.core.sparse_memory import sparse_memory_forward, sparse_step
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.core.state_checks import check_in_place, check_state


@readable
class RAMAttentionContext(NamedTuple):
    """What ``ram_attention_backward`` needs; not consumed, so a backward may be called again."""

    backend: Backend
    write: Any  # what the backend's decoder kept of the writes ...
    read: Any  # ... and of the reads
    memory: Any  # what its memory kept
    y: ArraySpec  # what dy must be like
    state_shape: tuple[int, int, int, int]
    gamma_is_number: bool
    returned_state: bool
    sparse: bool  # gradients end where the state came in


class RAMAttentionGrads(NamedTuple):
    """One gradient per input, with the input's shape; ``state`` is None unless a state was given.

    ``write_logits``, ``read_logits``: (B, T, H, U, P); ``values``: (B, T, H, C); ``gamma``: (B, T, H), or () if it was
    a number; ``state``: slots (B, H, M, C) and mass (B, H, M). Source: docs/mathematics.md.

    >>> import numpy as np
    >>> logits, values = np.zeros((1, 2, 1, 3, 2)), np.ones((1, 2, 1, 4))
    >>> y, _, ctx = ram_attention_forward(logits, logits, values, top_k=2)
    >>> grads = ram_attention_backward(np.ones_like(y), ctx)
    >>> grads.values.shape == values.shape, grads.gamma.shape, grads.state is None
    (True, (), True)
    """

    write_logits: Array
    read_logits: Array
    values: Array
    gamma: Array
    state: RAMState | None


@on_gpu_of_arrays
@on_gpu_of_foreign_arrays
def ram_attention_forward(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array = 1.0,
    *,
    update: str = "pdma",
    top_k: int | tuple[int, int] = 8,
    renorm: bool | tuple[bool, bool] = False,
    cape_heads: int = 0,
    positions: Array | None = None,
    mask: Array | None = None,
    state: RAMState | SparseRAMState | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    proxy_eps: float = 0.0,
    return_state: bool = True,
    cu_seqlens: Array | None = None,
    batch_invariant: bool = False,
    gradients: bool = True,
    backend: str | None = None,
) -> tuple[Array, RAMState | Any | None, RAMAttentionContext | Any]:
    """Every token writes its value to K_w slots and reads K_r slots. Returns (y, state, ctx).

    ``write_logits``, ``read_logits``: (B, T, H, U, P), digit logits of the addresses (divide them by the temperature).
    ``values``: (B, T, H, C). All of one dtype, float32 or float64.
    ``gamma``: forgetting, a number or (B, T, H); at least 0 for ``update="pdma"``, any for ``"gsu"``.
    ``update``: the update rule, a name in ``RULES`` of ``core/retention.py``; a backend without that rule raises.
    ``top_k``, ``renorm``: one value, or a (write, read) pair; K slots kept, 1 to M = P**U, their weights divided by
        their sum if ``renorm``.
    ``cape_heads``: how many heads, counted from the first, address relative to the token's position.
    ``positions``: (T,) or (B, T) integers; None counts from 0, and is an error with a given state and ``cape_heads``.
    ``mask``: (B, T) bool; where False the token writes nothing and its y is 0.
    ``state``: where to start from; None is s = 0, z = 1/M. A SparseRAMState is updated in place if it is returned.
    ``mass_aware``: weigh reads by mass. ``eps``: keeps the division by a slot's mass defined.
    ``proxy_eps``: e of PDMA's proxy gradient, 0 for the true one.
    ``return_state``: False returns None in its place and keeps nothing of size M.
    ``cu_seqlens``: (N + 1,) integers, the offsets of N sequences packed into one row (B = 1): ``core/packed.py``. Each
        has a memory of its own, counts positions from 0 and may be empty; states are (N, H, M, C).
    ``batch_invariant``: True: the bits of a sequence's results depend on nothing else in the batch, as in a packed row.
    ``gradients``: False: no backward follows, so ``ctx`` is None, and nothing is kept that only a backward needs.
    ``backend``: a name from ``backends()``; None follows ``use_backend`` and then the kind of arrays.

    Returns ``y`` (B, T, H, C), ``state`` after the last token, ``ctx`` for :func:`ram_attention_backward`.
    ``ctx`` holds ``values``, ``gamma`` and ``mask`` themselves, not copies: change them only after the backward.
    Cost: O(U K log(K)**2 + U P log P + K C) per token and head, whatever M is, and O(B H M C) for a state.
    Raises ValueError or TypeError in one sentence naming the argument. Source: paper eq. 4 to 7.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> write_logits, read_logits = rng.normal(size=(2, 1, 6, 2, 5, 4))  # B=1, T=6, H=2, U=5, P=4: M = 1024 slots
    >>> y, state, ctx = ram_attention_forward(write_logits, read_logits, rng.normal(size=(1, 6, 2, 3)))
    >>> y.shape, state.slots.shape
    ((1, 6, 2, 3), (1, 2, 1024, 3))
    """
    if array_kind(values) == "device":
        write_logits, read_logits, values, gamma, positions, mask, state = _from_foreign(
            backend_for(values, backend), write_logits, read_logits, values, gamma, positions, mask, state
        )
    checked = check_attention(
        write_logits, read_logits, values, gamma, update=update, top_k=top_k, renorm=renorm, cape_heads=cape_heads,
        positions=positions, mask=mask, state=state, eps=eps, proxy_eps=proxy_eps, mass_aware=mass_aware,
        batch_invariant=batch_invariant, gradients=gradients, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return_state = check_bool("return_state", return_state)
    chosen = backend_for(values, backend)
    positions = _positions_for(chosen, checked.positions, write_logits)
    # 1., 2. decode
    k, renorms, cape = checked.decode.top_k, checked.decode.renorm, checked.decode.cape_heads
    write, read = chosen.decode_forward((write_logits, read_logits), k, renorms, cape, positions)
    # 3. write and read
    addresses = Address(*write[:2]), Address(*read[:2])
    y, final, memory_ctx = _memory_forward(
        chosen, addresses, values, checked.gamma, mask, state, checked.options, return_state, checked.cu_seqlens
    )
    ctx = RAMAttentionContext(
        chosen, write[2], read[2], memory_ctx, ArraySpec.of(y), checked.state_shape, isinstance(checked.gamma, float),
        return_state, isinstance(state, SparseRAMState),
    )  # fmt: skip
    return y, final, ctx if checked.options.gradients else None


@on_gpu_of_arrays
@on_gpu_of_foreign_arrays
def ram_attention_backward(dy: Array, ctx: RAMAttentionContext, dstate: RAMState | None = None) -> RAMAttentionGrads:
    """Gradients of every input of :func:`ram_attention_forward`.

    ``dy``: (B, T, H, C), gradient of y.
    ``dstate``: gradient of the returned state, or None for zero.

    Gradients flow through the kept weights; which slots were kept is held constant.
    Cost: that of the forward.
    The arrays that the forward was given must still be as they were: it keeps ``values``, ``gamma`` and ``mask``.
    Raises ValueError or TypeError where ``dy`` or ``dstate`` is not like what the forward returned.
    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(1, 6, 2, 5, 4))
    >>> y, state, ctx = ram_attention_forward(logits, logits, rng.normal(size=(1, 6, 2, 3)), gamma=0.5)
    >>> grads = ram_attention_backward(np.ones_like(y), ctx)
    >>> grads.write_logits.shape, grads.values.shape, grads.gamma.shape, grads.state
    ((1, 6, 2, 5, 4), (1, 6, 2, 3), (), None)
    """
    require_context(ctx, RAMAttentionContext, "ram_attention_forward")
    if array_kind(dy) == "device":
        dy, dstate = _from_foreign(ctx.backend, dy, dstate)
    require_like("dy", dy, ctx.y)
    if dstate is not None:
        if ctx.sparse:
            raise ValueError("dstate must be None where state is a SparseRAMState: gradients end where it came in")
        if not ctx.returned_state:
            raise ValueError("dstate must be None after a forward with return_state=False, got a RAMState")
        check_state("dstate", dstate, ctx.state_shape, dy)
    # 3. write and read
    d = ctx.backend.memory_backward(dy, dstate, ctx.memory)
    # 2., 1. decode
    dweights = d.write_weight, d.read_weight
    dwrite_logits, dread_logits = ctx.backend.decode_backward(dweights, (ctx.write, ctx.read))
    return RAMAttentionGrads(
        write_logits=dwrite_logits,
        read_logits=dread_logits,
        values=d.values,
        gamma=ctx.backend.total(d.gamma) if ctx.gamma_is_number else d.gamma,
        state=None if ctx.sparse else d.state,
    )


@on_gpu_of_arrays
@on_gpu_of_foreign_arrays
def ram_attention_step(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array = 1.0,
    *,
    state: RAMState | SparseRAMState,
    update: str = "pdma",
    top_k: int | tuple[int, int] = 8,
    renorm: bool | tuple[bool, bool] = False,
    cape_heads: int = 0,
    positions: Array | None = None,
    mask: Array | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    backend: str | None = None,
) -> tuple[Array, Any]:
    """One token (T = 1) of :func:`ram_attention_forward`, for inference: UPDATES ``state`` IN PLACE.

    Arguments as there; ``positions`` must be given, (1,) or (B, 1), when heads use CAPE. Returns y (B, 1, H, C) and
    state, the same state object. O(K C) per head.
    Raises ValueError or TypeError in one sentence naming the argument; then nothing is changed.
    Source: docs/mathematics.md.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> write_logits, read_logits = rng.normal(size=(2, 1, 1, 2, 5, 4))
    >>> state = RAMState.initial(batch=1, heads=2, slots=1024, channels=3, dtype=np.float64)
    >>> y, state = ram_attention_step(write_logits, read_logits, rng.normal(size=(1, 1, 2, 3)), state=state)
    >>> y.shape, int((state.mass[0, 0] > 1 / 1024).sum())  # eight slots were written
    ((1, 1, 2, 3), 8)
    """
    if state is None:
        raise TypeError("state must be a RAMState to update in place, got None (start from RAMState.initial)")
    given = state
    if array_kind(values) == "device":
        write_logits, read_logits, values, gamma, positions, mask, state = _from_foreign(
            backend_for(values, backend), write_logits, read_logits, values, gamma, positions, mask, state
        )
    checked = check_attention(
        write_logits, read_logits, values, gamma, update=update, top_k=top_k, renorm=renorm, cape_heads=cape_heads,
        positions=positions, mask=mask, state=state, eps=eps, proxy_eps=0.0, mass_aware=mass_aware,
    )  # fmt: skip
    if values.shape[1] != 1:
        raise ValueError(f"values must hold one token (axis 1, T = 1) in a step, got T = {values.shape[1]}")
    check_in_place("state", state)
    chosen = backend_for(values, backend)
    positions = _positions_for(chosen, checked.positions, write_logits)
    token = write_logits, read_logits, values, checked.gamma, positions, mask
    if isinstance(state, SparseRAMState):
        y = sparse_step(chosen, *token, state, checked.decode, checked.options)
    else:
        y = chosen.step(*token, state, checked.decode, checked.options)
    return y, given


@on_gpu_of_arrays
@on_gpu_of_foreign_arrays
def decode_address(
    logits: Array,
    top_k: int = 8,
    renorm: bool = False,
    cape_heads: int = 0,
    positions: Array | None = None,
    *,
    backend: str | None = None,
) -> Address:
    """The K slots that each token and head addresses, and their weights, best first.

    ``logits``: (B, T, H, U, P), others as in :func:`ram_attention_forward`.
    Returns index (B, T, H, K) int32 and weight (B, T, H, K).
    Raises ValueError or TypeError in one sentence naming the argument.
    Source: paper eq. 4 to 6.

    >>> import numpy as np
    >>> logits = np.log([[[[[0.9, 0.1], [0.2, 0.8]]]]])  # two binary digits: slot = d0 + 2 * d1
    >>> address = decode_address(logits, top_k=2)
    >>> address.index.ravel().tolist(), address.weight.ravel().round(2).tolist()
    ([2, 0], [0.72, 0.18])
    """
    if array_kind(logits) == "device":
        logits, positions = _from_foreign(backend_for(logits, backend), logits, positions)
    B, T, H, U, P = check_logits("logits", logits)
    top_k = check_top_k("top_k", top_k, P**U)
    cape_heads = check_cape_heads(cape_heads, H)
    positions = check_positions(positions, (B, T), logits)
    chosen = backend_for(logits, backend)
    positions = _positions_for(chosen, positions, logits)
    renorm = check_bool("renorm", renorm)
    [(index, weight, _)] = chosen.decode_forward((logits,), (top_k,), (renorm,), cape_heads, positions)
    return Address(index, weight)


def _memory_forward(
    backend: Backend,
    addresses: tuple[Address, Address],
    values: Array,
    gamma: float | Array,
    mask: Array | None,
    state: RAMState | SparseRAMState | None,
    options: MemoryOptions,
    return_state: bool,
    cu_seqlens: Any,
) -> tuple[Array, RAMState | SparseRAMState | None, Any]:
    """The backend's memory, over the kind of state that is given."""
    if isinstance(state, SparseRAMState):
        return sparse_memory_forward(backend, *addresses, values, gamma, mask, state, options, return_state)
    return backend.memory_forward(*addresses, values, gamma, mask, state, options, return_state, cu_seqlens)


def _from_foreign(backend: Backend, *arguments: Any) -> tuple[Any, ...]:
    """Arrays of kind "device" as the backend computes with them, also those in a state; everything else as it is."""
    return tuple(
        RAMState(*map(backend.from_foreign, a)) if isinstance(a, RAMState) else backend.from_foreign(a)
        for a in arguments
    )


def _positions_for(backend: Backend, positions: Array, logits: Array) -> Array:
    """As the backend takes them: in short, or (B, T) int64."""
    return positions if backend.accepts_short_positions else full_positions(positions, logits.shape[:2], logits)
