"""When kernels that share work out over threads may run: after a fork, and beside one another.

Numba starts its threads in a layer that it chooses by what is installed: TBB, OpenMP or its own "workqueue".

- GNU's OpenMP does not survive a fork: a child that starts threads is ended by a signal, and whoever waits for it waits
  for ever. A child of a process that has used threads gets a RuntimeError instead.
- The workqueue serves one caller at a time: a second thread of Python would end the process. There, calls take turns.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable
from typing import Any

import numba

_turns: threading.Lock | None = threading.Lock()  # None once the layer is known to serve many callers
_forked = False  # a child of a process whose threads do not survive that


def parallel_call(kernel: Callable[..., None]) -> Callable[..., None]:
    """``kernel`` for any thread; RuntimeError in a forked child where the threads were lost."""

    def call(*arguments: Any) -> None:
        if _forked:
            raise RuntimeError(
                'backend "numba" cannot run in a process forked after it started its threads: start the process with '
                'multiprocessing.get_context("spawn"), or use backend "numpy" in it'
            )
        turns = _turns
        if turns is None:
            kernel(*arguments)
        else:
            with turns:
                kernel(*arguments)
                _settle()

    return call


def _settle() -> None:
    """After a kernel has run: no more turns, unless the layer needs them."""
    global _turns
    if not numba.config.DISABLE_JIT and numba.threading_layer() != "workqueue":
        _turns = None


def _after_fork_in_child() -> None:
    global _turns, _forked
    if _turns is not None:
        _turns = threading.Lock()  # another thread of the parent may have held it
    _forked = _forked or _threads_were_lost()


def _threads_were_lost() -> bool:
    try:
        layer = numba.threading_layer()
    except ValueError:  # no threads were started
        return False
    if layer != "omp":
        return False
    vendor: str = importlib.import_module("numba.np.ufunc.omppool").openmp_vendor
    return vendor == "GNU"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
