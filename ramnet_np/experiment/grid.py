"""A grid of runs as one plain file (TOML): what all runs share, and a list of named points with what differs.

    title = "..."                      what the grid asks
    task = "text"                      what its runs learn; none: "mqar", recall
    epochs = 8                         passes over the training sets, or over the text
    seeds = [0, 1]                     each decides data, order and initial weights
    learning_rates = [1e-3, 3e-3]      tried with the first seed; the best by validation runs with the others
    widest = [1e-4, 1e-1]              while the best rate is at an end, the next one outwards is tried, within these
    search_epochs = 2                  length of the runs that try rates and variants; none: as long as the others
    finalists = 2                      how many of them run at full length with the first seed
    validation = 500                   of recall: held-out sequences of each training setting, to choose by
    evaluations = 4                    how often to measure on them during a run

    [model]                            fields of RAMNetConfig
    [data]                             fields of MQARSettings, or of TextSettings but for the path
    [train]                            fields of TrainConfig

    [kinds.delta]                      what points of one kind share, beside all of the above
    model = { mixer = "delta" }
    variants = { norm = { output_norm = true } }    other settings of the model, searched as the point's own are

    [[points]]
    name = "delta-64"
    kind = "delta"
    model = { channels = 64 }          overrides; so do data, train, epochs, seeds, and variants beside the kind's
    learning_rate = 2e-3               in place of the list: no sweep

    [quick]                            overrides of all of the above for `--quick`; points = [...] names those to keep

A point starts from the shared settings, then takes those of its kind, its own, and those of ``[quick]``. A grid with
``like = "mqar-order"`` starts from the shared settings and the ``[quick]`` of that one, so that they stand in one
place. :mod:`~ramnet_np.experiment.sweep` says how rates and variants are chosen.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from ramnet_np.data.codec import BYTES
from ramnet_np.data.corpus import Corpus
from ramnet_np.data.mqar import MQARSettings
from ramnet_np.data.text import TextData, TextSettings
from ramnet_np.experiment.points import DATA, GridRun, Point, Task, plain
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.checks import SMALLEST, check_choice, check_integer, check_number
from ramnet_np.train.config import TrainConfig

GRIDS = (
    "mqar-order", "mqar-state", "mqar-digit", "mqar-cape", "mqar-ablations",
    "language-rivals", "language-past", "language-recipe", "language-long", "language-bytes",
)  # fmt: skip

MOST_VALIDATION = 10**6  # sequences of each training setting

FACTS_TOKENS = 3_000_000  # bytes that count as one pass over the text that is made here

_PARTS = ("model", "data", "train")
_NUMBERS = (
    "epochs", "seeds", "learning_rates", "widest", "search_epochs", "finalists", "validation", "evaluations",
)  # fmt: skip
_SET_BY_THE_GRID = {"steps": "epochs", "learning_rate": "learning_rates", "evaluate_every": "evaluations"}


@dataclass(frozen=True)
class Grid:
    """What a grid file says, or several of them."""

    name: str
    title: str
    points: tuple[Point, ...]
    quick: bool

    def only(self, *patterns: str) -> Grid:
        """The points whose name matches one of ``patterns``, in which ``*`` stands for anything. Those of an earlier
        pattern are run first. ValueError for a pattern that matches none, or without any."""
        if not patterns:
            raise ValueError("only must have at least one pattern, got none")
        kept: dict[str, Point] = {}
        for place, pattern in enumerate(patterns):
            found = [point for point in self.points if fnmatchcase(point.name, pattern)]
            if not found:
                names = ", ".join(point.name for point in self.points)
                raise ValueError(
                    f"only must match a point of grid {self.name!r}, got {pattern!r}; its points are {names}"
                )
            kept = {point.name: replace(point, place=place) for point in found} | kept
        return replace(self, points=tuple(kept[point.name] for point in self.points if point.name in kept))


def together(grids: Sequence[Grid]) -> Grid:
    """One grid of all points, in order. ValueError where a name stands for two of them.

    >>> together([load_grid("mqar-order"), load_grid("mqar-state")]).name
    'mqar-order+mqar-state'
    """
    points = tuple(point for grid in grids for point in grid.points)
    _distinct("points of grids that run together must have names of their own", [point.name for point in points])
    name, title = "+".join(grid.name for grid in grids), "; ".join(grid.title for grid in grids)
    return Grid(name, title, points, grids[0].quick)


def load_grid(
    source: Path | str, *, quick: bool = False, epochs: float | None = None, corpus: Corpus | None = None
) -> Grid:
    """The grid of that name (``GRIDS``), or in the file of that path.

    ``quick``: with the overrides of ``[quick]``; ``epochs``: in place of the file's; ``corpus``: what runs on text
    read, None for the text that is made here. ValueError and TypeError name the file and what is wrong in it.

    >>> grid = load_grid("mqar-order")
    >>> grid.points[0].base.model.slots
    1024
    """
    if isinstance(source, str) and source in GRIDS:
        path, name = _ours(source), source
    else:
        path, name = Path(source), Path(source).stem
        if not path.is_file():
            raise FileNotFoundError(f"grid must be a file or one of {', '.join(GRIDS)}, got {str(source)!r}")
    try:
        return read_grid(path.read_text(encoding="utf-8"), name, quick=quick, epochs=epochs, corpus=corpus)
    except RecursionError as error:
        raise ValueError(f"{path.name}: it must be TOML, got tables or lists nested too deeply") from error
    except TypeError as error:
        raise TypeError(f"{path.name}: {error}") from error
    except ValueError as error:  # so are those of tomllib
        raise ValueError(f"{path.name}: {error}") from error


def read_grid(
    text: str, name: str, *, quick: bool = False, epochs: float | None = None, corpus: Corpus | None = None
) -> Grid:
    """The grid that ``text`` describes; errors as :func:`load_grid`.

    >>> point = '[[points]]\\nname = "a"\\nmodel = { order = 2, radix = 8 }'
    >>> grid = read_grid("epochs = 2\\nseeds = [0]\\nlearning_rates = [1e-3]\\n" + point, "mine")
    >>> [(p.name, p.base.model.slots, p.base.train.steps) for p in grid.points]
    [('a', 64, 5620)]
    """
    table = tomllib.loads(text)
    _known("the grid", table, ("title", "task", "like", "points", "kinds", "quick", *_NUMBERS, *_PARTS))
    quickly = table.get("quick", {})
    _known("[quick]", quickly, ("points", *_NUMBERS, *_PARTS))
    title = table.get("title", name)
    if not isinstance(title, str):
        raise TypeError(f"title must be a text, got {title!r}")
    layers, last = [table], [quickly]
    if "like" in table:
        if table["like"] not in GRIDS:
            raise ValueError(f"like must be one of {', '.join(GRIDS)}, got {table['like']!r}")
        other = tomllib.loads(_ours(table["like"]).read_text(encoding="utf-8"))
        layers, last = [other, table], [other.get("quick", {}), quickly]
    task: Any = next((layer["task"] for layer in reversed(layers) if "task" in layer), "mqar")
    check_choice("task", task, Task)
    if not quick:
        last = []
    elif not any(last):
        raise ValueError("a quick grid needs a table [quick], got none")
    if epochs is not None:
        last.append({"epochs": epochs})
    entries = _named_points(table.get("points", []))
    if quick and "points" in quickly:
        entries = _chosen(entries, quickly["points"])
    if not entries:
        raise ValueError("a grid must hold at least one point in [[points]], got none")
    kinds = table.get("kinds", {})
    _table("[kinds]", kinds)
    points = []
    for entry in entries:
        where = f"point {entry['name']!r}"
        _known(where, entry, ("name", "kind", "learning_rate", "variants", *_NUMBERS, *_PARTS))
        own = {**entry, "learning_rates": [entry["learning_rate"]]} if "learning_rate" in entry else entry
        try:
            points.append(_point(entry["name"], name, task, [*layers, _kind(entry, kinds), own, *last], quick, corpus))
        except (ValueError, TypeError) as error:
            raise type(error)(f"{where}: {error}") from error
    return Grid(name, title, tuple(points), quick)


def _kind(entry: Mapping[str, Any], kinds: Mapping[str, Any]) -> Mapping[str, Any]:
    """What points of the entry's kind share; nothing if it names none."""
    if "kind" not in entry:
        return {}
    if entry["kind"] not in tuple(kinds):
        raise ValueError(f"kind must be one of [kinds] ({', '.join(kinds) or 'none'}), got {entry['kind']!r}")
    kind = kinds[entry["kind"]]
    _known(f"[kinds.{entry['kind']}]", kind, ("model", "variants"))
    return kind


def _named_points(entries: Any) -> list[Mapping[str, Any]]:
    """The tables ``[[points]]``, each with a name of its own."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"points must be tables [[points]], got {entries!r}")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            raise ValueError(f"point {number} must have a name, got {entry.get('name')!r}")
    _distinct("points must have names of their own", [entry["name"] for entry in entries])
    return entries


def _chosen(entries: list[Mapping[str, Any]], names: Any) -> list[Mapping[str, Any]]:
    """The points that ``[quick]`` names."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"[quick] points must be a list of names, got {names!r}")
    _distinct("[quick] points must be names of their own", names)
    if missing := [name for name in names if name not in [entry["name"] for entry in entries]]:
        raise ValueError(f"[quick] points must be names of points, got {missing[0]!r}")
    return [entry for entry in entries if entry["name"] in names]


def _point(
    name: str, grid: str, task: Task, layers: Sequence[Mapping[str, Any]], quick: bool, corpus: Corpus | None
) -> Point:
    """A point from tables of settings: later tables override earlier ones, and other keys in them are ignored."""
    numbers: dict[str, Any] = {"validation": 500, "evaluations": 4, "finalists": 1, "widest": None}
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    known = {part: _fields_of(type_) for part, type_ in _types(task).items()}
    variants: dict[str, Any] = {"": {}}
    for layer in layers:
        numbers |= {key: layer[key] for key in _NUMBERS if key in layer}
        for part, settings in parts.items():
            given = layer.get(part, {})
            _known(f"[{part}]", given, known[part])
            settings |= {key: plain(value) for key, value in given.items()}
        _table("variants", layer.get("variants", {}))
        if "" in layer.get("variants", {}):
            raise ValueError("variants must have names, got ''")
        variants |= layer.get("variants", {})
    _check_numbers(numbers)
    for setting, source in _SET_BY_THE_GRID.items():
        if setting in parts["train"]:
            raise ValueError(f"[train] {setting} follows from {source}, which is set instead")
    data = DATA[task](**parts["data"])
    vocab = data.vocab if isinstance(data, MQARSettings) else corpus.codec.vocab if corpus else BYTES
    model = {"vocab": vocab, **parts["model"]}
    models = {variant: _model(variant, model, given, vocab) for variant, given in variants.items()}
    rates, seeds, epochs = numbers["learning_rates"], numbers["seeds"], float(numbers["epochs"])
    per_epoch = _steps_per_epoch(data, parts["train"].get("batch", TrainConfig.batch), corpus)

    def run(epochs: float, search: bool) -> GridRun:
        steps = max(1, round(epochs * per_epoch))
        if numbers["evaluations"] > steps:
            raise ValueError(f"evaluations must be at most the {steps} steps of a run, got {numbers['evaluations']}")
        train = TrainConfig(**parts["train"], steps=steps, learning_rate=rates[0])
        return GridRun(
            name, models[""], data, train, seeds[0], epochs, numbers["validation"], numbers["evaluations"], quick,
            search=search, task=task, corpus=corpus.sha256 if corpus and task == "text" else "",
        )  # fmt: skip

    base = searching = run(epochs, False)
    if len(rates) * len(models) > 1 and numbers.get("search_epochs", epochs) < epochs:
        searching = run(float(numbers["search_epochs"]), True)
    point = Point(name, grid, seeds, rates, numbers["widest"], numbers["finalists"], models, base, searching)
    for rate in rates:
        point.run(seeds[0], rate)  # refuses what cannot be
    return point


def _types(task: Task) -> dict[str, type]:
    """What each part of the settings becomes."""
    return {"model": RAMNetConfig, "data": DATA[task], "train": TrainConfig}


def _fields_of(type_: Any) -> list[str]:
    """The settings of a part; where the text lies is said by the command, as it decides no bits."""
    return [f.name for f in fields(type_) if f.name != "path"]


def _model(variant: str, shared: Mapping[str, Any], given: Any, vocab: int) -> RAMNetConfig:
    """The model of a variant: what it gives overrides what the point has."""
    where = f"variant {variant!r}" if variant else "[model]"
    _known(where, given, _fields_of(RAMNetConfig))
    model = RAMNetConfig(**{**shared, **{key: plain(value) for key, value in given.items()}})
    if model.vocab < vocab:
        raise ValueError(f"model.vocab must be at least data.vocab ({vocab}), got {model.vocab}")
    return model


def _steps_per_epoch(data: MQARSettings | TextSettings, batch: Any, corpus: Corpus | None) -> float:
    """How many steps a pass over the training sets takes, or over the text."""
    check_integer("train.batch", batch, 1)
    if isinstance(data, TextSettings):
        size = sum(d.size for d in TextData(corpus, data, 1, 0).train) if corpus else FACTS_TOKENS
        return size / (batch * data.length)
    per_epoch = sum(examples // batch for _, _, examples in data.train)
    if not per_epoch:
        raise ValueError(f"train.batch must be at most a training set, got {batch}")
    return per_epoch


def _check_numbers(numbers: dict[str, Any]) -> None:
    """Refuse what cannot be among the numbers of a point; one seed or rate becomes a tuple of one."""
    for key in ("epochs", "seeds", "learning_rates"):
        if numbers.get(key) in (None, [], ()):
            raise ValueError(f"{key} must be given, for all points or for this one")
    for key in ("seeds", "learning_rates"):
        numbers[key] = tuple(numbers[key]) if isinstance(numbers[key], list | tuple) else (numbers[key],)
    for seed in numbers["seeds"]:
        check_integer("seeds", seed, 0, None)
    for rate in numbers["learning_rates"]:
        check_number("learning_rates", rate, SMALLEST)
    numbers["learning_rates"] = tuple(map(float, numbers["learning_rates"]))
    for key in ("epochs", "search_epochs"):
        if key in numbers:
            check_number(key, numbers[key], SMALLEST)
    check_integer("validation", numbers["validation"], 1, MOST_VALIDATION)
    for key in ("evaluations", "finalists"):
        check_integer(key, numbers[key], 1)
    for key in ("seeds", "learning_rates"):
        _distinct(f"{key} must differ from each other", numbers[key])
    if numbers["widest"] is not None:
        numbers["widest"] = _widest(numbers["widest"])


def _widest(given: Any) -> tuple[float, float]:
    """The lowest and the highest learning rate of a sweep that goes on."""
    if not isinstance(given, list) or len(given) != 2:
        raise ValueError(f"widest must be the lowest and the highest learning rate to try, got {given!r}")
    for rate in given:
        check_number("widest", rate, SMALLEST)
    if given[0] > given[1]:
        raise ValueError(f"widest must name the lowest learning rate first, got {given!r}")
    return float(given[0]), float(given[1])


def _distinct(rule: str, values: Sequence[Any]) -> None:
    """ValueError, beginning with ``rule``, where a value stands twice."""
    if repeated := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"{rule}, got {repeated[0]!r} twice")


def _ours(name: str) -> Any:
    return files("ramnet_np.experiment") / f"{name}.toml"


def _table(where: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a table, got {value!r}")


def _known(where: str, table: Any, names: Sequence[str]) -> None:
    _table(where, table)
    if unknown := [key for key in table if key not in names]:
        raise ValueError(f"{where} has no setting {unknown[0]!r}; its settings are {', '.join(names)}")
