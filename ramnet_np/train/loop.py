"""The training loop: any data set that can name its batches by step, any RAMNet.

One step: batch -> forward -> cross-entropy over the labelled tokens -> backward -> clip -> AdamW. Around it: a progress
bar, metrics, held-out accuracy, checkpoints, resuming, and the three ways a run ends early (target reached, Ctrl-C, a
loss that is no longer a number).
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ramnet_np.core.arrays import namespace_of
from ramnet_np.core.loss import cross_entropy_backward, cross_entropy_forward
from ramnet_np.model import RAMNet
from ramnet_np.train.batches import Batch, DataSource
from ramnet_np.train.checkpoint import Checkpoint, checkpoint_step, latest_checkpoint, load_checkpoint, save_checkpoint
from ramnet_np.train.interrupt import DeferredInterrupt
from ramnet_np.train.metrics import MetricsWriter, count_correct
from ramnet_np.train.optim import AdamWState, adamw_init, adamw_update, clip_by_global_norm
from ramnet_np.train.schedule import cosine_with_warmup


@dataclass(frozen=True)
class TrainConfig:
    """How to train: the length of the run, the optimiser, and how often to look and to save."""

    steps: int = 2000
    """Optimiser steps of the whole run; the learning rate reaches its floor at the last one."""
    batch: int = 64
    """Sequences per step."""
    learning_rate: float = 1e-3
    """Peak of the schedule: a straight rise over `warmup` steps, then half a cosine down to the floor."""
    learning_rate_floor: float = 1e-4
    """Where the cosine ends."""
    warmup: int = 100
    """Steps of rising learning rate: AdamW's averages need some gradients before they can be trusted."""
    weight_decay: float = 0.1
    """Each step shrinks every matrix by learning_rate * weight_decay; norms, biases and scales are spared."""
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
    """Steps between two checkpoints (one is also written at the end and on Ctrl-C). The newest is kept."""
    stop_at: float | None = None
    """Stop early once the mean held-out accuracy reaches this, 0.99 say."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"train.{name} must be above 0, got {getattr(self, name)}")
        for name in ("learning_rate_floor", "warmup", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"train.{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.learning_rate_floor > self.learning_rate:
            raise ValueError(
                f"train.learning_rate_floor must be at most train.learning_rate ({self.learning_rate}), "
                f"got {self.learning_rate_floor}"
            )


# Settings that leave the bits of the trained model alone: a resumed run may change them.
_FREE_SETTINGS = ("train.log_every", "train.checkpoint_every")


class TrainResult(NamedTuple):
    """How a run ended."""

    model: RAMNet
    step: int
    status: str  # "finished", "reached stop_at" or "interrupted"
    accuracy: dict[str, float]  # last measured, per held-out set and "mean"
    seconds: float  # of this call
    checkpoint: Path  # folder of the last checkpoint
    metrics: Path  # the metrics file


def train(
    model: RAMNet,
    data: DataSource,
    config: TrainConfig,
    out: Path | str,
    *,
    settings: Mapping[str, Any],
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train ``model`` in place on ``data``; write metrics.jsonl and checkpoints/ below the folder ``out``.

    ``settings``: everything that decides the result (nested, JSON values); it is stored in every checkpoint, and a run
        is only resumed under the same settings, save for how often it logs and saves.
    ``resume``: go on from the last checkpoint in ``out``, to the same bits as a run that was never stopped. The
        parameters and moments come from the checkpoint.
    ``overwrite``: replace the run that ``out`` holds. Without either of the two, an ``out`` in use is an error.

    Ctrl-C finishes the step, saves and returns with status "interrupted". A loss or gradient that is not finite raises
    FloatingPointError before it reaches the parameters; the last checkpoint stays.
    """
    out = Path(out)
    checkpoints, metrics = out / "checkpoints", out / "metrics.jsonl"
    prepare_folder(out, resume=resume, overwrite=overwrite)
    state, best = _restore(model, checkpoints, settings) if resume else (adamw_init(model.params), 0.0)

    def done() -> bool:
        return state.step >= config.steps or (config.stop_at is not None and best >= config.stop_at)

    first, tokens, started, accuracy = state.step, 0, time.perf_counter(), dict[str, float]()
    with (
        MetricsWriter(metrics, resume_step=first if resume else None) as log,
        DeferredInterrupt() as interrupt,
        tqdm(total=config.steps, initial=first, unit="step", disable=not progress, dynamic_ncols=True) as bar,
    ):
        while not (done() or interrupt.requested):
            batch = data.batch(state.step)
            try:
                loss, train_accuracy, grads = _loss_and_gradients(model, batch)
            except ValueError as error:
                if "must be finite" not in str(error):  # so the operation refuses logits that overflowed
                    raise
                raise FloatingPointError(_stopped(state.step, str(error), checkpoints)) from error
            norm = clip_by_global_norm(grads, config.clip)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                what = f"the loss became {loss}, the gradient's norm {norm}"
                raise FloatingPointError(_stopped(state.step, what, checkpoints))
            rate = learning_rate(config, state.step)
            optimizer = {"beta1": config.beta1, "beta2": config.beta2, "weight_decay": config.weight_decay}
            state = adamw_update(model.params, grads, state, rate, **optimizer)

            step, seconds = state.step, time.perf_counter() - started
            tokens += batch.ids.size
            if step % config.evaluate_every == 0 or step == config.steps:
                accuracy = evaluate(model, data.held_out())
                best = max(best, accuracy["mean"])
                log.write({"step": step, "kind": "held_out", "accuracy": accuracy, "seconds": round(seconds, 2)})
            if step % config.log_every == 0 or done():
                record = {"loss": loss, "accuracy": train_accuracy, "learning_rate": rate, "grad_norm": norm}
                log.write({"step": step, "kind": "train"} | record | {"seconds": round(seconds, 2)})
            if step % config.checkpoint_every == 0 and not done():
                save_checkpoint(checkpoints, Checkpoint(model, state, dict(settings), best))
            shown = {"loss": f"{loss:.3f}", "accuracy": f"{train_accuracy:.1%}", "tokens/s": f"{tokens / seconds:,.0f}"}
            bar.set_postfix(shown | ({"held out": f"{accuracy['mean']:.1%}"} if accuracy else {}), refresh=False)
            bar.update()
        if state.step > first or not resume:
            save_checkpoint(checkpoints, Checkpoint(model, state, dict(settings), best))
    status = "finished" if state.step >= config.steps else "reached stop_at" if done() else "interrupted"
    if not accuracy and status != "interrupted":  # nothing was left to do
        accuracy = evaluate(model, data.held_out())
    saved = latest_checkpoint(checkpoints)
    assert saved is not None  # written just now, or resumed from
    return TrainResult(model, state.step, status, accuracy, time.perf_counter() - started, saved, metrics)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that follows ``step`` updates."""
    return cosine_with_warmup(
        step,
        peak=config.learning_rate,
        floor=config.learning_rate_floor,
        warmup=config.warmup,
        total=config.steps,
    )


def evaluate(model: RAMNet, held_out: Mapping[str, Batch], tokens: int = 8192) -> dict[str, float]:
    """Accuracy over the labelled tokens of each held-out set, and their plain "mean"; ``tokens`` at a time."""
    xp = namespace_of(*model.params.values())
    accuracy = {}
    for name, (ids, labels) in held_out.items():
        rows = max(1, tokens // ids.shape[1])
        correct = counted = 0
        for i in range(0, len(ids), rows):
            part, wanted = xp.asarray(ids[i : i + rows]), xp.asarray(labels[i : i + rows])
            asked = wanted >= 0
            logits, _ = model.forward(part, select=asked)
            correct += count_correct(logits, wanted[asked])
            counted += len(logits)
        accuracy[name] = correct / max(1, counted)
    return accuracy | {"mean": sum(accuracy.values()) / len(accuracy)}


def prepare_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure, before any work is done, that a run can live in ``out``; else raise in one sentence."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"out must be a folder that can be written to, got {str(out)!r}: {error.strerror}") from error
    last = latest_checkpoint(out / "checkpoints")
    if resume and last is None:
        raise FileNotFoundError(f"nothing to resume: no checkpoint below {str(out / 'checkpoints')!r}")
    if last is not None and overwrite and not resume:
        shutil.rmtree(out / "checkpoints")
    elif last is not None and not resume:
        raise ValueError(
            f"out must be a new folder, but {str(out)!r} holds a run at step {checkpoint_step(last)}; "
            "resume it, overwrite it or choose another folder"
        )


def _loss_and_gradients(model: RAMNet, batch: Batch) -> tuple[float, float, dict[str, Any]]:
    """Mean cross-entropy and accuracy over the labelled tokens, and the gradient of every parameter."""
    xp = namespace_of(*model.params.values())
    ids, labels = xp.asarray(batch.ids), xp.asarray(batch.labels)
    asked = labels >= 0
    wanted = labels[asked]
    logits, ctx = model.forward(ids, select=asked)
    loss, loss_ctx = cross_entropy_forward(logits, wanted)
    grads = model.backward(cross_entropy_backward(1.0, loss_ctx), ctx)
    return float(loss), count_correct(logits, wanted) / max(1, len(wanted)), grads


def _restore(model: RAMNet, checkpoints: Path, settings: Mapping[str, Any]) -> tuple[AdamWState, float]:
    """Set ``model`` to the last checkpoint; returns the optimiser's state and the best accuracy so far."""
    last = latest_checkpoint(checkpoints)
    assert last is not None  # prepare_folder has looked
    checkpoint = load_checkpoint(last)
    _require_same(_flat(settings), _flat(checkpoint.settings))
    xp = namespace_of(*model.params.values())
    mean, square = ({n: xp.asarray(m) for n, m in moments.items()} for moments in checkpoint.optimizer[1:])
    for name, param in model.params.items():
        param[...] = xp.asarray(checkpoint.model.params[name])
    return AdamWState(checkpoint.optimizer.step, mean, square), checkpoint.best


def _require_same(now: dict[str, Any], saved: dict[str, Any]) -> None:
    for name in sorted(now.keys() | saved.keys()):
        if name not in _FREE_SETTINGS and now.get(name) != saved.get(name):
            raise ValueError(
                f"{name} must be {saved.get(name)!r} as in the checkpoint that is resumed, got {now.get(name)!r}"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names; tuples as the lists that JSON makes of them."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat


def _stopped(step: int, why: str, checkpoints: Path) -> str:
    last = latest_checkpoint(checkpoints)
    kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
    return f"training stopped at step {step}: {why}; {kept}. A lower train.learning_rate usually helps"
