"""The rows of a segment on a GPU, to a small dense state and back: the kernels on the CPU, then on a GPU."""

import ctypes
import importlib
import threading
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.cuda.memory.layout import MAX_CHUNKED_K, chunk_tokens

from ramnet_np import MemoryTiers, RAMState, SparseRAMState, ram_attention_backward, ram_attention_forward
from ramnet_np.contract import Address, MemoryOptions
from ramnet_np.core import sparse_memory
from ramnet_np.core.numpy_backend import BACKEND
from ramnet_np.core.slot_numbers import number_slots
from ramnet_np.core.sparse_memory import sparse_memory_forward
from tests.kernels.cuda_on_cpu import compile_for_cpu
from tests.kernels.rows_on_cpu import device_rows, fake_cupy, on, rows_library, rows_module

numbers_module = importlib.import_module("ramnet_np.kernels.cuda.sparse.numbers")
segment_module = importlib.import_module("ramnet_np.kernels.cuda.sparse.segment_rows")
beside = importlib.import_module("ramnet_np.kernels.cuda.sparse.beside")
arriving_module = importlib.import_module("ramnet_np.kernels.cuda.sparse.arriving")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return rows_library(tmp_path_factory)


@pytest.fixture
def fake(library, monkeypatch):
    return fake_cupy(library, monkeypatch)


class Second:
    """The second stream, whose work runs as late as it may: when someone waits for it."""

    def __init__(self, fake):
        self.fake, self.work, self.first = fake, [], fake.cuda.get_current_stream()
        self.gpu = 0  # the current one; the rows are on 0
        self.early = False  # or else as early as it may: at once
        self.first.record = lambda: "before"
        self.first.wait_event = lambda event: self.gpu or event.synchronize()

    def __enter__(self):
        self.fake.cuda.get_current_stream = lambda: self

    def __exit__(self, *error):
        self.fake.cuda.get_current_stream = lambda: self.first

    @contextmanager
    def on_gpu(self, gpu):
        before, self.gpu = self.gpu, gpu
        yield
        self.gpu = before

    def wait_event(self, event):
        assert event == "before"

    def record(self):
        return Event(self.work, self.work[-1] if self.work else None)


class Event:
    """Behind the last of a stream's work."""

    def __init__(self, work, last):
        self.work, self.last = work, last

    def synchronize(self):
        while not self.done:
            self.work.pop(0)()

    @property
    def done(self):
        return self.last not in self.work


@pytest.fixture
def second(fake, monkeypatch):
    stream = Second(fake)
    fake.cuda.Stream, fake.cuda.Device = (lambda non_blocking: stream), stream.on_gpu
    fake.cuda.runtime = SimpleNamespace(getDevice=lambda: stream.gpu)
    monkeypatch.setattr(beside, "_streams", threading.local())
    monkeypatch.setattr(beside, "_running", [])
    return stream


@pytest.fixture(scope="module")
def numbers_library(library, tmp_path_factory):
    return compile_for_cpu(numbers_module.NUMBERS, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def launches_of_segments(fake, second, numbers_library, monkeypatch):
    """Let segments run by these kernels."""

    # so many blocks take all rows by turns: on a CPU each block starts its threads anew
    monkeypatch.setattr(segment_module, "BLOCKS_BESIDE", 3)
    monkeypatch.setattr(segment_module, "BLOCKS_AHEAD", 5)

    def by(kernels):
        def launch(specialisation, name, grid, threads):
            def run(params):
                work = partial(getattr(kernels, f"run_{name}"), params.tobytes(), grid[0], 1, 1)
                late = fake.cuda.get_current_stream() is second and not second.early
                second.work.append(work) if late else work()

            return run

        def launch_numbers(specialisation, name, grid, threads):
            return lambda params: getattr(numbers_library, f"run_{name}")(params.tobytes(), grid[0], 1, 1)

        monkeypatch.setattr(segment_module, "Launch", launch)
        monkeypatch.setattr(numbers_module, "Launch", launch_numbers)

    return by


def dense_of(small):
    return [part.reshape(-1, *part.shape[2:]) for part in small]


@pytest.mark.parametrize(
    ("row", "channels", "slots", "gpu"),
    [
        ("float", 6, 400, None),
        ("float", 7, 6, 0),
        ("double", 5, 400, 0),
        ("bfloat16", 5, 400, 0),
        ("bfloat16", 14, 5, None),
    ],
)
def test_a_segment_is_gathered_and_stored_as_by_the_core(
    fake, launches_of_segments, tmp_path, row, channels, slots, gpu
):
    kernels = compile_for_cpu(segment_module.segment_specialisation(row), tmp_path)
    launches_of_segments(kernels)
    rng, (B, T, H, M, K) = np.random.default_rng(0), (2, 6, 3, slots, 4)
    dtype = np.float64 if row == "double" else np.float32
    stored = {"tiers": MemoryTiers(rows="bfloat16" if row == "bfloat16" else None), "initial_mass": 0.3}
    expected = SparseRAMState.initial(B, H, M, channels, dtype, **stored)
    ours = SparseRAMState.initial(B, H, M, channels, dtype, **stored)
    ours.rows = rows_module.DeviceRows(ours.format.initial(0.3), MemoryTiers(gpu=gpu), B * H * M)
    ours.rows._changed[...] = False
    for segment in range(3):
        for kernel in (fake.library, kernels):
            kernel.set_clock(ctypes.c_ulonglong(segment + 1))
        write, read = (rng.integers(0, M, (2, B, T, H, K)) // rng.integers(1, 4, (H, 1))).astype(np.int32)
        mask = rng.random((B, T)) < 0.7
        numbers = number_slots(write, read, mask, M)
        *sides, small, _, put_back = ours.segment(on(write), on(read), on(mask))
        *expected_sides, theirs, _, put_theirs = sparse_memory._gathered(expected, write, read, mask)
        for one, other in zip(sides, expected_sides, strict=True):
            np.testing.assert_array_equal(one, other)
        n = small.mass.shape[2]
        assert n == (M if M <= T else np.diff(numbers.start).max())
        for one, other in zip(dense_of(small), dense_of(theirs), strict=True):
            for head, count in enumerate(np.diff(numbers.start)):
                np.testing.assert_array_equal(one[head, :count], other[head, :count])
        final = [on(rng.normal(size=part.shape).astype(dtype)) for part in small]
        put_back(RAMState(*final)), put_theirs(RAMState(*(np.asarray(p[:, :, : theirs.mass.shape[2]]) for p in final)))
        assert ours.written == expected.written
        keys, used, changed = ours.rows.listing()
        np.testing.assert_array_equal(used == segment + 1, np.isin(keys, numbers.keys))
        assert changed.all()
    every = np.arange(B * H * M)
    np.testing.assert_array_equal(ours.gather(on(every)), expected.gather(every))


@pytest.fixture(scope="module")
def segment_library(library, tmp_path_factory):
    specialisation = segment_module.segment_specialisation("float")
    return compile_for_cpu(specialisation, tmp_path_factory.mktemp("kernels"))


def segment(held, *slots):
    """A segment of one head that writes these slots, and reads the first."""
    index = on(np.array(slots, np.int32).reshape(1, 1, 1, -1))
    _, _, contents, mass, _, put_back = held.segment(index, index[..., :1], None, 2**31 - 1, 4)
    return contents, mass, put_back


USES = {
    "written": lambda held: held.written,
    "prepare": lambda held: held.prepare(1),
    "gather": lambda held: held.gather(on([5])),
    "scatter": lambda held: held.scatter(on([5]), on(np.ones((1, 5), np.float32))),
    "segment": lambda held: segment(held, 5),
    "blocks": lambda held: list(held.blocks(10)),
    "listing": lambda held: held.listing(),
    "exchange": lambda held: held.exchange(),
    "the end": lambda held: held.__del__(),
}


@pytest.mark.parametrize("use", USES)
def test_rows_go_back_before_anyone_uses_them(second, launches_of_segments, segment_library, use):
    launches_of_segments(segment_library)
    held, gone = device_rows(gpu=0), []
    contents, mass, put_back = segment(held, 3, 5)
    contents[...], mass[...] = 7, 8
    weakref.finalize(contents, gone.append, True)
    put_back(contents, mass)
    del contents, mass, put_back
    assert second.work
    assert not gone
    USES[use](held)
    assert not second.work
    np.testing.assert_array_equal(held.gather(on([3])), [[7, 7, 7, 7, 8]])
    put_back = segment(held, 9)[2]
    put_back(on(np.ones((1, 1, 4), np.float32)), on(np.ones((1, 1), np.float32)))
    assert gone  # what the work needed is given back by the next one


def test_whoever_asks_from_another_gpu_sees_the_rows_that_went_back(second, launches_of_segments, segment_library):
    launches_of_segments(segment_library)
    held = device_rows(gpu=0)
    contents, mass, put_back = segment(held, 3)
    put_back(contents, mass)
    with second.on_gpu(1):
        assert held.written == 1


# with T = 4: few slots that fit into the page that is there, few that may not, many
@pytest.mark.parametrize(("slots", "asked"), [(3, 0), (4, 1), (600, 1)])
def test_the_host_asks_how_many_slots_there_are_only_where_it_must(
    launches_of_segments, segment_library, monkeypatch, slots, asked
):
    launches_of_segments(segment_library)
    heads, asks, on_host = 300, [], numbers_module.Numbers.on_host.func
    counted = cached_property(lambda self: asks.append(1) or on_host(self))
    counted.__set_name__(numbers_module.Numbers, "on_host")
    monkeypatch.setattr(numbers_module.Numbers, "on_host", counted)
    held = device_rows(slots=heads * slots)
    index = on(np.random.default_rng(0).integers(0, slots, (1, 4, heads, 2), np.int32))
    *_, contents, mass, _, put_back = held.segment(index, index, None, slots, 4)
    put_back(contents, mass)
    assert len(asks) == asked
    head = np.arange(heads)[:, None]
    assert held.written == len(np.unique(head * slots + index))


def test_rows_on_the_gpu_are_stored_at_once(second, launches_of_segments, segment_library):
    launches_of_segments(segment_library)
    held = device_rows()
    contents, mass, put_back = segment(held, 3)
    put_back(contents, mass)
    assert not second.work
    assert held.written == 1


# ---- rows that come in parts ----


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 256, 257, 8191, 8192])
def test_parts_end_where_chunks_of_the_memory_do(tokens):
    size = arriving_module.part_tokens(tokens)
    assert -(-tokens // size) <= arriving_module.PARTS
    sizes = range(1, MAX_CHUNKED_K + 1)
    assert all(size % chunk_tokens(writes, reads) == 0 for writes in sizes for reads in sizes)


@pytest.fixture
def in_parts(monkeypatch):
    """Rows of segments come in parts, however few there are on the host. Returns what counts the parts of each."""
    counts = []

    class Counted(arriving_module.Arriving):
        def __init__(self, *args):
            super().__init__(*args)
            counts.append(self.parts)

    monkeypatch.setattr(rows_module, "LEAST_BYTES", 0)
    monkeypatch.setattr(rows_module, "Arriving", Counted)
    return counts


def in_order(write, read, values, gamma, mask, state, options, return_state, arriving):
    """The core's memory, each part with the rows that have come until then."""
    working, mass, ys = unset(state.slots.shape, state.slots.dtype), state.mass, []
    for part in range(arriving.parts):
        arriving.take(part, working.reshape(-1, *working.shape[2:]))
        tokens = slice(part * arriving.tokens, (part + 1) * arriving.tokens)
        sides = (Address(*(array[:, tokens] for array in side)) for side in (write, read))
        rest = values[:, tokens], gamma[:, tokens], mask[:, tokens], RAMState(working, mass), options, True
        y, (slots, mass), _ = BACKEND.memory_forward(*sides, *rest)
        working[...] = slots
        ys.append(y)
    _, _, ctx = BACKEND.memory_forward(write, read, values, gamma, mask, state, options, return_state)
    return np.concatenate(ys, axis=1), RAMState(working, mass) if return_state else None, ctx


def unset(shape, dtype):
    """An array that nobody has set: what is taken from it shows."""
    return on(np.full(shape, -9 if np.issubdtype(dtype, np.integer) else np.nan, dtype))


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("slots", "gpu", "takes"), [(30, 0, True), (500, 0, False), (2**31 - 1, 0, True), (2**31 - 1, 1, True)]
)
def test_rows_that_come_in_parts_give_the_bits_of_a_dense_state(
    fake, second, launches_of_segments, in_parts, monkeypatch, tmp_path, slots, gpu, takes, early
):
    launches_of_segments(compile_for_cpu(segment_module.segment_specialisation("double"), tmp_path))
    monkeypatch.setattr(arriving_module, "UNIT", 8)
    second.early = early
    backend = replace(BACKEND, sparse_forward=in_order) if takes else BACKEND
    rng, (B, T, H, K, C) = np.random.default_rng(0), (2, 70, 3, 4, 5)
    used = min(slots, 400)  # too many for a page on the GPU from the first segment on
    state = SparseRAMState.initial(B, H, slots, C, np.float64, initial_mass=0.3)
    state.rows = rows_module.DeviceRows(state.format.initial(0.3), MemoryTiers(gpu=gpu * 48 * 1024), B * H * slots)
    dense, fake.empty = RAMState(np.zeros((B, H, used, C)), np.full((B, H, used), 0.3)), unset
    for segment in range(3):
        write, read = (
            Address(np.argsort(rng.random((B, T, H, used)))[..., :K].astype(np.int32), rng.random((B, T, H, K)))
            for _ in range(2)
        )
        values, gamma, mask = rng.normal(size=(B, T, H, C)), rng.random((B, T, H)), rng.random((B, T)) < 0.8
        options, dy = MemoryOptions(slots=used, mass_aware=segment % 2 == 1), rng.normal(size=values.shape)
        y, after, ctx = BACKEND.memory_forward(write, read, values, gamma, mask, dense, options, True)
        grads = BACKEND.memory_backward(dy, None, ctx)
        ours = [Address(on(side.index), side.weight) for side in (write, read)]
        options = options._replace(slots=slots)
        for keep in (False, True):
            found, _, ctx = sparse_memory_forward(backend, *ours, values, gamma, on(mask), state, options, keep)
            np.testing.assert_array_equal(found, y)
        for name, own, theirs in zip(grads._fields, BACKEND.memory_backward(dy, None, ctx), grads, strict=True):
            if name != "state":
                np.testing.assert_array_equal(own, theirs, err_msg=name)
        dense = after
    assert set(in_parts) == {3}  # of 24 tokens
    assert len(in_parts) == 4  # the first two find nothing on the host
    keys = (np.arange(B * H)[:, None] * slots + np.arange(used)).ravel()
    rows = state.gather(on(keys))
    np.testing.assert_array_equal(rows[:, :C].reshape(dense.slots.shape), dense.slots)
    np.testing.assert_array_equal(rows[:, C].reshape(dense.mass.shape), dense.mass)


def test_what_rows_come_into_lives_until_they_are_there(second, launches_of_segments, segment_library, in_parts):
    launches_of_segments(segment_library)
    held = device_rows(gpu=0)
    held.scatter(on([3, 5]), on(np.ones((2, 5), np.float32)))
    index = on(np.array([3, 5], np.int32).reshape(1, 1, 1, -1))
    taken = held.segment(index, index, None, 2**31 - 1, 4)
    assert second.work
    del taken  # as after an error
    assert not second.work


def test_rows_that_are_on_the_gpu_do_not_come_in_parts(launches_of_segments, segment_library, in_parts):
    launches_of_segments(segment_library)
    held = device_rows()
    segment(held, 3, 5)
    assert not in_parts


# ---- on a GPU ----


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [None, "bfloat16"])
@pytest.mark.parametrize("order", [5, 7, 10])  # contents in shared memory, and in device memory
def test_long_segments_have_the_same_bits_from_any_tier(cp, in_parts, order, rows):
    # rows go back to the host, and those of later parts come, while the other memory's segment is under way
    rng, (B, T, H, P, C) = np.random.default_rng(0), (1, 3000, 4, 4, 64)
    everywhere = [MemoryTiers(rows=rows), MemoryTiers(gpu=0, rows=rows), MemoryTiers(gpu=2**18, rows=rows)]
    memories = [SparseRAMState.initial(B, H, P**order, C, np.float32, cp, tiers=tiers) for tiers in everywhere]
    for n in range(6):
        logits = cp.asarray(2 * rng.normal(size=(2, B, T, H, order, P)).astype(np.float32))
        values, dy = (cp.asarray(rng.normal(size=(B, T, H, C)).astype(np.float32)) for _ in range(2))
        results = [ram_attention_forward(*logits, values, state=m, mass_aware=n % 2 == 1) for m in memories]
        grads = [ram_attention_backward(dy, ctx) for _, _, ctx in results]
        for (y, _, _), own in zip(results[1:], grads[1:], strict=True):
            np.testing.assert_array_equal(y.get(), results[0][0].get())
            for name in ("write_logits", "read_logits", "values"):
                np.testing.assert_array_equal(getattr(own, name).get(), getattr(grads[0], name).get(), err_msg=name)
    assert len(in_parts) >= 6
    assert set(in_parts) == {4}
    assert all(memory.rows.host_nbytes for memory in memories[1:])
    keys = cp.sort(next(memories[0].blocks(10**7))[0])
    for memory in memories[1:]:
        assert memory.written == memories[0].written == len(keys)
        np.testing.assert_array_equal(memory.gather(keys).get(), memories[0].gather(keys).get())
