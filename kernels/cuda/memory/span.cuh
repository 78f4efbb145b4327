// Where the sequences of a call stand: the rows of a batch, or the sequences of a packed row.
//
// A block works on one sequence, so nothing that it reads or changes is another's: a packed row costs what its tokens do.
#pragma once
#include "runtime/common.cuh"

// A sequence, as packed.py lists them: long before short, so that the blocks that take longest begin first.
struct Span {
    int sequence;       // its number n in arrays (N, H, rows)
    int begin, tokens;  // its tokens of all rows'
    int first_chunk;    // a head's chunks of the spans before it
};

// A chunk of a packed row: which span's, and which of its chunks.
struct SpanChunk {
    int span, chunk;
};

// Span ``number`` of the list or, where there is no list, row ``number`` of a batch.
DEVICE Span span_of(const Span* spans, unsigned number, unsigned tokens, unsigned chunks) {
    if (spans) return spans[number];
    return {int(number), int(number * tokens), int(tokens), int(number * chunks)};
}

// The rows of the state of a sequence and head, and the first of them in arrays (N*H, rows).
struct StateRows {
    int rows;
    long long first;

    // ``rows``: of every sequence's state; 0: renumber.cu numbered them by the writes, and a sequence has as many as writes.
    DEVICE StateRows(const Span& span, unsigned head, unsigned heads, int rows, int writes)
        : rows(rows ? rows : span.tokens * writes),
          first(
              rows ? ((unsigned long long)(unsigned(span.sequence)) * heads + head) * unsigned(rows)
                   : ((unsigned long long)(unsigned(span.begin)) * heads + (unsigned long long)(head) * unsigned(span.tokens)) *
                         unsigned(writes)
          ) {}
};
