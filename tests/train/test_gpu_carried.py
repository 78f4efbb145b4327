"""Carried state, parts of a batch and recomputation on the GPU against the CPU, and in CUDA graphs. Needs a GPU."""

from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.batches import Batch, StreamBatch
from ramnet_np.data.text import TextSettings
from ramnet_np.model import RAMNet
from ramnet_np.model.mixers import MIXERS
from ramnet_np.runs.text import TextRun, run_text
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.text_loss import documents_loss
from ramnet_np.train.trainer import CPUTrainer
from tests.train.test_carried import MODEL, novels
from tests.train.test_text_loss import corpus_of, model_of

pytestmark = pytest.mark.gpu

TRAIN = TrainConfig(steps=6, batch=4, learning_rate=1e-2, warmup=2, clip=0.5)
FIXED = [name for name, mixer in MIXERS.items() if mixer.initial_state]


def streams(count=6, rows=4, length=12):
    """All rows begin a document, and again at steps of their own; a window in three has tokens without a label."""
    rng, start = np.random.default_rng(0), np.zeros(rows, int)
    for step in range(count):
        ids = rng.integers(256, size=(rows, length), dtype=np.int32)
        labels = np.roll(ids, -1, axis=1)
        if step % 3 == 1:
            labels[1, 7:] = -100
        start = np.where((step - np.arange(rows)) % 4 == 0, 0, start)
        yield StreamBatch(ids, labels, start)
        start = start + length


def trained(device, batches, graphs="off", mixer="ram", dtype=np.float64, **settings):
    """Reports, parameters and memories after some steps."""
    model = RAMNet(replace(MODEL, mixer=mixer, init_std=0.1), seed=1, dtype=dtype).to(device)
    config, state = replace(TRAIN, **settings), adamw_init(model.params)
    trainer = CPUTrainer(model, config, state) if device == "cpu" else GPUTrainer(model, config, state, graphs)
    reports = []
    with trainer:
        for batch in batches:
            trainer.step(batch)
            reports.append(trainer.report())
        arrays = model.params | (trainer.carried or {})
        if graphs == "on":
            assert trainer.graphs == 1  # all batches have one shape
        return reports, {name: x.get() if hasattr(x, "get") else x.copy() for name, x in arrays.items()}


@pytest.mark.parametrize("mixer", FIXED)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"accumulate": 4, "recompute": "block"}], ids=str)
def test_steps_with_carried_state_equal_the_cpus(mixer, settings):
    cpu_reports, cpu = trained("cpu", streams(), mixer=mixer, **settings)
    gpu_reports, gpu = trained("gpu", streams(), mixer=mixer, **settings)
    np.testing.assert_allclose(gpu_reports, cpu_reports, rtol=1e-7)
    for name, value in cpu.items():
        np.testing.assert_allclose(gpu[name], value, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("mixer", FIXED)
@pytest.mark.parametrize("settings", [{}, {"accumulate": 2, "recompute": "block"}], ids=str)
def test_graphs_with_carried_state_have_the_bits_of_steps_without(mixer, settings):
    """The memories stay at the addresses that the graph was captured with."""
    without, arrays = trained("gpu", streams(), "off", mixer, np.float32, **settings)
    within, captured = trained("gpu", streams(), "on", mixer, np.float32, **settings)
    assert without == within
    for name, value in arrays.items():
        np.testing.assert_array_equal(captured[name], value, err_msg=name)


@pytest.mark.parametrize("recompute", ["ffn", "block"])
def test_recomputation_and_parts_without_carried_state(recompute):
    batches = [Batch(batch.ids, batch.labels) for batch in streams()]
    reports, arrays = trained("gpu", batches, "on", dtype=np.float32)
    again, others = trained("gpu", batches, "on", dtype=np.float32, recompute=recompute)
    assert reports == again
    for name, value in arrays.items():
        np.testing.assert_array_equal(others[name], value, err_msg=name)
    parts, _ = trained("gpu", batches, "on", accumulate=2)
    whole, _ = trained("gpu", batches, "on")
    np.testing.assert_allclose(parts, whole, rtol=1e-7)


def test_a_run_on_the_gpu_resumes_its_memories_to_the_same_bits(tmp_path):
    data = TextSettings(path=novels(tmp_path / "novels"), length=20, carry_state=True, held_out=1)
    config = replace(TRAIN, evaluate_every=3, checkpoint_every=3)
    run = TextRun(model=replace(MODEL, init_std=0.02), data=data, train=config, out=tmp_path / "a", device="gpu")
    whole = run_text(run, progress=False)
    last = whole.checkpoint / "carried.safetensors"
    after, weights = last.read_bytes(), (whole.checkpoint / "model.safetensors").read_bytes()
    for path in sorted(whole.checkpoint.iterdir()):
        path.unlink()
    whole.checkpoint.rmdir()  # what is left is the checkpoint of step 3
    run_text(replace(run, resume=True), progress=False)
    assert last.read_bytes() == after
    assert (whole.checkpoint / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("carry", [False, True])
def test_the_loss_on_documents_equals_the_cpus(carry):
    model, corpus = model_of(), corpus_of(31, 64, 5)
    one, other = (documents_loss(m, corpus, corpus.documents, 8, carry=carry).loss for m in (model, model.to("gpu")))
    assert (one.tokens, one.bytes, one.correct) == (other.tokens, other.bytes, other.correct)
    assert one.nats == pytest.approx(other.nats, rel=1e-9)
