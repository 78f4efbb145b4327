"""How the memory's kernels are laid out on the chip: what fits, what is chosen. Needs no GPU."""

import numpy as np
import pytest
from ramnet_np.kernels.cuda.address.decode import plan_decode
from ramnet_np.kernels.cuda.memory.call import Segments
from ramnet_np.kernels.cuda.memory.layout import H100, choose_layout, layout_of_contents, require_top_k
from ramnet_np.kernels.cuda.memory.plain import plain_shared_bytes, plain_threads
from ramnet_np.kernels.cuda.memory.segments import (
    MASS_BLOCKS,
    MIN_CHUNKS,
    MIN_SEGMENTS,
    choose_segments,
    segments_of_adjoints,
)

PROCESSORS = 132


def layout(rows=1024, channels=64, writes=8, reads=8, dtype=np.float32):
    return choose_layout(np.dtype(dtype), rows, channels, writes, reads, H100)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("rows", [1, 64, 1024, 1028, 2000, 4096, 13000, 65536])
@pytest.mark.parametrize("top_k", [(1, 1), (8, 8), (5, 11), (32, 32), (64, 3), (64, 64)])
def test_a_block_gets_what_it_asks_for(dtype, rows, top_k):
    chosen = layout(rows, 64, *top_k, dtype=dtype)
    assert chosen.content_bytes(rows) <= H100.block
    assert chosen.blocks * (chosen.content_bytes(rows) + 1024) <= H100.processor  # the driver takes 1 KiB a block
    assert chosen.slices * chosen.channels >= 64 > (chosen.slices - 1) * chosen.channels
    assert chosen.in_shared or rows > 10000 or dtype == np.float64


@pytest.mark.parametrize(("top_k", "chunk", "accesses"), [((1, 8), 32, (8, 8)), ((5, 11), 16, (16, 16)),
                                                          ((32, 17), 8, (32, 32)),
                                                          ((64, 40), 4, (64, 64))])  # fmt: skip
def test_a_chunk_has_at_most_256_writes_and_256_reads(top_k, chunk, accesses):
    chosen = layout(writes=top_k[0], reads=top_k[1])
    assert (chosen.chunk, chosen.accesses) == (chunk, accesses)
    assert all(chunk * n <= 256 for n in accesses)
    assert 4 * chosen.groups_per_token <= 32  # four lanes a group; the groups of a token exchange sums in one warp
    assert chosen.chains % 64 == 0
    assert 2 * chosen.chains >= chosen.entries


def test_the_papers_layout():
    chosen = layout()
    assert (chosen.chunk, chosen.slices, chosen.channels, chosen.blocks, chosen.in_shared) == (32, 4, 16, 3, True)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 4), (np.float64, 8)])
def test_the_record_of_a_chunk_of_the_papers_layout(dtype, size):
    """32 tokens with 8 writes and 8 reads: events and entries of lists, couplings of every two tokens, headers."""
    chosen = layout(dtype=dtype)
    events, entries, pairs = 32 * (8 + 8), 32 * (8 + 8), 32 * 33 // 2  # so many pairs are whole sixteens
    headers = 32 * 8 // 2 + 32 * (8 + 8) // 2  # of lists and of chains
    couplings = 2 * (4 * 32 + 2 * pairs * size)
    assert chosen.record_bytes == 2 * (events + entries) * size + couplings + 16 * headers


def test_more_top_k_than_the_kernels_take_is_refused():
    with pytest.raises(ValueError, match=r"top_k must be at most 1024 on the GPU, got \(1025, 8\)"):
        require_top_k(1025, 8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("top_k", "channels"), [((65, 65), 64), ((1024, 1024), 64), ((1024, 1024), 2048), ((128, 1), 53), ((65, 65), 8192)]
)
def test_a_plain_block_asks_for_no_more_shared_memory_than_any_gpu_has(dtype, top_k, channels):
    itemsize = np.dtype(dtype).itemsize
    threads = plain_threads(channels, itemsize)
    assert threads % 32 == 0
    assert plain_shared_bytes(*top_k, channels, itemsize) <= 99 * 1024  # of the smallest that serves: compute 8.6
    assert threads == 512 or channels > 1024


def segments_of(chosen, units, tokens, rows=1024):
    return choose_segments(chosen, units, tokens, rows, 64, PROCESSORS, H100)


@pytest.mark.parametrize("units", [1, 2, 3, 16, 24, 25, 64, 256])
@pytest.mark.parametrize("tokens", [1, 32, 1024, 4096, 4097, 65536, 3 * 2**12])
def test_segments_cover_the_chunks_and_fill_the_gpu_at_most_once(units, tokens):
    chosen = layout()
    segments, chunks = segments_of(chosen, units, tokens), -(-tokens // chosen.chunk)
    assert (segments.contents - 1) * segments.chunks < chunks <= segments.contents * segments.chunks
    assert segments.chunks % segments.masses == 0
    count = segments.contents * segments.masses
    assert segments.is_split == (count > 1)
    if count == 1:
        return
    assert count >= MIN_SEGMENTS
    assert chunks // count >= MIN_CHUNKS
    assert segments.contents == 1 or segments.contents >= MIN_SEGMENTS - 1  # rounding up can leave none of the last
    assert units * chosen.slices * segments.contents <= max(PROCESSORS * chosen.blocks, units * chosen.slices)
    assert units * count <= PROCESSORS * MASS_BLOCKS


def test_what_is_cut_into_segments_and_what_is_not():
    assert segments_of(layout(), 16, 65536) == Segments(5, 412, 4)
    assert segments_of(layout(), 64, 4096) == Segments(1, 128, 4)  # enough heads for contents
    assert segments_of(layout(), 256, 4096) == Segments(1, 128, 1)  # enough for all
    assert segments_of(layout(), 0, 65536) == Segments(1, 2048, 1)
    assert segments_of(layout(rows=65536), 1, 65536, 65536).is_split is False  # state in device memory
    assert segments_of(layout(rows=4096), 16, 65536, 4096).is_split  # masses that just fit in shared memory
    assert segments_of(layout(rows=4097), 16, 65536, 4097).is_split is False
    assert segments_of(layout(), 17, 65536) == Segments(4, 512, 4)  # as many as wide slices have room for; narrow: 5
    assert segments_of(layout(), 24, 65536) == Segments(4, 512, 4)  # wide ones have room for 3, too few
    assert segments_of(layout(dtype=np.float64), 8, 65536) == Segments(4, 512, 8)  # no wide ones


@pytest.mark.parametrize(("sequences", "tokens", "segments"), [
    (16, 65536, (16, 128)), (64, 4096, (4, 32)), (67, 4096, (1, 128)), (1, 4097, (15, 9)), (1, 31 * 32, (1, 31)),
])  # fmt: skip
def test_segments_of_the_adjoints_of_masses(sequences, tokens, segments):
    assert segments_of_adjoints(layout(), sequences, tokens, PROCESSORS) == segments


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("rows", "channels", "top_k", "sequences", "is_wide"), [
    (1024, 64, (8, 8), 34, True), (1024, 64, (8, 8), 33, False), (64, 32, (5, 8), 1000, True),
    (1500, 64, (8, 8), 1000, True), (1024, 64, (4, 1), 1000, True), (1024, 48, (8, 8), 1000, False),
    (1024, 60, (8, 8), 1000, False), (1024, 64, (8, 9), 1000, True), (1024, 64, (32, 32), 64, True),
    (1024, 64, (33, 32), 1000, False), (1800, 64, (8, 8), 1000, False),
    (65536, 64, (8, 8), 1000, False),
])  # fmt: skip
def test_contents_in_wide_slices_where_they_fit_and_all_are_at_work(dtype, rows, channels, top_k, sequences, is_wide):
    narrow = layout(rows, channels, *top_k, dtype=dtype)
    chosen = layout_of_contents(narrow, channels, rows, sequences, PROCESSORS, H100)
    assert chosen == (narrow.widened() if is_wide else narrow)
    assert chosen.content_bytes(rows) <= H100.block
    assert chosen.slices * chosen.channels >= channels


def test_segments_in_slices_that_take_the_least_time():
    """16 heads in 5 segments: where 4 are launched, a multiprocessor takes one wide block; of 5 some would take two."""
    narrow = layout()
    chosen = [layout_of_contents(narrow, 64, 1024, 16 * launched, PROCESSORS, H100) for launched in (4, 5)]
    assert chosen == [narrow.widened(), narrow]


def test_contents_of_float64_stay_narrow():
    narrow = layout(dtype=np.float64)
    assert layout_of_contents(narrow, 64, 1024, 1000, PROCESSORS, H100) is narrow


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("order", "radix", "top_k"), [(1, 1024, 16), (5, 4, 64), (2, 64, 4096), (15, 2, 16384)])
def test_decoding_asks_for_no_more_shared_memory_than_any_gpu_has(dtype, order, radix, top_k):
    shape = (2, 3, 4, order, radix)
    plan = plan_decode(shape, np.dtype(dtype), top_k, renorms=(True,), cape_heads=0, strides=(0, 0))
    assert max(plan.forward.shared, plan.backward.shared) <= 48 * 1024
