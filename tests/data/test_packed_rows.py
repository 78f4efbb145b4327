"""Documents packed into rows: every token once an epoch, rows that are full, sequences that do not see one another."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from ramnet_np.data.batches import Share
from ramnet_np.data.packed_rows import PackedRows
from ramnet_np.data.text import TextData, TextSettings
from ramnet_np.layers.loss import cross_entropy_forward
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.text import TextRun, run_text
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gradients import Part, loss_and_gradients, packed_part
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import CPUTrainer
from tests.data.test_streams import SIZES, corpus

SETTINGS = TextSettings(length=10, pack=True, held_out=1)
MODEL = RAMNetConfig(
    vocab=256, width=8, layers=2, heads=2, order=2, radix=3, top_k=4, cape=(2, 1), short_conv=2, ffn="none"
)


def test_rows_are_full_and_every_token_comes_once_an_epoch():
    rows = PackedRows(SIZES, length=10, seed=1)
    predicted = sum(SIZES) - len(SIZES)
    assert rows.per_epoch == predicted // 10
    for epoch in range(3):
        seen = []
        for number in range(epoch * rows.per_epoch, (epoch + 1) * rows.per_epoch):
            pieces = rows.row(number)
            assert sum(piece.size for piece in pieces) == 10
            assert all(piece.size > 0 and piece.start + piece.size < SIZES[piece.document] for piece in pieces)
            seen += [(piece.document, piece.start + i) for piece in pieces for i in range(piece.size)]
        assert len(set(seen)) == len(seen) == predicted - predicted % 10
    assert rows.row(0) == rows.row(0) != rows.row(rows.per_epoch)


def test_a_batch_has_the_tokens_of_its_pieces():
    data = TextData(corpus(), SETTINGS, batch=3, seed=0)
    batch = data.batch(4)
    assert batch.ids.shape == batch.labels.shape == (3, 10)
    assert [sum(lengths) for lengths in batch.lengths] == [10, 10, 10]
    for ids, labels, lengths in zip(batch.ids, batch.labels, batch.lengths, strict=True):
        for at, size in zip(np.cumsum((0, *lengths)), lengths, strict=False):
            own, then = ids[at : at + size], labels[at : at + size]
            np.testing.assert_array_equal(own[1:], then[:-1])
            assert (own // 20 == own[0] // 20).all()  # of one document
            assert (then // 20 == own[0] // 20).all()
    again = TextData(corpus(), SETTINGS, batch=3, seed=0).batch(4)
    np.testing.assert_array_equal(batch.ids, again.ids)


def test_ranks_share_the_rows():
    whole = TextData(corpus(), SETTINGS, batch=4, seed=0).batch(2)
    parts = [TextData(corpus(), SETTINGS, batch=4, seed=0, share=Share(rank, 2)).batch(2) for rank in range(2)]
    np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), whole.ids)
    assert parts[0].lengths + parts[1].lengths == whole.lengths


def test_the_loss_is_that_of_each_sequence_alone():
    batch = TextData(corpus(), replace(SETTINGS, length=25), batch=2, seed=3).batch(1)
    model = RAMNet(replace(MODEL, init_std=0.5), seed=1, dtype=np.float64)
    part = Part(batch.ids, np.ones(batch.ids.shape, bool), batch.labels.ravel())
    loss = loss_and_gradients(model, [packed_part(part, batch.cu_seqlens(0, 2))]).loss
    total, ids, labels = 0.0, batch.ids.ravel(), batch.labels.ravel()
    offsets = batch.cu_seqlens(0, 2)
    assert len(offsets) > 3
    for begin, end in itertools.pairwise(offsets):
        logits = model.forward(ids[None, begin:end])[0][0]
        total += cross_entropy_forward(logits, labels[begin:end])[0] * (end - begin)
    np.testing.assert_allclose(loss, total / ids.size, rtol=1e-12)


def test_parts_of_a_batch_have_their_own_sequences():
    batch = TextData(corpus(), SETTINGS, batch=4, seed=3).batch(0)
    losses = []
    for accumulate in (1, 2):
        model = RAMNet(MODEL, seed=1, dtype=np.float64)
        config = TrainConfig(steps=2, batch=4, warmup=0, accumulate=accumulate)
        trainer = CPUTrainer(model, config, adamw_init(model.params))
        trainer.step(batch)
        losses.append(trainer.report())
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)


@pytest.mark.parametrize("mixer", ["ram", "delta"])
def test_a_run_packs_documents(tmp_path, mixer):
    for i, size in enumerate((50, 7, 33, 20, 40)):
        (tmp_path / f"{i}.txt").write_bytes(bytes(97 + (i + j) % 20 for j in range(size)))
    data = TextSettings(path=tmp_path, length=16, pack=True, held_out=1, held_out_sequences=2)
    train = TrainConfig(steps=2, batch=2, warmup=0)
    run = TextRun(model=replace(MODEL, mixer=mixer), train=train, data=data, out=tmp_path / "run")
    assert run_text(run, progress=False).status == "finished"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"carry_state": True}, r"data\.pack must be False unless .* got data\.carry_state"),
        ({"start": "line"}, r"data\.pack must be False unless .* got data\.start 'line'"),
    ],
)
def test_what_does_not_go_with_packing(settings, words):
    with pytest.raises(ValueError, match=words):
        TextSettings(pack=True, **settings)


def test_bad_sizes():
    with pytest.raises(TypeError, match=r"data\.pack must be True or False, got 1"):
        TextSettings(pack=1)
    with pytest.raises(ValueError, match=r"sizes must be of documents of two tokens or more, got 1"):
        PackedRows([5, 1], 2, 0)
    with pytest.raises(ValueError, match=r"data\.length must be at most the 5 tokens that documents have .*, got 6"):
        PackedRows([5, 2], 6, 0)


@pytest.mark.gpu
@pytest.mark.parametrize("mixer", ["ram", "delta"])
def test_a_gpu_trains_on_packed_rows_as_a_cpu_does(mixer):
    from ramnet_np.train.gpu_trainer import GPUTrainer

    data = TextData(corpus(), SETTINGS, batch=4, seed=0)
    config = TrainConfig(steps=3, batch=4, warmup=0, accumulate=2)
    reports = []
    for device, trainer_type in (("cpu", CPUTrainer), ("gpu", GPUTrainer)):
        model = RAMNet(replace(MODEL, mixer=mixer, cape=(0, 0)), seed=1).to(device)
        with trainer_type(model, config, adamw_init(model.params)) as trainer:
            for step in range(3):
                trainer.step(data.batch(step))
            reports.append(trainer.report())
    np.testing.assert_allclose(reports[0].loss, reports[1].loss, rtol=1e-3)


@pytest.mark.gpu
def test_a_step_of_packed_rows_is_no_graph():
    from ramnet_np.train.gpu_trainer import GPUTrainer

    model = RAMNet(MODEL, seed=1).to("gpu")
    config = TrainConfig(steps=3, batch=4, warmup=0)
    batch = TextData(corpus(), SETTINGS, batch=4, seed=0).batch(0)
    words = r"a training step of packed rows \(data.pack\) cannot be captured"
    trainer = GPUTrainer(model, config, adamw_init(model.params), graphs="on")
    with trainer, pytest.raises(RuntimeError, match=words):
        trainer.step(batch)
