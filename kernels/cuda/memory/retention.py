"""Which update rules the CUDA kernels know: the structs of ``retention.cuh``."""

from __future__ import annotations

import functools
import re

from ..runtime.module import FOLDER


@functools.cache
def known_rules() -> tuple[str, ...]:
    """Their names.

    >>> known_rules()[:2]
    ('pdma', 'gsu')
    """
    text = (FOLDER / "memory" / "retention.cuh").read_text(encoding="utf-8")
    return tuple(re.findall(r"template <class Acc> struct (\w+) \{", text.partition("namespace rules {")[2]))


def require_rule(update: str) -> str:
    """``update`` itself; ValueError for a rule that these kernels do not know.

    >>> require_rule("median")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: update must be one of 'pdma', 'gsu'... on backend 'cupy', got 'median'
    """
    if update not in known_rules():
        names = ", ".join(map(repr, known_rules()))
        raise ValueError(f"update must be one of {names} on backend 'cupy', got {update!r}")
    return update
