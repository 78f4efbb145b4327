"""Training on text, as the command starts it, and text that a trained model writes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ramnet_np.core.arrays import namespace_of
from ramnet_np.data.batches import Batch, Share
from ramnet_np.data.codec import BYTES, BPECodec, ByteCodec, Codec, read_codec
from ramnet_np.data.corpus import some_names
from ramnet_np.data.stop import check_stop
from ramnet_np.data.text import TextData, TextSettings, read_data
from ramnet_np.data.tokens import MANIFEST, TOKENIZER, read_manifest
from ramnet_np.model import RAMNet, RAMNetConfig, preset
from ramnet_np.model.checkpoint import CONFIG, hub_hint
from ramnet_np.model.checks import check_integer
from ramnet_np.model.generation import Generation
from ramnet_np.model.mixers import MIXERS, mixers_of
from ramnet_np.model.sampling import Sampling
from ramnet_np.runs.hardware import hardware, peak_flops
from ramnet_np.runs.mqar import Run, run_settings, train_run
from ramnet_np.runs.workload import Workload, flops_per_token
from ramnet_np.runs.writing import encode_prompts, write
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.loop import Extras, TrainResult
from ramnet_np.train.metrics import Measured, Meter
from ramnet_np.train.ranks import ONE, Ranks, require_rows
from ramnet_np.train.slot_use import WINDOWS, has_slots, slot_use
from ramnet_np.train.text_loss import documents_loss, windows_loss


@dataclass(frozen=True)
class TextRun(Run):
    """Train a language model: predict every token of a text, a byte or a piece, from those before it."""

    model: RAMNetConfig = field(default_factory=lambda: preset("text-small"))
    """The network. A vocabulary of 256, one for each byte, becomes that of a tokenised folder."""
    data: TextSettings = field(default_factory=TextSettings)
    """The text."""
    by_position: bool = False
    """Measure held-out documents from their first byte on, and write the loss by the position in the document, too."""
    out: Path = Path("runs/text")
    """Folder for metrics.jsonl, checkpoints/ and the pictures; it is made if missing."""

    def __post_init__(self) -> None:
        path, vocab, each = self.data.path, BYTES, "byte"
        if path is not None and (path / MANIFEST).is_file():
            vocab, each = read_manifest(path).vocab, "token of data.path"
        if self.model.vocab == BYTES:
            object.__setattr__(self, "model", replace(self.model, vocab=vocab))
        if self.model.vocab != vocab:
            raise ValueError(f"model.vocab must be {vocab}, one for each {each}, got {self.model.vocab}")
        if self.data.carry_state and not all(mixer.initial_state for mixer in mixers_of(self.model)):
            fixed = ", ".join(repr(name) for name, mixer in MIXERS.items() if mixer.initial_state)
            raise ValueError(
                f"data.carry_state needs a memory whose shape does not change, that of mixer {fixed}, "
                f"got mixer {' and '.join(dict.fromkeys(repr(mixer.name) for mixer in mixers_of(self.model)))}"
            )
        if self.data.carry_state and self.model.learned_slots:
            raise ValueError("model.learned_slots must be False with data.carry_state, whose memories begin empty")
        super().__post_init__()


def run_text(run: TextRun, *, progress: bool = True, ranks: Ranks = ONE) -> TrainResult:
    """Train on the text, and draw curves.png and trace.png into ``run.out``; errors as in ``run_mqar``.

    A run is resumed under the same settings and on the same bytes, wherever the file is now. The metrics have nats a
    token, bits a byte and perplexity of the held-out text, the checkpoints the tokenizer if there is one.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.train.config import TrainConfig
    >>> small = RAMNetConfig(vocab=256, width=8, layers=1, heads=1, order=2, top_k=4, ffn="none")
    >>> data = TextSettings(length=16, held_out=0.001)
    >>> run = TextRun(model=small, train=TrainConfig(steps=1, batch=4, warmup=0), data=data)
    >>> with TemporaryDirectory() as folder:
    ...     result = run_text(replace(run, out=Path(folder)), progress=False)
    >>> result.status, list(result.accuracy), list(result.measured)
    ('finished', ['next byte', 'mean'], ['nats', 'bits_per_byte', 'perplexity', 'slots'])
    """
    require_rows(ranks.size, run.train.batch, run.train.accumulate)
    progress = progress and ranks.rank == 0
    with reading_bar("reading", progress) as watch:
        data = read_data(run.data, run.train.batch, run.seed, watch, Share(ranks.rank, ranks.size))
    if progress and run.data.path is not None:
        print(_split_in_words(data), file=sys.stderr)
    decides = {name: value for name, value in asdict(run.data).items() if name != "path"} | {"sha256": data.sha256}
    settings = run_settings(run, decides)
    tokens, held_out = run.train.batch * run.data.length, next(iter(data.held_out().values())).tokens
    work = Workload(tokens, tokens, tokens, held_out, held_out, 0)
    peak = peak_flops(hardware("gpu")["name"], run.train.dtype) if run.device == "gpu" else None
    peak = peak and peak * ranks.size
    files = {TOKENIZER: data.codec.text} if isinstance(data.codec, BPECodec) else {}
    extras = Extras(
        text_measurement(data, run.data, run.by_position, ranks), Meter(flops_per_token(run.model), peak), files
    )
    name = f"next-{data.codec.unit} accuracy"
    return train_run(run, lambda: data, settings, work, accuracy=name, progress=progress, extras=extras, ranks=ranks)


def text_measurement(
    data: TextData, settings: TextSettings, by_position: bool = False, ranks: Ranks = ONE
) -> Callable[[RAMNet], Measured]:
    """How a run measures: the held-out windows, or where state is carried or positions are asked for, documents.

    A model with slots also has how its layers use them, on the first few windows.

    >>> settings = TextSettings(length=4)
    >>> measure = text_measurement(TextData(b"Tom has a fox. " * 9, settings, batch=1, seed=0), settings)
    >>> sorted(measure(RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2))).more)
    ['bits_per_byte', 'nats', 'perplexity', 'slots']
    """
    [(name, windows)] = data.held_out().items()
    most = max(1, settings.held_out_sequences // len(data.aside))

    def measure(model: RAMNet) -> Measured:
        more: dict[str, Any] = {}
        if settings.carry_state or by_position:
            result = documents_loss(
                model, data.corpus, data.aside, settings.length, carry=settings.carry_state, most_windows=most,
                ranks=ranks,
            )  # fmt: skip
            loss = result.loss
            more = {"by_position": result.table()} if by_position else {}
        else:
            loss = windows_loss(model, windows, data.codec.token_bytes, ranks=ranks)
        if has_slots(model):
            ids = namespace_of(*model.params.values()).asarray(windows.ids[:WINDOWS])
            more["slots"] = slot_use(model, ids)
        return Measured({name: loss.accuracy, "mean": loss.accuracy}, loss.record() | more)

    return measure


def _split_in_words(data: TextData) -> str:
    """What is trained on and what is held out.

    >>> print(_split_in_words(TextData(b"Tom has a fox." * 9, TextSettings(length=4), batch=1, seed=0)))
    training on 119 bytes of 1 document, held out 7 of 1: the end of text
    """
    (train, trained), (aside, held_out) = ((len(d), sum(one.size for one in d)) for d in (data.train, data.aside))
    return (
        f"training on {trained:,} {data.codec.unit}s of {train:,} document{'s' * (train > 1)}, held out "
        f"{held_out:,} of {aside:,}: {some_names([document.name for document in data.aside], 12)}"
    )


@contextmanager
def reading_bar(words: str, progress: bool) -> Iterator[Callable[[int], object]]:
    """A progress bar over bytes, which appears where reading takes more than a second.

    >>> with reading_bar("reading", progress=False) as watch:
    ...     _ = watch(10)
    """
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1000, "delay": 1.0, "leave": False}
    with tqdm(desc=words, disable=not progress, **options) as bar:
        yield bar.update


def bits_per_byte(model: RAMNet, windows: Batch, rows: int = 32) -> float:
    """Mean cross-entropy of the next byte in bits: 8 for a guess among all bytes, 0 for certainty.

    >>> import numpy as np
    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> round(bits_per_byte(model, Batch(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))), 6)
    8.0
    """
    return windows_loss(model, windows, tokens=rows * windows.ids.shape[1]).bits_per_byte


def load_text_model(folder: Path) -> RAMNet:
    """The model of a checkpoint, or of the last checkpoint of a run. ValueError unless it is one of text.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2)).save_pretrained(folder)
    ...     load_text_model(Path(folder)).config.width
    8
    """
    checkpoint = _checkpoint_of(folder)
    model, codec = RAMNet.from_pretrained(checkpoint), load_codec(checkpoint)
    if model.config.vocab != codec.vocab:
        reads = "bytes" if codec.unit == "byte" else f"the tokens of the {TOKENIZER} beside it"
        raise ValueError(
            f"folder must hold a model of {reads} (vocab {codec.vocab}, from `ramnet-np train text`), got one of vocab "
            f"{model.config.vocab}"
        )
    return model


def load_codec(folder: Path) -> Codec:
    """What turns text into the tokens of the model in ``folder`` and back: its tokenizer, else bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2)).save_pretrained(folder)
    ...     load_codec(Path(folder)).unit
    'byte'
    """
    path = _checkpoint_of(folder) / TOKENIZER
    return read_codec(path) if path.is_file() else ByteCodec()


def _checkpoint_of(folder: Path) -> Path:
    if not folder.is_dir():
        words = f"folder must hold a run or a checkpoint, got {str(folder)!r}, which is no folder"
        raise FileNotFoundError(words + hub_hint(str(folder)))
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is None and not (folder / CONFIG).exists():
        raise FileNotFoundError(f"folder must hold a run or a checkpoint, got {str(folder)!r}, which has neither")
    return checkpoint or folder


def generate_text(
    model: RAMNet, prompt: str, length: int, *, codec: Codec | None = None, stop: Sequence[str] = (), **sampling: Any
) -> Iterator[str]:
    """What the model writes after ``prompt``: ``length`` tokens, decoded as UTF-8, each yielded as soon as it is there.

    The prompt runs once and leaves its state; each further token is one step of the same cost. ``codec``: of the
    model, see :func:`load_codec`; None: bytes. ``stop``: strings that end the text, see :mod:`ramnet_np.data.stop`.
    ``sampling``: fields of :class:`~ramnet_np.model.sampling.Sampling`. ValueError or TypeError, naming the argument,
    before anything is computed.

    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2), seed=0)
    >>> len(list(generate_text(model, "Tom", 5)))  # five bytes, and what was left of a character cut off
    6
    """
    codec = codec or ByteCodec()
    choices, [ids] = Sampling(**sampling), encode_prompts([prompt], codec)
    check_integer("length", length, 0)
    check_stop(stop)
    generation = Generation(model, namespace_of(*model.params.values()).asarray(ids)[None])
    return (piece for [piece] in write(generation, length, choices, codec, stop))
