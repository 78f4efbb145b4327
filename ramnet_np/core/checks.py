"""What every argument of the operation must be, said in one sentence when it is not.

NaN and infinite numbers in logits and ``gamma`` are looked for in NumPy arrays, where a pass over them is cheap; on a
GPU the look would synchronise the device, so there they run through: a NaN gives NaN in its token's output and all
later reads of the slots it wrote. NaN in ``values`` is never looked for and stays in the slots and channels it touches.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ramnet_np.backend import array_kind
from ramnet_np.contract import Array, DecodeOptions, MemoryOptions, RAMState
from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.option_checks import NUMBER, as_float, check_options
from ramnet_np.core.packed import check_cu_seqlens, packed_positions
from ramnet_np.core.require import ArraySpec, require_array
from ramnet_np.core.retention import UpdateRule, rule_named
from ramnet_np.core.sparse_state import SparseRAMState
from ramnet_np.core.state_checks import check_state

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
_LOGIT_AXES = ("B", "T", "H", "U", "P")


class Checked(NamedTuple):
    """The arguments of the operation in canonical form."""

    positions: Array  # (T,) or (B, T) int64, or None
    gamma: Array  # float or (B, T, H)
    decode: DecodeOptions
    options: MemoryOptions
    cu_seqlens: Any  # (N + 1,) int64 in the CPU's memory, or None
    state_shape: tuple[int, int, int, int]  # (B, H, M, C), of packed sequences (N, H, M, C)


def check_attention(
    write_logits: Array,
    read_logits: Array,
    values: Array,
    gamma: float | Array,
    *,
    update: str,
    top_k: Any,
    renorm: Any,
    cape_heads: int,
    positions: Array | None,
    mask: Array | None,
    state: RAMState | SparseRAMState | None,
    eps: float,
    proxy_eps: float,
    mass_aware: bool,
    batch_invariant: bool = False,
    gradients: bool = True,
    cu_seqlens: Any = None,
) -> Checked:
    """Check every argument of ``ram_attention_forward``; TypeError or ValueError with one sentence.

    Shapes as there. Returns them in canonical form; ``state`` and ``mask`` are checked and not returned.

    >>> x, v = np.zeros((1, 2, 1, 3, 4)), np.zeros((1, 2, 1, 5))
    >>> rest = dict(
    ...     update="pdma", top_k=8, renorm=False, cape_heads=0, positions=None, mask=None, state=None, eps=1e-12,
    ...     proxy_eps=0.0, mass_aware=False,
    ... )
    >>> check_attention(x, x, v, gamma=1, **rest).options.slots
    64
    >>> check_attention(x, x, v, gamma=-1, **rest)
    Traceback (most recent call last):
        ...
    ValueError: gamma must not be negative for update='pdma', got -1.0
    """
    logits = require_array("write_logits", write_logits)
    reads, content = require_array("read_logits", read_logits), require_array("values", values)
    B, T, H, U, P = _check_specs(logits, reads, content)
    if logits.kind == "numpy":
        _check_finite("write_logits", write_logits)
        _check_finite("read_logits", read_logits)
    decode, options = check_options(
        P**U, H, update=update, top_k=top_k, renorm=renorm, cape_heads=cape_heads, eps=eps, proxy_eps=proxy_eps,
        mass_aware=mass_aware, batch_invariant=batch_invariant, gradients=gradients,
    )  # fmt: skip
    if mask is not None:
        check_mask(mask, (B, T), logits.kind)
    state_shape = B, H, options.slots, values.shape[3]
    if cu_seqlens is not None:
        cu_seqlens = check_cu_seqlens(cu_seqlens, (B, T))
        state_shape = cu_seqlens.size - 1, *state_shape[1:]
    if state is not None:
        check_state("state", state, state_shape, values, packed=cu_seqlens is not None)
        if decode.cape_heads and positions is None:
            raise ValueError(
                "positions must say where these tokens are when heads use CAPE and a state is given, got None"
            )
    if cu_seqlens is not None and positions is None and decode.cape_heads:
        positions = packed_positions(cu_seqlens, like=values)
    gamma = check_gamma(gamma, (B, T, H), values, update)
    return Checked(check_positions(positions, (B, T), write_logits), gamma, decode, options, cu_seqlens, state_shape)


def _check_floats(name: str, spec: ArraySpec, axes: tuple[str, ...]) -> None:
    """Floating-point numbers with these axes; on the CPU only float32 and float64 will do."""
    if len(spec.shape) != len(axes):
        raise ValueError(f"{name} must have {len(axes)} axes ({', '.join(axes)}), got shape {spec.shape}")
    if spec.dtype.kind != "f" and spec.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be floating point, got {spec.dtype}")
    if spec.kind == "numpy" and spec.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name} must be float32 or float64 on the CPU, got {spec.dtype}")


def _check_logits(name: str, spec: ArraySpec) -> tuple[int, int, int, int, int]:
    """(B, T, H, U, P), of which only B may be 0, and fewer than 2**31 slots."""
    _check_floats(name, spec, _LOGIT_AXES)
    B, T, H, U, P = spec.shape
    for axis, size in ((1, T), (2, H), (3, U), (4, P)):
        if size == 0:
            raise ValueError(f"{name} must not be empty along axis {axis} ({_LOGIT_AXES[axis]}), got {spec.shape}")
    if P**U >= 2**31:
        raise ValueError(f"{name} addresses P**U = {P}**{U} slots; at most 2**31 - 1 are supported")
    return B, T, H, U, P


@functools.lru_cache(maxsize=1024)  # cached: repeating these checks would take longer than one token on a GPU
def _check_specs(write: ArraySpec, read: ArraySpec, values: ArraySpec) -> tuple[int, int, int, int, int]:
    """The logits of both sides and the values fit together; returns the shape of the logits."""
    B, T, H, U, P = _check_logits("write_logits", write)
    _check_logits("read_logits", read)
    _check_floats("values", values, ("B", "T", "H", "C"))
    kinds = write.kind, read.kind, values.kind
    if kinds.count(kinds[0]) < 3:
        raise TypeError(f"write_logits, read_logits and values must be arrays of one library, got {', '.join(kinds)}")
    if read.shape != write.shape:
        axis = _first_difference(read.shape, write.shape)
        raise ValueError(
            f"read_logits must have the shape of write_logits {write.shape}, "
            f"got {read.shape}: axis {axis} ({_LOGIT_AXES[axis]}) differs"
        )
    if values.shape[:3] != (B, T, H):
        axis = _first_difference(values.shape[:3], (B, T, H))
        raise ValueError(
            f"values must have shape (B, T, H, C) with (B, T, H) = {(B, T, H)} as in write_logits, "
            f"got {values.shape}: axis {axis} ({_LOGIT_AXES[axis]}) differs"
        )
    if values.shape[3] == 0:
        raise ValueError(f"values must have at least one channel (axis 3, C), got shape {values.shape}")
    for name, spec in (("read_logits", read), ("values", values)):
        if spec.dtype != write.dtype:
            raise TypeError(f"{name} must have the dtype of write_logits ({write.dtype}), got {spec.dtype}")
    return B, T, H, U, P


def check_logits(name: str, logits: Array) -> tuple[int, int, int, int, int]:
    """Address logits (B, T, H, U, P), finite where that is cheap to see; returns the shape.

    TypeError or ValueError otherwise.

    >>> check_logits("logits", np.zeros((1, 2, 3, 4, 5)))
    (1, 2, 3, 4, 5)
    >>> check_logits("logits", np.full((1, 2, 3, 4, 5), np.nan))
    Traceback (most recent call last):
        ...
    ValueError: logits must be finite, got nan at index (0, 0, 0, 0, 0)
    """
    spec = require_array(name, logits)
    shape = _check_logits(name, spec)
    if spec.kind == "numpy":
        _check_finite(name, logits)
    return shape


def check_positions(positions: Array, shape: tuple[int, int], like: Array) -> Array:
    """Token positions as given, (T,) or (B, T), but of int64 (of any integers for arrays of
    kind "device"); or None.

    TypeError or ValueError otherwise.

    >>> check_positions([3, 4], (1, 2), np.zeros(1)).tolist()
    [3, 4]
    >>> check_positions([3, 4], (1, 3), np.zeros(1))
    Traceback (most recent call last):
        ...
    ValueError: positions must have shape (T,) = (3,) or (B, T) = (1, 3), got (2,)
    """
    if positions is None:
        return None
    kind = array_kind(like)
    if type(positions) is not type(like):
        if hasattr(positions, "dtype"):
            require_array("positions", positions)
        try:
            positions = (np if kind == "device" else namespace_of(like)).asarray(positions)
        except ValueError:
            raise ValueError("positions must be an array or a list of equal rows, got rows of unequal length") from None
    if positions.dtype.kind not in "iu":
        raise TypeError(f"positions must be integers, got {positions.dtype}")
    if positions.shape != shape and positions.shape != shape[1:]:
        B, T = shape
        raise ValueError(f"positions must have shape (T,) = {(T,)} or (B, T) = {(B, T)}, got {positions.shape}")
    if positions.dtype == np.uint64 and isinstance(positions, np.ndarray) and positions.max(initial=0) >= 2**63:
        raise ValueError(f"positions must be below 2**63, got a maximum of {positions.max()}")
    # arrays of kind "device" cannot convert themselves: their backend does
    return positions if positions.dtype == np.int64 or kind == "device" else positions.astype(np.int64)


def full_positions(positions: Array, shape: tuple[int, int], like: Array) -> Array:
    """Checked positions as (B, T) int64: None counts from 0, (T,) holds for every row.

    >>> full_positions(None, (2, 3), np.zeros(1)).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    if positions is not None and positions.shape == shape:
        return positions
    xp = namespace_of(like)
    return xp.broadcast_to(xp.arange(shape[1], dtype=np.int64) if positions is None else positions, shape)


def check_gamma(gamma: Array, shape: tuple[int, int, int], like: Array, update: str) -> Array:
    """A float, or an array (B, T, H) of the dtype of ``values``; at least the rule's ``least_gamma``.

    TypeError or ValueError otherwise.

    >>> check_gamma(2, (1, 2, 3), np.zeros(1), "pdma")
    2.0
    >>> check_gamma(-1.0, (1, 2, 3), np.zeros(1), "pdma")
    Traceback (most recent call last):
        ...
    ValueError: gamma must not be negative for update='pdma', got -1.0
    """
    rule = rule_named(update)
    if isinstance(gamma, NUMBER) or getattr(gamma, "shape", None) == ():
        number = as_float("gamma", gamma)
        if not math.isfinite(number) or (abs(number) > _LARGEST_FLOAT32 and like.dtype != np.float64):
            raise ValueError(f"gamma must be finite, in the dtype of values ({like.dtype}) too, got {number}")
        if number < rule.least_gamma:
            raise ValueError(f"{_gamma_bound(rule)}, got {number}")
        return number
    kind = array_kind(gamma)
    if kind != array_kind(like) or not hasattr(gamma, "dtype"):
        raise TypeError(f"gamma must be a number or an array like values, got {type(gamma).__name__}")
    if gamma.shape != shape:
        raise ValueError(f"gamma must be a number or have shape (B, T, H) = {shape}, got {gamma.shape}")
    if gamma.dtype != like.dtype:
        raise TypeError(f"gamma must have the dtype of values ({like.dtype}), got {gamma.dtype}")
    if kind == "numpy" and gamma.size:
        least, greatest = np.minimum.reduce(gamma, axis=None), np.maximum.reduce(gamma, axis=None)  # NaN wins in both
        if not -math.inf < least <= greatest < math.inf:
            _check_finite("gamma", gamma)
        if least < rule.least_gamma:
            raise ValueError(f"{_gamma_bound(rule)}, got a minimum of {least}")
    return gamma


def _gamma_bound(rule: UpdateRule) -> str:
    bound = "not be negative" if rule.least_gamma == 0 else f"be at least {rule.least_gamma:g}"
    return f"gamma must {bound} for update={rule.name!r}"


def _check_finite(name: str, logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        where = np.argwhere(~np.isfinite(logits))[0]
        raise ValueError(f"{name} must be finite, got {logits[tuple(where)]} at index {tuple(where.tolist())}")


def check_mask(mask: Array, shape: tuple[int, int], kind: str) -> None:
    """ValueError or TypeError unless ``mask`` is bool of ``shape`` (B, T), an array of the kind of the others.

    >>> check_mask(np.ones((1, 2), bool), (1, 2), "numpy")
    """
    if not hasattr(mask, "dtype") or array_kind(mask) != kind:
        raise TypeError(f"mask must be an array of the kind of values, got {type(mask).__name__}")
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(f"mask must be bool of shape (B, T) = {shape}, got {mask.dtype} of shape {mask.shape}")


def _first_difference(shape: tuple[int, ...], expected: tuple[int, ...]) -> int:
    return next(axis for axis, (a, b) in enumerate(zip(shape, expected, strict=True)) if a != b)
