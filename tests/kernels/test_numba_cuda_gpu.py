"""The Numba CUDA backend beside CuPy: its arrays, its streams, its graphs; arrays of other libraries. Needs a GPU."""

import numpy as np
import pytest
from ramnet_np.kernels.numba_cuda.compiler import cuda

from ramnet_np import RAMState, ram_attention_backward, ram_attention_forward, ram_attention_step, use_backend
from ramnet_np.data.batches import Batch
from ramnet_np.data.mqar import mqar_examples
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init
from tests.kernels.numba_cuda_device import on_device, on_host
from tests.operation_cases import CASES, Case, assert_agree, assert_same_bits, draw, run
from tests.tolerances import assert_close

pytestmark = pytest.mark.gpu
CASE = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


@pytest.mark.parametrize("name", ["everything", "K-pair", "C-odd-slices", "M-large", "mask-gsu-per-token"])
def test_cupy_arrays_give_the_same_bits_as_numbas(cp, name):
    inputs = draw(CASE[name], np.float32)
    results, others = on_device(inputs, convert=cp.asarray), on_device(inputs)
    if CASE[name].gamma != "token":  # a sum over tokens, by CuPy and by a kernel
        np.testing.assert_allclose(results.pop("dgamma"), others.pop("dgamma"), rtol=1e-5)
    assert_same_bits(results, others)


def test_cupy_arrays_of_any_layout_stay_cupy_arrays(cp):
    inputs = draw(CASE["everything"], np.float64)

    def strided(a):
        wide = cp.empty((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
        wide[..., ::2] = cp.asarray(a)
        return wide[..., ::2]

    results = run(inputs, "numba-cuda", strided)
    assert all(isinstance(value, cp.ndarray) for value in results.values())
    assert_agree({name: value.get() for name, value in results.items()}, run(inputs, "numpy"))


class Foreign:
    """An array of a library that nobody knows: it says where its memory is, and no more."""

    def __init__(self, array):
        self.array = cuda.to_device(np.ascontiguousarray(array))

    @property
    def __cuda_array_interface__(self):
        return self.array.__cuda_array_interface__


def test_arrays_of_other_libraries_are_taken_without_a_copy(cp):
    case = Case("foreign", T=6, gamma="token", masked=0.3, state=True, positions=True, options={"cape_heads": 1})
    inputs = draw(case, np.float32)
    assert_same_bits(on_device(inputs, convert=Foreign), on_device(inputs))
    state = RAMState.initial(2, 3, 64, 16)
    shared = RAMState(*map(Foreign, state))
    token = [np.ascontiguousarray(a[:, :1]) for a in inputs.arrays]
    _, returned = ram_attention_step(*map(Foreign, token), state=shared)
    assert returned is shared
    ram_attention_step(*token, state=state, backend="numpy")
    for ours, expected in zip(shared, state, strict=True):
        assert_close(ours.array.copy_to_host(), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_cupy_arrays(cp, dtype):
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    inputs = draw(Case("half", T=40, U=5, gamma="token", options={"cape_heads": 1}), np.float32)
    half = [np.asarray(a).astype(dtype) for a in (*inputs.arrays, inputs.gamma, inputs.dy)]
    *arrays, dy = map(cp.asarray, half)
    y, state, ctx = ram_attention_forward(*arrays, cape_heads=1, backend="numba-cuda")
    grads = ram_attention_backward(dy, ctx)
    wide = [a.astype(np.float64) for a in half]
    y_wide, _, ctx_wide = ram_attention_forward(*wide[:4], cape_heads=1, backend="numpy")
    expected = ram_attention_backward(wide[4], ctx_wide)
    assert state.slots.dtype == np.float32
    for actual, value in ((y, y_wide), *zip(grads[:4], expected[:4], strict=True)):
        assert actual.dtype == dtype
        error = np.linalg.norm(on_host(actual).astype(np.float64) - value) / max(1.0, np.linalg.norm(value))
        assert error < (4e-3 if dtype == np.float16 else 3e-2)


def test_forward_backward_and_step_in_a_graph_give_the_same_bits(cp):
    inputs = draw(Case("graph", T=30, U=5, gamma=0.7, options={"cape_heads": 1}, dstate=False), np.float32)
    arrays, dy = [cp.asarray(a) for a in inputs.arrays], cp.asarray(inputs.dy)
    token, positions = [a[:, :1].copy() for a in arrays], cp.zeros((1,), dtype=np.int64)
    stream = cp.cuda.Stream(non_blocking=True)

    def work(state):
        with use_backend("numba-cuda"):
            y, _, ctx = ram_attention_forward(*arrays, 0.7, cape_heads=1, return_state=False)
            grads = ram_attention_backward(dy, ctx)
            step, _ = ram_attention_step(*token, 0.7, state=state, cape_heads=1, positions=positions)
        return [y, *grads[:3], step, *state]

    def state():
        return RAMState.initial(arrays[2].shape[0], arrays[2].shape[2], 4**5, arrays[2].shape[3], xp=cp)

    with stream:
        expected = [cp.asnumpy(a) for a in work(state())]
        captured = state()
        stream.begin_capture()
        results = work(captured)
        graph = stream.end_capture()
        for _ in range(2):
            captured.slots.fill(0)
            captured.mass.fill(1 / 4**5)
            graph.launch(stream)
        stream.synchronize()
        for actual, wanted in zip(results, expected, strict=True):
            assert cp.asnumpy(actual).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kernels", ["fast", "plain"])
@pytest.mark.parametrize("name", ["plain", "everything", "C-odd", "M-large"])
def test_every_element_of_every_output_is_written(cp, name, kernels, monkeypatch):
    """cupy.empty hands out NaN and impossible slots; whatever a kernel left unset and then used would show."""
    if kernels == "plain":
        monkeypatch.setattr("ramnet_np.kernels.numba_cuda.memory.MAX_FAST_K", 0)
    inputs = draw(CASE[name], np.float32)
    expected = on_device(inputs, convert=cp.asarray)
    empty = cp.empty

    def poisoned(*arguments, **settings):
        array = empty(*arguments, **settings)
        array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
        return array

    monkeypatch.setattr(cp, "empty", poisoned)
    assert_same_bits(on_device(inputs, convert=cp.asarray), expected)


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_model_trains_as_with_the_other_gpu_backend(cp, graphs):
    config = RAMNetConfig(vocab=70, width=20, layers=2, heads=2, order=3, top_k=4, cape=1)
    losses = []
    for backend in ("numba-cuda", "cupy"):
        with use_backend(backend):
            model = RAMNet(config, dtype=np.float32).to("gpu")
            batch = Batch(*mqar_examples(pairs=3, length=20, examples=5, vocab=config.vocab))
            with GPUTrainer(model, TrainConfig(steps=5, warmup=2), adamw_init(model.params), graphs) as trainer:
                found = []
                for _ in range(4):
                    trainer.step(batch)
                    found.append(trainer.report().loss)
        losses.append(found)
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert losses[0][-1] < losses[0][0]
