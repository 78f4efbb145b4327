"""Finite differences against any forward/backward pair.

    L(x) = sum(forward(x) * dout)  for a random dout,    dL/dx_i ~ (L(x + h e_i) - L(x - h e_i)) / 2h

in float64, with the step h = (machine epsilon)**(1/3) * max(1, |x_i|), about 6e-6: there the truncation error of the
central difference, of order h**2, equals its rounding error, of order epsilon / h.

A top-K selection makes an operation piecewise smooth: a step across the border between two selections measures the
jump, not the slope. Every integer array that a forward keeps in its ctx is taken for such a choice; an element whose
step changes one is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = float(np.finfo(np.float64).eps ** (1 / 3))
_FLOATS = np.ndarray, np.floating, float


@dataclass(frozen=True)
class InputReport:
    """What was found for one input."""

    name: str
    shape: tuple[int, ...]
    checked: int  # elements compared
    left_out: int  # elements whose step changed a selection
    max_abs_error: float
    max_rel_error: float  # max_abs_error over the largest finite difference of this input
    max_gradient: float
    verdict: str  # "pass", or why not


@dataclass(frozen=True)
class GradcheckReport:
    """The rows of a gradient check; prints as a table."""

    title: str
    rows: tuple[InputReport, ...]
    rtol: float
    step: float

    @property
    def passed(self) -> bool:
        """Whether every input passed."""
        return all(row.verdict == "pass" for row in self.rows)

    def __str__(self) -> str:
        header = ("input", "shape", "checked", "left out", "max |error|", "relative", "max |gradient|", "verdict")
        table = [header] + [
            (
                row.name,
                "x".join(map(str, row.shape)) or "scalar",
                str(row.checked),
                str(row.left_out),
                f"{row.max_abs_error:.1e}",
                f"{row.max_rel_error:.1e}",
                f"{row.max_gradient:.1e}",
                row.verdict,
            )
            for row in self.rows
        ]
        verdict = "PASS" if self.passed else "FAIL"
        summary = f"{self.title}: {verdict} (relative error at most {self.rtol:g}, step {self.step:.1e} * max(1, |x|))"
        return "\n".join([summary, *("  " + line for line in text_table(table, "<<<<<<<<"))])

    def raise_if_failed(self) -> None:
        """AssertionError with the table, unless every input passed."""
        if not self.passed:
            raise AssertionError(str(self))


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Any],
    inputs: Mapping[str, NDArray[np.float64]],
    *,
    samples: int | None = None,
    seed: int = 0,
    rtol: float = 1e-6,
    may_be_zero: tuple[str, ...] = (),
    title: str = "gradcheck",
) -> GradcheckReport:
    """Compare ``backward`` with central differences of ``forward``, input by input.

    ``forward(*inputs) -> (out, ctx)``: out is an array or a (nested) tuple of arrays; None parts are passed over.
    ``backward(dout, ctx) -> grads``: dout is built like out; one gradient per input, in the same order (a single
        array if there is one input).
    ``inputs``: name -> float64 array; each is checked at every element, or at ``samples`` of them drawn with ``seed``.
    ``rtol``: largest error allowed, relative to the input's largest finite difference.
    ``may_be_zero``: inputs whose gradient may vanish everywhere; for others that fails, since it checks nothing.

    Returns a :class:`GradcheckReport`. Two forwards per element checked. Raises TypeError for inputs that are not
    finite float64 and ValueError for gradients whose number or shapes differ from the inputs', and for other arguments
    that are wrong.

    >>> report = gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": np.array([1.0, -2.0])}, title="square")
    >>> print(report)  # doctest: +ELLIPSIS
    square: PASS (relative error at most 1e-06, step 6.1e-06 * max(1, |x|))
      input  shape  checked  left out  max |error|  relative  max |gradient|  verdict
      x      2      2        0         ...e-12      ...e-12   ...e-01         pass
    """
    _check_arguments(inputs, samples, seed, rtol, may_be_zero)
    rng = np.random.default_rng(seed)
    args = [x.copy() for x in inputs.values()]
    results = forward(*args)
    if not isinstance(results, tuple) or len(results) != 2:
        raise TypeError(f"forward must return a tuple (out, ctx), got {type(results).__name__}")
    out, ctx = results
    dout = _map_arrays(lambda a: rng.standard_normal(a.shape), out)
    directions = _arrays(dout)
    choices = [choice.copy() for choice in _choices(ctx)]
    grads = backward(dout, ctx)
    if not isinstance(grads, (*_FLOATS, tuple, list)):
        raise TypeError(f"backward must return an array or a tuple of one for each input, got {type(grads).__name__}")
    grads = list(grads) if isinstance(grads, tuple | list) else [grads]
    if len(grads) != len(args):
        raise ValueError(f"backward must return one gradient per input ({len(args)}), got {len(grads)}")

    def outputs() -> tuple[list[np.ndarray], bool]:
        out, ctx = forward(*args)
        now = _choices(ctx)
        same = len(now) == len(choices) and all(map(np.array_equal, now, choices))
        return [np.array(a) for a in _arrays(out)], same

    rows = []
    for name, x, grad in zip(inputs, args, grads, strict=True):
        grad = np.asarray(grad)
        if grad.shape != x.shape:
            raise ValueError(f"the gradient of {name!r} must have shape {x.shape}, got {grad.shape}")
        elements = np.arange(x.size)
        if samples is not None and samples < x.size:
            elements = np.sort(rng.choice(x.size, samples, replace=False))
        analytic, numeric, left_out = [], [], 0
        for element in elements:
            at = np.unravel_index(element, x.shape)
            value = x[at]
            h = STEP * max(1.0, abs(value))
            x[at] = value + h
            above, same_above = outputs()
            x[at] = value - h
            below, same_below = outputs()
            x[at] = value
            if not (same_above and same_below):
                left_out += 1
                continue
            # Differences first: an output that this element does not reach adds an exact zero, not its rounding.
            rise = sum(np.vdot(a - b, d) for a, b, d in zip(above, below, directions, strict=True))
            analytic.append(grad[at])
            numeric.append(rise / ((value + h) - (value - h)))
        rows.append(_compare(name, x.shape, np.array(analytic), np.array(numeric), left_out, rtol, name in may_be_zero))
    return GradcheckReport(title, tuple(rows), rtol, STEP)


def _check_arguments(inputs: Any, samples: Any, seed: Any, rtol: Any, may_be_zero: Any) -> None:
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be a dictionary of names and arrays, got {type(inputs).__name__}")
    for name, x in inputs.items():
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or x.dtype != np.float64:
            got = x.dtype if type(x) is np.ndarray else type(x).__name__
            raise TypeError(f"input {name!r} must be a float64 NumPy array, got {got}")
        if not np.isfinite(x).all():
            raise ValueError(f"input {name!r} must be finite, got {x[~np.isfinite(x)][0]}")
    for name, number, least in (("samples", samples, 1), ("seed", seed, 0)):
        if name == "samples" and number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
    if not 0 <= rtol < np.inf:
        raise ValueError(f"rtol must be 0 or more and finite, got {rtol!r}")
    unknown = [may_be_zero] if isinstance(may_be_zero, str) else [name for name in may_be_zero if name not in inputs]
    if unknown:
        raise ValueError(f"may_be_zero must be a tuple of names of inputs ({', '.join(inputs)}), got {unknown[0]!r}")


def text_table(rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """The lines of a table whose columns are as wide as their longest cell.

    ``align``: "<" for left or ">" for right, one a column.

    >>> text_table([("name", "n"), ("a", "12")], "<>")
    ['name   n', 'a     12']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(align, widths, strict=True))
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, (side, width) in zip(row, columns, strict=True)).rstrip()
        for row in rows
    ]


def _compare(
    name: str, shape: tuple[int, ...], analytic: np.ndarray, numeric: np.ndarray, left_out: int, rtol: float, zero: bool
) -> InputReport:
    checked = analytic.size
    error = float(np.abs(analytic - numeric).max()) if checked else 0.0
    largest = float(np.abs(numeric).max()) if checked else 0.0
    relative = error / largest if largest else np.inf if error > 0 else 0.0
    if not checked:
        verdict = "pass" if zero and not left_out else "nothing checked"
    elif not np.isfinite(analytic).all():
        verdict = "not finite"
    elif largest == 0 and not zero:
        verdict = "all zero"
    else:
        verdict = "pass" if relative <= rtol else "FAIL"
    return InputReport(name, shape, checked, left_out, error, relative, largest, verdict)


def _arrays(tree: Any) -> list[np.ndarray]:
    """Every array anywhere in a tree, and every number of floating point as one."""
    found, waiting = [], [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, _FLOATS):
            found.append(np.asarray(part))
        elif isinstance(part, tuple | list):
            waiting += part[::-1]
        elif isinstance(part, Mapping):
            waiting += list(part.values())[::-1]
        elif is_dataclass(part) and not isinstance(part, type):
            waiting += [getattr(part, field.name) for field in reversed(fields(part))]
    return found


def _choices(ctx: Any) -> list[np.ndarray]:
    """The integer arrays anywhere in a ctx: indices that were selected."""
    return [a for a in _arrays(ctx) if a.dtype.kind in "iu"]


def _map_arrays(function: Callable[[np.ndarray], np.ndarray], tree: Any) -> Any:
    """``tree`` rebuilt with ``function`` of each of its arrays; None stays None."""
    if tree is None:
        return None
    if isinstance(tree, tuple | list):
        parts = [_map_arrays(function, child) for child in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(np.asarray(tree))
