"""The memory of a model that writes, as the command is told: which tiers hold it, and how much each may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ramnet_np.contract import MemoryTiers

UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
ALL = "all"


@dataclass(frozen=True)
class TierOptions:
    """Where slots are kept: touched ones only, if any of these is given; else all slots of every head.

    >>> TierOptions(host="64GiB", disk=Path(".")).tiers().host == 2**36
    True
    >>> TierOptions().tiers() is None
    True
    """

    gpu: str | None = None
    host: str | None = None
    disk: Path | None = None
    disk_limit: str | None = None

    def __post_init__(self) -> None:
        for name in ("gpu", "host", "disk_limit"):
            if getattr(self, name) is not None:
                number_of_bytes(f"memory.{name}", getattr(self, name))
        if self.disk is not None and not self.disk.is_dir():
            raise FileNotFoundError(f"memory.disk must be a folder that exists, got {str(self.disk)!r}")
        if self.disk is not None and self.host in (None, ALL):
            raise ValueError(f"memory.host must say how much stays above memory.disk, such as 4GiB, got {self.host!r}")
        if self.disk_limit is not None and self.disk is None:
            raise ValueError("memory.disk_limit needs a folder memory.disk, got none")

    def tiers(self) -> MemoryTiers | None:
        """The tiers of all layers together; None where nothing was given."""
        if self == TierOptions():
            return None
        sizes = {name: getattr(self, name) for name in ("gpu", "host", "disk_limit")}
        gpu, host, limit = (size and number_of_bytes(f"memory.{name}", size) for name, size in sizes.items())
        return MemoryTiers(host, self.disk, limit, gpu)


def number_of_bytes(name: str, text: str) -> int | None:
    """Bytes that a size such as "64GiB", "500 MB" or "4096" means; None for "all". ValueError, by the name, else.

    >>> number_of_bytes("memory.host", "1.5KiB"), number_of_bytes("memory.host", "all")
    (1536, None)
    >>> number_of_bytes("memory.host", "much")
    Traceback (most recent call last):
        ...
    ValueError: memory.host must be a size such as 64GiB or 500MB, or all, got 'much'
    """
    if text == ALL:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip())
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{name} must be a size such as 64GiB or 500MB, or all, got {text!r}")
    return int(Decimal(found[1]) * unit)
