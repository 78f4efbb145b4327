"""A model on the GPU against the same model on the CPU: logits, gradients, training, checkpoints. Needs a GPU."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.batches import Batch
from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.mqar import run_mqar
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.loop import evaluate
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import CPUTrainer, Diverged
from tests.mixer_cases import MIXERS
from tests.runs.test_mqar import SMALL
from tests.train.test_loop import CONFIG, MODEL, Interrupting, next_token_data, run

pytestmark = pytest.mark.gpu

BASE = RAMNetConfig(vocab=40, width=16, layers=2, heads=2, order=3, radix=3, top_k=4, cape=(2, 0))
CONFIGS = {
    "mqar": replace(BASE, ffn="none"),
    "swiglu": replace(BASE, ffn_width=24, tie_embeddings=False, value_bias=True),
    "authors": replace(
        BASE, update="gsu", gamma=0.0, gamma_mode="dynamic", output_gate=True, output_norm=True, mass_aware=True,
        ffn_width=24, init_mass=0.2,
    ),
    "layernorm": replace(BASE, norm="layernorm", ffn="gelu", gamma_mode="learnable", address_scale=False),
    **{name: replace(BASE, **fields) for name, fields in MIXERS.items()},
}  # fmt: skip
TRAIN = TrainConfig(steps=6, batch=4, learning_rate=1e-2, warmup=2, clip=0.5)


@pytest.fixture(scope="module")
def cp():
    import cupy

    return cupy


def batches(count=6, sequences=4, length=12, labelled=None, seed=0):
    """Random tokens, of which some are asked for: every third, or ``labelled`` of the whole batch."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        ids = rng.integers(40, size=(sequences, length), dtype=np.int32)
        labels = np.full(ids.shape, -100, dtype=np.int32)
        if labelled is None:
            labels[:, ::3] = (ids[:, ::3] + 1) % 40
        else:
            labels.ravel()[rng.permutation(ids.size)[:labelled]] = 3
        yield Batch(ids, labels)


def trainer_on(device, config, graphs="off", dtype=np.float64, seed=0):
    """``dtype`` "bfloat16": a model in float32 whose steps compute in bfloat16."""
    train = replace(TRAIN, dtype="bfloat16") if dtype == "bfloat16" else TRAIN
    model = RAMNet(config, seed=seed, dtype="float32" if dtype == "bfloat16" else dtype).to(device)
    state = adamw_init(model.params)
    if device == "cpu":
        return model, CPUTrainer(model, train, state)
    return model, GPUTrainer(model, train, state, graphs, log=pytest.fail)


def train_some(model, trainer, data):
    reports = []
    with trainer:
        for batch in data:
            trainer.step(batch)
            reports.append(trainer.report())
    return reports, {name: p.get() if hasattr(p, "get") else p for name, p in model.params.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_equal_the_cpus(cp, name):
    model = RAMNet(CONFIGS[name], seed=1, dtype=np.float64)
    on_gpu = model.to("gpu")
    [batch] = batches(1)
    asked = batch.labels >= 0
    positions = np.flatnonzero(asked.ravel())
    logits, ctx = model.forward(batch.ids, select=asked)
    loss = cross_entropy_and_gradient(logits.copy(), batch.labels[asked])
    grads = model.backward(loss.dlogits, ctx)
    for select in (cp.asarray(asked), cp.asarray(positions)):
        gpu_logits, gpu_ctx = on_gpu.forward(cp.asarray(batch.ids), select=select)
        np.testing.assert_allclose(gpu_logits.get(), logits, rtol=1e-9, atol=1e-11)
        gpu_loss = cross_entropy_and_gradient(gpu_logits, cp.asarray(batch.labels[asked]))
        assert float(gpu_loss.loss) == pytest.approx(float(loss.loss), rel=1e-10)
        assert int(gpu_loss.correct) == loss.correct
        for parameter, grad in on_gpu.backward(gpu_loss.dlogits, gpu_ctx).items():
            np.testing.assert_allclose(grad.get(), grads[parameter], rtol=1e-8, atol=1e-11, err_msg=parameter)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_in_16_bits(cp, name, dtype):
    """Against float64 with the rounded parameters. All slots are kept: a rounding cannot switch a selection."""
    config = replace(CONFIGS[name], top_k=27)
    half = RAMNet(config, seed=1).to("gpu", dtype=dtype)
    wide = RAMNet(config, params={n: p.get().astype(np.float64) for n, p in half.params.items()})
    [batch] = batches(1)
    logits, ctx = wide.forward(batch.ids)
    dlogits = np.random.default_rng(0).normal(size=logits.shape)
    grads = wide.backward(dlogits, ctx)
    half_logits, half_ctx = half.forward(cp.asarray(batch.ids))
    half_grads = half.backward(cp.asarray(dlogits).astype(half_logits.dtype), half_ctx)
    tolerance = {"bfloat16": 0.04, "float16": 0.005}[dtype]
    for what, got, want in [("logits", half_logits, logits), *((n, g, grads[n]) for n, g in half_grads.items())]:
        assert got.dtype == (half_logits.dtype if what == "logits" else np.float32), what
        difference = np.linalg.norm(got.get().astype(np.float64) - want) / np.linalg.norm(want)
        terms_cancel = what.endswith("dt_bias")  # the tokens' shares of that gradient nearly add up to 0
        assert difference < tolerance * (3 if terms_cancel else 1), (what, difference)


@pytest.mark.parametrize("name", CONFIGS)
def test_several_steps_equal_the_cpus(cp, name):
    cpu_reports, cpu = train_some(*trainer_on("cpu", CONFIGS[name]), batches())
    gpu_reports, gpu = train_some(*trainer_on("gpu", CONFIGS[name]), batches())
    np.testing.assert_allclose(gpu_reports, cpu_reports, rtol=1e-7)
    for parameter, value in cpu.items():
        np.testing.assert_allclose(gpu[parameter], value, rtol=1e-6, atol=1e-8, err_msg=parameter)


def test_filled_up_labels_change_nothing(cp):
    """7 labelled tokens of 4 sequences make 8 rows of logits, the last without a label."""
    cpu_reports, _ = train_some(*trainer_on("cpu", CONFIGS["mqar"]), batches(labelled=7))
    gpu_reports, _ = train_some(*trainer_on("gpu", CONFIGS["mqar"]), batches(labelled=7))
    np.testing.assert_allclose(gpu_reports, cpu_reports, rtol=1e-7)


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_in_bfloat16_stay_near_those_in_float32(cp, name):
    """And the parameters that the steps compute with are those of the model, rounded."""
    reports, _ = train_some(*trainer_on("gpu", CONFIGS[name], "on", np.float32), batches(20))
    model, trainer = trainer_on("gpu", CONFIGS[name], "on", "bfloat16")
    half_reports, params = train_some(model, trainer, batches(20))
    np.testing.assert_allclose([r.loss for r in half_reports], [r.loss for r in reports], rtol=0.03)
    for parameter, value in params.items():
        rounded = trainer.model.params[parameter].get()
        assert value.astype(rounded.dtype).tobytes() == rounded.tobytes(), parameter


@pytest.mark.parametrize("dtype", ["bfloat16", np.float32, np.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_equal_single_launches_to_the_bit(cp, name, dtype):
    """Batches of two shapes in turn, the model measured in between: the graphs' memory is their own."""

    def mixed():
        for one, other in zip(batches(), batches(length=9, labelled=5, seed=1), strict=True):
            yield one
            yield other

    def run_mixed(graphs):
        model, trainer = trainer_on("gpu", CONFIGS[name], graphs, dtype)
        held_out = {"some": next(batches(1, sequences=16, seed=2))}
        reports, measured, kept = [], [], []
        with trainer:
            for batch in mixed():
                trainer.step(batch)
                kept.append(cp.arange(5000))  # would be overwritten if it came from a graph's memory
                measured.append(evaluate(model, held_out)["mean"])
                reports.append(trainer.report())
            assert all((k == cp.arange(5000)).all() for k in kept)
            captured = trainer.graphs
        assert captured == (2 if graphs == "on" else 0)
        return reports, measured, {n: p.get() for n, p in model.params.items()}

    eager, graph, again = run_mixed("off"), run_mixed("on"), run_mixed("on")
    assert eager[:2] == graph[:2] == again[:2]
    for parameter, value in eager[2].items():
        assert graph[2][parameter].tobytes() == value.tobytes() == again[2][parameter].tobytes(), parameter


@pytest.mark.parametrize("graphs", ["off", "on"])
def test_a_loss_that_is_no_number_never_reaches_the_parameters(cp, graphs):
    model, trainer = trainer_on("gpu", CONFIGS["mqar"], graphs)
    data = list(batches())
    with trainer:
        for batch in data[:3]:
            trainer.step(batch)
        good = {n: p.get() for n, p in model.params.items()}
        model.params["model.norm.weight"][0] = np.nan
        for batch in data[3:]:
            trainer.step(batch)
        with pytest.raises(Diverged, match="the loss became nan, the gradient's norm nan") as stopped:
            trainer.report()
    assert stopped.value.step == 3
    for name, value in good.items():
        if name != "model.norm.weight":
            assert model.params[name].get().tobytes() == value.tobytes(), name


def test_a_capture_that_fails_is_said_and_training_goes_on(cp, monkeypatch):
    said = []
    model = RAMNet(CONFIGS["mqar"], seed=0).to("gpu")

    def refuse(self, *args):
        raise RuntimeError("not today\nand more")

    monkeypatch.setattr("ramnet_np.core.cuda_graph.begin_capture", refuse)
    trainer = GPUTrainer(model, TRAIN, adamw_init(model.params), "auto", said.append)
    with trainer:
        for batch in batches():
            trainer.step(batch)
        trainer.report()
    assert said == ["without CUDA graphs, as a step could not be captured (RuntimeError: not today)"]
    trainer = GPUTrainer(model, TRAIN, adamw_init(model.params), "on", said.append)
    first, second = batches(2)
    with trainer:
        trainer.step(first)
        with pytest.raises(RuntimeError, match=r"could not be captured as a CUDA graph \(RuntimeError: not today\)"):
            trainer.step(second)


def test_memory_that_runs_out_during_a_capture(cp, monkeypatch):
    """The pool must not free what a graph uses: the capture fails, and the steps go on without."""
    said = []
    model = RAMNet(CONFIGS["mqar"], seed=0).to("gpu")
    trainer = GPUTrainer(model, TRAIN, adamw_init(model.params), "auto", said.append)
    first, second, third = batches(3)

    def none_left(size):
        raise cp.cuda.runtime.CUDARuntimeError(2)  # cudaErrorMemoryAllocation

    with trainer:
        trainer.step(first)
        monkeypatch.setattr(cp.cuda, "Memory", none_left)
        trainer.step(second)
        trainer.step(third)
        assert np.isfinite(trainer.report().loss)
    [why] = said
    assert "(MemoryError: no GPU memory for" in why


def test_the_memory_of_graphs_ends_with_the_run(cp, monkeypatch):
    """Without waiting for Python's collector: dozens of runs follow one another on a GPU."""

    class Memory(cp.cuda.Memory):  # of which, unlike of CuPy's own, one can ask whether it is still there
        pass

    asked_for = []

    def graph_memory(size):
        memory = Memory(size)
        asked_for.append(weakref.ref(memory))
        return cp.cuda.MemoryPointer(memory, 0)

    monkeypatch.setattr("ramnet_np.core.cuda_graph._graph_memory", graph_memory)
    gc.disable()
    try:
        model, trainer = trainer_on("gpu", CONFIGS["mqar"], "on")
        train_some(model, trainer, batches())
        del model, trainer
        left = [memory for memory in asked_for if memory() is not None]
    finally:
        gc.enable()
    assert asked_for
    assert not left


def test_ids_outside_the_vocabulary_are_refused_on_the_host(cp):
    _, trainer = trainer_on("gpu", CONFIGS["mqar"])
    [batch] = batches(1)
    batch.ids[1, 2] = 40
    with trainer, pytest.raises(ValueError, match=r"ids must lie between 0 and 39, got 40 at index \(1, 2\)"):
        trainer.step(batch)


@pytest.mark.parametrize("at", [3, 7])
def test_the_loop_ends_at_the_last_good_step(cp, tmp_path, at):
    """The parameters overflow before step ``at``; nothing is read until a checkpoint or Ctrl-C in step 7."""
    model = RAMNet(MODEL, seed=0).to("gpu")

    class Poisoning(Interrupting):
        def batch(self, step):
            if step == at:
                model.params["model.norm.weight"][0] = np.nan
            return super().batch(step)

    config = replace(CONFIG, log_every=100, evaluate_every=100)
    kept = "no checkpoint had been written yet" if at < 5 else "the last good checkpoint is .*step-00000005"
    with pytest.raises(FloatingPointError, match=f"stopped at step {at}: the loss became nan.*; {kept}"):
        run(tmp_path, data=Poisoning(next_token_data(), at=7), model=model, config=config)


@pytest.mark.parametrize("graph", ["off", "auto"])
def test_run_mqar_on_the_gpu_resumes_on_either(cp, tmp_path, graph):
    whole = run_mqar(replace(SMALL, out=tmp_path / "cpu"), progress=False)
    on_gpu = run_mqar(replace(SMALL, out=tmp_path / "gpu", device="gpu", graph=graph), progress=False)
    assert {f.name for f in (tmp_path / "gpu").iterdir()} == {f.name for f in (tmp_path / "cpu").iterdir()}
    losses = [[r["loss"] for r in read_metrics(run.metrics) if r["kind"] == "train"] for run in (whole, on_gpu)]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    loaded = RAMNet.from_pretrained(on_gpu.checkpoint)
    for name, p in on_gpu.model.params.items():
        np.testing.assert_array_equal(loaded.params[name], p.get())
    for first, then in (("cpu", "gpu"), ("gpu", "cpu"), ("gpu", "gpu")):
        out = tmp_path / f"{first}-{then}"
        started = run_part(out, first, graph)
        assert started.step == 4
        resumed = run_mqar(replace(SMALL, out=out, device=then, graph=graph, resume=True), progress=False)
        assert (resumed.step, resumed.status) == (6, "finished")
        if (first, then) == ("gpu", "gpu"):
            assert flat(resumed.model).tobytes() == flat(on_gpu.model).tobytes()
        else:  # in float32 a gradient near 0 may have either sign, and so may its first updates
            difference = np.linalg.norm(flat(resumed.model) - flat(whole.model))
            assert difference < 2e-3 * np.linalg.norm(flat(whole.model))


def flat(model):
    return np.concatenate([p.ravel() for p in model.to("cpu").params.values()])


def test_a_run_in_bfloat16_resumes_to_the_same_bits(cp, tmp_path):
    settings = replace(SMALL, device="gpu", train=replace(SMALL.train, dtype="bfloat16"))
    whole = run_mqar(replace(settings, out=tmp_path / "whole"), progress=False)
    assert run_part(tmp_path / "part", "gpu", "auto", settings).step == 4
    resumed = run_mqar(replace(settings, out=tmp_path / "part", resume=True), progress=False)
    assert (resumed.step, resumed.status) == (6, "finished")
    assert flat(resumed.model).tobytes() == flat(whole.model).tobytes()
    assert flat(resumed.model).dtype == np.float32


def run_part(out, device, graph, settings=SMALL):
    """The first four of six steps, ended by Ctrl-C."""
    import signal

    from ramnet_np.runs import mqar as runs

    class Interrupted(runs.ShuffledSets):
        def batch(self, step):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            return super().batch(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ShuffledSets", Interrupted)
        return run_mqar(replace(settings, out=out, device=device, graph=graph), progress=False)


@pytest.mark.parametrize("name", ["swiglu", *MIXERS])
def test_generate_on_the_gpu_equals_the_cpu(cp, name):
    model = RAMNet(CONFIGS[name], seed=3, dtype=np.float64)
    ids = np.array([[1, 2, 3], [7, 5, 9]])
    np.testing.assert_array_equal(model.to("gpu").generate(cp.asarray(ids), 5).get(), model.generate(ids, 5))
    with pytest.raises(TypeError, match="cannot be mixed"):
        model.to("gpu").forward(ids)
