"""Contents of a segment's rows that come over the bus beside the work on them: the next part's behind this one's.

    first stream   masses │ conflicts, masses, couplings of all tokens │ contents, part 1 │ part 2 │ part 3 ...
    ahead                 └ rows of part 1 │ rows of part 2 │ rows of part 3 │ ...              over the bus

All slots of a segment are known before any is touched, and have their places in one small dense state. The masses are
on the GPU, in the table, and most of the memory's work needs only them. A row's contents come with the part whose
tokens are the first to use its slot. So no part's work changes a row that is still to come, and no row comes twice. The
rows come into one array, and each part's go on to where the memory works. A part ends where a chunk of the memory's
kernels does, and these take chunks one after another, so the bits do not depend on parts.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from ramnet_np.contract import Array

from .beside import Beside
from .segment_rows import SegmentRows

PARTS = 4
UNIT = 32  # tokens: chunks of the memory's kernels divide it
LEAST_BYTES = 2**25  # over the bus, below which rows are gathered before the work: parts cost some launches


def part_tokens(tokens: int) -> int:
    """Tokens of a part; the last may have fewer.

    >>> part_tokens(8192), part_tokens(70)
    (2048, 32)
    """
    return max(1, -(-tokens // (PARTS * UNIT))) * UNIT


class Arriving:
    """Rows of the small dense state ``contents`` (B*H, n, C) that are on their way.

    ``rows``: of the segment, of so many ``tokens``; ``needs``: what must live until they are there.
    """

    def __init__(self, rows: SegmentRows, tokens: int, contents: Array, needs: object):
        self.tokens = part_tokens(tokens)
        self._rows, self._contents, self._needs = rows, contents, needs
        self._bounds = list(pairwise([*range(0, tokens, self.tokens), tokens]))
        self._coming = [Beside("ahead") for _ in self._bounds]
        for coming, bounds in zip(self._coming, self._bounds, strict=True):
            coming.run(partial(rows.gather_part, *bounds, contents), None)  # this object keeps what it needs

    def __del__(self) -> None:
        for coming in self._coming:  # where an error came before the rows were taken
            coming.finish()

    @property
    def parts(self) -> int:
        """How many parts of ``tokens`` tokens there are."""
        return len(self._bounds)

    def wait(self) -> None:
        """What the current stream does from now on finds all rows."""
        for coming in self._coming:
            coming.wait()

    def take(self, part: int, working: Array) -> None:
        """Put the contents of a part, from 0 on, into ``working`` (B*H, n, C), where those of the parts before are."""
        self._coming[part].wait()
        self._rows.take_part(*self._bounds[part], self._contents, working)
