"""Rows of a sparse state on a GPU: its kernels on the CPU, then on a GPU against a dense state."""

import ctypes
import importlib
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ramnet_np.kernels.bench import tiers as tiers_bench
from ramnet_np.kernels.cuda.runtime.module import FOLDER

from ramnet_np import (
    MemoryTiers,
    RAMNet,
    RAMNetConfig,
    RAMState,
    SparseRAMState,
    ram_attention_forward,
    ram_attention_step,
)
from ramnet_np.core.rows_over_disk import RowsOverDisk
from tests.kernels.cuda_on_cpu import OnDevice, compile_for_cpu
from tests.kernels.rows_on_cpu import INITIAL, ROW, device_rows, fake_cupy, on, rows_library, rows_module
from tests.tolerances import assert_close

step_module = importlib.import_module("ramnet_np.kernels.cuda.step.step")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return rows_library(tmp_path_factory)


@pytest.fixture
def fake(library, monkeypatch):
    return fake_cupy(library, monkeypatch)


def drawn(rng, count):
    return np.unique(rng.integers(0, 2**40, 2 * count))[:count], rng.normal(size=(count, 5)).astype(np.float32)


def test_the_size_of_a_page_is_that_of_the_source():
    [bits] = re.findall(r"PAGE_BITS = (\d+)", (FOLDER / "sparse/rows.cuh").read_text())
    assert 1 << int(bits) == rows_module.PAGE_ROWS


@pytest.mark.parametrize("gpu", [None, 1, 0])
def test_rows_are_what_was_stored(fake, gpu):
    rng, held = np.random.default_rng(0), device_rows(gpu)
    expected = {}
    for count in (5, 600, 700):
        keys, rows = drawn(rng, count)
        some = np.array(list(expected)[: count // 2], dtype=np.int64)  # of which some are stored again
        keys = np.concatenate([some, np.setdiff1d(keys, some)[: count - some.size]])
        held.scatter(on(keys), on(rows))
        expected |= dict(zip(keys.tolist(), rows, strict=True))
        assert held.written == len(expected)
    known = np.array(list(expected))
    found = held.gather(on(np.concatenate([known, [2**41, 2**41 + 1]])))
    np.testing.assert_array_equal(found[:-2], list(expected.values()))
    np.testing.assert_array_equal(found[-2:], [[0, 0, 0, 0, 0.25]] * 2)
    assert (held.host_nbytes > 0) == (gpu is not None)
    blocks = list(held.blocks(1000))
    assert sorted(np.concatenate([keys for keys, _ in blocks]).tolist()) == sorted(expected)


def test_rows_asked_for_come_to_the_gpu(fake):
    rng, held = np.random.default_rng(0), device_rows(gpu=1)
    keys, rows = drawn(rng, 1500)
    fake.library.set_clock(ctypes.c_ulonglong(1))
    held.scatter(on(keys), on(rows))
    assert held.rows_on_gpu == rows_module.PAGE_ROWS
    where = {key: n for n, key in enumerate(held._key_of_row[:1500].tolist())}
    asked = np.array([key for key in keys.tolist() if where[key] >= rows_module.PAGE_ROWS][:50])
    fake.library.set_clock(ctypes.c_ulonglong(5))
    held.gather(on(asked))
    held.exchange()
    where = {key: n for n, key in enumerate(held._key_of_row[:1500].tolist())}
    assert all(where[key] < rows_module.PAGE_ROWS for key in asked.tolist())
    np.testing.assert_array_equal(held.gather(on(keys)), rows)
    assert held.written == 1500


def test_the_bench_counts_which_rows_of_a_token_the_gpu_had(fake, monkeypatch):
    rng, held = np.random.default_rng(0), device_rows(gpu=1)
    keys, rows = drawn(rng, 1500)
    held.scatter(on(keys), on(rows))
    here = held._key_of_row[:1500] < 0
    here[: rows_module.PAGE_ROWS] = True
    by_row, asked = held._key_of_row[:1500], []

    def token(sampling):
        numbers = rng.permutation(1500)[:50]
        asked.append(here[numbers].sum())
        fake.library.set_clock(ctypes.c_ulonglong(100 + len(asked)))
        held.gather(on(by_row[numbers]))

    fake.cuda.Device = lambda: SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(tiers_bench, "gpu_namespace", lambda: fake)
    monkeypatch.setattr(tiers_bench, "_sparse", lambda generated: [SimpleNamespace(up=held)])
    monkeypatch.setattr(tiers_bench.time, "sleep", lambda seconds: None)
    rate = tiers_bench._hit_rate(SimpleNamespace(next=token), 6)
    assert 0 < rate < 1
    assert rate == pytest.approx(sum(asked) / (6 * 50))


def test_the_host_asks_seldom_and_says_when_all_is_full(fake):
    held, asked = device_rows(gpu=1, host=1), []
    count = type(held).written.fget
    type(held).written = property(lambda self: asked.append(1) or count(self))
    try:
        for _ in range(40):
            held.prepare(16)  # of which none is added
        assert len(asked) == 0
        for _ in range(1000):
            held.prepare()
        assert len(asked) < 20
    finally:
        type(held).written = property(count)
    keys, rows = drawn(np.random.default_rng(0), 2048)
    held.scatter(on(keys), on(rows))
    with pytest.raises(MemoryError, match=r"memory.gpu and memory.host must hold every slot .* room for 2048 slots"):
        held.prepare(1)


def test_there_is_room_for_no_more_rows_than_slots(fake):
    held, rows = device_rows(gpu=1, slots=1500), np.ones((1500, 5), np.float32)
    for _ in range(3):
        held.scatter(on(np.arange(1500)), on(rows))
    assert len(held._pages) == 2
    assert held.shortage(10**6) < 0


def over_disk(fake, folder, gpu=1, host=1, **limits):
    up = device_rows(gpu, host)
    return RowsOverDisk(up, INITIAL, MemoryTiers(host=host, disk=folder, gpu=gpu, **limits), fake)


def test_rows_go_to_the_disk_and_come_back(fake, tmp_path):
    rng, held, expected = np.random.default_rng(0), over_disk(fake, tmp_path), {}
    assert held.stays
    for n in range(7):
        fake.library.set_clock(ctypes.c_ulonglong(n + 1))
        start = rng.integers(0, 2**40, 80)[:, None]
        keys = np.unique(start + rng.integers(0, 40, (80, 8)))  # pages that are full, in part
        some = rng.permutation(np.array(list(expected), dtype=np.int64))[:300]
        np.testing.assert_array_equal(
            held.gather(on(some)), [expected[key] for key in some.tolist()] or np.empty((0, 5))
        )
        keys = rng.permutation(np.concatenate([some[:100], np.setdiff1d(keys, some)]))
        rows = rng.normal(size=(len(keys), 5)).astype(np.float32)
        held.scatter(on(keys), on(rows))
        expected |= dict(zip(keys.tolist(), rows, strict=True))
        assert held.written == len(expected)
        assert held.up.written <= held.up.most_rows == 2 * rows_module.PAGE_ROWS
    assert held.disk_nbytes > 0
    assert not held.stays
    assert len(expected) > 1.5 * held.up.most_rows
    blocks = list(held.blocks(1000))
    keys = np.concatenate([keys for keys, _ in blocks])
    assert sorted(keys.tolist()) == sorted(expected)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), [expected[k] for k in keys.tolist()])
    np.testing.assert_array_equal(held.gather(on([2**41, *keys[:5]]))[0], [0, 0, 0, 0, 0.25])


def test_rows_that_did_not_change_are_not_written_again(fake, tmp_path):
    held, keys = over_disk(fake, tmp_path, host=0), np.arange(1300)
    held.scatter(on(keys), on(np.repeat(np.arange(1300, dtype=np.float32)[:, None], 5, axis=1)))
    stored = []
    storing, rows_of = held._disk.storing, lambda keys, rows: stored.append(len(keys)) or storing(keys, rows)
    held._disk.storing = rows_of
    for sweep in range(2):
        fake.library.set_clock(ctypes.c_ulonglong(sweep + 9))
        np.testing.assert_array_equal(held.gather(on(keys))[:, 4], keys)
    assert 0 < sum(stored) <= held.up.most_rows  # those that were up at first, once


def test_rows_leave_for_the_disk_a_few_at_a_time(fake, tmp_path, monkeypatch):
    held, rng, gathered = over_disk(fake, tmp_path), np.random.default_rng(0), []
    gather = held.up.gather
    monkeypatch.setattr("ramnet_np.core.rows_over_disk.AT_ONCE", 100)
    monkeypatch.setattr(held.up, "gather", lambda keys: gathered.append(keys.size) or gather(keys))
    keys, rows = drawn(rng, 3000)
    held.scatter(on(keys), on(rows))
    assert sum(gathered) >= 3000 - held.up.most_rows
    assert max(gathered) == 100
    found = dict(zip(*(np.concatenate(part).tolist() for part in zip(*held.blocks(1000), strict=True)), strict=True))
    np.testing.assert_array_equal([found[key] for key in keys.tolist()], rows)


def test_a_graph_goes_on_until_rows_are_on_the_disk(fake, tmp_path):
    held, rng = over_disk(fake, tmp_path), np.random.default_rng(0)
    for written in (1000, 2000):
        assert held.all_up(1000)
        keys, rows = drawn(rng, 1000)
        held.scatter(on(keys), on(rows))
        held.prepare()  # for 1000 more
        assert held.stays == (written == 1000)
    assert not held.all_up(1000)
    assert held.written == 2000


def test_a_token_that_does_not_fit_is_said(fake, tmp_path):
    held = over_disk(fake, tmp_path)
    held.scatter(on(np.arange(2500)), on(np.ones((2500, 5), np.float32)))
    with pytest.raises(
        MemoryError, match=r"memory.gpu and memory.host must hold all slots that a token touches.* 2048"
    ):
        held.bring_up(np.arange(0, 2500, 16), 0)
    full = over_disk(fake, tmp_path, disk_bytes=5000)
    with pytest.raises(OSError, match=r"memory.disk must have room for .* got 5000 bytes"):
        full.scatter(on(np.arange(2500)), on(np.ones((2500, 5), np.float32)))


@pytest.mark.parametrize("where", ["gpu", "host"])
def test_rows_that_fit_are_held_where_there_is_no_room_ahead(fake, monkeypatch, where):
    class CUDARuntimeError(RuntimeError):
        pass

    most, taken, page = 3, [], rows_module.PAGE_ROWS * ROW
    pinned = fake.cuda.alloc_pinned_memory

    def take(size, error):
        if sum(taken) + size > most * page:
            raise error("out of memory")
        taken.append(size)

    def empty(size, dtype):
        if dtype == np.uint8 and size >= page:
            take(size, MemoryError)
        return np.empty(size, dtype).view(OnDevice)

    def alloc(size):
        take(size, CUDARuntimeError)
        return pinned(size)

    if where == "gpu":
        fake.empty = empty
    fake.cuda.alloc_pinned_memory, fake.cuda.runtime = alloc, SimpleNamespace(CUDARuntimeError=CUDARuntimeError)
    held = device_rows(gpu=None if where == "gpu" else 0)
    keys, rows = drawn(np.random.default_rng(0), most * rows_module.PAGE_ROWS)
    for n in range(0, keys.size, 256):  # room for many more is asked for each time
        held.scatter(on(keys[n : n + 256]), on(rows[n : n + 256]))
    np.testing.assert_array_equal(held.gather(on(keys)), rows)
    with pytest.raises(
        MemoryError, match="out of memory" if where == "gpu" else "memory.host: no room for 16,384 bytes"
    ):
        held.scatter(on(keys[:1] + 2**41), on(rows[:1]))
    np.testing.assert_array_equal(held.gather(on(keys)), rows)


def test_what_is_refused(fake, tmp_path):
    with pytest.raises(ValueError, match=r"memory.host must say how many bytes stay above memory.disk, got None"):
        RowsOverDisk(device_rows(gpu=1), INITIAL, MemoryTiers(gpu=10**6, disk=tmp_path), fake)
    with pytest.raises(ValueError, match=r"memory.gpu must say how much of the GPU may be used where memory.host"):
        rows_module.DeviceRows(INITIAL, MemoryTiers(host=10**6), 16)


@pytest.mark.parametrize("hashed", [False, True])
def test_a_token_has_the_bits_of_one_over_a_dense_state(fake, tmp_path, hashed):
    (U, P, W, R, C, B, H), dtype = (3, 3, 4, 6, 5, 2, 3), np.dtype(np.float64)
    slots, mass = np.zeros((B, H, P**U, C)), np.full((B, H, P**U), 1 / P**U)
    initial = np.array([0.0] * C + [1 / P**U])
    rows = rows_module.DeviceRows(initial, MemoryTiers(gpu=0), 2**42 if hashed else B * H * P**U)
    rows._changed[...] = False
    rng = np.random.default_rng(0)
    libraries = []
    for row in (None, "double"):
        (tmp_path / str(row)).mkdir()
        step = step_module.step_specialisation("double", U, P, W, R, C, "pdma", row)
        libraries.append(compile_for_cpu(step, tmp_path / str(row)))
    for t in range(20):
        write, read = map(on, 2 * rng.normal(size=(2, B, 1, H, U, P)))
        values, gamma, positions = on(rng.normal(size=(B, 1, H, C))), on(rng.uniform(0, 2, (B, 1, H))), on([[t]] * B)
        mask, ys = on(rng.random((B, 1)) < 0.8), []
        rows.prepare(B * H * W)
        for library, memory in zip(libraries, ({"s": on(slots), "z": on(mass)}, {"table": rows.table}), strict=True):
            ys.append(on(np.full((B, 1, H, C), np.nan)))
            params = step_module.step_params(dtype, "table" in memory)(
                write_logits=write, read_logits=read, values=values, gamma=gamma, mask=mask, positions=positions,
                **memory, y=ys[-1], batch_stride=1, constant_gamma=0, eps=1e-12, heads=H, cape_heads=1,
                write_renorm=0, read_renorm=1, mass_aware=t % 2,
            )  # fmt: skip
            library.run_step(params.tobytes(), B * H, 1, 1)
        np.testing.assert_array_equal(*ys)
    found = rows.gather(on(np.arange(B * H * P**U)))
    np.testing.assert_array_equal(found[:, :C].reshape(slots.shape), slots)
    np.testing.assert_array_equal(found[:, C].reshape(mass.shape), mass)
    assert rows.written == (mass != 1 / P**U).sum() > 100
    asked, changed = rows.listing()[1:]
    assert asked.all()
    assert changed.all()


# ---- on a GPU ----


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


TIERS = {
    "gpu": MemoryTiers(),
    "both": MemoryTiers(gpu=300_000, host=10**8),
    "host": MemoryTiers(gpu=0),
}
WHERE = [*TIERS, "disk"]


def tiers(where, channels, dtype, layers=1):
    """As named; over a disk there is a page on the GPU and one in the host's memory."""
    if where != "disk":
        return TIERS[where]
    page = layers * rows_module.PAGE_ROWS * -(-channels * np.dtype(dtype).itemsize // 16) * 16
    return MemoryTiers(gpu=page, host=page, disk=Path(tempfile.gettempdir()))


@pytest.mark.gpu
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_steps_have_the_bits_of_a_dense_state(cp, where, dtype):
    rng, (B, H, U, P, C) = np.random.default_rng(0), (2, 3, 6, 3, 20)
    sums = np.float64 if dtype == "float64" else np.float32
    dense = RAMState.initial(B, H, P**U, C, sums, cp)
    sparse = SparseRAMState.initial(B, H, P**U, C, sums, cp, tiers=tiers(where, C, sums))
    for t in range(200):
        logits = cp.asarray(3 * rng.normal(size=(2, B, 1, H, U, P))).astype(dtype)
        values = cp.asarray(rng.normal(size=(B, 1, H, C))).astype(dtype)
        mask = cp.asarray(rng.random((B, 1)) < 0.9)
        options = {"cape_heads": 1, "positions": cp.asarray([t]), "mask": mask, "mass_aware": t % 2 == 0}
        expected, _ = ram_attention_step(*logits, values, state=dense, **options)
        y, returned = ram_attention_step(*logits, values, state=sparse, **options)
        assert returned is sparse
        np.testing.assert_array_equal(y.get(), expected.get())
        if t % 50 == 49:
            sparse.up.exchange()
    for ours, theirs in zip(sparse.dense(), dense, strict=True):
        np.testing.assert_array_equal(ours.get(), theirs.get())
    assert (sparse.rows.host_nbytes > 0) == (where != "gpu")
    assert (sparse.disk_nbytes > 0) == (where == "disk")


@pytest.mark.gpu
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("C", [20, 7])
def test_contents_in_16_bits_are_those_of_a_dense_state_that_is_rounded(cp, where, C):
    rng, (B, H, U, P) = np.random.default_rng(0), (2, 3, 6, 3)
    dense = RAMState.initial(B, H, P**U, C, np.float32, cp)
    memory = tiers(where, C, np.float32)._replace(rows="bfloat16")
    sparse = SparseRAMState.initial(B, H, P**U, C, np.float32, cp, tiers=memory)
    for t in range(200):
        logits, values = cp.asarray(3 * rng.normal(size=(2, B, 1, H, U, P))), cp.asarray(rng.normal(size=(B, 1, H, C)))
        arrays = [array.astype(np.float32) for array in (*logits, values)]
        expected, _ = ram_attention_step(*arrays, state=dense, mass_aware=t % 2 == 0)
        y, _ = ram_attention_step(*arrays, state=sparse, mass_aware=t % 2 == 0)
        np.testing.assert_array_equal(y.get(), expected.get())
        rows = cp.concatenate([dense.slots, dense.mass[..., None]], axis=3).reshape(-1, C + 1)
        dense.slots[...] = sparse.format.unpack(sparse.format.pack(rows))[:, :C].reshape(dense.slots.shape)
    for ours, theirs in zip(sparse.dense(), dense, strict=True):
        np.testing.assert_array_equal(ours.get(), theirs.get())


@pytest.mark.gpu
@pytest.mark.parametrize("where", WHERE)
def test_segments_agree_with_a_dense_state(cp, where):
    rng, (B, T, H, U, P, C) = np.random.default_rng(0), (2, 150, 3, 5, 4, 16)
    dense = RAMState.initial(B, H, P**U, C, np.float32, cp)
    sparse = SparseRAMState.initial(B, H, P**U, C, np.float32, cp, tiers=tiers(where, C, np.float32))
    for _ in range(3):
        logits = cp.asarray(2 * rng.normal(size=(2, B, T, H, U, P)).astype(np.float32))
        values = cp.asarray(rng.normal(size=(B, T, H, C)).astype(np.float32))
        mask = cp.asarray(rng.random((B, T)) < 0.9)
        y, _, _ = ram_attention_forward(*logits, values, state=sparse, mask=mask)
        expected, dense, _ = ram_attention_forward(*logits, values, state=dense, mask=mask)
        assert_close(y.get(), expected.get())
    for ours, theirs in zip(sparse.dense(), dense, strict=True):
        assert_close(ours.get(), theirs.get())


@pytest.mark.gpu
def test_a_large_memory_takes_what_is_written(cp):
    rng = np.random.default_rng(0)
    logits, values = cp.asarray(rng.normal(size=(2, 1, 9, 2, 30, 2))), cp.asarray(rng.normal(size=(1, 9, 2, 4)))
    state = SparseRAMState.initial(1, 2, 2**30, 4, np.float64, cp)
    y, _, _ = ram_attention_forward(*logits, values, state=state, top_k=3)
    expected, _, _ = ram_attention_forward(*logits.get(), values.get(), top_k=3, return_state=False)
    assert_close(y.get(), expected)
    assert 0 < state.written <= 9 * 2 * 3


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["on", "off"])
def test_a_model_writes_the_same_from_any_tier(cp, graphs, tmp_path):
    from ramnet_np.model.generation import Generation
    from ramnet_np.model.sampling import Sampling
    from ramnet_np.model.state_file import load_generation, save_generation
    from ramnet_np.model.states import arrays_of

    config = RAMNetConfig(vocab=29, width=32, layers=2, heads=2, order=5, cape=(2, 1), init_std=1.0)
    model, sampling = RAMNet(config, seed=0).to("gpu"), Sampling(temperature=1.0, seed=3)
    prompt = [cp.asarray(np.random.default_rng(1).integers(0, 29, 300))]

    def texts(memory):
        generation = Generation(model, prompt, graphs=graphs, memory=memory)
        first = [int(generation.next_on_host(sampling)[0]) for _ in range(60)]
        memories = arrays_of([stepper.state for stepper in generation.standing().steppers])
        assert any(state.disk_nbytes > 0 for state in memories) == (memory.disk is not None)
        save_generation(tmp_path / "a.state", generation)
        again = load_generation(tmp_path / "a.state", model, memory=memory)
        return first, [int(again.next_on_host(sampling)[0]) for _ in range(20)]

    expected = texts(MemoryTiers())
    small = tiers("disk", 16, np.float32, layers=2)._replace(host=0)
    for memory in (TIERS["both"], TIERS["host"], small):
        assert texts(memory) == expected
