"""The sequences of a packed row, as the kernels find them: the lists of ``span.cuh``, in the GPU's memory.

Every layer of a model is called with the same offsets. So the lists of a few of them are kept, for each stream.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ramnet_np.contract import Array

SPAN = np.dtype([(name, np.int32) for name in ("sequence", "begin", "tokens", "first_chunk")])
SPAN_CHUNK = np.dtype([("span", np.int32), ("chunk", np.int32)])


class PackedRow(NamedTuple):
    """N sequences in one row of tokens, and where they stand."""

    spans: Array  # of ``Span``s, (N * 4,) int32
    span_chunks: Array  # of ``SpanChunk``s, (chunks * 2,) int32
    span_of_token: Array  # (T,) int32
    sequences: int  # N
    chunks: int  # of all sequences, in one head
    longest: int  # tokens of the longest sequence


def list_spans(cu_seqlens: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spans, chunks of the spans and the span of every token; a chunk has ``chunk`` tokens.

    >>> spans, chunks, of_token = list_spans(np.array([0, 1, 4]), chunk=2)
    >>> spans.tolist()  # the longer sequence first: its number, its begin, its tokens, chunks before it
    [(1, 1, 3, 0), (0, 0, 1, 2)]
    >>> chunks.tolist(), of_token.tolist()
    ([(0, 0), (0, 1), (1, 0)], [1, 0, 0, 0])
    """
    lengths = np.diff(cu_seqlens)
    order = np.argsort(-lengths, kind="stable")
    chunks = np.maximum(-(-lengths[order] // chunk), 1)  # an empty sequence has a chunk too: ``chunks_of``
    spans = np.empty(order.size, SPAN)
    spans["sequence"], spans["begin"], spans["tokens"] = order, cu_seqlens[order], lengths[order]
    spans["first_chunk"] = chunks.cumsum() - chunks
    span_chunks = np.empty(chunks.sum(), SPAN_CHUNK)
    span_chunks["span"] = np.repeat(np.arange(order.size), chunks)
    span_chunks["chunk"] = np.arange(span_chunks.size) - np.repeat(spans["first_chunk"], chunks)
    number = np.empty(order.size, np.int32)
    number[order] = np.arange(order.size)
    return spans, span_chunks, np.repeat(number, lengths)


def packed_row(cu_seqlens: np.ndarray, chunk: int) -> PackedRow:
    """``cu_seqlens`` (N + 1,) int64 on the CPU, checked, for kernels whose chunks have ``chunk`` tokens."""
    import cupy

    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    return _packed_row(cu_seqlens.tobytes(), chunk, device, stream)


@functools.lru_cache(maxsize=64)
def _packed_row(offsets: bytes, chunk: int, device: int, stream: int) -> PackedRow:
    import cupy

    cu_seqlens = np.frombuffer(offsets, np.int64)
    lists = list_spans(cu_seqlens, chunk)
    # one copy for all; every list is one of int32
    on_gpu = cupy.asarray(np.concatenate([part.view(np.int32) for part in lists]))
    spans, span_chunks, of_token = np.cumsum([0, *(part.nbytes // 4 for part in lists)])[:-1].tolist()
    return PackedRow(
        on_gpu[spans:span_chunks],
        on_gpu[span_chunks:of_token],
        on_gpu[of_token:],
        cu_seqlens.size - 1,
        lists[1].size,
        int(lists[0]["tokens"].max(initial=0)),
    )
