"""How to train: the settings of a run, and the learning rate that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ramnet_np.model.checks import SMALLEST, check_choice, check_flag, check_integer, check_number
from ramnet_np.model.mixers.interface import Recompute
from ramnet_np.train.schedule import cosine_with_warmup

Precision = Literal["float32", "bfloat16"]
MOST_SEQUENCES = 2**20  # in a batch: what is more is a slip of the pen, which would end in a lack of memory


@dataclass(frozen=True)
class TrainConfig:
    """How to train: the length of the run, the optimiser, and how often to measure and to save."""

    steps: int = 2000
    """Optimiser steps of the whole run; the learning rate reaches its floor at the last one."""
    batch: int = 64
    """Sequences per step."""
    accumulate: int = 1
    """Parts of a batch that are computed one after the other, their gradients added up: the memory of one part, and the
    result of the whole batch to rounding. `batch` must be a multiple of it."""
    recompute: Recompute = "none"
    """What is computed again in the backward in place of being kept, to the same bits: ffn, the feed-forward networks;
    block, everything but the input of each block (least memory, about a third more time); none."""
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
    dtype: Precision = "float32"
    """What a step computes in: "bfloat16", on a GPU, takes less time and memory. Sums, the optimiser, checkpoints and
    the parameters that it updates are float32 either way."""
    shard_optimizer: bool = False
    """Where several ranks train together, each keeps the optimiser's moments of its own share of the parameters alone
    (ZeRO-1): less memory on each, to the same bits, and the parameters are sent to all ranks in every step."""
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
        check_choice("train.dtype", self.dtype, Precision)
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
            check_integer(f"train.{name}", getattr(self, name), 1)
        check_integer("train.warmup", self.warmup, 0)
        check_integer("train.batch", self.batch, 1, MOST_SEQUENCES)
        check_integer("train.accumulate", self.accumulate, 1, MOST_SEQUENCES)
        if self.batch % self.accumulate:
            raise ValueError(
                f"train.batch must be a multiple of train.accumulate ({self.accumulate}), got {self.batch}: parts of a "
                "batch have equally many sequences"
            )
        check_choice("train.recompute", self.recompute, Recompute)
        check_flag("train.shard_optimizer", self.shard_optimizer)
        for name in ("learning_rate", "clip"):
            check_number(f"train.{name}", getattr(self, name), SMALLEST)
        for name in ("learning_rate_floor", "weight_decay"):
            check_number(f"train.{name}", getattr(self, name), 0.0)
        for name in ("beta1", "beta2"):
            check_number(f"train.{name}", getattr(self, name), 0.0, 1.0)
            if getattr(self, name) == 1:
                raise ValueError(f"train.{name} must be below 1, got {getattr(self, name)}")
        if self.stop_at is not None:
            check_number("train.stop_at", self.stop_at, SMALLEST, 1.0)
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
