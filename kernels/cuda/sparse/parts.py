"""A segment in parts, where many of its rows are in the host's memory: the next part's come beside this one's work.

    first stream   rows of part 1 │ memory of part 1 │ memory of part 2 │ memory of part 3 ...
    beside                        └ rows of part 2 ──┴ rows of part 3 ──┴ ...                    over the bus

All slots of a segment are known before any is touched, and have their numbers and places in one small dense state,
whatever the parts. A row comes with the part whose tokens are the first to use its slot. So no part's work changes a row
that is still to come, and no row comes twice. The memory of a part begins with the dense state that the part before has
left, into which its own rows are put then. A part ends where a chunk of the memory's kernels does, so the bits are those
of the segment in one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from ramnet_np.contract import Array

from .beside import Beside
from .segment_rows import SegmentRows

PARTS = 4
UNIT = 32  # tokens: chunks of the memory's kernels divide it
LEAST_BYTES = 2**24  # over the bus, below which a segment goes in one: a part costs some launches, and copies

Part = tuple[int, Callable[[Array, Array], None]]  # the token where it ends, and what puts its rows into a dense state


def part_ends(tokens: int) -> list[int]:
    """The tokens where parts end. Each is as long as all before it, as the first tokens need most new rows.

    >>> part_ends(8192), part_ends(70)
    ([1024, 2048, 4096, 8192], [32, 70])
    """
    halves = {(tokens >> n) // UNIT * UNIT for n in range(1, PARTS)}
    return [*sorted(halves - {0}), tokens]


def in_one(tokens: int) -> list[Part]:
    """A segment whose rows are all in the dense state that it begins with."""
    return [(tokens, lambda contents, mass: None)]


def in_parts(rows: SegmentRows, tokens: int, needs: object) -> tuple[tuple[Array, Array], list[Part]]:
    """The dense state with which the first part begins, and all parts. ``needs``: what must live as long as rows come.

    Rows of later parts come into the same arrays; no other work looks at them there before :meth:`SegmentRows.take`.
    """
    small, ends = rows.empty(), part_ends(tokens)
    rows.gather_part(0, ends[0], *small)
    parts = in_one(ends[0])
    for begin, end in pairwise(ends):
        coming = Beside("ahead")
        coming.run(partial(rows.gather_part, begin, end, *small, beside=True), (rows, small, needs))
        parts.append((end, partial(_bring, coming, rows, begin, end, small)))
    return small, parts


def _bring(
    coming: Beside, rows: SegmentRows, begin: int, end: int, small: tuple[Array, Array], contents: Array, mass: Array
) -> None:
    coming.wait()
    rows.take_part(begin, end, *small, contents, mass)
