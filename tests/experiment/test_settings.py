"""Each number of a grid file reaches the points and runs that it is for: changed alone, it changes that."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from ramnet_np.backend import use_backend
from ramnet_np.experiment import grid as grids
from ramnet_np.experiment import one_run, tasks
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import run_one
from tests.experiment.grids import TINY

# number -> what stands in its place in the file, and what it changes: of the point, of its runs, of those that search
CHANGES = {
    "epochs": ("epochs = 3", {"base.epochs", "base.train.steps", "searching.epochs", "searching.train.steps"}),
    "seeds": ("seeds = [4, 5]", {"seeds", "base.seed", "searching.seed"}),
    "learning_rates": (
        "learning_rates = [2e-3]",
        {"learning_rates", "base.train.learning_rate", "searching.train.learning_rate"},
    ),
    "widest": ("widest = [1e-4, 0.1]", {"widest"}),
    "search_epochs": ("search_epochs = 1", {"searching.epochs", "searching.train.steps", "searching.search"}),
    "finalists": ("finalists = 2", {"finalists"}),
    "validation": ("validation = 7", {"base.validation", "searching.validation"}),
    "evaluations": ("evaluations = 1", {"base.evaluations", "searching.evaluations"}),
}


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}{key}.").items()}
    return {name.removesuffix("."): value}


def point_of(text):
    return {k: v for k, v in flat(asdict(read_grid(text, "tiny").points[0])).items() if not k.startswith("_")}


@pytest.mark.parametrize("number", CHANGES)
def test_a_number_of_a_grid_changes_what_it_is_for(number):
    assert CHANGES.keys() == set(grids._NUMBERS)
    line, expected = CHANGES[number]
    base = point_of(TINY)
    kept = "\n".join(one for one in TINY.split("[model]")[0].splitlines() if not one.startswith(f"{number} ="))
    changed = point_of(f"{kept}\n{line}\n[model]" + TINY.split("[model]", 1)[1])
    assert {k for k in base if base[k] != changed[k]} == expected


@pytest.mark.parametrize(
    ("part", "line", "expected"),
    [
        ("model", "width = 8", ("model.width", 8)),
        ("data", "power = 0.5", ("data.power", 0.5)),
        ("train", "weight_decay = 0.25", ("train.weight_decay", 0.25)),
    ],
)
def test_a_table_of_a_grid_reaches_both_lengths_of_run(part, line, expected):
    head, rest = TINY.split(f"[{part}]\n")
    rest = "\n".join(
        one for one in rest.splitlines() if one.partition(" =")[0] != line.partition(" =")[0] or part != "model"
    )
    point = point_of(f"search_epochs = 1\n{head}[{part}]\n{line}\n{rest}")
    name, value = expected
    assert point[f"base.{name}"] == point[f"searching.{name}"] == value


A = read_grid(TINY, "tiny").points[0].run(0, 1e-2)
RUNS = {
    "validation": (7, {"validated"}),
    "evaluations": (4, {"measured"}),
    "seed": (3, {"data", "weights"}),
    "search": (True, {"tested"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_field_of_a_run_changes_what_it_is_for(name, monkeypatch):
    """It changes the run: the sequences measured on, how often, data, first weights, whether the run is tested."""

    def seen(run):
        found = {"validated": set(), "measured": 0, "tested": False}

        def evaluate(model, held_out, tokens=None):
            if "3 pairs, length 20" in held_out:
                found["tested"] = True
            else:
                found["validated"] |= {len(one.ids) for one in held_out.values()}
                found["measured"] += 1
            return {name: 0.5 for name in held_out} | {"mean": 0.5}

        def model(config, seed):
            made = RAMNet(config, seed=seed)
            found["weights"] = made.params["model.embeddings.weight"].tobytes()
            return made

        def data(run, device, text):
            made = task_data(run, device, text)
            found["data"] = made.batches.batch(0).ids.tobytes()
            return made

        RAMNet, task_data = one_run.RAMNet, tasks.task_data
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "evaluate", evaluate)
            patch.setattr(one_run, "RAMNet", model)
            patch.setattr(one_run, "task_data", data)
            with use_backend("numpy"):  # nothing to compile
                run_one(run, "cpu")
        return found

    value, expected = RUNS[name]
    base, changed = seen(A), seen(replace(A, **{name: value}))
    assert {part for part in base if base[part] != changed[part]} == expected
    assert (base["validated"], base["measured"]) == ({10}, 2)
    assert np.isin(7, list(changed["validated"])) == (name == "validation")
