"""The operation for JAX: arrays in, arrays out, with gradients, inside ``jit``.

    from ramnet_np.bridges.jax import ram_attention
    y, state = ram_attention(write_logits, read_logits, values, gamma, cape_heads=2)

On the CPU it runs through ``jax.pure_callback`` on the backend "numba" (or "numpy"), in float32, or float64 where JAX
has it switched on. On a GPU it runs through ``jax.experimental.buffer_callback`` on "cupy", which gets the arrays where
they lie and JAX's stream; bfloat16 is left out there, because CuPy cannot take it from JAX's buffers.

JAX may run a callback twice or leave it out, so nothing is kept between forward and backward: the backward computes the
forward again, and costs both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from ramnet_np.bridges.streams import cupy_stream
from ramnet_np.contract import Array, RAMState
from ramnet_np.core.attention import ram_attention_backward, ram_attention_forward
from ramnet_np.core.checks import check_attention
from ramnet_np.core.option_checks import check_bool


class _Options(NamedTuple):
    """All that is no array: static under ``jit``."""

    gamma: float | None  # None: an array
    update: str
    top_k: int | tuple[int, int]
    renorm: bool | tuple[bool, bool]
    cape_heads: int
    mass_aware: bool
    eps: float
    proxy_eps: float
    return_state: bool
    batch_invariant: bool
    backend: str | None


class _Inputs(NamedTuple):
    """All arrays; None for what is not given."""

    write_logits: Array
    read_logits: Array
    values: Array
    gamma: Array | None
    positions: Array | None
    mask: Array | None
    slots: Array | None
    mass: Array | None
    cu_seqlens: Array | None


def ram_attention(
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
    state: RAMState | None = None,
    mass_aware: bool = False,
    eps: float = 1e-12,
    proxy_eps: float = 0.0,
    return_state: bool = True,
    cu_seqlens: Array | None = None,
    batch_invariant: bool = False,
    backend: str | None = None,
) -> tuple[jax.Array, RAMState | None]:
    """:func:`ramnet_np.ram_attention_forward` on JAX's arrays. Returns (y, state); ``jax.grad`` differentiates both.

    Arguments, shapes and defaults as there. ``gamma`` may also be an array of no axes. ``state`` is a ``RAMState`` of
    JAX's arrays; gradients flow into it and out of the returned one. Reverse mode only, first derivatives.
    Raises ValueError or TypeError in one sentence where shapes, dtypes or options are wrong, under ``jit`` when it is
    traced. Wrong numbers in an array, such as NaN, end in JAX's error for callbacks, which quotes the sentence.

    >>> logits = jnp.zeros((1, 6, 2, 5, 4))  # B=1, T=6, H=2, U=5, P=4: M = 1024 slots
    >>> y, state = ram_attention(logits, logits, jnp.ones((1, 6, 2, 3)))
    >>> y.shape, state.slots.shape
    ((1, 6, 2, 3), (1, 2, 1024, 3))
    """
    if state is not None and not isinstance(state, RAMState):
        raise TypeError(f"state must be a RAMState (slots, mass), got {type(state).__name__}")
    if isinstance(gamma, (jax.Array, np.ndarray)) and gamma.ndim == 0:
        gamma = jnp.broadcast_to(jnp.asarray(gamma, jnp.asarray(values).dtype), jnp.shape(values)[:3])
    number = float(gamma) if isinstance(gamma, Real) else None
    positions = jnp.asarray(positions) if isinstance(positions, (list, tuple)) else positions
    cu_seqlens = jnp.asarray(cu_seqlens) if isinstance(cu_seqlens, (list, tuple)) else cu_seqlens
    given = {"write_logits": write_logits, "read_logits": read_logits, "values": values, "positions": positions,
             "mask": mask, "cu_seqlens": cu_seqlens, "gamma": gamma if number is None else None}  # fmt: skip
    given |= {"slots": None, "mass": None} if state is None else state._asdict()
    for name, array in given.items():
        if not isinstance(array, (jax.Array, np.ndarray, type(None))):
            raise TypeError(f"{name} must be an array of JAX or NumPy, got {type(array).__name__}")
    inputs = _Inputs(**{name: None if array is None else jnp.asarray(array) for name, array in given.items()})
    options = _Options(
        number, update, _hashable(top_k), _hashable(renorm), cape_heads, mass_aware, eps, proxy_eps,
        check_bool("return_state", return_state), batch_invariant, backend,
    )  # fmt: skip
    _check(options, inputs)
    y, *parts = _attend(options, inputs)
    return y, RAMState(*parts) if return_state else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(options: _Options, inputs: _Inputs) -> list[jax.Array]:
    """y, and the state's slots and mass if it is returned."""
    return _call(functools.partial(_forward, options), _outputs(options, inputs), inputs)


def _attend_forward(options: _Options, inputs: _Inputs) -> tuple[list[jax.Array], _Inputs]:
    return _attend(options, inputs), inputs


def _attend_backward(options: _Options, inputs: _Inputs, cotangents: list[jax.Array]) -> tuple[_Inputs]:
    names = [name for name in _Inputs._fields if name not in ("positions", "mask", "cu_seqlens")]
    names = [name for name in names if getattr(inputs, name) is not None]
    wanted = [_like(getattr(inputs, name)) for name in names]
    grads = _call(functools.partial(_backward, options, names), wanted, inputs, *cotangents)
    return (_Inputs(*[None] * len(_Inputs._fields))._replace(**dict(zip(names, grads, strict=True))),)


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(options: _Options, inputs: _Inputs) -> Sequence[Array]:
    """On arrays of NumPy or CuPy."""
    y, state, _ = _run(options, inputs, gradients=False)
    return [y] if state is None else [y, *state]


def _backward(options: _Options, names: list[str], inputs: _Inputs, dy: Array, *dstate: Array) -> Sequence[Array]:
    """The gradients of the inputs called ``names``, on arrays of NumPy or CuPy."""
    d = ram_attention_backward(dy, _run(options, inputs, gradients=True)[2], RAMState(*dstate) if dstate else None)
    grads = d._asdict() | (d.state._asdict() if d.state is not None else {})
    return [grads[name] for name in names]


def _run(options: _Options, inputs: _Inputs, gradients: bool) -> tuple[Any, ...]:
    write_logits, read_logits, values, gamma, positions, mask, slots, mass, cu_seqlens = inputs
    named: dict[str, Any] = options._asdict()
    number = named.pop("gamma")
    return ram_attention_forward(
        write_logits, read_logits, values, number if gamma is None else gamma, positions=positions, mask=mask,
        state=None if slots is None else RAMState(slots, mass), cu_seqlens=cu_seqlens, gradients=gradients, **named,
    )  # fmt: skip


def _call(function: Callable[..., Sequence[Array]], outputs: list[jax.ShapeDtypeStruct], *arguments: Any) -> Any:
    """``function`` of arrays of NumPy or CuPy as a function of JAX's, wherever these lie."""

    def on_host(*given: Any) -> list[np.ndarray]:
        return [np.asarray(array) for array in function(*jax.tree.map(np.asarray, given))]

    def on_gpu(ctx: Any, out: Any, *given: Any) -> None:
        import cupy

        with cupy_stream(ctx.stream):
            for buffer, array in zip(out, function(*jax.tree.map(cupy.asarray, given)), strict=True):
                cupy.asarray(buffer)[...] = array

    return jax.lax.platform_dependent(
        *arguments,
        cpu=lambda *given: jax.pure_callback(on_host, outputs, *given, vmap_method="sequential"),
        cuda=lambda *given: buffer_callback(on_gpu, outputs, vmap_method="sequential")(*given),
    )


def _outputs(options: _Options, inputs: _Inputs) -> list[jax.ShapeDtypeStruct]:
    B, _, H, U, P = inputs.write_logits.shape
    if inputs.cu_seqlens is not None:
        B = inputs.cu_seqlens.shape[0] - 1  # a state for each of the packed sequences
    values = inputs.values
    dtype = values.dtype if values.dtype.itemsize >= 4 else jnp.float32
    state = [(B, H, P**U, values.shape[3]), (B, H, P**U)] if options.return_state else []
    return [_like(values), *(jax.ShapeDtypeStruct(shape, dtype) for shape in state)]


def _like(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _check(options: _Options, inputs: _Inputs) -> None:
    """Shapes, dtypes and options, by the library's own checks: under ``jit`` there are no numbers to look at yet."""
    given: dict[str, Any] = {
        name: None if array is None else _zeros_like(array) for name, array in inputs._asdict().items()
    }
    given |= {name: value for name, value in options._asdict().items() if name not in ("return_state", "backend")}
    given["gamma"] = _zeros_like(inputs.gamma) if options.gamma is None else options.gamma
    if inputs.cu_seqlens is not None and inputs.cu_seqlens.shape:  # offsets that could be: the call looks at them
        given["cu_seqlens"] = np.zeros(inputs.cu_seqlens.shape, inputs.cu_seqlens.dtype)
        given["cu_seqlens"][-1:] = inputs.values.shape[1]
    slots, mass = given.pop("slots"), given.pop("mass")
    check_attention(**given, state=None if slots is None else RAMState(slots, mass))


def _zeros_like(array: Any) -> np.ndarray:
    """Zeros of an array's shape, in memory for one; in float32 for what NumPy or the CPU does not have."""
    dtype = np.dtype(np.float32) if array.dtype.itemsize == 2 and array.dtype.kind != "i" else array.dtype
    return np.broadcast_to(np.zeros((), dtype), array.shape)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
