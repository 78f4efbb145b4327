"""The help of a training command on one screen: the settings that are used most, with the values of a preset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from typing import Any

Option = tuple[str, str]  # a flag with what follows it, and what it sets

RUN: tuple[Option, ...] = (
    ("--out FOLDER", "where metrics, checkpoints and pictures go"),
    ("--resume", "go on from the last checkpoint in OUT, to the same bits"),
    ("--overwrite", "start again in an OUT that holds a run"),
    ("--device cpu|gpu", "where the model lives; gpu needs CuPy and an NVIDIA GPU"),
    ("--gpus N", "train on N GPUs of this host; --ranks N: on its CPUs"),
    ("--seed N", "data, their order and the initial weights"),
)
MODEL: tuple[Option, ...] = (
    ("--model.mixer NAME", "memory: ram, softmax, window, linear, delta, gla, mamba2"),
    ("--model.layers N", "blocks"),
    ("--model.width N", "channels of the residual stream"),
    ("--model.heads N", "memories per layer"),
    ("--model.order N", "U, digits of an address"),
    ("--model.radix N", "P, values of a digit; a memory has P ** U slots"),
    ("--model.top-k N", "slots that a token writes and reads"),
)
TRAIN: tuple[Option, ...] = (
    ("--train.steps N", "optimiser steps of the whole run"),
    ("--train.batch N", "sequences per step"),
    ("--train.learning-rate X", "its peak"),
    ("--train.stop-at X", "end early at this held-out accuracy"),
)


def short_help(kind: str, run: Any, preset: str, presets: Iterable[str], data: Sequence[Option], examples: str) -> str:
    """The help of ``ramnet-np train KIND``: ``run`` holds the values of ``preset``; ``data``: options of the data set.

    >>> from ramnet_np.runs.presets import MQAR_RUNS
    >>> text = short_help("mqar", MQAR_RUNS["demo"], "demo", MQAR_RUNS, (), "Recall.")
    >>> [line for line in text.splitlines() if "--model.order" in line]
    ['  --model.order N            U, digits of an address [3]']
    """
    rows = [_row("--preset NAME", f"where all settings start: {', '.join(presets)}", preset)]
    rows += [_row(flag, text, _value(run, flag)) for flag, text in (*RUN, *data, *MODEL, *TRAIN)]
    return "\n".join(
        [
            f"usage: ramnet-np train {kind} [--preset NAME] [options]",
            "",
            examples.strip("\n"),
            "",
            f"options used most, with the values of preset {preset}:",
            *rows,
            "",
            f"all {_count(run)} settings, explained: ramnet-np train {kind} --help-all",
        ]
    )


def _row(flag: str, text: str, value: Any) -> str:
    shown = "" if isinstance(value, bool) else f" [{'none' if value is None else value}]"
    return f"  {flag:<26} {text}{shown}"


def _value(run: Any, flag: str) -> Any:
    path = flag.partition(" ")[0].removeprefix("--").replace("-", "_")
    return reduce(getattr, path.split("."), run)


def _count(run: Any) -> int:
    values = [getattr(run, field.name) for field in fields(run)]
    return sum(_count(value) if is_dataclass(value) else 1 for value in values)
