"""How much a run has to do, before it starts: memory that it needs at least, and about how long a CPU takes for it.

    flops of a forward and backward    6 (N + L/T V D) a token           N: weights, L: labels among T tokens
    seconds                            flops / 15e9 + 2e-6 for every token, layer and head

The two constants are of two cores of an AMD EPYC, where the estimate is right within a factor of about 2: enough to
tell minutes from hours.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from ramnet_np.model import RAMNetConfig
from ramnet_np.model.layout import parameter_shapes
from ramnet_np.model.memory import parameter_bytes, require_memory
from ramnet_np.model.mixers import mixers_of
from ramnet_np.train.config import TrainConfig

FLOPS, HEAD_SECONDS = 15e9, 2e-6
LONG = 15 * 60  # seconds from which on a run is announced


class Workload(NamedTuple):
    """What a data set gives a model to do; a step is one of training, on average over its sets."""

    tokens: float  # of a step
    labels: float  # of a step, those that a loss is taken of
    most_labels: int  # of the largest step
    held_out_tokens: int
    held_out_labels: int
    data_bytes: int  # that the data set takes


def require_run_memory(work: Workload, model: RAMNetConfig, train: TrainConfig, device: str, ranks: int = 1) -> None:
    """MemoryError, in one sentence, where a run on so many ranks cannot fit.

    Counted are weights, gradients and two moments, and of one part of the batch the logits twice, and the addresses, of
    which every layer that is not computed again keeps the slots and the weights.

    >>> require_run_memory(Workload(512, 64, 64, 4096, 512, 10**6), RAMNetConfig(), TrainConfig(), "cpu")
    """
    logits = 2 * 4 * work.most_labels // train.accumulate * model.vocab
    layers = 1 if train.recompute == "block" else model.layers
    writes, reads = model.top_k if isinstance(model.top_k, tuple) else (model.top_k, model.top_k)
    has_slots = any(mixer.addresses for mixer in mixers_of(model))
    addresses = 8 * int(work.tokens) // train.accumulate * layers * model.heads * (writes + reads) * has_slots
    moments = 2 * parameter_bytes(model) // (ranks if train.shard_optimizer else 1)
    training = 2 * parameter_bytes(model) + moments + logits + addresses
    require_memory(training + work.data_bytes * (device == "cpu"), "training a model of this size on this data", device)


def flops_per_token(model: RAMNetConfig) -> int:
    """Operations of a forward and backward for a token with a label: 6 for each weight of a product, the head's too.

    The memories' own operations, few beside these, are not counted, nor is what ``train.recompute`` does twice.

    >>> flops_per_token(RAMNetConfig(vocab=100, width=8, layers=1, order=2, ffn="none"))
    7104
    """
    shapes = parameter_shapes(model).items()
    is_product = {name: len(shape) > 1 and name.endswith("weight") and "conv" not in name for name, shape in shapes}
    matrices = sum(prod(shape) for name, shape in shapes if is_product[name])
    return 6 * (matrices - (0 if model.tie_embeddings else model.vocab * model.width))  # embeddings are looked up


def cpu_seconds(work: Workload, model: RAMNetConfig, train: TrainConfig) -> float:
    """About how long the run takes on two cores.

    >>> round(cpu_seconds(Workload(2048, 256, 256, 64_000, 8000, 10**6), RAMNetConfig(vocab=256), TrainConfig()))
    267
    """
    weights = parameter_bytes(model, 1) - model.vocab * model.width * (1 if model.tie_embeddings else 2)
    pass_once = HEAD_SECONDS * model.layers * model.heads + 6 * weights / FLOPS
    head = 6 * model.vocab * model.width / FLOPS
    step = work.tokens * pass_once + work.labels * head
    measurement = (work.held_out_tokens * pass_once + work.held_out_labels * head) / 3  # forward alone
    return train.steps * step + (train.steps / train.evaluate_every) * measurement


def announcement(work: Workload, model: RAMNetConfig, train: TrainConfig, instead: str) -> str | None:
    """A line that says how long a CPU takes and what to use ``instead``, or None for a run of minutes.

    >>> work = Workload(50_000, 8000, 16_000, 2_000_000, 200_000, 10**8)
    >>> announcement(work, RAMNetConfig(), TrainConfig(steps=4000), "--device gpu takes minutes")
    'about 6 hours on a CPU of two cores; --device gpu takes minutes'
    >>> announcement(work, RAMNetConfig(), TrainConfig(steps=4, warmup=0), "--device gpu takes minutes")
    """
    seconds = cpu_seconds(work, model, train)
    if seconds < LONG:
        return None
    hours = seconds / 3600
    days = f"{hours / 24:,.0f} days"
    takes = f"{seconds / 60:.0f} minutes" if hours < 1.5 else f"{hours:.0f} hours" if hours < 48 else days
    return f"about {takes} on a CPU of two cores; {instead}"
