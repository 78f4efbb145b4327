"""Which launches a packed row makes on the GPU, looked at without one: blocks, sizes and where the lists are.

The arrays and launches of test_cuda_launches.py stand in for CuPy's. Numbers are in test_cuda_agreement.py.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.memory import call, content, layout, memory, packed, plain
from ramnet_np.kernels.cuda.runtime import module

from ramnet_np.contract import Address, MemoryOptions, RAMState
from tests.kernels.test_cuda_launches import DeviceArray, device, empty

H, C, K = 3, 64, 8
LENGTHS = (40, 0, 5, 70)  # 2, 1, 1 and 3 chunks of 32 tokens
CHUNKS = 7


class Launched(dict):
    """The parameters of every launch, by the kernel's name; and its grid. ``sizes``: of all launches, in order."""

    def __init__(self):
        self.sizes = []  # (kernel, grid, block, bytes of shared memory)

    def of(self, name):
        return [(grid, arguments[0]) for grid, arguments in self[name]]


@pytest.fixture
def launched(monkeypatch):
    log = Launched()

    def get_kernel(specialisation, name):
        def launch(grid, block, arguments, shared_mem=0):
            assert all(size >= 1 for size in grid)
            assert shared_mem <= layout.H100.block
            log.setdefault(name, []).append((grid, arguments))
            log.sizes.append((name, grid, block, shared_mem))

        return launch

    cupy = SimpleNamespace(
        empty=empty,
        zeros=empty,
        full=lambda shape, value, dtype: empty(shape, dtype),
        empty_like=lambda a: empty(a.shape, a.dtype),
        asarray=device,
        cuda=SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=0), runtime=SimpleNamespace(getDevice=lambda: 0)
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(DeviceArray, "device", SimpleNamespace(id=0), raising=False)
    monkeypatch.setattr(module, "get_kernel", get_kernel)
    for user in (call, memory, plain):
        monkeypatch.setattr(user, "allocate_together", lambda *wanted: [empty(*each) for each in wanted])
    for user in (content, memory, plain):
        monkeypatch.setattr(user, "shared_memory", lambda gpu: layout.H100)
    for user in (content, memory):
        monkeypatch.setattr(user, "processors", lambda gpu: 132)
    monkeypatch.setattr("ramnet_np.kernels.cuda.memory.renumber._all_bits", lambda *shape: empty(shape, np.int32))
    packed._packed_row.cache_clear()
    yield log
    packed._packed_row.cache_clear()


def run(slots=1024, top_k=K, lengths=LENGTHS, state=None, return_state=False, **options):
    T = sum(lengths)
    address = Address(device(np.zeros((1, T, H, top_k), np.int32)), device(np.zeros((1, T, H, top_k), np.float32)))
    values = device(np.zeros((1, T, H, C), np.float32))
    given = address, address, values, 1.0, None, state, MemoryOptions(slots=slots, **options), return_state
    y, final, ctx = memory.memory_forward(*given, np.cumsum((0, *lengths)))
    return final, ctx, memory.memory_backward(y, final, ctx)


def test_a_block_for_each_sequence_head_and_slice(launched):
    _, ctx, _ = run(mass_aware=True)
    slices, N = ctx.chunked.layout.slices, len(LENGTHS)
    assert slices > 1
    blocks = {name: [grid for grid, _ in launched.of(name)] for name in launched}
    assert blocks == {
        "find_conflicts": [(H, CHUNKS, 1)],
        "mass_forward": [(N * H,)],
        "mass_aware_forward": [(CHUNKS * H,)],
        "couple_forward": [(H, CHUNKS, 1)],
        "content_forward": [(N * H * slices,)],
        "content_backward_both": [(2 * N * H * slices,)],
        "couple_backward": [(H, CHUNKS, 1)],
        "mass_aware_backward": [(CHUNKS * H,)],
        "mass_backward": [(N * H,)],
    }


def test_every_kernel_is_told_where_the_sequences_are(launched):
    _, ctx, _ = run(mass_aware=True)
    row = ctx.call.packed
    assert (row.sequences, row.chunks, row.longest) == (4, CHUNKS, 70)
    assert np.array(row.spans).reshape(-1, 4).tolist() == [[3, 45, 70, 0], [0, 0, 40, 3], [2, 40, 5, 5], [1, 40, 0, 6]]
    for name in launched:
        for _, params in launched.of(name):
            told = params if name.startswith("content") else params["memory"]
            assert (told["spans"], told["all_chunks"], told["rows"]) == (row.spans.data.ptr, CHUNKS * H, 1024), name
    assert ctx.chunked.kept.writes.shape[:3] == (1, CHUNKS * H, 32)


def test_states_are_those_of_the_sequences(launched):
    state = RAMState(empty((4, H, 64, C), np.float32), empty((4, H, 64), np.float32))
    final, _, grads = run(slots=64, state=state, return_state=True)
    assert final.slots.shape == grads.state.slots.shape == (4, H, 64, C)
    assert final.mass.shape == grads.state.mass.shape == (4, H, 64)


def test_rows_of_a_large_memory_follow_the_writes(launched):
    """A long sequence among short ones takes no room from them: a state has one row for each write."""
    _, ctx, _ = run(slots=2**20)
    assert ctx.call.state_shape == (H, sum(LENGTHS) * K)
    params = [*launched.of("content_forward"), *launched.of("content_backward")]
    assert all(p["rows"] == 0 and p["working"] for _, p in params)
    [(_, writes)] = launched.of("renumber_writes")
    assert (writes["spans"], writes["cells"]) == (ctx.call.packed.spans.data.ptr, 2 * sum(LENGTHS) * K)


@pytest.mark.parametrize(("slots", "rows"), [(1024, 1024), (2**20, 0)])
def test_the_plain_kernels_have_a_block_for_each_sequence_and_head(launched, slots, rows):
    _, ctx, _ = run(slots=slots, top_k=100)
    for name in ("plain_forward", "plain_backward"):
        [(grid, params)] = launched.of(name)
        assert (grid, params["spans"], params["rows"]) == ((4 * H,), ctx.call.packed.spans.data.ptr, rows)


def test_the_lists_are_made_once_for_all_layers(launched):
    first, second = run()[1], run()[1]
    assert first.call.packed is second.call.packed


def test_a_sequence_that_must_be_alone_is_never_cut(launched):
    """Packed, or with the option: no segments, and slices that follow from M alone."""
    one, many = (run(lengths=lengths)[1].chunked for lengths in ((4096,), (4096, 8, 8)))
    assert one.segments.contents == many.segments.contents == 1
    short, long = (run(slots=2**16, lengths=(T,))[1].chunked.layout for T in (20, 5000))
    assert short == long
