"""Training checkpoints: a folder that is either whole or absent.

    checkpoints/step-00000500/
        model.safetensors, config.json    the model as RAMNet.save_pretrained writes it: load it with from_pretrained
        optimizer.safetensors             AdamW's two moments of every parameter
        training.json                     the step, the settings of the run, the highest accuracy so far

A checkpoint is written under another name and then renamed, which is atomic; only then is the older one removed.
No state of a random generator is stored, for there is none: the order of the data follows from (seed, step).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model import RAMNet
from ramnet_np.train.optim import AdamWState

_PREFIX = "step-"
_FORMAT = 1
_FREE_SETTINGS = ("train.log_every", "train.checkpoint_every")  # they decide no bits: a resumed run may change them


class Checkpoint(NamedTuple):
    """Everything that decides the bits of the rest of a run."""

    model: RAMNet
    optimizer: AdamWState
    settings: dict[str, Any]  # the run's, as JSON values: a resumed run must have the same
    best: float  # highest held-out accuracy so far
    calls: tuple[dict[str, Any], ...] = ()  # facts about each call that trained this run so far, as JSON values


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
    """Give ``model`` the parameters of the last checkpoint in the folder, and return the checkpoint.

    Its model is then ``model``, its moments are where the model is, its settings are ``settings``.
    FileNotFoundError without a checkpoint; ValueError where it is damaged or belongs to other settings.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.train.optim import adamw_init
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
    state = AdamWState(checkpoint.optimizer.step, mean, square)
    return checkpoint._replace(model=model, optimizer=state, settings=dict(settings))


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
