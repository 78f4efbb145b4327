"""Memories carried from window to window; a batch in parts; activations computed again."""

import signal
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.batches import Batch, StreamBatch
from ramnet_np.data.text import TextData, TextSettings
from ramnet_np.layers.loss import cross_entropy_forward
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.mixers import MIXERS
from ramnet_np.runs.text import TextRun, run_text
from ramnet_np.train.carried import CarriedState
from ramnet_np.train.checkpoint import load_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import _split, labelled_tokens
from ramnet_np.train.gradients import Part, loss_and_gradients
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import CPUTrainer

FIXED = [name for name, mixer in MIXERS.items() if mixer.initial_state]
MODEL = RAMNetConfig(
    vocab=256, width=8, layers=2, heads=2, order=2, radix=3, top_k=4, cape=(2, 1), ffn="swiglu", ffn_width=8,
    init_std=0.5,
)  # fmt: skip
TEXT = bytes(np.random.default_rng(0).integers(97, 110, 900, dtype=np.uint8))
CONFIG = TrainConfig(steps=8, batch=3, warmup=1, evaluate_every=4, log_every=1, checkpoint_every=3)


def model_of(mixer, dtype=np.float64, **settings):
    return RAMNet(replace(MODEL, mixer=mixer, **settings), seed=1, dtype=dtype)


def parts_of(ids, labels, rows):
    cut = range(0, len(ids), rows)
    halves = [(ids[i : i + rows], labels[i : i + rows]) for i in cut]
    return [Part(some, wanted >= 0, wanted[wanted >= 0]) for some, wanted in halves]


def tokens(rows=4, length=24, seed=0):
    ids, labels = np.random.default_rng(seed).integers(256, size=(2, rows, length))
    return ids, np.where(np.random.default_rng(seed + 1).random(ids.shape) < 0.3, -100, labels)


@pytest.mark.parametrize("mixer", FIXED)
@pytest.mark.parametrize("settings", [{}, {"short_conv": 4}, {"init_mass": 0.3}], ids=str)
def test_the_initial_state_is_an_empty_memory(mixer, settings):
    model, (ids, _) = model_of(mixer, **settings), tokens()
    hidden, state, _ = model.forward_hidden(ids, model.initial_state(4), positions=np.arange(24))
    np.testing.assert_allclose(hidden @ model.head.T, model.forward(ids)[0], rtol=1e-12, atol=1e-12)
    before, after = CarriedState(model, 4), CarriedState(model, 4)
    after.put(0, 4, state)  # of the same shapes
    assert {n: x.shape for n, x in before.arrays().items()} == {n: x.shape for n, x in after.arrays().items()}


def test_a_memory_that_takes_shape_with_its_tokens_cannot_be_carried():
    with pytest.raises(ValueError, match=r"mixer must be one of 'ram', .* for a state of fixed shapes, got 'softmax'"):
        model_of("softmax").initial_state(1)
    with pytest.raises(ValueError, match=r"data\.carry_state needs a memory whose shape does not change, .* 'window'"):
        TextRun(model=replace(MODEL, mixer="window"), data=TextSettings(carry_state=True))


@pytest.mark.parametrize("mixer", FIXED)
def test_pieces_have_the_losses_of_the_whole(mixer):
    """Windows with carried state; each row begins anew at another window."""
    model, length = model_of(mixer, short_conv=3), 8
    ids, labels = tokens(rows=3, length=40)
    carried, losses = CarriedState(model, 3), []
    begins = [0, 16, 32]  # where a document begins in each row
    for at in range(0, 40, length):
        window = parts_of(ids[:, at : at + length], labels[:, at : at + length], rows=1)
        start = np.array([at - begin if at >= begin else at for begin in begins])
        result = loss_and_gradients(model, window, carried=carried, start=start)
        losses.append(float(result.loss) * int(result.count))
    whole = 0.0
    for row, begin in enumerate(begins):
        for part in (slice(0, begin), slice(begin, 40)):
            if part.start < part.stop:
                logits, _ = model.forward(ids[row : row + 1, part])
                count = (labels[row, part] >= 0).sum()
                whole += float(cross_entropy_forward(logits, labels[row : row + 1, part])[0]) * count
    assert sum(losses) == pytest.approx(whole, rel=1e-11)


def test_gradients_stay_within_a_window():
    """Those of a second window are the gradients of its loss with the state before it held constant."""
    model, (ids, labels) = model_of("ram"), tokens()
    _, state = model.forward_with_state(ids[:, :16])
    hidden, _, ctx = model.forward_hidden(ids[:, 16:], state, positions=np.arange(16, 24))
    logits = hidden @ model.head.T
    carried = CarriedState(model, 4)
    for at, length in ((0, 16), (16, 8)):
        window = parts_of(ids[:, at : at + length], labels[:, at : at + length], 4)
        result = loss_and_gradients(model, window, carried=carried, start=np.full(4, at))
    again = loss_and_gradients(model, [window[0]], carried=CarriedState(model, 4), start=np.zeros(4, int))
    assert not np.allclose(again.loss, result.loss)
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    wanted = exps / exps.sum(axis=-1, keepdims=True)
    counts = labels[:, 16:] >= 0
    wanted[counts, labels[:, 16:][counts]] -= 1
    wanted[~counts] = 0
    wanted /= counts.sum()
    dhead = np.einsum("btv,btd->vd", wanted, hidden)
    for name, grad in model.backward_hidden(wanted @ model.head, dhead, ctx).items():
        np.testing.assert_allclose(result.grads[name], grad, rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("carries", [False, True])
@pytest.mark.parametrize("mixer", FIXED)
def test_parts_give_the_whole_batch(mixer, carries):
    model, (ids, labels) = model_of(mixer), tokens(rows=6)
    labels[:2] = -100  # a part without a label
    start, results = np.array([0, 5, 0, 7, 9, 0]), []
    for rows in (6, 3, 2, 1):
        options = {"carried": CarriedState(model, 6), "start": start} if carries else {}
        results.append(loss_and_gradients(model, parts_of(ids, labels, rows), **options))
        if carries:
            results[-1] = results[-1]._replace(grads=results[-1].grads | options["carried"].arrays())
    for other in results[1:]:
        assert float(other.loss) == pytest.approx(float(results[0].loss), rel=1e-12)
        assert (int(other.correct), int(other.count)) == (int(results[0].correct), int(results[0].count))
        for name, grad in results[0].grads.items():
            np.testing.assert_allclose(other.grads[name], grad, rtol=1e-9, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("mixer", list(MIXERS))
@pytest.mark.parametrize("recompute", ["ffn", "block"])
def test_what_is_computed_again_has_the_same_bits(mixer, recompute):
    model, (ids, labels) = model_of(mixer, np.float32, short_conv=2), tokens()
    results = [loss_and_gradients(model, parts_of(ids, labels, 4), again) for again in ("none", recompute)]
    assert results[0].loss == results[1].loss
    for name, grad in results[0].grads.items():
        np.testing.assert_array_equal(results[1].grads[name], grad, err_msg=name)


def test_the_state_may_be_replaced_after_the_backward_alone():
    """A block is computed again from the state before the window, which a step replaces when that is done."""
    model, (ids, labels), start = model_of("ram"), tokens(), np.full(4, 24)
    results = []
    for recompute in ("none", "block"):
        carried = CarriedState(model, 4)
        loss_and_gradients(model, parts_of(ids, labels, 2), recompute, carried, start - 24)
        results.append(loss_and_gradients(model, parts_of(ids[::-1], labels[::-1], 2), recompute, carried, start))
    for name, grad in results[0].grads.items():
        np.testing.assert_array_equal(results[1].grads[name], grad, err_msg=name)


def peak(model, recompute, rows):
    ids, labels = tokens(rows=4, length=64)
    loss_and_gradients(model, parts_of(ids, labels, rows), recompute)  # what is compiled stays
    tracemalloc.start()
    try:
        loss_and_gradients(model, parts_of(ids, labels, rows), recompute)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_less_is_kept_where_more_is_computed():
    config = RAMNetConfig(vocab=16, width=32, layers=8, heads=1, order=2, top_k=4, ffn="swiglu", ffn_width=128)
    model = RAMNet(replace(config, vocab=256), seed=0)
    none, ffn, block, parts = (peak(model, *how) for how in (("none", 4), ("ffn", 4), ("block", 4), ("none", 1)))
    assert ffn < 0.7 * none
    assert block < 0.4 * none
    assert parts < 0.5 * none


def test_settings_of_memory():
    with pytest.raises(ValueError, match=r"train\.batch must be a multiple of train\.accumulate \(5\), got 64"):
        TrainConfig(accumulate=5)
    with pytest.raises(ValueError, match=r"train\.recompute must be one of 'none', 'ffn', 'block', got 'all'"):
        TrainConfig(recompute="all")
    model = model_of("ram")
    trainer = CPUTrainer(model, TrainConfig(batch=4, accumulate=2), adamw_init(model.params))
    with pytest.raises(ValueError, match=r"a batch must have a multiple of train\.accumulate \(2\) sequences, got 3"):
        trainer.step(Batch(*tokens(rows=3)))


def test_a_saved_state_must_fit():
    model = model_of("ram")
    saved = CarriedState(model, 4).arrays()
    with pytest.raises(ValueError, match=r"array '0\.0' must be of shape and dtype \(\(3, 2, 9, 4\), .*got \(\(4, "):
        CarriedState(model, 3, saved)
    with pytest.raises(ValueError, match=r"array '1\.1' must be of shape and dtype .*, got None"):
        CarriedState(model, 4, {name: array for name, array in saved.items() if name != "1.1"})


def novels(folder):
    folder.mkdir()
    for i, size in enumerate((300, 90, 210, 170)):
        (folder / f"{i}.txt").write_bytes(TEXT[i : i + size])
    return folder


def run_on(folder, out, **changes):
    settings = TextSettings(path=folder, length=20, carry_state=True, held_out=1, held_out_sequences=3)
    run = TextRun(model=replace(MODEL, init_std=0.02), data=settings, train=CONFIG, out=out)
    return run_text(replace(run, **changes), progress=False)


@pytest.mark.parametrize("changes", [{}, {"train": replace(CONFIG, accumulate=3, recompute="block")}], ids=str)
def test_a_run_that_carries_state_resumes_to_the_same_bits(tmp_path, monkeypatch, changes):
    folder = novels(tmp_path / "novels")
    whole = run_on(folder, tmp_path / "whole", **changes)
    assert set(load_checkpoint(whole.checkpoint).carried) == {"0.0", "0.1", "1.0", "1.1"}
    batch = TextData.batch

    def interrupted(data, step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
        return batch(data, step)

    monkeypatch.setattr(TextData, "batch", interrupted)
    assert run_on(folder, tmp_path / "half", **changes).step == 5
    monkeypatch.undo()
    resumed = run_on(folder, tmp_path / "half", **changes, resume=True)
    for part in ("model.safetensors", "carried.safetensors", "optimizer.safetensors", "training.json"):
        assert (resumed.checkpoint / part).read_bytes() == (whole.checkpoint / part).read_bytes(), part
    assert resumed.measured == whole.measured
    (resumed.checkpoint / "carried.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"a checkpoint must hold carried\.safetensors, but .* is missing"):
        load_checkpoint(resumed.checkpoint)


def test_other_batches_than_the_saved_memories():
    """A checkpoint without memories, as of a run that carries none, has none in its files either."""
    model = model_of("ram")
    trainer = CPUTrainer(model, TrainConfig(batch=4), adamw_init(model.params))
    trainer.step(Batch(*tokens()))
    assert trainer.carried is None
    trainer.step(StreamBatch(*tokens(), np.zeros(4, int)))
    assert set(trainer.carried) == {"0.0", "0.1", "1.0", "1.1"}


def test_a_run_does_not_go_on_with_memories_that_are_not_there():
    """As from a checkpoint whose training.json has lost its word of them."""
    model = model_of("ram")
    trainer = CPUTrainer(model, TrainConfig(batch=4), adamw_init(model.params))
    with pytest.raises(
        ValueError, match="start must be 0 where no memory is carried yet, got 7: the checkpoint has no"
    ):
        trainer.step(StreamBatch(*tokens(), np.array([0, 7, 0, 0])))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_batch_that_was_copied_as_one_array_is_its_parts(is_stream):
    ids, labels = tokens(rows=6, length=5)
    chosen = [labelled_tokens(labels[i : i + 2], 10) for i in range(0, 6, 2)]
    start = np.arange(6) if is_stream else np.arange(0)
    memory = np.concatenate([ids.ravel(), *(array for pair in chosen for array in pair), start])
    parts, starts = _split(6, 5, (10, 10, 10), is_stream, memory)
    assert (starts is None) == (not is_stream)
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), ids)
    for part, (positions, wanted) in zip(parts, chosen, strict=True):
        np.testing.assert_array_equal(part.select, positions)
        np.testing.assert_array_equal(part.labels, wanted)
    if is_stream:
        np.testing.assert_array_equal(starts, start)
    model = model_of("ram")  # the tokens without a label that fill up a part change nothing
    for one, other in zip(
        loss_and_gradients(model, parts), loss_and_gradients(model, parts_of(ids, labels, 2)), strict=True
    ):
        if isinstance(one, dict):
            for name, grad in one.items():
                np.testing.assert_allclose(grad, other[name], rtol=1e-9, atol=1e-14)
        else:
            assert float(one) == pytest.approx(float(other), rel=1e-12)
