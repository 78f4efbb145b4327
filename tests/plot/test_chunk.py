"""The picture of a chunk shows every access once, and joins those that conflict."""

import numpy as np
import pytest

from ramnet_np.plot import chunk_accesses


def test_accesses_and_chains():
    # slot 1: W; slot 2: W R, where no write follows; slot 3: R R; chains: slot 4: W R W, slot 5: R W
    writes, reads = [[4, 1], [4, 2], [5, 0]], [[4, 3], [5, 2], [3, 2]]
    axes = chunk_accesses(writes, reads, slots=8).axes[0]
    marks = {"s": [], "o": []}
    chains = []
    for line in axes.lines:
        points = [(x, slot) for x, slot in zip(line.get_xdata(), line.get_ydata(), strict=True)]
        if line.get_marker() in marks:
            marks[line.get_marker()] += points
        else:
            chains.append(points)
    for kind, slots in (("s", writes), ("o", reads)):
        assert sorted((round(x), slot) for x, slot in marks[kind]) == sorted(
            (t, slot) for t, row in enumerate(slots) for slot in row
        )
    assert sorted({slot for points in chains for _, slot in points}) == [4, 5]
    assert all(np.all(np.diff([x for x, _ in points]) > 0) for points in chains)  # in order; a token writes first
    assert axes.get_title() == "3 tokens, 12 accesses, 2 chains"


def test_a_chunk_of_unlike_lengths():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        chunk_accesses([[1]], [[1], [2]], slots=4)
