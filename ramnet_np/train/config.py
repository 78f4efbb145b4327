"""How to train: the settings of a run, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ramnet_np.train.schedule import cosine_with_warmup

MOST_SEQUENCES = 2**20  # in a batch: what is more is a slip of the pen, which would end in a lack of memory

_WHOLE = ("steps", "batch", "warmup", "log_every", "evaluate_every", "checkpoint_every")


@dataclass(frozen=True)
class TrainConfig:
    """How to train: the length of the run, the optimiser, and how often to measure and to save."""

    steps: int = 2000
    """Optimiser steps of the whole run; the learning rate reaches its floor at the last one."""
    batch: int = 64
    """Sequences per step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: a straight rise over `warmup` steps, then half a cosine down to the floor."""
    learning_rate_floor: float = 1e-4
    """Where the cosine ends: the learning rate of the last step."""
    warmup: int = 100
    """Steps of rising learning rate, fewer than `steps`: AdamW's averages need some gradients before they can be
    trusted."""
    weight_decay: float = 0.1
    """Each step shrinks every matrix by learning_rate * weight_decay; norms, biases, scales and short
    convolutions do not shrink."""
    beta1: float = 0.9
    """Decay of the running mean of the gradient."""
    beta2: float = 0.95
    """Decay of the running mean of the squared gradient."""
    clip: float = 1.0
    """Largest allowed norm of all gradients together; longer ones are scaled down to it."""
    log_every: int = 20
    """Steps between two training records in metrics.jsonl."""
    evaluate_every: int = 100
    """Steps between two measurements on the held-out sets (also done after the last step)."""
    checkpoint_every: int = 500
    """Steps between two checkpoints (one is also written at the end and on Ctrl-C). The newest two are kept, and the
    one with the highest held-out accuracy."""
    stop_at: float | None = None
    """Stop early once the mean held-out accuracy reaches this, for example 0.99."""

    def __post_init__(self) -> None:
        for name in _WHOLE:
            least = 0 if name == "warmup" else 1
            require_whole(f"train.{name}", getattr(self, name), least)
        for name in ("learning_rate", "clip"):
            if not require_finite(f"train.{name}", getattr(self, name)) > 0:
                raise ValueError(f"train.{name} must be above 0, got {getattr(self, name)}")
        for name in ("learning_rate_floor", "weight_decay"):
            if not require_finite(f"train.{name}", getattr(self, name)) >= 0:
                raise ValueError(f"train.{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= require_finite(f"train.{name}", getattr(self, name)) < 1:
                raise ValueError(f"train.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.stop_at is not None and not 0 < require_finite("train.stop_at", self.stop_at) <= 1:
            raise ValueError(f"train.stop_at must be an accuracy above 0 and at most 1, got {self.stop_at}")
        self._require_sense()

    def _require_sense(self) -> None:
        if self.batch > MOST_SEQUENCES:
            raise ValueError(f"train.batch must be at most {MOST_SEQUENCES:,}, got {self.batch:,}")
        if self.warmup >= self.steps:
            raise ValueError(
                f"train.warmup must be below train.steps ({self.steps}), got {self.warmup}: the run would end before "
                "the learning rate has fallen"
            )
        if self.learning_rate_floor > self.learning_rate:
            raise ValueError(
                f"train.learning_rate_floor must be at most train.learning_rate ({self.learning_rate}), "
                f"got {self.learning_rate_floor}"
            )


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that follows ``step`` updates.

    Formula and source: :func:`~ramnet_np.train.schedule.cosine_with_warmup`.

    >>> learning_rate(TrainConfig(learning_rate=1.0, warmup=10), step=4)
    0.5
    """
    return cosine_with_warmup(
        step,
        peak=config.learning_rate,
        floor=config.learning_rate_floor,
        warmup=config.warmup,
        total=config.steps,
    )


def require_whole(name: str, value: Any, least: int) -> None:
    """TypeError or ValueError unless ``value`` is a whole number of at least ``least``.

    >>> require_whole("seed", 0.5, 0)
    Traceback (most recent call last):
        ...
    TypeError: seed must be a whole number, got 0.5
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def require_finite(name: str, value: Any) -> float:
    """``value``; TypeError or ValueError unless it is a finite number.

    >>> require_finite("epochs", float("inf"))
    Traceback (most recent call last):
        ...
    ValueError: epochs must be a finite number, got inf
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")
    return float(value)
