"""The chunked kernels of the memory without a GPU: their C++ on the CPU, forward and backward, against the core.

In double, so that the tensor cores take no part. Dense kernels, for few slots, are in test_cuda_dense.py; what a GPU
does on top of that is in test_cuda_agreement.py.
"""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.memory import call, content, layout, memory, segments
from ramnet_np.kernels.cuda.memory.conflicts import conflict_specialisation
from ramnet_np.kernels.cuda.memory.content import content_specialisation
from ramnet_np.kernels.cuda.memory.couplings import coupling_specialisation
from ramnet_np.kernels.cuda.memory.mass_aware import mass_aware_specialisation
from ramnet_np.kernels.cuda.memory.mass_backward import mass_backward_specialisation
from ramnet_np.kernels.cuda.memory.mass_forward import mass_forward_specialisation
from ramnet_np.kernels.cuda.memory.segments import segment_specialisation
from ramnet_np.kernels.cuda.runtime import module

from ramnet_np.contract import Address, MemoryOptions, RAMState
from ramnet_np.core.memory import memory_backward, memory_forward
from tests.kernels.cuda_on_cpu import compile_for_cpu
from tests.kernels.test_cuda_launches import DeviceArray, device, empty
from tests.tolerances import assert_close

ROWS, CHANNELS, K, GAMMA = 500, 12, 8, 0.3  # rows: no multiple of 32; 12 channels: a slice of 8, and one half there
WIDE = 32  # channels: two wide slices, so that the order of four narrow ones shows
K_MANY = 32  # eight groups a token
MANY = 7003  # rows that shared memory has no room for; no multiple of 32


def unset(shape, dtype=np.float64):
    """Memory as a GPU may give it: NaN, and numbers below 0."""
    array = empty(shape, dtype)
    np.asarray(array).reshape(-1).view(np.uint8).fill(255)
    return array


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    chosen = layout.choose_layout(np.dtype(np.float64), ROWS, CHANNELS, K, K, layout.H100)
    large = layout.choose_layout(np.dtype(np.float64), MANY, CHANNELS, K, K, layout.H100)
    assert not large.in_shared
    whole, many = (layout.choose_layout(np.dtype(np.float64), ROWS, WIDE, k, k, layout.H100) for k in (K, K_MANY))
    each = chosen, whole, many, whole.widened(), many.widened()
    specialisations = [
        conflict_specialisation(chosen, "gsu", True),
        conflict_specialisation(chosen, "gsu", True, gradients=False),
        conflict_specialisation(large, "gsu", False),
        mass_forward_specialisation(large, False, False, False),
        mass_backward_specialisation(large, "gsu", False, False),
        mass_forward_specialisation(chosen, True, True, False),
        mass_aware_specialisation(chosen),
        mass_backward_specialisation(chosen, "gsu", True, True),
        content_specialisation(large, False),
        mass_forward_specialisation(chosen, False, True, False),
        mass_forward_specialisation(chosen, False, True, False, gradients=False),
        coupling_specialisation(chosen, "couple_forward"),
        coupling_specialisation(chosen, "couple_forward", gradients=False),
        *(content_specialisation(one, False) for one in each),
        coupling_specialisation(chosen, "couple_backward"),
        mass_backward_specialisation(chosen, "gsu", False, True),
        conflict_specialisation(many, "gsu", True),
        mass_forward_specialisation(many, False, True, False),
        coupling_specialisation(many, "couple_forward"),
        coupling_specialisation(many, "couple_backward"),
        mass_backward_specialisation(many, "gsu", False, True),
        mass_forward_specialisation(chosen, False, True, False, segmented=True),
        *(mass_backward_specialisation(chosen, "gsu", False, True, True, local_only) for local_only in (False, True)),
        segment_specialisation(chosen),
    ]

    folders = [tmp_path_factory.mktemp("kernels") for _ in specialisations]  # by one thread: pytest makes them in turn

    def compiled(specialisation, folder):
        threads = 512 if "mass_backward" in specialisation.source else 256
        return compile_for_cpu(specialisation, folder, threads)

    with ThreadPoolExecutor(2) as pool:
        libraries = dict(zip(specialisations, pool.map(compiled, specialisations, folders), strict=True))

    def get_kernel(specialisation, name):
        run = getattr(libraries[specialisation], f"run_{name}")

        def launch(grid, block, arguments, shared_mem=0):
            assert shared_mem <= 1 << 18
            run(arguments[0].tobytes(), *(*grid, 1, 1)[:3])

        return launch

    cuda = SimpleNamespace(
        get_current_stream=lambda: SimpleNamespace(is_capturing=lambda: False),
        runtime=SimpleNamespace(getDevice=lambda: 0),
    )
    cupy = SimpleNamespace(empty=unset, zeros=empty, empty_like=lambda a: unset(a.shape, a.dtype), cuda=cuda)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cupy", cupy)
        patch.setattr(DeviceArray, "device", SimpleNamespace(id=0), raising=False)
        patch.setattr(module, "get_kernel", get_kernel)
        for user in (call, memory):
            patch.setattr(user, "allocate_together", lambda *wanted: [unset(*each) for each in wanted])
        for user in (content, memory):
            patch.setattr(user, "shared_memory", lambda gpu: layout.H100)
        patch.setattr(content, "processors", lambda gpu: 132)
        yield


def drawn(rng, T, H, hot, top_k=K, slots=ROWS):
    """Addresses that prefer the first ``hot`` of ROWS among ``slots``. Some tokens have a weight above 1/2."""
    score = rng.random((1, T, H, ROWS))
    score[..., :hot] -= 0.6
    weight = -np.sort(-(rng.random((1, T, H, top_k)) ** 2), axis=-1)
    weight /= 1.1 * weight.sum(axis=-1, keepdims=True)
    heavy = rng.random((1, T, H)) < 0.25
    weight[heavy] *= 0.3
    weight[heavy, 0] = 0.7
    return Address(score.argsort(axis=-1)[..., :top_k].astype(np.int32) * (slots // ROWS), weight)


# 0: seldom do two reads of a token need the same earlier token. 8: every token reads what all before it wrote, so a
# chunk has 528 couplings, more than shared memory holds
@pytest.mark.parametrize(
    ("hot", "with_state", "slots", "mass_aware"),
    [(0, False, ROWS, False), (8, False, ROWS, False), (0, True, ROWS, False), (8, False, ROWS, True),
     (8, True, MANY, False)],
)  # fmt: skip
def test_forward_and_backward_are_those_of_the_core(on_cpu, hot, with_state, slots, mass_aware):
    rng = np.random.default_rng(hot)
    T, H = 45, 2  # a chunk and a part of one
    write, read = (drawn(rng, T, H, hot, slots=slots) for _ in range(2))
    if with_state and not hot:  # by two tokens each, so that there are more lists than two rounds take
        for address in (write, read):
            address.index[:, 1::2] = address.index[:, :-1:2]
    values, dy = rng.standard_normal((2, 1, T, H, CHANNELS))
    options = MemoryOptions(slots=slots, update="gsu", batch_invariant=True, mass_aware=mass_aware)
    start = dend = None
    if with_state:
        start, dend = (
            RAMState(rng.standard_normal((1, H, slots, CHANNELS)), rng.random((1, H, slots))) for _ in range(2)
        )
    on_device = [state and RAMState(*map(device, state)) for state in (start, dend)]
    given = *(Address(*map(device, address)) for address in (write, read)), device(values), GAMMA, None
    y, end, ctx = memory.memory_forward(*given, on_device[0], options, with_state)
    grads = memory.memory_backward(device(dy), on_device[1], ctx)
    expected_y, expected_end, expected_ctx = memory_forward(
        write, read, values, GAMMA, None, start, options, with_state
    )
    expected = memory_backward(dy, dend, expected_ctx)
    assert_close(np.asarray(y), expected_y)
    if with_state:
        for found, wanted in zip((*end, *grads.state), (*expected_end, *expected.state), strict=True):
            assert_close(np.asarray(found), wanted, gradient=True)
    for name in ("values", "write_weight", "read_weight", "gamma"):
        assert_close(np.asarray(getattr(grads, name)), getattr(expected, name), gradient=True)
    if mass_aware or slots == MANY:
        return
    # the same bits where no backward follows
    y_alone, end_alone, _ = memory.memory_forward(*given, on_device[0], options._replace(gradients=False), with_state)
    np.testing.assert_array_equal(np.asarray(y_alone), np.asarray(y))
    for found, wanted in zip(end_alone or (), end or (), strict=True):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def contents_in_wide_slices(monkeypatch):
    narrow = memory.content_pass
    monkeypatch.setattr(
        memory,
        "content_pass",
        lambda name, call, chosen, *rest, **kw: narrow(name, call, chosen.widened(), *rest, **kw),
    )


@pytest.fixture
def five_processors(monkeypatch):
    """Segments of single chunks, as many as a small GPU has room for."""
    monkeypatch.setattr(segments, "MIN_CHUNKS", 1)
    monkeypatch.setattr(memory, "processors", lambda gpu: 5)
    cached = segments.choose_segments, segments.segments_of_adjoints
    for choose in cached:
        choose.cache_clear()
    yield
    for choose in cached:
        choose.cache_clear()


@pytest.mark.parametrize("channels", [CHANNELS, WIDE])  # in narrow slices, and in wide ones
def test_segments_are_those_of_the_core(on_cpu, five_processors, monkeypatch, channels):
    rng = np.random.default_rng(0)
    T, H = 350, 1  # eleven chunks
    write, read = drawn(rng, T, H, 4), drawn(rng, T, H, 4)
    values, dy = rng.standard_normal((2, 1, T, H, channels))
    if channels == WIDE:
        monkeypatch.setattr(memory, "choose_segments", lambda *_: call.Segments(3, 4, 2))
        contents_in_wide_slices(monkeypatch)
    options = MemoryOptions(slots=ROWS, update="gsu")
    given = *(Address(*map(device, address)) for address in (write, read)), device(values), GAMMA, None
    y, _, ctx = memory.memory_forward(*given, None, options, False)
    assert ctx.chunked.segments == call.Segments(3, 4, 2)
    grads = memory.memory_backward(device(dy), None, ctx)
    expected_y, _, expected_ctx = memory_forward(write, read, values, GAMMA, None, None, options, False)
    expected = memory_backward(dy, None, expected_ctx)
    assert_close(np.asarray(y), expected_y)
    for name in ("values", "write_weight", "read_weight", "gamma"):
        assert_close(np.asarray(getattr(grads, name)), getattr(expected, name), gradient=True)


def test_what_a_long_segment_makes_of_masses_is_what_its_chunks_make_of_them(on_cpu):
    """More chunks than loads are under way at a time (RING in segments.cu)."""
    rng = np.random.default_rng(0)
    T, chunks = 640, 20
    write, read = drawn(rng, T, 1, 4), drawn(rng, T, 1, 4)
    options = MemoryOptions(slots=ROWS, update="gsu")
    addresses = (Address(*map(device, address)) for address in (write, read))
    one = call.Call(*addresses, device(np.zeros((1, T, 1, CHANNELS))), GAMMA, None, None, options, ROWS, False, None)
    chosen = layout.choose_layout(np.dtype(np.float64), ROWS, CHANNELS, K, K, layout.H100)
    kept = call.allocate_kept(one, chosen, chosen.record_bytes)
    params = call.fill_memory_params(one, kept)
    change_before = memory.find_conflicts(one, chosen, params, kept)
    by_chunk, by_segment = (
        np.asarray(segments.mass_local_ends(one, chosen, params, kept, change_before, cut))[0]
        for cut in ((chunks, 1), (2, 18))
    )
    expected = np.tile([1.0, 0.0], (ROWS, 1))
    for a, b in by_chunk[:18].transpose(0, 2, 1):
        expected = np.stack([a * expected[:, 0], a * expected[:, 1] + b], axis=1)
    np.testing.assert_allclose(by_segment[0], expected, rtol=1e-12)


class Coming:
    """Rows that are there only when their part is taken."""

    def __init__(self, write, read, contents, tokens):
        self.tokens, self.contents, self.parts = tokens, contents, -(-write.shape[1] // tokens)
        self.first = np.full(contents.shape[1:3], 10**6)  # the first token that uses each row
        for side in (write, read):
            for (_, t, h, _), row in np.ndenumerate(side):
                self.first[h, row] = min(t, self.first[h, row])

    def take(self, part, working):
        own = self.first // self.tokens == part
        np.asarray(working).reshape(self.contents.shape)[0][own] = self.contents[0][own]


def test_contents_that_come_in_parts_have_the_bits_of_those_that_are_there(on_cpu):
    rng = np.random.default_rng(0)
    T, H = 107, 2  # three parts of a chunk, and a part of one
    write, read = (drawn(rng, T, H, 8, slots=MANY) for _ in range(2))
    values, gamma = rng.standard_normal((1, T, H, CHANNELS)), rng.random((1, T, H))
    start = RAMState(rng.standard_normal((1, H, MANY, CHANNELS)), rng.random((1, H, MANY)))
    given = *(Address(*map(device, address)) for address in (write, read)), device(values), device(gamma), None
    options = MemoryOptions(slots=MANY, update="gsu")
    y, end, _ = memory.memory_forward(*given, RAMState(*map(device, start)), options, True)
    expected_y, expected_end, _ = memory_forward(write, read, values, gamma, None, start, options, True)
    for found, wanted in zip((y, *end), (expected_y, *expected_end), strict=True):
        assert_close(np.asarray(found), wanted)
    not_there = RAMState(device(np.full_like(start.slots, np.nan)), device(start.mass))
    coming = Coming(write.index, read.index, start.slots, 32)
    own_y, own_end, _ = memory.memory_forward_of_coming_rows(*given, not_there, options, True, coming)
    np.testing.assert_array_equal(np.asarray(own_y), np.asarray(y))
    used = coming.first < T
    for own, expected in zip(own_end, end, strict=True):
        np.testing.assert_array_equal(np.asarray(own)[0][used], np.asarray(expected)[0][used])


@pytest.mark.parametrize("top_k", [K, K_MANY])
def test_wide_slices_have_the_bits_of_narrow_ones(on_cpu, monkeypatch, top_k):
    rng = np.random.default_rng(0)
    T, H = 856 // top_k, 2  # four chunks, whose copies take turns in shared memory
    write, read = (drawn(rng, T, H, 4, top_k) for _ in range(2))
    values, dy = rng.standard_normal((2, 1, T, H, WIDE))
    start, dend = (RAMState(rng.standard_normal((1, H, ROWS, WIDE)), rng.random((1, H, ROWS))) for _ in range(2))
    given = *(Address(*map(device, address)) for address in (write, read)), device(values), GAMMA, None

    def results():
        options = MemoryOptions(slots=ROWS, update="gsu", batch_invariant=True)
        y, end, ctx = memory.memory_forward(*given, RAMState(*map(device, start)), options, True)
        grads = memory.memory_backward(device(dy), RAMState(*map(device, dend)), ctx)
        return y, *end, *grads.state, grads.values, grads.write_weight, grads.read_weight, grads.gamma

    expected = results()
    contents_in_wide_slices(monkeypatch)
    for found, wanted in zip(results(), expected, strict=True):
        if wanted is not None:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))
