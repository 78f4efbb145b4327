"""A process that was forked after the GPU was used cannot use it: every call of CUDA fails there."""

from __future__ import annotations

import os

_used = False
_lost = False


def use_gpu() -> None:
    """To be called before a GPU is used. RuntimeError in a process forked from one that had called this.

    >>> use_gpu()
    """
    global _used
    if _lost:
        raise RuntimeError(
            "the GPU cannot be used in a process forked after the GPU was used: start the process with "
            'multiprocessing.get_context("spawn")'
        )
    _used = True


def _after_fork_in_child() -> None:
    global _lost
    _lost = _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
