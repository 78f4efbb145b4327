"""Results as Markdown tables, ours beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ramnet_np.experiment.grid import GridRun
from ramnet_np.experiment.records import Record
from ramnet_np.experiment.summary import Result, gpu_minutes
from ramnet_np.model.mixers import variant_labels

NEAR = 0.15  # of its elements: how far the state of a mark of the paper may lie from ours to stand beside it
_ABSENT = "-"

Paper = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["M", "ours"], [["64", "0.6"]]))
    | M | ours |
    | --- | --- |
    | 64 | 0.6 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def order_table(results: Sequence[Result], paper: Paper) -> str:
    """By slots and order: the paper's accuracy, ours, and what is missing to the paper's.

    >>> order_table([], {}).count("|")
    18
    """
    rows = []
    for result in sorted(results, key=lambda r: (-r.run.model.slots, r.run.model.order)):
        model = result.run.model
        theirs = paper.get("order", {}).get(str(model.slots), {}).get(str(model.order))
        rows.append(
            [
                str(model.slots), str(model.order), _ABSENT if theirs is None else f"{theirs:g}", *_ours(result),
                _ABSENT if theirs is None else f"{result.accuracy - theirs:+.3f}", *_how(result),
            ]
        )  # fmt: skip
    return table(["M", "U", "paper", "ours", "each seed", "ours - paper", "learning rate", "epochs"], rows)


def state_table(results: Sequence[Result], paper: Paper) -> str:
    """By kind of model and elements of state; the paper's value where it read one within 15% of the elements.

    >>> state_table([], {}).count("|")
    18
    """
    kinds = variant_labels()
    rows = []
    for result in sorted(results, key=lambda r: (kinds.index(r.kind), r.state)):
        marks = paper.get("state", {}).get(result.kind, ())
        near = min(marks, key=lambda mark: abs(mark[0] - result.state), default=None)
        theirs, at = _ABSENT, _ABSENT
        if near and abs(near[0] - result.state) <= NEAR * result.state:
            size, low, high = near
            theirs, at = (f"{low:g}" if low == high else f"{low:g} to {high:g}"), f"{size:,}"
        rows.append([result.kind, f"{result.state:,}", *_ours(result), theirs, at, *_how(result)])
    return table(["model", "elements", "ours", "each seed", "paper", "its elements", "learning rate", "epochs"], rows)


def ablation_table(results: Sequence[Result]) -> str:
    """Every point beside the one that is called "base".

    >>> ablation_table([]).count("|")
    14
    """
    base = next((r for r in results if r.name == "base"), None)
    rows = []
    for result in results:
        change = _ABSENT if base is None or result is base else f"{result.accuracy - base.accuracy:+.3f}"
        rows.append([result.name, *_ours(result), change, *_how(result)])
    return table(["point", "ours", "each seed", "ours - base", "learning rate", "epochs"], rows)


def settings_table(results: Sequence[Result]) -> str:
    """Accuracy of each point on each test setting, mean over seeds.

    >>> settings_table([])
    ''
    """
    if not results:
        return ""
    settings = list(results[0].by_setting)
    rows = [[r.name, *(f"{r.by_setting[s]:.3f}" if s in r.by_setting else _ABSENT for s in settings)] for r in results]
    return table(["point", *settings], rows)


def shared_settings(results: Sequence[Result]) -> str:
    """The settings that all results have in common, as lines of a grid file.

    >>> shared_settings([])
    ''
    """
    lines = []
    for part in ("model", "data", "train"):
        tables = [_part(result.run, part) for result in results]
        same = [key for key in (tables[0] if tables else ()) if all(t.get(key) == tables[0][key] for t in tables)]
        common = [f"{key} = {_toml(tables[0][key])}" for key in same]
        if common:
            lines += [f"[{part}]", *common, ""]
    return "\n".join(lines).strip()


def provenance(records: Sequence[Record]) -> str:
    """Hardware, versions, dates, GPU minutes and number of runs, in a sentence or two.

    >>> provenance([])
    'No runs.'
    """
    if not records:
        return "No runs."
    where = sorted({_hardware(r["hardware"]) for r in records})
    versions = ", ".join(sorted({r["version"] for r in records}))
    first, last = min(r["date"][:10] for r in records), max(r["date"][:10] for r in records)
    runs = "1 run" if len(records) == 1 else f"{len(records)} runs"
    diverged = sum(r["status"] == "diverged" for r in records)
    speed = max(r["tokens_per_second"] for r in records)
    spent = f"{gpu_minutes(records):.1f} GPU minutes" if gpu_minutes(records) else "no GPU"
    return (
        f"{runs} ({diverged} diverged), {spent}, {first if first == last else f'{first} to {last}'}, on "
        f"{'; '.join(where)}; ramnet_np {versions}. The fastest run trained {speed:,} tokens/s."
    )


def _ours(result: Result) -> list[str]:
    return [f"{result.accuracy:.3f}", ", ".join(f"{accuracy:.3f}" for accuracy in result.accuracies)]


def _how(result: Result) -> list[str]:
    tried = f" (of {result.rates})" if result.rates > 1 else ""
    return [f"{result.learning_rate:g}{tried}", f"{result.epochs:g}"]


def _part(run: GridRun, part: str) -> dict[str, Any]:
    left_out = {"learning_rate", "log_every", "evaluate_every", "checkpoint_every"}
    return {key: value for key, value in run.settings[part].items() if value is not None and key not in left_out}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _hardware(facts: Mapping[str, Any]) -> str:
    parts = [facts["name"]]
    if facts["device"] == "gpu":
        parts += [f"CUDA {_cuda(facts['cuda'])}", f"CuPy {facts['cupy']}"]
    return ", ".join([*parts, f"NumPy {facts['numpy']}", f"Python {facts['python']}"])


def _cuda(number: int) -> str:
    """12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
