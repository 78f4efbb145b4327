"""Rows of a sparse state on a GPU: its kernels on the CPU, then on a GPU against a dense state."""

import ctypes
import importlib
import re
import shutil
import sys

import numpy as np
import pytest
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
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu
from tests.tolerances import assert_close

rows_module = importlib.import_module("ramnet_np.kernels.cuda.sparse.rows")
step_module = importlib.import_module("ramnet_np.kernels.cuda.step.step")
ROW = 32  # bytes of a row of 5 numbers


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    return compile_for_cpu(rows_module.ROWS, "RowsParams", tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def fake(library, monkeypatch):
    """CuPy, and launches that run on the CPU."""

    class Launch:
        def __init__(self, specialisation, name, grid, threads):
            self.name, self.grid = name, grid

        def __call__(self, params):
            getattr(library, f"run_{self.name}")(params.tobytes(), self.grid[0])

    cupy = FakeCuPy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(rows_module, "Launch", Launch)
    cupy.library = library
    return cupy


def device_rows(gpu=None, host=None):
    """Rows of 4 contents and a mass, with so many pages."""
    page = rows_module.PAGE_ROWS * ROW
    tiers = MemoryTiers(gpu=None if gpu is None else gpu * page, host=None if host is None else host * page)
    return rows_module.DeviceRows(4, np.dtype(np.float32), 0.25, tiers)


def on(array):
    return np.ascontiguousarray(array).view(OnDevice)


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
    where = {key: n for n, key in enumerate(held._key_of_row[:1500].tolist())}
    asked = np.array([key for key in keys.tolist() if where[key] >= rows_module.PAGE_ROWS][:50])
    fake.library.set_clock(ctypes.c_ulonglong(5))
    held.gather(on(asked))
    held.exchange()
    where = {key: n for n, key in enumerate(held._key_of_row[:1500].tolist())}
    assert all(where[key] < rows_module.PAGE_ROWS for key in asked.tolist())
    np.testing.assert_array_equal(held.gather(on(keys)), rows)
    assert held.written == 1500


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


def test_what_is_refused(fake, tmp_path):
    with pytest.raises(ValueError, match=r"memory.disk must be None for a state on the GPU"):
        rows_module.DeviceRows(4, np.dtype(np.float32), 0.25, MemoryTiers(host=10**6, disk=tmp_path))
    with pytest.raises(ValueError, match=r"memory.gpu must say how much of the GPU may be used where memory.host"):
        rows_module.DeviceRows(4, np.dtype(np.float32), 0.25, MemoryTiers(host=10**6))


def test_a_token_has_the_bits_of_one_over_a_dense_state(fake, tmp_path):
    (U, P, W, R, C, B, H), dtype = (3, 3, 4, 6, 5, 2, 3), np.dtype(np.float64)
    slots, mass = np.zeros((B, H, P**U, C)), np.full((B, H, P**U), 1 / P**U)
    rows, rng = rows_module.DeviceRows(C, dtype, 1 / P**U, MemoryTiers(gpu=0)), np.random.default_rng(0)
    libraries = []
    for sparse in (False, True):
        (tmp_path / str(sparse)).mkdir()
        step = step_module.step_specialisation("double", U, P, W, R, C, "pdma", sparse)
        libraries.append(compile_for_cpu(step, "StepParams", tmp_path / str(sparse)))
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
            library.run_step(params.tobytes(), B * H)
        np.testing.assert_array_equal(*ys)
    found = rows.gather(on(np.arange(B * H * P**U)))
    np.testing.assert_array_equal(found[:, :C].reshape(slots.shape), slots)
    np.testing.assert_array_equal(found[:, C].reshape(mass.shape), mass)
    assert rows.written == (mass != 1 / P**U).sum() > 100


# ---- on a GPU ----


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


TIERS = {"gpu": MemoryTiers(), "both": MemoryTiers(gpu=300_000, host=10**8), "host": MemoryTiers(gpu=0)}


@pytest.mark.gpu
@pytest.mark.parametrize("where", TIERS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_steps_have_the_bits_of_a_dense_state(cp, where, dtype):
    rng, (B, H, U, P, C) = np.random.default_rng(0), (2, 3, 6, 3, 20)
    sums = np.float64 if dtype == "float64" else np.float32
    dense = RAMState.initial(B, H, P**U, C, sums, cp)
    sparse = SparseRAMState.initial(B, H, P**U, C, sums, cp, tiers=TIERS[where])
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
            sparse.rows.exchange()
    for ours, theirs in zip(sparse.dense(), dense, strict=True):
        np.testing.assert_array_equal(ours.get(), theirs.get())
    assert (sparse.rows.host_nbytes > 0) == (where != "gpu")


@pytest.mark.gpu
@pytest.mark.parametrize("where", TIERS)
def test_segments_agree_with_a_dense_state(cp, where):
    rng, (B, T, H, U, P, C) = np.random.default_rng(0), (2, 150, 3, 5, 4, 16)
    dense = RAMState.initial(B, H, P**U, C, np.float32, cp)
    sparse = SparseRAMState.initial(B, H, P**U, C, np.float32, cp, tiers=TIERS[where])
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

    config = RAMNetConfig(vocab=29, width=32, layers=2, heads=2, order=5, cape=(2, 1), init_std=1.0)
    model, sampling = RAMNet(config, seed=0).to("gpu"), Sampling(temperature=1.0, seed=3)
    prompt = [cp.asarray(np.random.default_rng(1).integers(0, 29, 40))]

    def texts(memory):
        generation = Generation(model, prompt, graphs=graphs, memory=memory)
        first = [int(generation.next_on_host(sampling)[0]) for _ in range(60)]
        save_generation(tmp_path / "a.state", generation)
        again = load_generation(tmp_path / "a.state", model, memory=memory)
        return first, [int(again.next_on_host(sampling)[0]) for _ in range(20)]

    expected = texts(MemoryTiers())
    for where in ("both", "host"):
        assert texts(TIERS[where]) == expected
