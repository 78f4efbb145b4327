"""The loop learns, resumes to the same bits, and ends early in good order."""

import json
import signal
from dataclasses import fields, replace

import numpy as np
import pytest

from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.checkpoint import latest_checkpoint, load_checkpoint
from ramnet_np.train.loop import Extras, TrainConfig, evaluate, train
from ramnet_np.train.metrics import Measured, read_metrics
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.steps import trainer_for, training

VOCAB = 12
MODEL = RAMNetConfig(vocab=VOCAB, width=16, layers=1, heads=2, order=2, radix=3, top_k=3, ffn="none")
CONFIG = TrainConfig(
    steps=12, batch=4, learning_rate=1e-2, learning_rate_floor=1e-3, warmup=2, log_every=1, evaluate_every=4,
    checkpoint_every=5,
)  # fmt: skip
SETTINGS = {"train": {"steps": 12}, "seed": 0}


def next_token_data(seed=0):
    """Each label is the token plus one: a rule that needs no memory and is learnt in a few steps."""
    ids = np.random.default_rng(seed).integers(VOCAB, size=(48, 6))
    labels = (ids + 1) % VOCAB
    labels[:, ::3] = -100
    return ShuffledSets([Batch(ids[:40], labels[:40])], {"rule": Batch(ids[40:], labels[40:])}, 4, seed)


class Interrupting:
    """A data set during whose batch for ``at`` Ctrl-C arrives (``times`` times)."""

    def __init__(self, data, at, times=1):
        self.data, self.at, self.times = data, at, times

    def batch(self, step):
        if step == self.at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return self.data.batch(step)

    def held_out(self):
        return self.data.held_out()


def run(out, *, data=None, config=CONFIG, settings=SETTINGS, model=None, **options):
    model = model or RAMNet(MODEL, seed=0)
    return train(model, data or next_token_data(), config, out, settings=settings, progress=False, **options)


def without_times(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def assert_same_run(a, b):
    for name, param in a.model.params.items():
        np.testing.assert_array_equal(param, b.model.params[name], err_msg=name)
    assert without_times(read_metrics(a.metrics)) == without_times(read_metrics(b.metrics))
    for part in ("model.safetensors", "optimizer.safetensors", "training.json"):
        assert (a.checkpoint / part).read_bytes() == (b.checkpoint / part).read_bytes(), part


def test_training_reads_and_measures_when_it_is_told_to():
    """A measured step has its report; the first measurement that reaches stop_at ends the training."""
    model, data, order = RAMNet(MODEL, seed=0), next_token_data(), []
    config = replace(CONFIG, stop_at=0.5)
    accuracies = iter([0.4, 0.2, 0.5])

    with trainer_for(model, config, adamw_init(model.params)) as trainer:

        def measure():
            order.append(trainer.state.step)
            return {"mean": next(accuracies)}

        results = list(
            training(
                trainer, data, config, measure, evaluates_at=lambda step: step % 3 == 0,
                reports_at=lambda step: step == 2, best=0.3,
            )
        )  # fmt: skip
    assert order == [3, 6, 9]
    assert [r.step for r in results] == list(range(1, 10))
    assert [r.step for r in results if r.report] == [2, 3, 6, 9]
    assert [(r.step, r.accuracy["mean"]) for r in results if r.accuracy] == [(3, 0.4), (6, 0.2), (9, 0.5)]
    assert [r.best for r in results] == [0.3] * 2 + [0.4] * 6 + [0.5]
    assert [r.step for r in results if r.is_last] == [9]
    assert results[-1].tokens == 9 * 4 * 6
    assert 0 < results[-1].step_seconds <= results[-1].seconds


def test_training_ends_where_the_caller_does():
    model, data = RAMNet(MODEL, seed=0), next_token_data()
    with trainer_for(model, CONFIG, adamw_init(model.params)) as trainer:
        never = {"evaluates_at": lambda step: False, "reports_at": lambda step: False}
        for done in training(trainer, data, CONFIG, lambda: {}, **never):
            if done.step == 4:
                break
        assert trainer.state.step == 4


def test_train_learns(tmp_path):
    config = TrainConfig(steps=400, batch=8, learning_rate=2e-2, learning_rate_floor=1e-3, warmup=5, stop_at=0.99)
    result = run(tmp_path, config=config)
    assert result.status == "reached stop_at"
    assert result.step < 400
    assert result.accuracy["rule"] >= 0.99
    records = read_metrics(result.metrics)
    losses = [r["loss"] for r in records if r["kind"] == "train"]
    assert losses[-1] < 0.3 * losses[0]
    assert [r["accuracy"]["mean"] for r in records if r["kind"] == "held_out"][-1] == result.accuracy["mean"]
    saved = RAMNet.from_pretrained(result.checkpoint)
    assert evaluate(saved, next_token_data().held_out()) == result.accuracy


def test_train_twice_same_bits(tmp_path):
    assert_same_run(run(tmp_path / "a"), run(tmp_path / "b"))


@pytest.mark.parametrize("at", [0, 4, 7, 11])
def test_train_resumes_to_the_same_bits(tmp_path, at):
    """Ctrl-C during a step: the step is finished and saved; resuming ends where an unbroken run does."""
    whole = run(tmp_path / "whole")
    stopped = run(tmp_path / "parts", data=Interrupting(next_token_data(), at))
    assert stopped.step == at + 1
    assert stopped.status == ("interrupted" if at < 11 else "finished")
    resumed = run(tmp_path / "parts", model=RAMNet(MODEL, seed=99), resume=True)  # other initial weights: not used
    assert resumed.status == "finished"
    assert_same_run(whole, resumed)


def test_train_resumes_after_being_killed(tmp_path):
    """A second Ctrl-C stops at once, between checkpoints: the run goes on from the last one, metrics included."""
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", data=Interrupting(next_token_data(), at=8, times=2))
    assert latest_checkpoint(tmp_path / "parts" / "checkpoints").name == "step-00000005"
    assert read_metrics(tmp_path / "parts" / "metrics.jsonl")[-1]["step"] == 8
    assert_same_run(whole, run(tmp_path / "parts", resume=True))


def test_what_was_measured_before_a_resume_is_kept(tmp_path):
    """The only measurement is before the first stop; two calls later the checkpoint still has it."""
    extras = Extras(measure=lambda model: Measured({"mean": 0.75}))
    for at, resume in ((5, False), (6, True)):
        run(tmp_path, data=Interrupting(next_token_data(), at), resume=resume, extras=extras)
    saved = load_checkpoint(latest_checkpoint(tmp_path / "checkpoints"))
    assert (saved.optimizer.step, saved.best, saved.accuracy) == (7, 0.75, 0.75)


def test_train_resumes_a_finished_run(tmp_path):
    whole = run(tmp_path / "whole")
    before = whole.metrics.read_bytes()
    again = run(tmp_path / "whole", resume=True)
    assert (again.status, again.step, again.accuracy) == ("finished", 12, whole.accuracy)
    assert whole.metrics.read_bytes() == before


def test_train_interrupted_leaves_the_signal_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run(tmp_path, data=Interrupting(next_token_data(), at=2))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("step", [2, 7])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.norm.weight", "the loss became nan, the gradient's norm nan"),
        ("model.embeddings.weight", "write_logits must be finite, got nan"),
    ],
)
def test_train_stops_at_a_loss_that_is_no_number(tmp_path, name, why, step):
    """A parameter overflows before the batch of ``step``: what had been saved by then stays, and is good."""
    model, data = RAMNet(MODEL, seed=0), next_token_data()

    class Poisoning(Interrupting):
        def batch(self, step):
            if step == self.at:
                model.params[name][:] = np.nan
            return self.data.batch(step)

    kept = "no checkpoint had been written yet" if step < 5 else "the last good checkpoint is .*step-00000005"
    with pytest.raises(FloatingPointError, match=f"stopped at step {step}: {why}.*; {kept}"):
        run(tmp_path, data=Poisoning(data, step), model=model)
    if step > 5:
        good = RAMNet.from_pretrained(latest_checkpoint(tmp_path / "checkpoints"))
        assert all(np.isfinite(p).all() for p in good.params.values())
    else:
        assert latest_checkpoint(tmp_path / "checkpoints") is None


def test_train_resume_with_other_settings(tmp_path):
    settings = {"model": {"width": 16, "cape": (2, 0)}, "train": {"steps": 12, "log_every": 1}, "seed": 0}
    run(tmp_path, settings=settings)
    with pytest.raises(ValueError, match=r"model\.width must be 16 as in the checkpoint .* got 32"):
        run(tmp_path, settings=settings | {"model": {"width": 32, "cape": (2, 0)}}, resume=True)
    with pytest.raises(ValueError, match=r"seed must be 0 as in the checkpoint .* got 1"):
        run(tmp_path, settings=settings | {"seed": 1}, resume=True)
    run(tmp_path, settings=settings | {"train": {"steps": 12, "log_every": 3}}, resume=True)  # decides no bits


def test_train_folder_in_use(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"out must be a new folder, but .* holds a run at step 12"):
        run(tmp_path)
    assert run(tmp_path, overwrite=True).step == 12


def test_train_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume: no checkpoint below"):
        run(tmp_path, resume=True)


def test_train_unwritable_folder(tmp_path):
    """A file stands where the folder should be: said before the first batch is asked for."""
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(OSError, match=r"out must be a folder that can be written to, got .*taken"):
            run(out, data=Interrupting(next_token_data(), at=0))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("steps", 0, r"train\.steps must be at least 1, got 0"),
        ("steps", 2.5, r"train\.steps must be an integer, got 2\.5"),
        ("learning_rate", 0.0, r"train\.learning_rate must be between 1e-30 and 1e\+30, got 0"),
        ("warmup", -1, r"train\.warmup must be at least 0, got -1"),
        ("warmup", 2000, r"train\.warmup must be below train\.steps \(2000\), got 2000"),
        ("batch", 10**9, r"train\.batch must be between 1 and 1048576, got 1000000000"),
        ("stop_at", 0.0, r"train\.stop_at must be between 1e-30 and 1, got 0"),
        ("stop_at", 1.5, r"train\.stop_at must be between 1e-30 and 1, got 1\.5"),
        ("beta2", 1.0, r"train\.beta2 must be below 1, got 1"),
        ("learning_rate_floor", 1.0, r"train\.learning_rate_floor must be at most train\.learning_rate"),
    ],
)
def test_train_config_bad_input(field, value, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        TrainConfig(**{field: value})


def test_train_config_takes_no_number_that_is_none():
    for field in fields(TrainConfig):
        for value in (float("nan"), float("inf"), float("-inf"), "3", 1 if field.type == "bool" else True):
            with pytest.raises((ValueError, TypeError), match=rf"train\.{field.name} must be "):
                TrainConfig(**{field.name: value})
    TrainConfig(steps=10**9)


def test_evaluate_counts_labelled_tokens_in_any_batching():
    model = RAMNet(MODEL, seed=3)
    held_out = dict(next_token_data().held_out())
    ids, labels = held_out["rule"]
    logits, _ = model.forward(ids)
    asked = labels >= 0
    expected = float((logits.argmax(-1) == labels)[asked].mean())
    for tokens in (1, 13, 10_000):
        assert evaluate(model, held_out, tokens=tokens) == {"rule": expected, "mean": expected}
    two = evaluate(model, held_out | {"none right": Batch(ids, np.where(asked, (logits.argmin(-1)), -100))})
    assert two["mean"] == pytest.approx((expected + two["none right"]) / 2)


def test_settings_survive_json(tmp_path):
    result = run(tmp_path, settings={"model": {"cape": (2, 0)}, "rate": 0.1})
    training = json.loads((result.checkpoint / "training.json").read_text())
    assert training["settings"] == {"model": {"cape": [2, 0]}, "rate": 0.1}
    run(tmp_path, settings={"model": {"cape": (2, 0)}, "rate": 0.1}, resume=True)
