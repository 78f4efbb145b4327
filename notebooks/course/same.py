"""Comparing an answer with what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np


def same(what: str, got: Any, expected: Any, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    """AssertionError, with the first place that differs, unless ``got`` is ``expected``."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: the shape is {got.shape}, and should be {expected.shape}")
    close = np.isclose(got, expected, rtol=rtol, atol=atol)
    if not close.all():
        at = tuple(int(i) for i in np.argwhere(~close)[0])
        place = f" at {list(at)}" if at else ""
        share = f"{np.sum(~close)} of {close.size} numbers differ; first{place}"
        raise AssertionError(f"{what}: {share}: yours {got[at]:.9g}, expected {expected[at]:.9g}")
