"""Contents of few slots as products of dense matrices: the kernels on the CPU, token after token being the truth."""

import importlib
import shutil
import sys

import numpy as np
import pytest
from ramnet_np.kernels.cuda.memory.call import Call, Kept, fill_memory_params
from ramnet_np.kernels.cuda.memory.dense import PASSES, Dense, choose_dense
from ramnet_np.kernels.cuda.memory.layout import H100, choose_layout
from ramnet_np.kernels.cuda.memory.mass_backward import Dots

from ramnet_np.contract import Address, MemoryOptions
from tests.kernels.cuda_on_cpu import FakeCuPy, OnDevice, compile_for_cpu

module = importlib.import_module("ramnet_np.kernels.cuda.memory.dense")
B, H = 1, 2
SHAPES = [(64, 32, (16, 16), 21), (13, 4, (8, 7), 70), (45, 20, (16, 13), 33)]  # M, C, K, T


def dense_of(slots, channels, top_k, dtype="float32"):
    layout = choose_layout(np.dtype(dtype), slots, channels, *top_k, H100)
    return choose_dense(layout, slots, channels, H100)


@pytest.fixture
def on_cpu(tmp_path, monkeypatch):
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++")
    libraries = {}

    class Launch:
        def __init__(self, specialisation, name, grid, threads, shared=0):
            self.name, self.grid, key = name, (*grid, 1, 1)[:3], specialisation.source
            if key not in libraries:
                folder = tmp_path / str(len(libraries))
                folder.mkdir()
                libraries[key] = compile_for_cpu(specialisation, folder, threads)
            self.library = libraries[key]

        def __call__(self, params):
            getattr(self.library, f"run_{self.name}")(params.tobytes(), *self.grid)

    monkeypatch.setitem(sys.modules, "cupy", FakeCuPy())
    monkeypatch.setattr(module, "Launch", Launch)
    for cached in (module._couple_launch, module._content_launch):
        cached.cache_clear()


def drawn(slots, channels, top_k, T):
    """A call, eta of its writes as the masses would leave them, and the arrays of both directions."""
    rng = np.random.default_rng(slots)
    write, read = (rng.random((B, T, H, slots)).argsort(axis=3)[..., :k].astype(np.int32) for k in top_k)
    write[:, ::7, :, 2] = read[:, ::5, :, 1] = -1
    weights = [rng.dirichlet(np.full(k, 0.3), (B, T, H)).astype(np.float32) for k in top_k]
    weights[0][:, ::3, :, 0] = 0.6
    eta = rng.random((B, T, H, top_k[0])).astype(np.float32)
    eta[:, ::4, :, 0] = 1
    values, dy = rng.normal(size=(2, B, T, H, channels)).astype(np.float32)
    mask = rng.random((B, T)) < 0.8
    values[~mask] = dy[~mask] = np.nan
    options = MemoryOptions(slots=slots)
    addresses = [Address(i.view(OnDevice), w.view(OnDevice)) for i, w in zip((write, read), weights, strict=True)]
    call = Call(*addresses, values.view(OnDevice), 1.0, mask.view(OnDevice), None, options, slots, False, None)
    return call, eta, dy.view(OnDevice)


def by_chunks(array, chunk, width):
    """(B, T, H, K) as (B*H, chunks, CHUNK, ``width``)."""
    T, K = array.shape[1], array.shape[3]
    chunks = -(-T // chunk)
    padded = np.zeros((B, chunks * chunk, H, width), array.dtype)
    padded[:, :T, :, :K] = array
    return padded.transpose(0, 2, 1, 3).reshape(B * H, chunks, chunk, width).copy()


def one_by_one(call, eta, dy, chunk):
    """What the contents leave, and the couplings of it, token after token, in float64."""
    T, C, (Kw, Kr) = call.values.shape[1], call.values.shape[3], call.top_k
    y, dv, before_heavy, after_heavy, before_write = np.zeros((5, B, T, H, C))
    dy_dot_s, read_dot = np.zeros((2, B, T, H, Kr))
    d_dot_v, write_dot = np.zeros((2, B, T, H, Kw))
    d_dot_before = np.zeros((B, T, H, 1))
    live = np.asarray(call.mask)[:, :, None, None]
    writes, reads = ((np.asarray(a.index) >= 0) & live for a in (call.write, call.read))
    for h in range(H):
        s, d = np.zeros((call.rows, C)), np.zeros((call.rows, C))
        for t in range(T):
            if t % chunk == 0:
                before = s.copy()
            for k in np.flatnonzero(writes[0, t, h]):
                slot = call.write.index[0, t, h, k]
                if k == 0 and call.write.weight[0, t, h, 0] > 0.5:
                    before_heavy[0, t, h], before_write[0, t, h] = before[slot], s[slot]
                s[slot] += eta[0, t, h, k] * (call.values[0, t, h] - s[slot])
            for k in np.flatnonzero(reads[0, t, h]):
                slot = call.read.index[0, t, h, k]
                y[0, t, h] += call.read.weight[0, t, h, k] * s[slot]
                dy_dot_s[0, t, h, k], read_dot[0, t, h, k] = before[slot] @ dy[0, t, h], s[slot] @ dy[0, t, h]
        for t in reversed(range(T)):
            if t == T - 1 or t % chunk == chunk - 1:
                after = d.copy()
            for k in np.flatnonzero(reads[0, t, h]):
                d[call.read.index[0, t, h, k]] += call.read.weight[0, t, h, k] * dy[0, t, h]
            for k in np.flatnonzero(writes[0, t, h]):
                slot = call.write.index[0, t, h, k]
                if k == 0 and call.write.weight[0, t, h, 0] > 0.5:
                    after_heavy[0, t, h], d_dot_before[0, t, h] = after[slot], d[slot] @ before_write[0, t, h]
                v = call.values[0, t, h]
                d_dot_v[0, t, h, k], write_dot[0, t, h, k] = after[slot] @ v, d[slot] @ v
                dv[0, t, h] += eta[0, t, h, k] * d[slot]
                d[slot] *= 1 - eta[0, t, h, k]
    contents = {"y": y, "dv": dv, "dy_dot_s": dy_dot_s, "d_dot_v": d_dot_v, "before_heavy": before_heavy,
                "after_heavy": after_heavy}  # fmt: skip
    return contents, {"dy_dot_s": read_dot, "d_dot_v": write_dot, "d_dot_before": d_dot_before}


def assert_as_expected(arrays, expected, call, dense):
    """What is left for accesses that do nothing does not count: nobody looks at it."""
    widths = {"dy_dot_s": (dense.layout.accesses[1], call.read), "d_dot_v": (dense.layout.accesses[0], call.write)}
    for name, wanted in expected.items():
        ours = arrays[name]
        if name == "d_dot_before":
            wanted = by_chunks(wanted, dense.layout.chunk, 1)
        if name in widths:
            width, address = widths[name]
            live = (np.asarray(address.index) >= 0) & np.asarray(call.mask)[:, :, None, None]
            wanted, live = (by_chunks(array, dense.layout.chunk, width) for array in (wanted, live))
            ours = np.where(live, ours, 0)
        np.testing.assert_allclose(ours, wanted, rtol=5e-6, atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("slots", "channels", "top_k", "T"), SHAPES)
def test_the_kernels_are_the_recurrence(on_cpu, slots, channels, top_k, T):
    dense = dense_of(slots, channels, top_k)
    call, eta, dy = drawn(slots, channels, top_k, T)
    chunk, (W, R) = dense.layout.chunk, dense.layout.accesses
    contents, couplings = one_by_one(call, eta, dy, chunk)
    arrays = {name: np.zeros(wanted.shape, np.float32) for name, wanted in (contents | couplings).items()}
    for name, width in (("dy_dot_s", R), ("d_dot_v", W), ("d_dot_before", 1)):
        arrays[name] = by_chunks(arrays[name], chunk, width)
    arrays = {name: array.view(OnDevice) for name, array in arrays.items()}
    records = np.full((*arrays["d_dot_v"].shape[:2], dense.record_bytes), 255, np.uint8).view(OnDevice)  # of NaN
    kept = Kept(arrays["d_dot_v"], None, by_chunks(eta, chunk, W).view(OnDevice), None, None, records, None, None, None)
    memory = fill_memory_params(call, kept)
    module.dense_couple_forward(call, dense, memory, kept)
    for name in PASSES:
        module.dense_content_pass(name, call, dense, memory, kept, dy=dy, **{n: arrays[n] for n in contents})
    assert_as_expected(arrays, contents, call, dense)
    dots = Dots(**{name: arrays[name] for name in Dots._fields})
    module.dense_couple_backward(call, dense, memory, kept, dots, dy)
    assert_as_expected(arrays, couplings, call, dense)


def test_dense_serves_float32_sums_and_rows_of_16_bytes_where_slots_are_few():
    assert isinstance(dense_of(64, 32, (16, 16)), Dense)
    assert isinstance(dense_of(32, 64, (8, 9), "float16"), Dense)
    assert dense_of(64, 32, (16, 16), "float64") is None
    assert dense_of(64, 30, (16, 16)) is None  # channels
    assert dense_of(64, 32, (32, 32)) is None  # chunks of 8 tokens
    assert dense_of(64, 144, (16, 16)) is None  # eighteen warps
    assert dense_of(65, 32, (16, 16)) is None
    assert dense_of(33, 64, (9, 8)) is None
    assert dense_of(1024, 64, (8, 8), "float16") is None
    assert dense_of(1024, 64, (32, 32)) is None
