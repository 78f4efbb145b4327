"""Training checkpoints: a folder that is either whole or absent.

    checkpoints/step-00000500/
        model.safetensors, config.json    the model as RAMNet.save_pretrained writes it: load it with from_pretrained
        optimizer.safetensors             AdamW's two moments of every parameter
        training.json                     the step, the settings of the run, the accuracies so far
        carried.safetensors               of a run that carries state from batch to batch: its memories
        tokenizer.json                    of a model of pieces of text: its tokenizer

A checkpoint is written under another name, flushed to the disk and then renamed, which is atomic. Only then are older
ones removed: the newest two stay, and the one with the highest held-out accuracy. Where the newest is damaged, a run
goes on from the one before. Only folders named ``step-`` and digits, with a ``training.json``, are ever removed.
No state of a random generator is stored, for there is none: the order of the data follows from (seed, step).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ramnet_np.core.arrays import namespace_of, on_host
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.model.files import WriteError, read_json, replacing, sync, why, write_text
from ramnet_np.model.unfinished import remove_abandoned, unfinished
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.optim import AdamWState

CARRIED = "carried.safetensors"
_NAME = re.compile("step-([0-9]+)")
_HIDDEN = re.compile(r"\.step-[0-9]+\.(replaced|removed)")  # what save_checkpoint may clean up
_FORMAT = 1
STEPS = "train.steps"  # the one setting that may grow when a run is resumed
# they decide no bits: a resumed run may change them
_FREE_SETTINGS = ("train.log_every", "train.checkpoint_every", "train.recompute", "train.shard_optimizer")
# settings of data that older versions did not have, and how these ran
_ADDED = {"data.carry_state": False, "data.pack": False}
KEPT = 2  # newest checkpoints that stay, beside the best one


class Checkpoint(NamedTuple):
    """Everything that decides the bits of the rest of a run."""

    model: RAMNet
    optimizer: AdamWState
    settings: dict[str, Any]  # the run's, as JSON values: a resumed run must have the same
    best: float  # highest held-out accuracy so far
    calls: tuple[dict[str, Any], ...] = ()  # facts about each call that trained this run so far, as JSON values
    accuracy: float | None = None  # held-out, as last measured; None before the first time
    carried: dict[str, Any] | None = None  # the memories that the next step goes on from, by name
    files: Mapping[str, str] = MappingProxyType({})  # more text files of the model: name -> content; not read back


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name.

    >>> checkpoint_step(Path("runs/a/checkpoints/step-00000500"))
    500
    """
    return int(folder.name.removeprefix("step-"))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, from the lowest step to the highest: folders named ``step-`` and digits.

    >>> checkpoints_in(Path("no/such/folder"))
    []
    """
    found = [f for f in folder.glob("step-*") if _NAME.fullmatch(f.name) and f.is_dir()]
    return sorted(found, key=lambda f: (checkpoint_step(f), f.name))


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step in ``folder``, or None.

    >>> latest_checkpoint(Path("no/such/folder")) is None
    True
    """
    return next(reversed(checkpoints_in(folder)), None)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``checkpoint`` below ``folder``, remove those that need not be kept, return the new one's path.

    A checkpoint of the same step is replaced. WriteError, an OSError, where the folder cannot be written to or the disk
    is full; then every older checkpoint is as it was.

    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model import RAMNetConfig
    >>> from ramnet_np.train.optim import adamw_init
    >>> model = RAMNet(RAMNetConfig(vocab=8, width=4, layers=1, order=2, radix=2, top_k=2))
    >>> with TemporaryDirectory() as folder:
    ...     path = save_checkpoint(Path(folder), Checkpoint(model, adamw_init(model.params), {"seed": 0}, best=0.0))
    >>> path.name
    'step-00000000'
    """
    target = folder / f"step-{checkpoint.optimizer.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished(target) as own:
            new = own / target.name
            new.mkdir()
            _write(new, checkpoint)
            sync(new)
            _rename(new, target)
            for changed in (folder, folder.parent):
                sync(changed)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{str(target)!r} could not be written: {why(error)}") from error
    _clean_up(folder)
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
    training = _read_training(path / "training.json")
    model = RAMNet.from_pretrained(path)
    moments = _read_moments(path / "optimizer.safetensors", model)
    return Checkpoint(
        model,
        AdamWState(training["step"], *moments),
        training["settings"],
        float(training["best"]),
        tuple(training.get("calls") or ()),
        training.get("accuracy"),
        _read_carried(path / CARRIED) if training.get("carried") else None,
    )


def restore(
    model: RAMNet,
    checkpoints: Path,
    settings: Mapping[str, Any],
    log: Callable[[str], None] = print,
    names: Collection[str] | None = None,
) -> Checkpoint:
    """Give ``model`` the parameters of the last whole checkpoint in the folder, and return the checkpoint.

    Its model is then ``model`` and its moments are where the model is, those of ``names`` alone if they are given.
    ``settings`` must be the checkpoint's, save for
    how often the run logs and saves, and for ``train.steps``, which may be more.
    A damaged checkpoint is renamed ``step-...-damaged``, the one before takes its place, and ``log`` is told so.
    FileNotFoundError without a checkpoint; ValueError where all are damaged or they belong to other settings.

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
    checkpoint, damaged = _last_whole(checkpoints)
    require_same_settings(settings, checkpoint.settings)
    xp = namespace_of(*model.params.values())
    names = model.params if names is None else names
    mean, square = ({n: xp.asarray(moments[n]) for n in names} for moments in checkpoint.optimizer[1:])
    for name, param in model.params.items():
        param[...] = xp.asarray(checkpoint.model.params[name])
    for folder, fault in damaged.items():
        aside = _set_aside(folder)
        log(f"{fault}; the run goes on from step {checkpoint.optimizer.step}, and the damaged folder is now {aside}")
    return checkpoint._replace(model=model, optimizer=AdamWState(checkpoint.optimizer.step, mean, square))


def require_same_settings(now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """ValueError, naming the setting, unless a run with settings ``saved`` may go on with ``now``.

    A setting of the model or of training that the saved run did not know has its default there: that is how it ran.

    >>> require_same_settings({"seed": 1}, {"seed": 0})
    Traceback (most recent call last):
        ...
    ValueError: seed must be 0 as in the checkpoint that is resumed, got 1
    """
    new, old = flat_settings(now), flat_settings(saved)
    defaults = flat_settings({"model": asdict(RAMNetConfig()), "train": asdict(TrainConfig())}) | _ADDED
    old = {name: value for name, value in defaults.items() if name in new} | old
    for name in sorted(new.keys() | old.keys()):
        if name in _FREE_SETTINGS or new.get(name) == old.get(name):
            continue
        if name == STEPS and name in new and name in old and new[name] > old[name]:
            continue
        more = ", or more" if name == STEPS else ""
        raise ValueError(
            f"{name} must be {old.get(name)!r} as in the checkpoint that is resumed{more}, got {new.get(name)!r}"
        )


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names; tuples as the lists that JSON makes of them.

    >>> flat_settings({"train": {"steps": 3}, "sizes": (1, 2)})
    {'train.steps': 3, 'sizes': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    checkpoint.model.save_pretrained(folder)
    moments = {f"mean.{name}": on_host(m) for name, m in checkpoint.optimizer.mean.items()}
    moments |= {f"square.{name}": on_host(v) for name, v in checkpoint.optimizer.square.items()}
    with replacing(folder / "optimizer.safetensors") as (path,):
        save_file(moments, path)
    if checkpoint.carried is not None:
        with replacing(folder / CARRIED) as (path,):
            save_file({name: np.ascontiguousarray(on_host(x)) for name, x in checkpoint.carried.items()}, path)
    for name, text in checkpoint.files.items():
        write_text(folder / name, text)
    training = {
        "format": _FORMAT, "step": checkpoint.optimizer.step, "best": checkpoint.best,
        "accuracy": checkpoint.accuracy, "settings": checkpoint.settings, "calls": checkpoint.calls,
        **({"carried": True} if checkpoint.carried is not None else {}),
    }  # fmt: skip
    write_text(folder / "training.json", json.dumps(training, indent=2) + "\n")


def _rename(new: Path, target: Path) -> None:
    """Give ``new`` its name; at every instant it or a checkpoint of the same step has a checkpoint's name."""
    aside = target.with_name(target.name.replace("-", "-0"))  # the same step, written with one more zero
    if target.is_dir():
        if aside.is_dir():
            _remove(aside)
        os.replace(target, aside)
    os.replace(new, target)
    if aside.is_dir():  # this call's, or that of one that was killed before the line above
        _remove(aside)


def _remove(checkpoint: Path) -> None:
    """A program that is killed while it removes leaves no half checkpoint under a checkpoint's name."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _clean_up(folder: Path) -> None:
    """Remove all but the newest checkpoints and the best one, and what earlier calls left half written or removed."""
    ours = [f for f in checkpoints_in(folder) if not f.is_symlink() and (f / "training.json").is_file()]
    best = max(ours, key=lambda f: (_accuracy(f), checkpoint_step(f)))
    with suppress(OSError):  # what cannot be removed stays: the new checkpoint is on disk
        for other in ours[:-KEPT]:
            if other != best:
                _remove(other)
    for hidden in folder.glob(".step-*"):
        if _HIDDEN.fullmatch(hidden.name):
            shutil.rmtree(hidden, ignore_errors=True)
    remove_abandoned(folder, _NAME.pattern)


def _accuracy(checkpoint: Path) -> float:
    """The held-out accuracy that was last measured before it was saved; -1 without one, or where it is damaged."""
    try:
        accuracy = _read_training(checkpoint / "training.json").get("accuracy")
    except (OSError, ValueError):
        return -1.0
    return -1.0 if accuracy is None else accuracy


def _last_whole(folder: Path) -> tuple[Checkpoint, dict[Path, str]]:
    """The newest checkpoint that can be read, and what is wrong with each newer one."""
    damaged: dict[Path, str] = {}
    for path in reversed(checkpoints_in(folder)):
        try:
            return load_checkpoint(path), damaged
        except (FileNotFoundError, ValueError) as error:
            damaged[path] = str(error)
    if not damaged:
        raise FileNotFoundError(f"no checkpoint in {str(folder)!r}")
    raise ValueError(next(iter(damaged.values())))


def _set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it is neither resumed from nor removed."""
    names = (f"{folder.name}-damaged{'' if number == 1 else f'-{number}'}" for number in count(1))
    aside = next(path for name in names if not (path := folder.with_name(name)).exists())
    return folder.rename(aside)


def _read_training(path: Path) -> dict[str, Any]:
    """What ``training.json`` holds, checked. FileNotFoundError or ValueError, naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint must hold training.json, but {str(path)!r} is missing")
    training = read_json(path)
    if not isinstance(training, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(training).__name__}")
    for name, (is_right, expected) in _TRAINING.items():
        if not is_right(training.get(name)):
            raise ValueError(
                f"{str(path)!r} is damaged or no training state: {name} must be {expected}, got {training.get(name)!r}"
            )
    return training


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


# what training.json must hold; calls and accuracy were not written by the first versions
_TRAINING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda x: x == _FORMAT and _is_whole(x), f"{_FORMAT}, which this version can read"),
    "step": (_is_whole, "a whole number of 0 or more"),
    "best": (_is_share, "an accuracy from 0 to 1"),
    "accuracy": (lambda x: x is None or _is_share(x), "an accuracy from 0 to 1 or null"),
    "settings": (lambda x: isinstance(x, dict), "an object"),
    "calls": (lambda x: x is None or isinstance(x, list), "a list"),
    "carried": (lambda x: x is None or isinstance(x, bool), "true or false"),
}


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"a checkpoint must hold {path.name}, but {str(path)!r} is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


def _read_carried(path: Path) -> dict[str, np.ndarray]:
    carried = _read_arrays(path)
    for name, array in carried.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{str(path)!r} must hold finite memories, got others in array {name!r}")
    return carried


def _read_moments(path: Path, model: RAMNet) -> tuple[dict[str, Any], dict[str, Any]]:
    moments = _read_arrays(path)
    mean, square = ({n: moments.get(f"{part}.{n}") for n in model.params} for part in ("mean", "square"))
    for name, param in model.params.items():
        for moment in (mean[name], square[name]):
            if moment is None or moment.shape != param.shape or moment.dtype != param.dtype:
                raise ValueError(
                    f"{str(path)!r} must hold two moments of {name!r} with shape {param.shape} and dtype "
                    f"{param.dtype}, as in the model beside it"
                )
            if not np.isfinite(moment).all():
                raise ValueError(f"{str(path)!r} must hold finite moments, got others of {name!r}")
    return mean, square
