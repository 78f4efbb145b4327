"""How close two results must be: one table, keyed by dtype.

Each element: |a - b| <= atol + rtol * |b|, with both at the value below. Gradients are sums over tokens and slots of
products, so float32 is given one digit more there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FORWARD = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5}
GRADIENT = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-4}


def assert_close(actual: Any, expected: Any, *, gradient: bool = False, name: str = "") -> None:
    """Elementwise closeness at the tolerance of ``actual``'s dtype; equal shapes and dtypes, and no NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"{name}: dtype {actual.dtype}, expected {expected.dtype}"
    tolerance = (GRADIENT if gradient else FORWARD)[actual.dtype]
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=name, equal_nan=False)
