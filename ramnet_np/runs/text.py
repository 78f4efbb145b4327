"""Training on text, as the command starts it, and text that a trained model writes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.data.batches import Batch
from ramnet_np.data.text import BYTES, TextData, TextSettings, read_text
from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.model import RAMNet, RAMNetConfig, preset
from ramnet_np.model.checkpoint import CONFIG, hub_hint
from ramnet_np.model.memory import require_memory
from ramnet_np.runs.mqar import Run, run_settings, train_run
from ramnet_np.runs.workload import Workload
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.loop import TrainResult


@dataclass(frozen=True)
class TextRun(Run):
    """Train a language model of bytes: predict every byte of a text from those before it."""

    model: RAMNetConfig = field(default_factory=lambda: preset("text-small"))
    """The network."""
    data: TextSettings = field(default_factory=TextSettings)
    """The text."""
    out: Path = Path("runs/text")
    """Folder for metrics.jsonl, checkpoints/ and the pictures; it is made if missing."""

    def __post_init__(self) -> None:
        if self.model.vocab != BYTES:
            raise ValueError(f"model.vocab must be {BYTES}, one for each byte, got {self.model.vocab}")
        super().__post_init__()


def run_text(run: TextRun, *, progress: bool = True) -> TrainResult:
    """Train on the text, and draw curves.png and trace.png into ``run.out``; errors as in ``run_mqar``.

    A run is resumed under the same settings and on the same bytes, wherever the file is now.

    >>> from dataclasses import replace
    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.train.config import TrainConfig
    >>> small = RAMNetConfig(vocab=256, width=8, layers=1, heads=1, order=2, top_k=4, ffn="none")
    >>> data = TextSettings(length=16, held_out=0.001)
    >>> run = TextRun(model=small, train=TrainConfig(steps=1, batch=4, warmup=0), data=data)
    >>> with TemporaryDirectory() as folder:
    ...     result = run_text(replace(run, out=Path(folder)), progress=False)
    >>> result.status, list(result.accuracy)
    ('finished', ['next byte', 'mean'])
    """
    if run.data.path is not None and run.data.path.is_file():  # with its tokens, and where sequences may start
        require_memory(16 * run.data.path.stat().st_size, f"data.path {str(run.data.path)!r}")
    data = TextData(read_text(run.data, run.seed), run.data, run.train.batch, run.seed)
    decides = {name: value for name, value in asdict(run.data).items() if name != "path"} | {"sha256": data.sha256}
    settings = run_settings(run, decides)
    tokens, held_out = run.train.batch * run.data.length, data.held_out()["next byte"].tokens
    work = Workload(tokens, tokens, tokens, held_out, held_out, 0)
    return train_run(run, lambda: data, settings, work, accuracy="next-byte accuracy", progress=progress)


def bits_per_byte(model: RAMNet, windows: Batch, rows: int = 32) -> float:
    """Mean cross-entropy of the next byte in bits: 8 for a guess among all bytes, 0 for certainty.

    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2, ffn="none", init_std=0.0))
    >>> round(bits_per_byte(model, Batch(np.array([[1, 2, 3]]), np.array([[2, 3, 4]]))), 6)
    8.0
    """
    xp = namespace_of(*model.params.values())
    nats = 0.0
    for i in range(0, len(windows.ids), rows):
        ids, labels = (xp.asarray(x[i : i + rows]) for x in windows)
        logits, _ = model.forward(ids)
        loss = cross_entropy_and_gradient(logits.reshape(-1, logits.shape[-1]), labels.ravel())
        nats += float(loss.loss) * labels.size
    return nats / windows.labels.size / math.log(2)


def load_text_model(folder: Path) -> RAMNet:
    """The model of a checkpoint, or of the last checkpoint of a run. ValueError unless it reads bytes.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2)).save_pretrained(folder)
    ...     load_text_model(Path(folder)).config.width
    8
    """
    if not folder.is_dir():
        words = f"folder must hold a run or a checkpoint, got {str(folder)!r}, which is no folder"
        raise FileNotFoundError(words + hub_hint(str(folder)))
    checkpoint = latest_checkpoint(folder / "checkpoints")
    if checkpoint is None and not (folder / CONFIG).exists():
        raise FileNotFoundError(f"folder must hold a run or a checkpoint, got {str(folder)!r}, which has neither")
    model = RAMNet.from_pretrained(checkpoint or folder)
    if model.config.vocab != BYTES:
        raise ValueError(
            f"folder must hold a model of bytes (vocab {BYTES}, from `ramnet-np train text`), got one of vocab "
            f"{model.config.vocab}"
        )
    return model


def generate_text(model: RAMNet, prompt: str, length: int, *, temperature: float = 0.0, seed: int = 0) -> Iterator[str]:
    """What the model writes after ``prompt``: ``length`` bytes, decoded as UTF-8, each yielded as soon as it is there.

    The prompt runs once and leaves its state; each further byte is one step of the same cost. ValueError or TypeError,
    naming the argument, before anything is computed.

    >>> model = RAMNet(RAMNetConfig(vocab=256, width=8, layers=1, order=2), seed=0)
    >>> len(list(generate_text(model, "Tom", 5)))  # five bytes, and what was left of a character cut off
    6
    """
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be text, got {type(prompt).__name__}")
    if not prompt:
        raise ValueError("prompt must hold at least one character, got none")
    ids = np.frombuffer(prompt_bytes(prompt), dtype=np.uint8).astype(np.int32)
    ids = namespace_of(*model.params.values()).asarray(ids)[None]
    return _decoded(model.stream(ids, length, temperature=temperature, seed=seed))


def prompt_bytes(prompt: str) -> bytes:
    """UTF-8. Bytes of the command line that are none come as lone surrogates, and become the bytes that they were.

    >>> prompt_bytes("é"), prompt_bytes("\\udcff")
    (b'\\xc3\\xa9', b'\\xff')
    """
    try:
        return prompt.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(f"prompt must be text, got the lone surrogate {prompt[at]!a} at character {at}") from error


def _decoded(tokens: Iterator[Array]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        yield decoder.decode(bytes([int(on_host(token)[0])]))
    yield decoder.decode(b"", final=True)
