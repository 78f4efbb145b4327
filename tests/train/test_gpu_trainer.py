"""What training on a GPU asks of the host, as far as it can be tested without one."""

import importlib.util
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramnet_np import backend
from ramnet_np.core.cuda_graph import own_stream
from ramnet_np.data.batches import Batch, StreamBatch
from ramnet_np.layers.loss import (
    IGNORE_INDEX,
    cross_entropy_and_gradient,
    cross_entropy_backward,
    cross_entropy_forward,
)
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.mqar import run_mqar
from ramnet_np.train import steps
from ramnet_np.train.gpu_trainer import labelled_tokens, sent_tokens
from ramnet_np.train.optim import adamw_init
from tests.runs.test_mqar import SMALL


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1000))
def test_labelled_tokens_are_the_labelled_ones_and_distinct_others(sequences, length, share, seed):
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((sequences, length)) < share, rng.integers(50, size=(sequences, length)), -7)
    positions, wanted = labelled_tokens(labels, sequences)
    flat = labels.ravel()
    count = int((flat >= 0).sum())
    assert len(positions) == len(set(positions.tolist())) == max(sequences, -(-count // sequences) * sequences)
    np.testing.assert_array_equal(positions[:count], np.flatnonzero(flat >= 0))
    np.testing.assert_array_equal(wanted[:count], flat[flat >= 0])
    assert (wanted[count:] == IGNORE_INDEX).all()
    assert (flat[positions[count:]] < 0).all()


@pytest.mark.parametrize(("labelled", "sent"), [(12, 6), (13, 12), (24, 12), (0, 2)])
def test_batches_of_text_have_one_shape_and_those_of_few_labels_send_few(labelled, sent):
    """Two parts of 2 x 6 tokens: up to all of a part where more than half of the tokens have a label."""
    labels = np.full(24, IGNORE_INDEX)
    labels[::2][: labelled // 2] = labels[1::2][: labelled - labelled // 2] = 3
    batch = Batch(np.zeros((4, 6), np.int64), np.roll(labels, 6).reshape(4, 6))
    arrays, shape = sent_tokens(batch, 2, 8)
    assert shape[:2] == (4, 6)
    assert set(shape[2]) == {sent}
    assert not shape[3]
    assert [len(array) for array in arrays] == [24, sent, sent, sent, sent]


def test_rows_of_streams_send_where_they_start():
    ids = np.arange(8).reshape(2, 4)
    arrays, shape = sent_tokens(StreamBatch(ids, ids, np.array([0, 5])), 1, 8)
    assert shape == (2, 4, (8,), True)
    assert [array.tolist() for array in arrays] == [[*range(8)]] * 3 + [[0, 5]]


@pytest.mark.parametrize(("part", "number"), [("ids", 8), ("ids", -1), ("labels", 8)])
def test_what_is_no_token_is_refused_before_it_is_sent(part, number):
    arrays = {name: np.zeros((4, 6), np.int64) for name in ("ids", "labels")}
    arrays[part][3, 5] = number  # of the last part
    with pytest.raises(ValueError, match=f"{part} must lie between 0 and 7, got {number} at"):
        sent_tokens(Batch(**arrays), 2, 8)


def test_the_labelled_rows_give_the_loss_and_the_gradients_of_all_of_them():
    """The full logits with ignored labels; a mask; positions filled up with tokens that have no label."""
    model = RAMNet(RAMNetConfig(vocab=12, width=8, heads=1, order=2, ffn="none"), seed=0, dtype=np.float64)
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(12, size=(2, 3, 7))
    labels[rng.random(labels.shape) < 0.5] = IGNORE_INDEX
    logits, ctx = model.forward(ids)
    loss, loss_ctx = cross_entropy_forward(logits, labels)
    grads = model.backward(cross_entropy_backward(1.0, loss_ctx), ctx)
    asked = labels >= 0
    correct = int((logits.argmax(axis=-1) == labels)[asked].sum())
    for select, wanted in ((asked, labels[asked]), labelled_tokens(labels, 4)):
        logits, ctx = model.forward(ids, select=select)
        result = cross_entropy_and_gradient(logits, wanted)
        assert float(result.loss) == pytest.approx(float(loss), rel=1e-13)
        assert (int(result.correct), int(result.count)) == (correct, asked.sum())
        for name, grad in model.backward(result.dlogits, ctx).items():
            np.testing.assert_allclose(grad, grads[name], rtol=1e-9, atol=1e-14, err_msg=name)


def test_a_thread_keeps_its_stream(monkeypatch):
    """cuBLAS has 32 MiB for every stream: runs one after the other must not have one each."""
    gpu = [0]
    runtime = SimpleNamespace(getDevice=lambda: gpu[0])
    cuda = SimpleNamespace(Stream=lambda non_blocking: object(), runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    found = []

    def runs():
        gpu[0] = 0
        streams = [own_stream(), own_stream()]
        gpu[0] = 1
        found.append([*streams, own_stream()])

    for _ in range(2):
        thread = threading.Thread(target=runs)
        thread.start()
        thread.join()
    for first, again, of_another_gpu in found:
        assert first is again
        assert first is not of_another_gpu
    assert found[0][0] is not found[1][0]


def without_cupy(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cupy" else find(name))
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(backend, "_loaded", {})


def test_device_gpu_without_cupy_says_what_to_install(monkeypatch, tmp_path):
    without_cupy(monkeypatch)
    with pytest.raises(RuntimeError) as refused:
        run_mqar(replace(SMALL, out=tmp_path / "run", device="gpu"), progress=False)
    assert str(refused.value) == (
        "device 'gpu' cannot be used: backend 'cupy' needs cupy, not installed "
        "(pip install 'ramnet-np[cuda13]', or 'ramnet-np[cuda12]' for drivers before 580)"
    )
    assert not (tmp_path / "run").exists()


def test_device_gpu_gives_the_backends_reason(monkeypatch, tmp_path):
    """No GPU, an old driver, a CuPy for another CUDA: the backend says which when it is imported."""
    monkeypatch.setattr("ramnet_np.core.arrays.why_unavailable", lambda name: "could not be loaded: no GPU found")
    with pytest.raises(RuntimeError, match="device 'gpu' cannot be used: backend 'cupy' could not be loaded: no GPU"):
        run_mqar(replace(SMALL, out=tmp_path, device="gpu"), progress=False)
    with pytest.raises(RuntimeError, match="device 'gpu' cannot be used"):
        RAMNet(SMALL.model).to("gpu")


def test_running_out_of_memory_is_one_sentence(monkeypatch, tmp_path):
    def train(*args, **kwargs):
        raise MemoryError("Out of memory allocating 8,192 bytes")

    monkeypatch.setattr("ramnet_np.runs.mqar.train", train)
    with pytest.raises(RuntimeError) as short:
        run_mqar(replace(SMALL, out=tmp_path), progress=False)
    assert str(short.value) == (
        "the machine is short of memory (Out of memory allocating 8,192 bytes); a smaller train.batch needs less"
    )


def test_device_and_backend_must_fit():
    with pytest.raises(ValueError, match="backend 'cupy' serves device 'gpu', got device 'cpu'"):
        replace(SMALL, backend="cupy")
    with pytest.raises(
        ValueError, match="backend must be 'cupy', 'numba-cuda' or 'numpy' for device 'gpu', got 'numba'"
    ):
        replace(SMALL, backend="numba", device="gpu")
    for settings in ({"device": "cpu"}, {"device": "gpu", "backend": "numpy"}):
        with pytest.raises(ValueError, match="graph must be 'auto' or 'off' unless a GPU's backend serves"):
            replace(SMALL, graph="on", **settings)


@pytest.mark.parametrize(
    ("kind", "name", "chosen"),
    [("cupy", "cupy", "GPU"), ("cupy", "numba-cuda", "GPU"), ("cupy", "numpy", "CPU"), ("numpy", "numba", "CPU")],
)
def test_the_trainer_follows_the_arrays_and_the_backend(monkeypatch, kind, name, chosen):
    """The NumPy core serves CuPy arrays too, but cannot be captured as a graph."""
    monkeypatch.setattr(steps, "array_kind", lambda array: kind)
    monkeypatch.setattr(steps, "backend_for", lambda array: SimpleNamespace(name=name))
    for trainer in ("GPU", "CPU"):
        monkeypatch.setattr(steps, f"{trainer}Trainer", lambda *args, trainer=trainer: trainer)
    model = RAMNet(SMALL.model)
    assert steps.trainer_for(model, SMALL.train, adamw_init(model.params)) == chosen


def test_to_a_device():
    model = RAMNet(SMALL.model)
    assert model.to("cpu") is model
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'gpu', got 'tpu'"):
        model.to("tpu")


def test_products_without_cublas_say_what_to_install(monkeypatch):
    from types import SimpleNamespace

    from ramnet_np.kernels.cuda.layers import blas

    def missing():
        raise ImportError("libcublas.so.13: cannot open shared object file\nmore")

    device = SimpleNamespace(get_cublas_handle=missing)
    runtime = SimpleNamespace(runtimeGetVersion=lambda: 13000)
    cupy = SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(device=device, runtime=runtime))
    libraries = SimpleNamespace(cublas=SimpleNamespace(getVersion=lambda handle: 130000))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, libraries)
    blas._library.cache_clear()
    with pytest.raises(RuntimeError) as refused:
        blas._library()
    assert str(refused.value) == (
        "cuBLAS, which CuPy 14.2.0 needs for matrix products, could not be loaded (libcublas.so.13: cannot open shared "
        "object file); install the CUDA toolkit that this CuPy was built for, or its wheels: pip install "
        "'cupy-cuda13x[ctk]'"
    )
