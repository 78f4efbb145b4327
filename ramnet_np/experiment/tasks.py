"""What the runs of a grid learn: recall (MQAR), or text. All that differs between the two is here and in ``grid.py``.

    validate    measured several times during a run; chooses learning rates and settings
    test        measured once, after the last step of a run at full length

Recall has sets of its own for the test. Text has held-out documents: windows of them validate; all of them, read
from their first token on, are the test, with an empty memory in every window, and with the memory carried along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.data.batches import Batch, BatchSource, ShuffledSets
from ramnet_np.data.codec import BPECodec
from ramnet_np.data.corpus import Corpus, read_corpus
from ramnet_np.data.gpu_dataset import GPUDataset, GPUDatasets
from ramnet_np.data.mqar import MQARSettings, mqar_data, mqar_validation, setting_names
from ramnet_np.data.synthetic_facts import facts_text
from ramnet_np.data.text import FACTS_LINES, TextData, TextSettings
from ramnet_np.experiment.points import GridRun
from ramnet_np.model import RAMNet
from ramnet_np.model.mixers import mixers_of
from ramnet_np.model.network import Device
from ramnet_np.runs.text import text_measurement
from ramnet_np.train.metrics import Measured, evaluate
from ramnet_np.train.text_loss import documents_loss

GPU_TOKENS = 2**17  # tokens of one forward pass while measuring recall on a GPU
TEXT_NUMBERS = ("bits_per_byte", "nats")  # of a measurement on text, beside the accuracy

_making = threading.Lock()


class TaskData(NamedTuple):
    """What a run trains on, and how it is measured."""

    batches: BatchSource
    steps_per_epoch: float
    validate: Callable[[RAMNet], Measured]
    test: Callable[[RAMNet], Measured]
    tokenizer: str | None = None  # of a model of pieces of text: its tokenizer.json


def task_data(run: GridRun, device: Device, text: Path | None = None) -> TaskData:
    """The data of a run; what runs of one process have in common is made once.

    ``text``: what a run on text reads; None: the text that is made here. ValueError unless it is the run's.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> run = load_grid("mqar-order", quick=True).points[0].base
    >>> task_data(run, "cpu").steps_per_epoch > 0
    True
    """
    with _making:
        return _text(run, text) if isinstance(run.data, TextSettings) else _recall(run, run.data, device)


def figure(scores: Mapping[str, float]) -> float:
    """The number of a measurement that people are shown: bits a byte of text, else the mean accuracy.

    >>> figure({"mean": 0.5}), figure({"mean": 0.5, "bits_per_byte": 2.0})
    (0.5, 2.0)
    """
    return scores.get("bits_per_byte", scores["mean"])


def _recall(run: GridRun, settings: MQARSettings, device: Device) -> TaskData:
    data = _mqar(settings, run.validation, run.seed, device)
    sets = ShuffledSets(data.train, {}, run.train.batch, run.seed)
    tokens = GPU_TOKENS if data.on_gpu else None
    return TaskData(
        GPUDatasets(sets, data.on_gpu) if data.on_gpu else sets,
        sets.batches_per_epoch,
        lambda model: Measured(evaluate(model, data.validation, tokens)),
        lambda model: Measured(evaluate(model, data.test, tokens)),
    )


class _MQAR(NamedTuple):
    train: list[Batch]
    validation: dict[str, Batch]
    test: dict[str, Batch]
    on_gpu: list[GPUDataset]  # the training sets again, if the run computes on a GPU


@cache
def _mqar(settings: MQARSettings, validation: int, seed: int, device: Device) -> _MQAR:
    train, test = mqar_data(settings, seed)
    held_out = mqar_validation(settings, train, validation, seed)
    sets = [Batch(*examples) for examples in train]
    on_gpu = [GPUDataset(examples, settings.vocab) for examples in sets] if device == "gpu" else []
    if on_gpu:
        gpu_namespace().cuda.get_current_stream().synchronize()  # other streams will read them
    return _MQAR(sets, _named(settings.train, held_out), _named(settings.test, test), on_gpu)


def _named(settings: Any, sets: Any) -> dict[str, Batch]:
    return {name: Batch(*examples) for name, examples in zip(setting_names(settings), sets, strict=True)}


def _text(run: GridRun, text: Path | None) -> TaskData:
    settings = run.data
    assert isinstance(settings, TextSettings)
    source = _facts(run.seed) if text is None else _corpus(text)
    if isinstance(source, Corpus) and source.sha256 != run.corpus:
        raise ValueError(f"text must be what the grid was read with, but {str(text)!r} has been changed")
    data = TextData(source, settings, run.train.batch, run.seed)
    validation = text_measurement(data, settings)

    def validate(model: RAMNet) -> Measured:
        found = validation(model)
        numbers = {name: found.more[name] for name in TEXT_NUMBERS}
        return Measured(found.accuracy | numbers, {"slots": found.more["slots"]} if "slots" in found.more else {})

    return TaskData(
        data,
        sum(document.size for document in data.train) / (run.train.batch * settings.length),
        validate,
        lambda model: _tested(model, data, settings.length),
        data.codec.text if isinstance(data.codec, BPECodec) else None,
    )


_facts = lru_cache(maxsize=4)(lambda seed: facts_text(FACTS_LINES, seed=seed))
_corpus = lru_cache(maxsize=1)(read_corpus)


def _tested(model: RAMNet, data: TextData, length: int) -> Measured:
    """All held-out documents: scores with an empty memory in each window, and the loss by position of both ways.

    A memory that grows with every token is not carried: that would be another model, of unbounded context.
    """
    ways = {"windows": False}
    if not any(mixer.state_grows for mixer in mixers_of(model.config)):
        ways["carried"] = True
    losses = {name: documents_loss(model, data.corpus, data.aside, length, carry=way) for name, way in ways.items()}
    loss = losses["windows"].loss
    scores = {f"next {data.codec.unit}": loss.accuracy, "mean": loss.accuracy}
    scores |= {name: loss.record()[name] for name in TEXT_NUMBERS}
    if "carried" in losses:
        scores["carried bits_per_byte"] = losses["carried"].loss.bits_per_byte
    return Measured(scores, {"by_position": {name: found.table() for name, found in losses.items()}})
