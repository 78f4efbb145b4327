"""The training loop: any data set that can name its batches by step, any RAMNet.

Around the steps (``steps.py``; on a GPU ``device.py``): a progress bar, metrics, held-out accuracy, checkpoints,
resuming, and the three ways a run ends early (target reached, Ctrl-C, a loss that is no longer a number).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ramnet_np.backend import backend_for
from ramnet_np.core.arrays import namespace_of
from ramnet_np.data.batches import Batch, DataSource
from ramnet_np.model import RAMNet
from ramnet_np.train.checkpoint import Checkpoint, checkpoint_step, latest_checkpoint, load_checkpoint, save_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import DeviceSteps, Graphs
from ramnet_np.train.interrupt import DeferredInterrupt
from ramnet_np.train.metrics import MetricsWriter, hits
from ramnet_np.train.optim import AdamWState, adamw_init
from ramnet_np.train.trainer import Diverged, HostSteps, Report, Steps

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
    graphs: Graphs = "auto",
) -> TrainResult:
    """Train ``model`` in place on ``data``; write metrics.jsonl and checkpoints/ below the folder ``out``.

    ``settings``: everything that decides the result (nested, JSON values); it is stored in every checkpoint, and a run
        is only resumed under the same settings, save for how often it logs and saves.
    ``resume``: go on from the last checkpoint in ``out``, to the same bits as a run that was never stopped. The
        parameters and moments come from the checkpoint.
    ``overwrite``: replace the run that ``out`` holds. Without either of the two, an ``out`` in use is an error.
    ``graphs``: for a model on the GPU: whether a step is captured as a CUDA graph; see :class:`DeviceSteps`.

    Ctrl-C finishes the step, saves and returns with status "interrupted". A loss or gradient that is not finite raises
    FloatingPointError before it reaches the parameters; the last checkpoint stays.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.data.batches import ShuffledSets
    >>> ids = np.arange(12).reshape(3, 4) % 8
    >>> data = ShuffledSets([Batch(ids, ids)], {"seen": Batch(ids, ids)}, batch=3, seed=0)
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> with TemporaryDirectory() as out:
    ...     result = train(model, data, TrainConfig(steps=2, batch=3), out, settings={}, progress=False)
    >>> result.status, result.step, list(result.accuracy)
    ('finished', 2, ['seen', 'mean'])
    """
    out = Path(out)
    checkpoints, metrics = out / "checkpoints", out / "metrics.jsonl"
    prepare_folder(out, resume=resume, overwrite=overwrite)
    state, best = adamw_init(model.params), 0.0
    if resume:
        _, state, _, best, _ = restore(model, checkpoints, settings)
    steps = steps_for(model, config, state, graphs, tqdm.write)

    def done() -> bool:
        return steps.state.step >= config.steps or (config.stop_at is not None and best >= config.stop_at)

    def report() -> Report:
        try:
            return steps.report()
        except Diverged as error:
            raise FloatingPointError(_stopped(error, checkpoints)) from error

    first, tokens, started, accuracy = state.step, 0, time.perf_counter(), dict[str, float]()
    shown: dict[str, str] = {}
    with (
        steps,
        MetricsWriter(metrics, resume_step=first if resume else None) as log,
        DeferredInterrupt() as interrupt,
        tqdm(total=config.steps, initial=first, unit="step", disable=not progress, dynamic_ncols=True) as bar,
    ):
        while not (done() or interrupt.requested):
            batch = data.batch(steps.state.step)
            try:
                steps.run(batch)
            except Diverged as error:
                raise FloatingPointError(_stopped(error, checkpoints)) from error
            step = steps.state.step
            tokens += batch.ids.size
            looks = step % config.evaluate_every == 0 or step == config.steps
            logs, saves = step % config.log_every == 0, step % config.checkpoint_every == 0
            if steps.reads_at_once or looks or logs or saves:
                last = report()  # before a checkpoint too: what is saved is known to be good
                speed = tokens / (time.perf_counter() - started)
                shown = {"loss": f"{last.loss:.3f}", "accuracy": f"{last.accuracy:.1%}", "tokens/s": f"{speed:,.0f}"}
            seconds = time.perf_counter() - started
            if looks:
                accuracy = evaluate(model, data.held_out())
                best = max(best, accuracy["mean"])
                log.write({"step": step, "kind": "held_out", "accuracy": accuracy, "seconds": round(seconds, 2)})
            if logs or done():
                log.write({"step": step, "kind": "train"} | last._asdict() | {"seconds": round(seconds, 2)})
            if saves and not done():
                save_checkpoint(checkpoints, Checkpoint(model, steps.state, dict(settings), best))
            bar.set_postfix(shown | ({"held out": f"{accuracy['mean']:.1%}"} if accuracy else {}), refresh=False)
            bar.update()
        state = steps.state
        if state.step > first:
            report()
        if state.step > first or not resume:
            save_checkpoint(checkpoints, Checkpoint(model, state, dict(settings), best))
    status = "finished" if state.step >= config.steps else "reached stop_at" if done() else "interrupted"
    if not accuracy and status != "interrupted":  # nothing was left to do
        accuracy = evaluate(model, data.held_out())
    saved = latest_checkpoint(checkpoints)
    assert saved is not None  # written just now, or resumed from
    return TrainResult(model, state.step, status, accuracy, time.perf_counter() - started, saved, metrics)


def evaluate(model: RAMNet, held_out: Mapping[str, Batch], tokens: int | None = None) -> dict[str, float]:
    """Accuracy over the labelled tokens of each held-out set, and their plain "mean".

    ``tokens``: how many at a time; None: 8192, or 65536 on a GPU, which small pieces would leave idle.
    Sets hold ids and labels, (N, T). A GPU is waited for once, at the end.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> ids = np.arange(12).reshape(3, 4) % 8
    >>> sorted(evaluate(model, {"a": Batch(ids, ids), "b": Batch(ids, ids)}))
    ['a', 'b', 'mean']
    """
    xp = namespace_of(*model.params.values())
    tokens = tokens or (8192 if xp is np else 65536)
    right, counted = {}, {}
    for name, (ids, labels) in held_out.items():
        rows = max(1, tokens // ids.shape[1])
        right[name] = counted[name] = 0
        for i in range(0, len(ids), rows):
            wanted = labels[i : i + rows].ravel()
            asked = np.flatnonzero(wanted >= 0)
            logits, _ = model.forward(xp.asarray(ids[i : i + rows]), select=xp.asarray(asked))
            right[name] += hits(logits, xp.asarray(wanted[asked]))
            counted[name] += len(asked)
    accuracy = {name: int(count) / max(1, counted[name]) for name, count in right.items()}
    return accuracy | {"mean": sum(accuracy.values()) / len(accuracy)}


def prepare_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure, before any work is done, that a run can live in ``out``; else raise in one sentence.

    >>> prepare_folder(Path("/dev/null/run"), resume=False, overwrite=False)
    Traceback (most recent call last):
        ...
    OSError: out must be a folder that can be written to, got '/dev/null/run': Not a directory
    """
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


def restore(model: RAMNet, checkpoints: Path, settings: Mapping[str, Any]) -> Checkpoint:
    """Set ``model`` to the last checkpoint in the folder; returns it, with ``model`` and moments beside its parameters.

    FileNotFoundError without one; ValueError where it is damaged or of other ``settings``.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> models = [RAMNet(RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2), seed=i) for i in (0, 1)]
    >>> with TemporaryDirectory() as folder:
    ...     _ = save_checkpoint(Path(folder), Checkpoint(models[0], adamw_init(models[0].params), {}, best=0.0))
    ...     restored = restore(models[1], Path(folder), {})
    >>> restored.model is models[1], all((models[1].params[name] == p).all() for name, p in models[0].params.items())
    (True, True)
    """
    last = latest_checkpoint(checkpoints)
    if last is None:
        raise FileNotFoundError(f"no checkpoint in {str(checkpoints)!r}")
    checkpoint = load_checkpoint(last)
    _require_same(_flat(settings), _flat(checkpoint.settings))
    xp = namespace_of(*model.params.values())
    mean, square = ({n: xp.asarray(m) for n, m in moments.items()} for moments in checkpoint.optimizer[1:])
    for name, param in model.params.items():
        param[...] = xp.asarray(checkpoint.model.params[name])
    return checkpoint._replace(model=model, optimizer=AdamWState(checkpoint.optimizer.step, mean, square))


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


def steps_for(
    model: RAMNet, config: TrainConfig, state: AdamWState, graphs: Graphs, say: Callable[[str], None] = print
) -> Steps:
    """The steps that suit where the model is; ``graphs`` and ``say`` as in :class:`DeviceSteps`.

    >>> from ramnet_np.model import RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    >>> steps_for(model, TrainConfig(), adamw_init(model.params), "auto").reads_at_once
    True
    """
    if backend_for(next(iter(model.params.values()))).layers:  # they never wait for the device
        return DeviceSteps(model, config, state, graphs, say)
    return HostSteps(model, config, state)


def _stopped(error: Diverged, checkpoints: Path) -> str:
    last = latest_checkpoint(checkpoints)
    kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been written yet"
    return f"training stopped at step {error.step}: {error.why}; {kept}. A lower train.learning_rate usually helps"
