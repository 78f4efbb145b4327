"""Finite differences against any forward and backward; ``cases`` holds those that ``ramnet-np gradcheck`` runs.

The package and its function have one name, and either may be called:

>>> import numpy as np
>>> from ramnet_np import gradcheck
>>> gradcheck(lambda x: (x**2, x), lambda dy, x: 2 * x * dy, {"x": np.array([1.0, -2.0])}).passed
True
>>> gradcheck.gradcheck is gradcheck.check.gradcheck
True
"""

import sys
from types import ModuleType
from typing import Any

from ramnet_np.gradcheck.check import STEP, GradcheckReport, InputReport, gradcheck

__all__ = ["STEP", "GradcheckReport", "InputReport", "gradcheck"]


class _CallableModule(ModuleType):
    """``from ramnet_np import gradcheck`` gives this package: its call is the function's."""

    def __call__(self, *args: Any, **kwargs: Any) -> GradcheckReport:
        return gradcheck(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
