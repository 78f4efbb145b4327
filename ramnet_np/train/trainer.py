"""One step of training: batch -> forward -> cross-entropy over the labelled tokens -> backward -> clip -> AdamW.

The training loop talks to a :class:`Trainer`. :class:`CPUTrainer` reads every number before it goes on, as suits a CPU;
:class:`~ramnet_np.train.gpu_trainer.GPUTrainer` leaves them on the device until :meth:`Trainer.report` is called.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.data.batches import Batch, PackedBatch, StreamBatch
from ramnet_np.model import RAMNet
from ramnet_np.train.carried import CarriedState, carried_from
from ramnet_np.train.config import TrainConfig, learning_rate
from ramnet_np.train.gradient_sum import GradientSum
from ramnet_np.train.gradients import Gradients, Part, loss_and_gradients, packed_part
from ramnet_np.train.optim import AdamWState, adamw_update, clip_by_global_norm
from ramnet_np.train.ranks import ONE, Ranks
from ramnet_np.train.shards import Shards


class Report(NamedTuple):
    """The numbers of one step."""

    loss: float
    accuracy: float  # over the labelled tokens of the batch
    learning_rate: float
    grad_norm: float  # before clipping


class Diverged(FloatingPointError):
    """A loss or gradient was not finite. It did not reach the parameters: they are those after ``step`` updates."""

    def __init__(self, step: int, why: str):
        super().__init__(why)
        self.step = step
        self.why = why


class Trainer(Protocol):
    """Updates a model batch by batch: :meth:`step`, :meth:`report` and ``state``.

    It is used as a context: all work on the model happens within the block.
    """

    report_is_free: bool  # whether the numbers of a step are on the host anyway

    @property
    def model(self) -> RAMNet:
        """What computes the steps: the model that is trained, or a copy of it in the run's dtype."""

    @property
    def state(self) -> AdamWState:
        """The optimiser's state after the last step; with ``config.shard_optimizer`` the moments of this rank."""

    def whole_state(self) -> AdamWState:
        """As :attr:`state`, with the moments of all ranks. Every rank calls this; it is complete on rank 0."""

    @property
    def carried(self) -> dict[str, Array] | None:
        """The memories after the last step, by name; None where none are carried from step to step."""

    def step(self, batch: Batch | StreamBatch | PackedBatch) -> None:
        """Update the model once, in place. :class:`Diverged` is raised here or by a later report.

        The rows of a :class:`StreamBatch` go on from the memories that the step before left.
        """

    def report(self) -> Report:
        """The numbers of the last step. A GPU is waited for."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exc_info: object) -> None: ...


class CPUTrainer:
    """Steps in plain Python and NumPy, one operation after the other.

    It works on CuPy arrays too, through the same functions, and then waits for the GPU in every step.
    ``ranks``: those that train together, each on its rows of a batch; ``carried``: of this rank's rows; ``state``: with
    the moments of the parameters that this rank updates.
    """

    report_is_free = True

    def __init__(
        self,
        model: RAMNet,
        config: TrainConfig,
        state: AdamWState,
        carried: dict[str, Array] | None = None,
        ranks: Ranks = ONE,
    ):
        self._model, self._config, self._state = model, config, state
        self._over_ranks = GradientSum(ranks, model.params) if ranks.size > 1 else None
        self._shards = Shards(ranks, model.params) if ranks.size > 1 and config.shard_optimizer else None
        if self._shards:
            model.params.update(self._shards.params)
        self._saved = carried
        self._carried: CarriedState | None = None
        self._report: Report | None = None

    @property
    def model(self) -> RAMNet:
        return self._model

    @property
    def state(self) -> AdamWState:
        return self._state

    def whole_state(self) -> AdamWState:
        return self._shards.whole(self._state) if self._shards else self._state

    @property
    def carried(self) -> dict[str, Array] | None:
        return self._carried.arrays() if self._carried else self._saved

    def step(self, batch: Batch | StreamBatch | PackedBatch) -> None:
        model, config, step = self._model, self._config, self._state.step
        try:
            result = self._loss_and_gradients(batch)
        except ValueError as error:
            if "must be finite" not in str(error):  # this is how the operation refuses logits that overflowed
                raise
            if self._over_ranks:
                self._over_ranks.fail()
            raise Diverged(step, f"{error}{self._where()}") from error
        loss, grads = float(result.loss), result.grads
        norm = clip_by_global_norm(grads, config.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise Diverged(step, not_finite(loss, norm) + self._where())
        rate = learning_rate(config, step)
        optimizer = {"beta1": config.beta1, "beta2": config.beta2, "weight_decay": config.weight_decay}
        params, grads = ({name: of[name] for name in self._state.mean} for of in (model.params, grads))
        self._state = adamw_update(params, grads, self._state, rate, **optimizer)
        if self._shards:
            self._shards.send()
        self._report = Report(loss, int(result.correct) / max(1, int(result.count)), rate, norm)

    def report(self) -> Report:
        assert self._report is not None  # only called after a step
        return self._report

    def _where(self) -> str:
        return self._over_ranks.where() if self._over_ranks else ""

    def _loss_and_gradients(self, batch: Batch | StreamBatch | PackedBatch) -> Gradients:
        xp = namespace_of(*self._model.params.values())
        ids, labels = xp.asarray(batch.ids), xp.asarray(batch.labels)
        start = None
        if isinstance(batch, StreamBatch):
            self._carried = self._carried or carried_from(self._model, batch, self._saved)
            start = xp.asarray(batch.start)
        rows = part_rows(len(ids), self._config.accumulate)
        parts = [
            Part(ids[i : i + rows], (at := labels[i : i + rows] >= 0), labels[i : i + rows][at])
            for i in range(0, len(ids), rows)
        ]
        if isinstance(batch, PackedBatch):
            parts = [packed_part(p, batch.cu_seqlens(i * rows, (i + 1) * rows)) for i, p in enumerate(parts)]
        return loss_and_gradients(self._model, parts, self._config.recompute, self._carried, start, self._over_ranks)

    def __enter__(self) -> CPUTrainer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


def not_finite(loss: float, norm: float) -> str:
    """Why a step diverged, in words.

    >>> not_finite(float("nan"), 1.0)
    "the loss became nan, the gradient's norm 1.0"
    """
    return f"the loss became {loss}, the gradient's norm {norm}"


def part_rows(sequences: int, accumulate: int) -> int:
    """Sequences in each of the ``accumulate`` parts of a batch. ValueError where the parts would not be alike.

    >>> part_rows(12, 3)
    4
    """
    if sequences % accumulate:
        raise ValueError(f"a batch must have a multiple of train.accumulate ({accumulate}) sequences, got {sequences}")
    return sequences // accumulate
