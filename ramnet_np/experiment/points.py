"""A run of a grid, all that decides its result, and a point, whose runs differ in seed, learning rate and variant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ramnet_np.data.mqar import MQARSettings
from ramnet_np.data.text import TextSettings
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.checks import check_flag
from ramnet_np.train.config import TrainConfig

Task = Literal["mqar", "text"]

DATA: dict[str, type[MQARSettings] | type[TextSettings]] = {"mqar": MQARSettings, "text": TextSettings}  # by task


@dataclass(frozen=True)
class GridRun:
    """One training run of a grid: all that decides its result."""

    name: str  # of its point
    model: RAMNetConfig
    data: MQARSettings | TextSettings  # of a text without its path, which may differ between machines
    train: TrainConfig  # with the steps and the learning rate of this run
    seed: int
    epochs: float
    validation: int
    evaluations: int
    quick: bool
    variant: str = ""  # which of the point's settings; "": its own
    search: bool = False  # a short run that only chooses: it does not touch the test sets
    task: Task = "mqar"
    corpus: str = ""  # SHA-256 of the text; "": the text made here, or no text

    @property
    def settings(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @cached_property  # asked for again and again
    def key(self) -> str:
        """A string that equal runs share."""
        return json.dumps(self.settings, sort_keys=True)

    @property
    def label(self) -> str:
        """A name for people to read."""
        variant = f" with {self.variant}" if self.variant else ""
        length = f", {self.epochs:g} epochs to choose by" if self.search else ""
        return f"{self.name}{variant}, seed {self.seed}, learning rate {self.train.learning_rate:g}{length}"


@dataclass(frozen=True)
class Point:
    """A point: its runs differ in seed, learning rate and variant alone, those that search in length too."""

    name: str
    grid: str  # the name of its grid
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    widest: tuple[float, float] | None  # the sweep goes on outwards within these; None: it does not
    finalists: int
    variants: dict[str, RAMNetConfig]  # by name; the first is "", the point's own settings
    base: GridRun  # at full length
    searching: GridRun  # its short form; ``base`` where there is none
    place: int = 0  # points of a lower one are run first
    _made: dict[Any, GridRun] = field(default_factory=dict, compare=False, repr=False)  # runs: each is made once

    def run(self, seed: int, learning_rate: float, variant: str = "") -> GridRun:
        """The run of that seed, learning rate and variant."""
        return self._of(self.base, seed, learning_rate, variant)

    def search_run(self, learning_rate: float, variant: str = "") -> GridRun:
        """The run that tries that learning rate and variant."""
        return self._of(self.searching, self.seeds[0], learning_rate, variant)

    def _of(self, base: GridRun, seed: int, learning_rate: float, variant: str) -> GridRun:
        which = base.search, seed, learning_rate, variant
        if which not in self._made:
            train = replace(base.train, learning_rate=learning_rate)
            self._made[which] = replace(base, seed=seed, train=train, variant=variant, model=self.variants[variant])
        return self._made[which]


def run_from(settings: Mapping[str, Any]) -> GridRun:
    """The run that :attr:`GridRun.settings` describes; what is left out has its default. TypeError for other settings.

    >>> from ramnet_np.experiment.grid import load_grid
    >>> run = load_grid("mqar-order").points[0].base
    >>> run_from(run.settings) == run
    True
    """
    if not all(isinstance(settings.get(name, ""), str) for name in ("name", "variant")):
        raise TypeError("a run and its variant must be named by texts")
    if not isinstance(settings["seed"], int):
        raise TypeError(f"the seed of a run must be an integer, got {settings['seed']!r}")
    check_flag("search", settings.get("search", False))
    types = {"model": RAMNetConfig, "data": DATA[settings.get("task", "mqar")], "train": TrainConfig}
    parts = {part: type_(**{k: plain(v) for k, v in settings[part].items()}) for part, type_ in types.items()}
    return GridRun(**{**settings, **parts})


def plain(value: Any) -> Any:
    """Lists as tuples, which dataclasses compare and hash.

    >>> plain([1, [2]])
    (1, (2,))
    """
    return tuple(map(plain, value)) if isinstance(value, list) else value
