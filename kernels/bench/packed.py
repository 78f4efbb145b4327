"""Packed rows beside padded batches on one GPU, and what batch invariance costs.

python -m ramnet_np.kernels.bench.packed
python -m ramnet_np.kernels.bench.packed --dtype bfloat16 --out results.json
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np import ram_attention_backward, ram_attention_forward

from .cpu import Shape, append_jsonl
from .gpu_shapes import GAMMA, Dtype, draw
from .gpu_timing import give_back_memory, machine_record, median_ms

HEADS = {"H": 16, "U": 5, "P": 4, "C": 64}  # of the paper's 340M model
INVARIANT = ((16, 4096), (4, 4096), (1, 4096), (1, 65536))  # (B, T)

Calls = tuple[Callable[[], Any], Callable[[], Any]]  # forward; forward and backward


@dataclass(frozen=True)
class Options:
    """Time packed rows against padded batches of the same tokens, and batch invariance against the default.

    Every time is the median of single calls between two events on an idle GPU, after a warm-up. Half of the heads use
    CAPE; no state is given or returned. "documents" have random lengths, most of them short (log-normal). They are
    packed into one row, or padded to the longest and masked, or run one by one.
    """

    tokens: int = 65536
    """Tokens of all documents together."""
    context: int = 4096
    """Length of the longest document, and of the rows of equal length."""
    dtype: Dtype = "float32"
    """Type of logits and values."""
    repeats: int = 20
    """Number of calls; the median counts."""
    out: Path | None = None
    """Append the raw results to this file, one JSON object per line."""


def document_lengths(tokens: int, longest: int, seed: int = 0) -> list[int]:
    """Lengths of documents with ``tokens`` tokens together: log-normal with a median of an eighth of the longest.

    >>> lengths = document_lengths(tokens=1000, longest=100)
    >>> sum(lengths), max(lengths) <= 100, min(lengths) > 0
    (1000, True, True)
    """
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        drawn = int(longest / 8 * np.exp(rng.normal()))
        lengths.append(min(max(drawn, 1), longest, left))
    return lengths


def calls(batch: int, tokens: int, dtype: Dtype, **options: Any) -> Calls:
    """The operation on random rows."""
    write, read, values, dy = draw(Shape(batch, tokens, **HEADS), dtype)

    def forward() -> Any:
        return ram_attention_forward(
            write, read, values, GAMMA, update="gsu", cape_heads=HEADS["H"] // 2, return_state=False, **options
        )

    def both() -> Any:
        y, _, ctx = forward()
        return y, ram_attention_backward(dy, ctx)

    return forward, both


def packed(lengths: list[int], dtype: Dtype) -> Calls:
    """All documents in one row."""
    return calls(1, sum(lengths), dtype, cu_seqlens=np.cumsum([0, *lengths]))


def padded(lengths: list[int], dtype: Dtype) -> Calls:
    """A row for each document, as long as the longest, with a mask."""
    import cupy

    longest = max(lengths)
    mask = cupy.asarray(np.arange(longest) < np.array(lengths)[:, None])
    return calls(len(lengths), longest, dtype, mask=mask)


def one_by_one(lengths: list[int], dtype: Dtype) -> Calls:
    """A call for each document."""
    every = [calls(1, length, dtype) for length in lengths]
    return lambda: [forward() for forward, _ in every], lambda: [both() for _, both in every]


def main(options: Options) -> None:
    """Print a line for each way of running the same tokens."""
    import cupy

    machine = machine_record(cupy)
    print(f"{machine['device']}, {machine['versions']}, {options.dtype}, {options.tokens} tokens")
    lengths = document_lengths(options.tokens, options.context)
    equal = [options.context] * (options.tokens // options.context)
    shape = f"{len(lengths)} documents"
    ways: list[tuple[str, str, Callable[[], Calls]]] = [
        (shape, "packed", lambda: packed(lengths, options.dtype)),
        (shape, "padded", lambda: padded(lengths, options.dtype)),
        (shape, "one by one", lambda: one_by_one(lengths, options.dtype)),
        (f"{len(equal)} equal rows", "packed", lambda: packed(equal, options.dtype)),
        (f"{len(equal)} equal rows", "batch", lambda: calls(len(equal), options.context, options.dtype)),
    ]
    for batch, tokens in INVARIANT:
        for alone in (False, True):
            name = "batch-invariant" if alone else "default"
            given = {"batch_invariant": alone}
            ways.append((f"B {batch}, T {tokens}", name, _later(batch, tokens, options.dtype, given)))
    print(f"{'':20} {'':16}{'fwd ms':>9}{'fwd+bwd ms':>12}")
    for what, way, make in ways:
        forward, both = make()
        row: dict[str, Any] = {"what": what, "way": way, "dtype": options.dtype}
        row |= {"fwd": median_ms(forward, options.repeats), "fwd+bwd": median_ms(both, options.repeats)}
        print(f"{what:20} {way:16}{row['fwd']:9.3f}{row['fwd+bwd']:12.3f}", flush=True)
        if options.out is not None:
            append_jsonl(options.out, [row | machine])
        del forward, both
        give_back_memory()


def _later(batch: int, tokens: int, dtype: Dtype, given: dict[str, Any]) -> Callable[[], Calls]:
    return lambda: calls(batch, tokens, dtype, **given)


if __name__ == "__main__":
    main(tyro.cli(Options))
