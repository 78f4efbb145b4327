"""Blocks, threads and shared memory of launches, written out by hand: what tests without a GPU can hold of them.

The arrays and launches of test_cuda_launches.py and test_cuda_packed.py stand in for CuPy's.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.layers import LAYERS, few_rows, flash_attention, norm
from ramnet_np.kernels.cuda.layers.flash_attention import softmax_attention_backward, softmax_attention_forward
from ramnet_np.kernels.cuda.memory import layout, mass_backward, mass_forward, memory, packed
from ramnet_np.kernels.cuda.memory.call import Segments
from ramnet_np.kernels.cuda.memory.segments import choose_segments, combine_contents
from ramnet_np.kernels.cuda.runtime import module

from ramnet_np.contract import Address, MemoryOptions
from tests.kernels.test_cuda_launches import DeviceArray, device, empty
from tests.kernels.test_cuda_packed import launched  # noqa: F401

K, C, M = 8, 64, 1024
NAMES = ("find_conflicts", "mass_forward", "content_forward", "content_backward_recompute", "content_backward")


def run(B, T, H, *, return_state=False):
    address = Address(device(np.zeros((B, T, H, K), np.int32)), device(np.zeros((B, T, H, K), np.float32)))
    values = device(np.zeros((B, T, H, C), np.float32))
    y, final, ctx = memory.memory_forward(address, address, values, 1.0, None, None, MemoryOptions(M), return_state)
    memory.memory_backward(y, final, ctx)
    return ctx.chunked


def content_bytes(channels):
    """64 headers of lists for two chunks, couplings, 32 * 8 entries of lists; and rows: 32 tokens of two chunks, 1 of
    zeros, M of the state."""
    return 2 * 64 * 16 + 2816 + 32 * 8 * 8 + (2 * 32 + 1 + M) * channels * 4


def test_a_call_that_is_not_split(launched):  # noqa: F811
    chunked = run(B=40, T=100, H=10)
    assert chunked.segments == Segments(1, 4, 1)
    content = (400 * 2,), (256,), content_bytes(32)
    both = (2 * 400 * 2,), (256,), content_bytes(32)
    assert launched.sizes == [
        ("find_conflicts", (10, 4, 40), (256,), 0),
        ("mass_forward", (400,), (256,), 4 * M),  # the masses
        ("couple_forward", (10, 4, 40), (256,), 0),
        ("content_forward", *content),
        ("content_backward_both", *both),
        ("couple_backward", (10, 4, 40), (256,), 0),
        ("mass_backward", (400,), (512,), 2 * 4 * M),  # q and dz
    ]


def test_a_call_that_is_split(launched):  # noqa: F811
    """16 segments of 8 chunks for one sequence and head; the masses' in no more parts."""
    chunked = run(B=1, T=4096, H=1)
    assert chunked.segments == Segments(16, 8, 1)
    sizes = {}
    for name, *size in launched.sizes:
        sizes.setdefault(name, []).append(tuple(size))
    shared = content_bytes(16)
    assert {name: found[0] for name, found in sizes.items() if name in NAMES} == {
        "find_conflicts": ((1, 128, 1), (256,), 0),
        "mass_forward": ((16,), (256,), 2 * 4 * M),  # and the products of 1 - eta
        "content_forward": (
            (15 * 4,),
            (256,),
            shared,
        ),  # the first ones from what they start from, the others from zeros
        "content_backward_recompute": ((16 * 4,), (256,), shared),
        "content_backward": ((15 * 4,), (256,), shared),
    }
    # then all but the one that is done: the first, and on the way back the last
    assert sizes["content_forward"][1:] == sizes["content_backward"][1:] == [((15 * 4,), (256,), shared)]
    assert sizes["mass_local_end"] == [((16,), (256,), 2 * 4 * M)]
    # one thread for each row, or for each number of a row, of the segments' states
    assert sizes["mass_combine"] == sizes["adjoint_combine"] == [((M // 256,), (256,), 0)]
    assert sizes["content_combine"] == [((M * C // 256,), (256,), 0)] * 2
    assert sizes["mass_backward"] == [((16,), (512,), 4 * 4 * M), ((16,), (512,), 2 * 4 * M)]
    which = {name: [int(p["first_segment"]) for _, p in launched.of(name)] for name in NAMES[2:]}
    assert which == {"content_forward": [0, 1], "content_backward_recompute": [0], "content_backward": [1, 0]}
    launched.sizes.clear()
    assert run(B=1, T=4096, H=1, return_state=True).segments == Segments(1, 128, 1)
    assert ("content_forward", (4,), (256,), shared) in launched.sizes


def test_masses_in_more_segments_than_contents(launched):  # noqa: F811
    """How many segments of the masses make one of the contents: the kernel multiplies so many products."""
    chosen = layout.choose_layout(np.dtype(np.float32), M, C, K, K, layout.H100)
    combine_contents(empty((2, 3, M, C), np.float32), empty((2, 12, M), np.float32), chosen, backward=True)
    [(grid, params)] = launched.of("content_combine")
    assert grid == (2 * M * C // 256,)
    names = ("parts", "segments", "rows", "channels", "count", "backward")
    assert [int(params[name]) for name in names] == [4, 3, M, C, 2 * M * C, 1]


@pytest.mark.parametrize(
    ("dtype", "rows", "fits"),
    [(np.float32, 8192, True), (np.float32, 8193, False), (np.float64, 4096, True), (np.float64, 4097, False)],
)
def test_masses_that_do_not_fit_leave_shared_memory(dtype, rows, fits):
    """Both kernels, while two numbers of each row are at most 65,536 bytes."""
    chosen = layout.choose_layout(np.dtype(dtype), rows, C, K, K, layout.H100)
    each = rows * np.dtype(dtype).itemsize * fits
    forward = mass_forward._launch(chosen, False, False, rows, 7, False, True)
    backward = mass_backward._launch(chosen, "pdma", False, rows, 7, False, False)
    assert (forward.grid, forward.threads, forward.shared) == ((7,), 256, each)
    assert (backward.grid, backward.threads, backward.shared) == ((7,), 512, 2 * each)


@pytest.mark.parametrize(
    ("sequences", "tokens", "rows", "segments"),
    [
        (1, 4096, 1024, Segments(16, 8, 1)),
        (1, 255 * 32, 1024, Segments(29, 9, 1)),  # 31 of 8 chunks do not hold all
        (8, 2**16, 1024, Segments(9, 228, 4)),
        (40, 2**16, 1024, Segments(1, 2048, 8)),
        (1, 31 * 32, 1024, Segments(1, 31, 1)),
        (1, 32 * 32, 1024, Segments(4, 8, 1)),
        (1, 4096, 8192, Segments(1, 128, 1)),  # 4 * 4 bytes of so many rows do not fit
    ],
)
def test_numbers_of_segments(sequences, tokens, rows, segments):
    chosen = layout.choose_layout(np.dtype(np.float32), rows, C, K, K, layout.H100)
    assert choose_segments(chosen, sequences, tokens, rows, C, 132, layout.H100) == segments


def test_what_blocks_share_of_a_multiprocessor():
    """228 KiB and at most 227 for a block; the system takes 1 KiB of each."""
    assert [layout.H100.shared_by(blocks) // 1024 for blocks in (1, 2, 3, 4)] == [227, 113, 75, 56]
    assert layout.rows_that_fit(np.float32, layout.H100) == (227 - 16) * 1024 // 16
    assert layout.rows_that_fit(np.float64, layout.H100) == (227 - 16) * 1024 // 32


def test_lists_of_a_packed_row():
    """Sequences that are longest, empty and equal; chunks that are just full and just not."""
    spans, chunks, of_token = packed.list_spans(np.array([0, 2, 2, 6, 8, 13]), chunk=4)
    assert spans.tolist() == [(4, 8, 5, 0), (2, 2, 4, 2), (0, 0, 2, 3), (3, 6, 2, 4), (1, 2, 0, 5)]
    assert chunks.tolist() == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (4, 0)]
    assert of_token.tolist() == [2] * 2 + [1] * 4 + [3] * 2 + [0] * 5


@pytest.fixture
def layers(monkeypatch):
    """(kernel, grid, threads, bytes of shared memory) of the launches of layers."""
    sizes = []

    def get_kernel(specialisation, name):
        def launch(grid, block, arguments, shared_mem=0):
            sizes.append((name, grid, block, shared_mem, arguments[0]))

        return launch

    cupy = SimpleNamespace(
        empty=empty,
        ascontiguousarray=lambda a: a if a.flags.c_contiguous else a.copy(),
        concatenate=lambda arrays, axis: device(np.concatenate(arrays, axis)),
        cuda=SimpleNamespace(Device=lambda: SimpleNamespace(compute_capability="90")),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(DeviceArray, "device", SimpleNamespace(id=0), raising=False)
    monkeypatch.setattr(few_rows, "_limits", lambda gpu: few_rows.Limits(227 * 1024, clusters=True))
    for user in (few_rows, flash_attention, norm):
        monkeypatch.setattr(user, "get_kernel", get_kernel)
    return sizes


@pytest.mark.parametrize(
    ("d_k", "d_v", "T", "past", "blocks", "tiles", "sums"),
    [
        (64, 64, 128, 0, 6, 32768, 48),  # of 128 rows
        (64, 64, 129, 0, 12, 32768, 49),
        (72, 24, 129, 30, 18, 49152, 49),  # of 64 rows, with 128 and 64 channels of 2 bytes in 2 stages of 64
        (128, 128, 64, 0, 6, 65536, 48),
    ],
)
def test_attention(layers, d_k, d_v, T, past, blocks, tiles, sums):
    q, k, v = (device(np.zeros((2, T, 3, d), np.float16)) for d in (d_k, d_k, d_v))
    before = tuple(device(np.zeros((2, past, 3, d), np.float16)) for d in (d_k, d_v)) if past else None
    y, ctx = softmax_attention_forward(q, k, v, 40, before)
    softmax_attention_backward(y, ctx)
    sums = -(-2 * T * 3 * (8 if d_v <= 64 else 16) // 128)  # a lane has 8 channels
    assert [launch[:4] for launch in layers] == [
        ("flash_forward", (blocks,), (128,), tiles),
        ("flash_row_sums", (sums,), (128,), 0),
        ("flash_keys_backward", (blocks,), (128,), tiles + 1024),
        ("flash_queries_backward", (blocks,), (128,), tiles),
    ]
    for *_, params in layers:
        assert [params[name] for name in ("tokens", "past", "heads", "d_k", "d_v", "window", "rows")] == [
            T, past, 3, d_k, d_v, 40, 6 * T,
        ]  # fmt: skip
        assert params["scale"] == np.float32(d_k**-0.5)


STEP, SLICE = 2**13, 2**7  # bytes of 8 rows of a matrix, and of a row, that a block copies at once


@pytest.mark.parametrize(
    ("dtype", "rows", "width", "outputs", "gated", "grid", "threads", "shared"),
    [
        (np.float32, 1, 16, (9, 16), False, (4, 1), 128, 0),  # 8 outputs a block
        (np.float32, 16, 16, (9,), True, (3, 1), 128, 0),  # of both matrices together 4
        (np.float64, 5, 16, (8,), False, (1, 1), 128, 0),
        (np.float16, 1, 16, (320, 320, 1024), False, (104, 1), 256, 2 * STEP),  # 16 outputs
        (np.float16, 16, 16, (64 * 264,), False, (528, 1), 256, 4 * STEP),  # 32, as many as a block has at most
        (np.float16, 1, 2816, (1024,), False, (128, 1), 256, 6 * STEP),  # all six steps of 8 outputs
        (np.float16, 33, 16, (64 * 264,), False, (264, 1), 256, 2 * SLICE * (64 + 64)),  # 64 outputs of 64 rows
        (np.float16, 64, 16, (2816,), True, (88, 1), 256, 2 * SLICE * (64 + 64)),  # of both matrices 32
        (np.float16, 64, 2816, (2816,), True, (4 * 88, 1), 256, 6 * SLICE * (64 + 64)),  # four share out D
        (np.float16, 256, 2816, (2816,), True, (59, 2), 512, 7 * SLICE * (128 + 96)),  # of both 48 of 128 rows
        (np.float16, 129, 2816, (1024,), False, (4 * 11, 2), 512, 7 * SLICE * (128 + 96)),  # 96, four share out D
    ],
)
def test_products_of_few_rows(layers, dtype, rows, width, outputs, gated, grid, threads, shared):
    x, weight = device(np.zeros((rows, width), dtype)), device(np.zeros(width, dtype))
    weights = [device(np.zeros((count, width), dtype)) for count in outputs]
    if gated:
        results = [LAYERS["normed_gated_product"](x, weight, 1e-3, *weights * 2)]
    else:
        results = LAYERS["normed_products"](x, weight, 1e-3, tuple(weights), (None,) * len(weights))
    assert [r.shape for r in results] == [(rows, count) for count in outputs]
    *before, (name, *sizes, params) = layers
    assert [one[0] for one in before] == ["norm_forward"] * (dtype == np.float16)  # where x times the weight may be inf
    assert (params["norm"] == 0) == (dtype == np.float16)
    assert (name, *sizes) == ("few_rows", grid, (threads,), shared)
    assert (params["rows"], params["width"], params["eps"]) == (rows, width, pytest.approx(1e-3))
    assert params["outputs"].tolist() == [*outputs * (1 + gated), *[0] * (8 - len(outputs) * (1 + gated))]


def test_more_rows_than_the_kernels_take_go_the_way_of_the_mathematics(layers):
    for dtype, most in ((np.float16, 256), (np.float32, 16), (np.float64, 16)):
        w, weight = device(np.zeros((8, 16), dtype)), device(np.zeros(16, dtype))
        for rows in (most, most + 1):
            x = device(np.zeros((rows, 16), dtype))
            found = LAYERS["normed_gated_product"](x, weight, 1e-3, w, w)
            assert (found is NotImplemented) == (rows > most)
    nine = LAYERS["normed_products"](x[:1], weight, 1e-3, (w,) * 9, (None,) * 9)
    assert nine is NotImplemented
    assert [name for name, *_ in layers] == ["norm_forward", *["few_rows"] * 3]


def test_a_launch_hands_its_sizes_to_the_kernel(launched):  # noqa: F811
    launch = module.Launch(None, "any", (3, 2), 64, 4096)
    launch(1)
    assert launched.sizes == [("any", (3, 2), (64,), 4096)]
