"""Arrays on a GPU that is not the current one: the same bits as when it is, on that GPU. Needs two GPUs."""

import numpy as np
import pytest

from ramnet_np import (
    RAMState,
    decode_address,
    ram_attention_backward,
    ram_attention_forward,
    ram_attention_step,
    use_backend,
)
from ramnet_np.data.batches import Batch
from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.layers.norm import rmsnorm_forward
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init, adamw_update, clip_by_global_norm
from tests.mixer_cases import MIXERS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cp():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    return cupy


def arrays_of(value):
    """Every array within tuples, lists and dictionaries."""
    if hasattr(value, "data") and hasattr(value, "dtype"):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [a for v in value for a in arrays_of(v)] if isinstance(value, tuple | list | type({}.values())) else []


def check(cp, make, call):
    """``call(*make(cp))`` for arrays on GPU 1, with GPU 1 current and with GPU 0 current: equal, and on GPU 1."""
    with cp.cuda.Device(1):
        expected = arrays_of(call(*make(cp)))
        inputs = make(cp)
        cp.cuda.Device(1).synchronize()
    assert cp.cuda.runtime.getDevice() == 0
    result = arrays_of(call(*inputs))
    assert cp.cuda.runtime.getDevice() == 0
    with cp.cuda.Device(1):
        cp.cuda.Device(1).synchronize()
        assert len(result) == len(expected) > 0
        for got, want in zip(result, expected, strict=True):
            assert got.device.id == 1
            assert got.get().tobytes() == want.get().tobytes()


def operands(tokens=65):
    def make(cp):
        rng = np.random.default_rng(0)
        shapes = [(2, tokens, 2, 5, 4)] * 2 + [(2, tokens, 2, 32)] * 2
        return [cp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]

    return make


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda", "numpy"])
@pytest.mark.parametrize("top_k", [8, 80], ids=["fast", "plain"])
def test_forward_and_backward(cp, backend, top_k):
    def call(write, read, values, dy):
        with use_backend("numpy" if backend == "numpy" else None):
            name = None if backend == "numpy" else backend
            y, state, ctx = ram_attention_forward(
                write, read, values, 0.5, top_k=top_k, cape_heads=1, mass_aware=True, backend=name
            )
            grads = ram_attention_backward(dy, ctx, state)
        return y, state, tuple(grads)

    check(cp, operands(), call)


@pytest.mark.parametrize("backend", ["cupy", "numba-cuda"])
def test_step_and_decode(cp, backend):
    def make(cp):
        state = RAMState.initial(2, 2, 4**5, 32, xp=cp)
        return *operands(tokens=1)(cp)[:3], state, cp.asarray([7])

    def call(write, read, values, state, positions):
        address = decode_address(write, cape_heads=1, positions=positions, backend=backend)
        y, state = ram_attention_step(
            write, read, values, state=state, cape_heads=1, positions=positions, backend=backend
        )
        return address, y, state

    check(cp, make, call)


CONFIG = {"vocab": 32, "width": 16, "layers": 2, "heads": 2, "order": 2, "radix": 3, "top_k": 4}


@pytest.mark.parametrize("settings", [{}, *MIXERS.values()], ids=["ram", *MIXERS])
def test_a_model_with_its_optimiser(cp, settings):
    model = RAMNet(RAMNetConfig(**CONFIG | settings), seed=0)

    def make(cp):
        params = {name: cp.asarray(p) for name, p in model.params.items()}
        ids = np.random.default_rng(0).integers(32, size=(2, 12))
        return params, cp.asarray(ids), cp.asarray(ids[:, ::-1]), cp.asarray([12])

    def call(params, ids, labels, positions):
        here = RAMNet(model.config, params=params)
        logits, ctx = here.forward(ids)
        loss = cross_entropy_and_gradient(logits, labels)
        grads = here.backward(loss.dlogits, ctx)
        clip_by_global_norm(grads, 0.5)
        state = adamw_update(params, grads, adamw_init(params), 0.01, weight_decay=0.1)
        tokens = here.generate(ids, 4, temperature=1.0)
        _, memory = here.forward_with_state(ids)
        token = here.step(ids[:, :1], memory, positions)
        streamed = list(here.stream(ids, 3))
        return logits, loss, grads, params, state.mean, state.square, tokens, memory, token, streamed

    check(cp, make, call)


def test_training(cp):
    model = RAMNet(RAMNetConfig(**CONFIG), seed=0)
    ids = np.random.default_rng(0).integers(32, size=(2, 12))

    def make(cp):
        return ({name: cp.asarray(p) for name, p in model.params.items()},)

    def call(params):
        here = RAMNet(model.config, params=params)
        with GPUTrainer(here, TrainConfig(steps=5, warmup=1, batch=2), adamw_init(params), graphs="on") as trainer:
            for _ in range(5):
                trainer.step(Batch(ids, ids))
            trainer.report()
            assert trainer.graphs == 1
        return here.params, trainer.state.mean

    check(cp, make, call)


class Foreign:
    """CuPy's memory as another library would show it: an address, and nothing about the GPU."""

    def __init__(self, array):
        self.array = array  # keeps the memory
        self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim
        self.__cuda_array_interface__ = array.__cuda_array_interface__

    __cuda_array_interface__ = None  # what the kind of an array goes by is on its class


def on_host(value):
    """Bytes of every array within tuples, of Numba or another library."""
    if hasattr(value, "copy_to_host"):
        return [value.copy_to_host().tobytes()]
    if isinstance(value, Foreign):
        with value.array.device:
            return [value.array.get().tobytes()]
    return [a for v in value for a in on_host(v)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("library", ["numba", "another"])
def test_arrays_of_other_libraries(cp, library):
    """The operation on their GPU, forward, backward, step and decoder; a mixture is refused before anything runs."""
    from numba_cuda_mlir import cuda

    make = cuda.to_device if library == "numba" else lambda host: Foreign(cp.asarray(host))
    hosts = [a.get() for a in operands()(cp)]
    memory = [a.get() for a in RAMState.initial(2, 2, 4**5, 32, xp=cp)]

    def call(write, read, values, dy, token, state):
        y, final, ctx = ram_attention_forward(write, read, values, 0.5, cape_heads=1)
        grads = ram_attention_backward(dy, ctx, final)
        y_1, state = ram_attention_step(token, token, values_1, state=state)
        return on_host((y, final, tuple(grads)[:3], y_1, state, tuple(decode_address(write))))

    results = []
    for gpu in (0, 1):
        with cp.cuda.Device(gpu):
            arrays = [make(a) for a in hosts]
            token, values_1 = make(hosts[0][:, :1].copy()), make(hosts[2][:, :1].copy())
            state = RAMState(*map(make, memory))
            cp.cuda.Device(gpu).synchronize()
        assert cp.cuda.runtime.getDevice() == 0
        results.append(call(*arrays, token, state))
        assert cp.cuda.runtime.getDevice() == 0
    assert len(results[0]) == 11
    assert results[0] == results[1]
    here = make(hosts[0])
    with pytest.raises(ValueError, match=r"got write_logits on GPU 0, read_logits on GPU 1, values on GPU 1$"):
        ram_attention_forward(here, *arrays[1:3])
    ctx = ram_attention_forward(*arrays[:3])[2]
    with pytest.raises(ValueError, match=r"got dy on GPU 0, ctx on GPU 1$"):
        ram_attention_backward(make(hosts[3]), ctx)


def test_arrays_of_two_gpus_are_refused_and_both_gpus_go_on(cp):
    with cp.cuda.Device(1):
        there = operands()(cp)
    here = operands()(cp)
    with pytest.raises(ValueError, match=r"got write_logits on GPU 0, read_logits on GPU 1, values on GPU 0$"):
        ram_attention_forward(here[0], there[1], here[2])
    ctx = ram_attention_forward(*there[:3])[2]
    with pytest.raises(ValueError, match=r"got dy on GPU 0, ctx on GPU 1$"):
        ram_attention_backward(here[3], ctx)
    token, state = [a[:, :1] for a in there[:3]], RAMState.initial(2, 2, 4**5, 32, xp=cp)
    with pytest.raises(ValueError, match=r"values on GPU 1, state on GPU 0$"):
        ram_attention_step(*token, state=state)
    with pytest.raises(ValueError, match=r"x on GPU 0, weight on GPU 1"):
        rmsnorm_forward(cp.ones((2, 3)), there[2][0, 0, 0, :3], 1e-5)
    with pytest.raises(ValueError, match=r"params on GPU 0, grads on GPU 1"):
        adamw_update({"w": here[0]}, {"w": there[0]}, adamw_init({"w": here[0]}), 0.1)
    ram_attention_backward(there[3], ctx)
    for gpu, arrays in ((0, here), (1, there)):
        y = ram_attention_forward(*arrays[:3])[0]
        with cp.cuda.Device(gpu):
            assert bool(cp.isfinite(y).all())
