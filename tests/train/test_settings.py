"""Each setting of training reaches what it is for, and nothing else: changed alone, it changes what it should."""

import math
from contextlib import nullcontext
from dataclasses import fields, replace

import numpy as np
import pytest

from ramnet_np.backend import use_backend
from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.data.mqar import MQARSettings
from ramnet_np.data.text import TextSettings
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs import mqar
from ramnet_np.runs.text import TextRun, run_text
from ramnet_np.train.checkpoint import checkpoints_in, load_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gradients import Part, loss_and_gradients
from ramnet_np.train.loop import train
from ramnet_np.train.metrics import read_metrics
from ramnet_np.train.optim import ADAMW_EPS, adamw_init, has_weight_decay
from ramnet_np.train.ranks import OneRank
from ramnet_np.train.shards import own
from ramnet_np.train.steps import trainer_for
from ramnet_np.train.trainer import CPUTrainer, Diverged
from tests.runs.test_mqar import SMALL

MODEL = RAMNetConfig(vocab=12, width=8, layers=1, heads=1, order=2, radix=3, top_k=3, ffn="gelu", ffn_width=8)
BASE = TrainConfig(
    steps=6, batch=4, learning_rate=2e-2, learning_rate_floor=2e-3, warmup=2, weight_decay=0.3, beta1=0.8, beta2=0.9,
    clip=0.5, log_every=2, evaluate_every=3, checkpoint_every=4,
)  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_to_compile(request):
    with nullcontext() if request.node.get_closest_marker("gpu") else use_backend("numpy"):
        yield


def data_of(config):
    """Each label is the token plus one."""
    ids = np.random.default_rng(0).integers(12, size=(30, 6))
    sets = Batch(ids[:24], (ids[:24] + 1) % 12), Batch(ids[24:], (ids[24:] + 1) % 12)
    return ShuffledSets([sets[0]], {"rule": sets[1]}, config.batch, seed=0)


def model_of():
    return RAMNet(MODEL, seed=0, dtype=np.float64)


def trace_of(config, out, monkeypatch):
    """What a run shows of itself, by name."""
    seen, model = [], model_of()
    forward = RAMNet.forward_hidden

    def forward_hidden(self, ids, *args, **options):
        if "recompute" in options:  # a training step
            seen.append((ids.shape, options["recompute"]))
        return forward(self, ids, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(RAMNet, "forward_hidden", forward_hidden)
        result = train(model, data_of(config), config, out, settings={}, progress=False)
    records = read_metrics(result.metrics)
    at = {kind: [r["step"] for r in records if r["kind"] == kind] for kind in ("train", "held_out")}
    return {
        "params": np.concatenate([p.ravel() for p in model.params.values()]),
        "rates": [r["learning_rate"] for r in records if r["kind"] == "train"],
        "steps": result.step,
        "logged": at["train"],
        "measured": at["held_out"],
        "saved": [int(path.name[-8:]) for path in checkpoints_in(out / "checkpoints")],
        "parts": seen and sorted({shape for shape, _ in seen}),
        "recompute": {recompute for _, recompute in seen},
    }


# setting -> another value, and what of a run is different then; all the rest must be as it was
CHANGES = {
    "steps": (8, {"params", "rates", "steps", "logged", "measured", "saved"}),
    "batch": (2, {"params", "parts"}),
    "accumulate": (2, {"parts"}),
    "recompute": ("ffn", {"recompute"}),
    "learning_rate": (1e-2, {"params", "rates"}),
    "learning_rate_floor": (1e-2, {"params", "rates"}),
    "warmup": (4, {"params", "rates"}),
    "weight_decay": (0.0, {"params"}),
    "beta1": (0.9, {"params"}),
    "beta2": (0.99, {"params"}),
    "shard_optimizer": (True, set()),  # on one rank; on two: below
    "clip": (0.2, {"params"}),
    "log_every": (3, {"logged", "rates"}),
    "evaluate_every": (2, {"measured"}),
    "checkpoint_every": (5, {"saved"}),
    "stop_at": (0.01, {"params", "rates", "steps", "logged", "measured", "saved"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, use_backend("numpy"):
        return trace_of(BASE, tmp_path_factory.mktemp("base"), patch)


def test_no_setting_is_left_out():
    assert {*CHANGES, "dtype"} == {field.name for field in fields(TrainConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_of_a_run_changes_what_it_is_for(name, base, tmp_path, monkeypatch):
    value, expected = CHANGES[name]
    if name == "stop_at":  # half of a model that has learnt nothing is right
        monkeypatch.setattr("ramnet_np.train.loop.evaluate", lambda *args, **options: {"rule": 0.5, "mean": 0.5})
    changed = trace_of(replace(BASE, **{name: value}), tmp_path, monkeypatch)

    def same(part):
        if part == "params":
            return np.allclose(changed[part], base[part], rtol=1e-7, atol=1e-9)
        return changed[part] == base[part]

    assert {part for part in base if not same(part)} == expected


def test_dtype_is_refused_where_no_gpu_computes():
    model = model_of()
    with pytest.raises(ValueError, match=r"train\.dtype must be 'float32' where no GPU backend computes the steps"):
        trainer_for(model, replace(BASE, dtype="bfloat16"), adamw_init(model.params))


def rate_of(config, step):
    """A straight rise, then half a cosine, as the settings say."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step + 1 - config.warmup) / (config.steps - config.warmup)
    drop = config.learning_rate - config.learning_rate_floor
    return config.learning_rate_floor + drop * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_an_update_is_the_algorithm_with_the_settings(clip):
    """Clipping and AdamW written out, every option away from its default."""
    config, model, plain = replace(BASE, clip=clip), model_of(), model_of()
    data, mean, square = data_of(config), {}, {}
    trainer = CPUTrainer(model, config, adamw_init(model.params))
    for step in range(config.steps):
        batch = data.batch(step)
        trainer.step(batch)
        part = Part(batch.ids, np.ones(batch.ids.shape, bool), batch.labels.ravel())
        grads = loss_and_gradients(plain, [part]).grads
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        assert (norm > clip) == (clip < 1)
        assert trainer.report()[2:] == pytest.approx((rate_of(config, step), norm), rel=1e-9)
        for name, p in plain.params.items():
            g, t = grads[name] * min(1, clip / norm), step + 1
            m = mean[name] = 0.8 * mean.get(name, 0) + 0.2 * g
            v = square[name] = 0.9 * square.get(name, 0) + 0.1 * g**2
            decay = 0.3 if has_weight_decay(name, p) else 0.0
            p -= rate_of(config, step) * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + ADAMW_EPS) + decay * p)
            np.testing.assert_allclose(model.params[name], p, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_finite_loss_with_a_gradient_that_is_not_finite_changes_nothing(value, monkeypatch):
    model = model_of()
    before = {name: p.copy() for name, p in model.params.items()}

    def broken(*args):
        found = loss_and_gradients(*args)
        found.grads["model.norm.weight"][3] = value
        return found

    monkeypatch.setattr("ramnet_np.train.trainer.loss_and_gradients", broken)
    trainer = CPUTrainer(model, BASE, adamw_init(model.params))
    with pytest.raises(Diverged, match=r"the loss became \d.*, the gradient's norm (inf|nan)"):
        trainer.step(data_of(BASE).batch(0))
    assert trainer.state.step == 0
    for name, p in model.params.items():
        np.testing.assert_array_equal(p, before[name])
        assert not trainer.state.mean[name].any()
        assert not trainer.state.square[name].any()


def test_a_resumed_run_keeps_the_best_and_the_last_accuracy(tmp_path, monkeypatch):
    """The accuracy falls, and the run goes on where nothing is measured before the next checkpoint."""
    found = iter([0.75, 0.25, 0.5])
    monkeypatch.setattr("ramnet_np.train.loop.evaluate", lambda *args, **options: {"mean": next(found)})
    first = replace(BASE, steps=3, evaluate_every=3, checkpoint_every=1)
    saved = load_checkpoint(train(model_of(), data_of(BASE), first, tmp_path, settings={}, progress=False).checkpoint)
    assert (saved.best, saved.accuracy) == (0.75, 0.75)
    for steps, expected in ((6, (0.75, 0.25)), (8, (0.75, 0.5))):
        config = replace(first, steps=steps, evaluate_every=6)
        again = train(model_of(), data_of(BASE), config, tmp_path, settings={}, resume=True, progress=False)
        saved = load_checkpoint(again.checkpoint)
        assert (saved.best, saved.accuracy) == expected
        *_, before = checkpoints_in(tmp_path / "checkpoints")[:-1]
        assert load_checkpoint(before).accuracy == (0.75 if steps == 6 else 0.25)


class SilentOther(OneRank):
    """The first of two ranks, of which the other adds zeros and sends nothing."""

    size = 2


@pytest.mark.parametrize("shard", [False, True])
def test_shards_leave_the_others_parameters_to_the_others(shard):
    config, model, ranks = replace(BASE, shard_optimizer=shard), model_of(), SilentOther()
    before, mine = {name: p.copy() for name, p in model.params.items()}, own(model.params, ranks)
    assert 0 < len(mine) < len(before)
    trainer = CPUTrainer(model, config, adamw_init(mine if shard else model.params), ranks=ranks)
    trainer.step(data_of(config).batch(0))
    changed = {name for name, p in model.params.items() if (p != before[name]).any()}
    assert changed == set(mine if shard else before)


class Reached(Exception):
    pass


@pytest.fixture
def given(monkeypatch):
    """What the loop is given by a run: (model, data, config, options)."""

    def run(function, settings):
        def train(model, data, config, out, **options):
            raise Reached(model, data, config, options)

        monkeypatch.setattr(mqar, "train", train)
        with pytest.raises(Reached) as reached:
            function(settings, progress=False)
        return reached.value.args

    return run


def test_a_run_gives_the_loop_its_settings(given, tmp_path):
    smaller = {"model": replace(SMALL.model, width=8), "train": replace(SMALL.train, batch=4)}
    run = replace(SMALL, **smaller, seed=3, out=tmp_path / "a")
    model, data, config, options = given(mqar.run_mqar, run)
    assert (model.config, config) == (run.model, run.train)
    name = "model.embeddings.weight"
    np.testing.assert_array_equal(model.params[name], RAMNet(run.model, seed=3).params[name])
    assert len(data.batch(0).ids) == 4
    _, other, *_ = given(mqar.run_mqar, replace(run, seed=4, out=tmp_path / "b"))
    assert (data.batch(0).ids[:, 0] != other.batch(0).ids[:, 0]).any()
    assert (options["resume"], options["overwrite"], options["graphs"]) == (False, False, "auto")
    assert options["settings"]["seed"] == 3


def gaps(data):
    """How far behind the pairs the first queries stand, on average."""
    labels = next(iter(data.held_out().values())).labels
    return float((labels >= 0).argmax(axis=1).mean())


MQAR = MQARSettings(vocab=64, power=0.01, train=((2, 24, 16),), test=((2, 24, 200),))
# setting -> another value, and what the run's data then are
MQAR_CHANGES = {
    "vocab": (32, lambda data: max(data.batch(step).ids.max() for step in range(2)) < 32),
    "power": (1.0, lambda data: gaps(data) > 7),
    "train": (((3, 20, 16),), lambda data: data.batch(0).ids.shape == (8, 20)),
    "test": (((3, 20, 16),), lambda data: list(data.held_out()) == ["3 pairs, length 20"]),
}


@pytest.mark.parametrize("name", MQAR_CHANGES)
def test_a_setting_of_recall_reaches_the_data(name, given, tmp_path):
    assert MQAR_CHANGES.keys() == {field.name for field in fields(MQARSettings)}
    value, holds = MQAR_CHANGES[name]
    run = replace(SMALL, model=replace(SMALL.model, vocab=64), data=MQAR, out=tmp_path)
    assert not holds(given(mqar.run_mqar, run)[1])
    run = replace(run, data=replace(MQAR, **{name: value}), out=tmp_path / "changed")
    assert holds(given(mqar.run_mqar, run)[1])


def pieces(data):
    batch = data.batch(0)
    return type(batch).__name__, batch.ids.shape


TEXT_CHANGES = {
    "path": (None, lambda data: data.batch(0).ids.max() > 60),  # the facts are of letters
    "length": (5, lambda data: pieces(data) == ("Batch", (8, 5))),
    "start": ("line", lambda data: set(data.batch(0).ids[:, 0].tolist()) == {48}),
    "held_out": (2, lambda data: [one.name for one in data.aside] == ["2.txt", "3.txt"]),
    "held_out_sequences": (1, lambda data: len(data.held_out()["next byte"].ids) == 1),
    "carry_state": (True, lambda data: pieces(data) == ("StreamBatch", (8, 8))),
    "pack": (True, lambda data: pieces(data) == ("PackedBatch", (8, 8))),
}


@pytest.mark.parametrize("name", TEXT_CHANGES)
def test_a_setting_of_text_reaches_the_data(name, given, tmp_path):
    assert TEXT_CHANGES.keys() == {field.name for field in fields(TextSettings)}
    for number in range(4):
        (tmp_path / f"{number}.txt").write_bytes(b"0123\n" * 12)
    value, holds = TEXT_CHANGES[name]
    base = TextSettings(path=tmp_path, length=8, held_out=1, held_out_sequences=4)
    model = replace(SMALL.model, vocab=256)
    run = TextRun(model=model, train=SMALL.train, data=base, out=tmp_path / "run")
    assert not holds(given(run_text, run)[1])
    other = replace(base, **({"path": value, "held_out": 0.01} if name == "path" else {name: value}))
    assert holds(given(run_text, replace(run, data=other, out=tmp_path / "changed"))[1])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["learning_rate", "learning_rate_floor", "warmup", "weight_decay", "beta1", "beta2",
                                  "clip", "accumulate", "recompute", "steps"])  # fmt: skip
def test_a_setting_reaches_the_steps_of_a_gpu(name):
    """The parameters after some steps are those of the CPU, and without the setting they would not be."""
    from ramnet_np.train.gpu_trainer import GPUTrainer

    changed = replace(BASE, **{name: CHANGES[name][0]})
    found = []
    for device, config in (("cpu", BASE), ("cpu", changed), ("gpu", changed)):
        model = model_of().to(device)
        trainer_type = GPUTrainer if device == "gpu" else CPUTrainer
        with trainer_type(model, config, adamw_init(model.params)) as trainer:
            for step in range(5):
                trainer.step(data_of(config).batch(step))
            trainer.report()
        found.append(np.concatenate([p.ravel() for p in model.to("cpu").params.values()]))
    np.testing.assert_allclose(found[2], found[1], rtol=1e-6, atol=1e-8)
    if name not in ("accumulate", "recompute"):
        assert np.abs(found[2] - found[0]).max() > 1e-5


@pytest.mark.gpu
def test_a_gradient_that_is_not_finite_changes_nothing_on_a_gpu(monkeypatch):
    from ramnet_np.train import gpu_trainer

    def broken(*args):
        found = loss_and_gradients(*args)
        found.grads["model.norm.weight"][3] = np.inf
        return found

    monkeypatch.setattr(gpu_trainer, "loss_and_gradients", broken)
    model = model_of().to("gpu")
    before = {name: p.get() for name, p in model.params.items()}
    with gpu_trainer.GPUTrainer(model, BASE, adamw_init(model.params), "off") as trainer:
        trainer.step(data_of(BASE).batch(0))
        with pytest.raises(Diverged, match=r"the loss became \d.*, the gradient's norm (inf|nan)"):
            trainer.report()
    for name, p in model.params.items():
        np.testing.assert_array_equal(p.get(), before[name])
