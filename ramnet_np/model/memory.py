"""Whether something fits into memory, asked before it is allocated.

A machine that is asked for too much does not always refuse: Linux hands out more than it has, and the program is killed
minutes later, when it fills what it was given.
"""

from __future__ import annotations

import os
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.model.config import RAMNetConfig
from ramnet_np.model.layout import parameter_shapes

# what a container may have, in the two forms in which Linux tells it
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MEMINFO = Path("/proc/meminfo")


def parameter_bytes(config: RAMNetConfig, itemsize: int = 4) -> int:
    """Bytes of all parameters of a model, ``itemsize`` for each number.

    >>> parameter_bytes(RAMNetConfig(vocab=16, width=8, layers=1, order=2, ffn="none"))
    2272
    """
    return itemsize * sum(map(prod, parameter_shapes(config).values()))


def require_memory(needed: int, what: str, device: str = "cpu") -> None:
    """MemoryError where ``needed`` bytes cannot be had on ``device``; ``what`` they are for, as a subject.

    >>> try:
    ...     require_memory(10**18, "a model of this size")
    ... except MemoryError as error:
    ...     print(str(error).partition(", this machine")[0])
    a model of this size needs at least 1,000,000,000.0 GB of memory
    """
    left = _gpu_memory() if device == "gpu" else available_memory()
    if left is not None and needed > left:
        where = "the GPU" if device == "gpu" else "this machine"
        raise MemoryError(
            f"{what} needs at least {needed / 1e9:,.1f} GB of memory, {where} has {left / 1e9:,.1f} GB left"
        )


def available_memory() -> int | None:
    """Bytes that this process can still have at most, swap included; None on a system that does not tell.

    Of a container's limit nothing is taken off for what it uses already: files that it has read count as used, too.

    >>> available_memory() is None or available_memory() > 0
    True
    """
    found = []
    with suppress(OSError, KeyError, ValueError):
        lines = (line.partition(":") for line in _MEMINFO.read_text().splitlines())
        kilobytes = {name: int(value.split()[0]) for name, _, value in lines if value.split()}
        found.append(1024 * (kilobytes["MemAvailable"] + kilobytes.get("SwapFree", 0)))
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):  # no more than there is in all, where nothing tells how much is left
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # "max" is no limit
            found.append(int(limit.read_text()))
    return min(found, default=None)


def _gpu_memory() -> int:
    xp: Any = gpu_namespace()
    free, _ = xp.cuda.runtime.memGetInfo()
    return int(free) + int(xp.get_default_memory_pool().free_bytes())
