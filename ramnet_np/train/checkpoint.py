"""Training checkpoints: a folder that is either whole or absent.

    checkpoints/step-00000500/
        model.safetensors, config.json    the model as RAMNet.save_pretrained writes it: load it with from_pretrained
        optimizer.safetensors             AdamW's two moments of every parameter
        training.json                     the step, the settings of the run, what the loop remembers

A checkpoint is written under another name and then renamed, which is atomic; only then is the older one removed.
No state of a random generator is stored, for there is none: the order of the data follows from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ramnet_np.core.arrays import on_host
from ramnet_np.model import RAMNet
from ramnet_np.train.optim import AdamWState

_PREFIX = "step-"
_FORMAT = 1


class Checkpoint(NamedTuple):
    """Everything that decides the bits of the rest of a run."""

    model: RAMNet
    optimizer: AdamWState
    settings: dict[str, Any]  # of the run, as JSON values: a resumed run must have the same
    best: float  # highest held-out accuracy so far
    calls: tuple[dict[str, Any], ...] = ()  # what is to be known of the calls that trained so far, as JSON values


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name.

    >>> checkpoint_step(Path("runs/a/checkpoints/step-00000500"))
    500
    """
    return int(folder.name.removeprefix(_PREFIX))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``, or None.

    >>> latest_checkpoint(Path("no/such/folder")) is None
    True
    """
    found = [f for f in folder.glob(_PREFIX + "*") if f.name.removeprefix(_PREFIX).isdigit()]
    return max(found, key=checkpoint_step, default=None)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder``, remove the older ones, return the new one's path.

    OSError where the folder cannot be written to.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.train.optim import adamw_init
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2))
    >>> with TemporaryDirectory() as folder:
    ...     path = save_checkpoint(Path(folder), Checkpoint(model, adamw_init(model.params), {"seed": 0}, best=0.0))
    >>> path.name
    'step-00000000'
    """
    step = checkpoint.optimizer.step
    target = folder / f"{_PREFIX}{step:08d}"
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed while writing
    partial.mkdir(parents=True)
    checkpoint.model.save_pretrained(partial)
    moments = {f"mean.{name}": on_host(m) for name, m in checkpoint.optimizer.mean.items()}
    moments |= {f"square.{name}": on_host(v) for name, v in checkpoint.optimizer.square.items()}
    save_file(moments, partial / "optimizer.safetensors")
    training = {
        "format": _FORMAT, "step": step, "best": checkpoint.best, "settings": checkpoint.settings,
        "calls": checkpoint.calls,
    }  # fmt: skip
    (partial / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)
    for other in folder.glob(_PREFIX + "*"):
        if other != target:
            shutil.rmtree(other)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint folder. ValueError, naming the file, if a part is damaged or does not fit the model.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.train.optim import adamw_init
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2))
    >>> with TemporaryDirectory() as folder:
    ...     path = save_checkpoint(Path(folder), Checkpoint(model, adamw_init(model.params), {"seed": 0}, best=0.5))
    ...     again = load_checkpoint(path)
    >>> again.optimizer.step, again.settings, again.best
    (0, {'seed': 0}, 0.5)
    """
    model = RAMNet.from_pretrained(path)
    try:
        training = json.loads((path / "training.json").read_text(encoding="utf-8"))
        step, best, settings = int(training["step"]), float(training["best"]), dict(training["settings"])
        calls = tuple(training.get("calls", ()))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path / 'training.json'} is damaged or no training state: {error!r}") from error
    try:
        moments = load_file(path / "optimizer.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{path / 'optimizer.safetensors'} is damaged: {error}") from error
    mean, square = ({n: moments.get(f"{part}.{n}") for n in model.params} for part in ("mean", "square"))
    for name, param in model.params.items():
        for moment in (mean[name], square[name]):
            if moment is None or moment.shape != param.shape or moment.dtype != param.dtype:
                raise ValueError(
                    f"{path / 'optimizer.safetensors'} must hold two moments of {name!r} with shape {param.shape} "
                    f"and dtype {param.dtype}, as in the model beside it"
                )
    return Checkpoint(model, AdamWState(step, mean, square), settings, best, calls)
