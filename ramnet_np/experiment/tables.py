"""Results as Markdown tables, ours beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ramnet_np.experiment.records import Record
from ramnet_np.experiment.summary import Result, gpu_minutes
from ramnet_np.experiment.sweep import Choice
from ramnet_np.model import RAMNetConfig
from ramnet_np.model.mixers import variant_labels

NEAR = 0.15  # of its elements: how far the state of a mark of the paper may lie from ours to stand beside it
OWN = "plain"  # what tables call a point's own settings, beside its variants
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
                _ABSENT if theirs is None else f"{result.accuracy - theirs:+.3f}", *how(result, results),
            ]
        )  # fmt: skip
    return table(["M", "U", "paper", "ours", "each seed", "ours - paper", *how_head(results)], rows)


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
        rows.append([result.kind, f"{result.state:,}", *_ours(result), theirs, at, *how(result, results)])
    return table(["model", "elements", "ours", "each seed", "paper", "its elements", *how_head(results)], rows)


def study_table(results: Sequence[Result]) -> str:
    """Every setting beside the first one, with the same slots and order.

    >>> study_table([])
    ''
    """
    if not results:
        return ""
    first = setting_of(results[0].name)
    bases = {addresses(r.run.model): r.accuracy for r in results if setting_of(r.name) == first}
    rows = []
    for result in results:
        base = bases.get(addresses(result.run.model))
        change = _ABSENT if base is None or setting_of(result.name) == first else f"{result.accuracy - base:+.3f}"
        model = result.run.model
        size = [str(model.slots), str(model.order)]
        rows.append([setting_of(result.name), *size, *_ours(result), change, *how(result, results)])
    return table(["setting", "M", "U", "ours", "each seed", f"ours - {first}", *how_head(results)], rows)


def setting_of(name: str) -> str:
    """What a point of a study is about: its name without its slots and order.

    >>> setting_of("cape-first-m64-u3"), setting_of("base")
    ('cape-first', 'base')
    """
    return re.sub(r"-m\d+-u\d+$", "", name)


def addresses(model: RAMNetConfig) -> str:
    """The slots and the order, as figures name them.

    >>> addresses(RAMNetConfig(order=3, radix=4))
    'M = 64, U = 3'
    """
    return f"M = {model.slots}, U = {model.order}"


def search_table(results: Sequence[Result]) -> str:
    """How each point chose: validation of all that its first seed tried, the rates of one variant in a row.

    >>> search_table([])
    ''
    """
    rows = []
    for result in results:
        for variant in result.variants:
            bold = "**" if variant == result.chosen.variant else ""
            cells = [_tried(tried, variant) for tried in (result.searched, result.finals)]
            rows.append([result.name, f"{bold}{variant or OWN}{bold}", *cells])
    head = ["point", "settings", "learning rate: validation of short runs", "of runs at full length"]
    return table(head, rows) if rows else ""


def ends_of(results: Sequence[Result]) -> str:
    """How many points chose a learning rate at an end of those they tried, in a sentence.

    >>> ends_of([])
    ''
    """
    swept = [result for result in results if len(result.rates) > 1]
    if not swept:
        return ""
    points = "1 point" if len(swept) == 1 else f"{len(swept)} points"
    at = {end: ", ".join(r.name for r in swept if r.end == end) or "none" for end in ("lowest", "highest")}
    return (
        f"{points} had a sweep. These chose the lowest learning rate tried: {at['lowest']}; these the highest: "
        f"{at['highest']}."
    )


def _tried(scores: Mapping[Choice, float | None], variant: str) -> str:
    """Such as "0.001: 0.53, 0.002: diverged"."""
    parts = [
        # bits a byte count down: as scores they are negative
        f"{choice.rate:g}: {'diverged' if value is None else f'{abs(value):.3f}'}"
        for choice, value in sorted(scores.items(), key=lambda pair: pair[0])
        if choice.variant == variant
    ]
    return ", ".join(parts) or _ABSENT


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
        tables = [_part(result, part) for result in results]
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
    where = sorted({hardware_in_words(r["hardware"]) for r in records})
    versions = ", ".join(sorted({r["version"] for r in records}))
    first, last = min(r["date"][:10] for r in records), max(r["date"][:10] for r in records)
    runs = "1 run" if len(records) == 1 else f"{len(records)} runs"
    short = sum(r["settings"].get("search", False) for r in records)
    of_them = f"{short} short ones to choose by, " if short else ""
    diverged = sum(r["status"] == "diverged" for r in records)
    # runs on text share a GPU whose cores they fill, so that their speed says nothing
    text = any(r["settings"].get("task") == "text" for r in records)
    speed = "" if text else f" The fastest run trained {max(r['tokens_per_second'] for r in records):,} tokens/s."
    spent = f"{gpu_minutes(records):.1f} GPU minutes" if gpu_minutes(records) else "no GPU"
    return (
        f"{runs} ({of_them}{diverged} diverged), {spent}, {first if first == last else f'{first} to {last}'}, on "
        f"{'; '.join(where)}; ramnet_np {versions}.{speed}"
    )


def _ours(result: Result) -> list[str]:
    return [f"{result.accuracy:.3f}", ", ".join(f"{accuracy:.3f}" for accuracy in result.accuracies)]


def how_head(results: Sequence[Result]) -> list[str]:
    """The heads of the columns of :func:`how`.

    >>> how_head([])
    ['learning rate', 'epochs']
    """
    return [*["settings"] * _has_variants(results), "learning rate", "epochs"]


def how(result: Result, results: Sequence[Result]) -> list[str]:
    """The variant, if any of the ``results`` tried several; the rate, of how many, and whether it is at their end.

    >>> from types import SimpleNamespace
    >>> result = SimpleNamespace(rates=(1e-3, 2e-3), end="", chosen=Choice("", 1e-3), variants=("",), epochs=6.0)
    >>> how(result, [result])
    ['0.001 (of 2)', '6']
    """
    tried = f" ({f'{result.end} ' if result.end else ''}of {len(result.rates)})" if len(result.rates) > 1 else ""
    variant = f"{result.chosen.variant or OWN}{f' (of {n})' if (n := len(result.variants)) > 1 else ''}"
    return [*[variant] * _has_variants(results), f"{result.chosen.rate:g}{tried}", f"{result.epochs:g}"]


def _has_variants(results: Sequence[Result]) -> bool:
    return any(len(result.variants) > 1 for result in results)


def _part(result: Result, part: str) -> dict[str, Any]:
    left_out = {"learning_rate", "log_every", "evaluate_every", "checkpoint_every"}
    return {key: value for key, value in result.settings[part].items() if value is not None and key not in left_out}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def hardware_in_words(facts: Mapping[str, Any]) -> str:
    """The processor or GPU of a record, and the versions.

    >>> hardware_in_words({"name": "a CPU", "device": "cpu", "numpy": "2.0", "python": "3.11"})
    'a CPU, NumPy 2.0, Python 3.11'
    """
    parts = [facts["name"]]
    if facts["device"] == "gpu":
        parts += [f"CUDA {_cuda(facts['cuda'])}", f"CuPy {facts['cupy']}"]
    return ", ".join([*parts, f"NumPy {facts['numpy']}", f"Python {facts['python']}"])


def _cuda(number: int) -> str:
    """12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"
