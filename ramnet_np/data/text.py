"""Text as training data: the bytes of any file are the tokens, and each byte predicts the next one.

    bytes   T o m :   f o x .
    ids     T o m :   f o x         a window of ``length`` bytes
    labels  o m :   f o x .         the same, one byte later

No tokenizer and nothing to download: 256 tokens spell every language and every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ramnet_np.data.batches import Batch
from ramnet_np.data.checks import check_count, check_real, check_seed
from ramnet_np.data.synthetic_facts import facts_text

Start = Literal["anywhere", "line"]

BYTES = 256  # the vocabulary
FACTS_LINES = 40_000  # lines of the text made here, 3 MB: few of them are seen twice in a run


@dataclass(frozen=True)
class TextSettings:
    """What to read: a file, and how it is cut into sequences."""

    path: Path | None = None
    """Any file; its bytes are the tokens. None: made-up facts that must be recalled (data/synthetic_facts.py)."""
    length: int = 128
    """Bytes of a training sequence. Memory starts empty in each."""
    start: Start = "anywhere"
    """Where training sequences start: anywhere in the text, or at the start of a line."""
    held_out: float = 0.05
    """Share of the file, at its end, that is measured on and never trained on."""
    held_out_sequences: int = 200
    """How many held-out sequences to measure on, at most."""

    def __post_init__(self) -> None:
        check_count("data.length", self.length)
        check_count("data.held_out_sequences", self.held_out_sequences)
        if self.start not in get_args(Start):
            allowed = ", ".join(map(repr, get_args(Start)))
            raise ValueError(f"data.start must be one of {allowed}, got {self.start!r}")
        check_real("data.held_out", self.held_out)
        if not 0 < self.held_out < 1:
            raise ValueError(f"data.held_out must lie between 0 and 1, got {self.held_out}")
        if isinstance(self.path, str):
            object.__setattr__(self, "path", Path(self.path))


class TextData:
    """Windows of a text: training windows start at random and may overlap, held-out ones do not overlap.

    ``text``: the bytes; ``batch``: sequences of a training batch; ``seed``: with the step, decides which windows.
    """

    def __init__(self, text: bytes, settings: TextSettings, batch: int, seed: int):
        check_count("batch", batch)
        check_seed(seed)
        if not text:
            raise ValueError("text must hold something to learn from, got none")
        self.sha256 = hashlib.sha256(text).hexdigest()
        tokens = np.frombuffer(text, dtype=np.uint8).astype(np.int32)
        kept = int(len(tokens) * (1 - settings.held_out))
        self._train, held_out = tokens[:kept], tokens[kept:]
        self._length, self._batch, self._seed = settings.length, batch, seed
        if min(len(self._train), len(held_out)) <= settings.length:
            raise ValueError(
                f"data.length must be below the {min(len(self._train), len(held_out))} bytes that training and "
                f"held-out text have at least, got {settings.length}: a longer file or shorter sequences would do"
            )
        self._starts = _starts(self._train, settings)
        self._held_out = self._windows(held_out, _side_by_side(held_out, settings))

    def batch(self, step: int) -> Batch:
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        rng = np.random.default_rng([self._seed, step])
        return self._windows(self._train, self._starts[rng.integers(len(self._starts), size=self._batch)])

    def held_out(self) -> Mapping[str, Batch]:
        return {"next byte": self._held_out}

    def _windows(self, tokens: NDArray[np.int32], starts: NDArray[np.int64]) -> Batch:
        at = starts[:, None] + np.arange(self._length + 1)
        windows = tokens[at]
        return Batch(windows[:, :-1], windows[:, 1:])


def _starts(tokens: NDArray[np.int32], settings: TextSettings) -> NDArray[np.int64]:
    """Where a window of ``length`` + 1 bytes may start: everywhere, or at byte 0 and after every newline."""
    starts = np.arange(len(tokens) - settings.length)
    if settings.start == "anywhere":
        return starts
    return np.concatenate([starts[:1], starts[1:][tokens[: len(starts) - 1] == ord("\n")]])


def _side_by_side(tokens: NDArray[np.int32], settings: TextSettings) -> NDArray[np.int64]:
    """Starts of windows that do not overlap, beginning with the first allowed start."""
    chosen: list[int] = []
    free = 0
    allowed = _starts(tokens, settings)
    while len(chosen) < settings.held_out_sequences and (at := int(np.searchsorted(allowed, free))) < len(allowed):
        chosen.append(int(allowed[at]))
        free = chosen[-1] + settings.length
    return np.array(chosen, dtype=np.int64)


def read_text(settings: TextSettings, seed: int = 0) -> bytes:
    """The bytes of the file, or the text made here.

    FileNotFoundError where there is no such file, ValueError where it is empty.

    >>> read_text(TextSettings())[:20]
    b'FredCat. EricMole. A'
    """
    if settings.path is None:
        return facts_text(FACTS_LINES, seed=seed)
    if not settings.path.is_file():
        raise FileNotFoundError(f"data.path must be a file, got {str(settings.path)!r}")
    text = settings.path.read_bytes()
    if not text:
        raise ValueError(f"data.path must be a file with something in it, but {str(settings.path)!r} is empty")
    return text
