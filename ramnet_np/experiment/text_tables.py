"""Results of grids on text, and of tests on books, as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ramnet_np.experiment.book_records import Book, Speed
from ramnet_np.experiment.summary import Result
from ramnet_np.experiment.tables import how, how_head, table
from ramnet_np.model.count import active_elements

_ABSENT = "-"
_SLOT_USE = ("touched", "entropy", "slots in use")  # columns
_BYTES = 4  # of an element of state: memories are float32 in generation


def rivals_table(results: Sequence[Result]) -> str:
    """Models of like sizes beside each other, the best first: bits a byte of the held-out books, and what they cost.

    >>> rivals_table([]).count("|")
    22
    """
    rows = []
    for result in sorted(results, key=lambda r: (round(_parameters(r) / 10e6), r.accuracy)):
        mega = f"{_BYTES * result.state / 1e6:.1f}"
        active = active_elements(result.run.model, result.settings["data"]["length"])
        sizes = [f"{_parameters(result) / 1e6:.1f}", f"{result.state:,}", f"{active:,}", mega]
        cells = [*sizes, *_bits(result), _carried(result)]
        rows.append([f"{result.kind} ({result.name})", *cells, *how(result, results)])
    head = ["model", "million parameters", "elements of state", "touched by a token", "MB in generation"]
    head += ["bits a byte", "each seed"]
    return table([*head, "memory carried", *how_head(results)], rows)


def speed_table(speeds: Sequence[Speed]) -> str:
    """A row for each model that was timed alone: a step of training, and a token of one text.

    >>> speed = {"point": "a", "parameters": 20_100_000, "ms": 30.5, "tokens/s": 1_074_000.4, "token_ms": 0.25}
    >>> print(speed_table([speed]))
    | model | million parameters | ms a step | tokens/s | GiB | ms a token in generation |
    | --- | --- | --- | --- | --- | --- |
    | a | 20.1 | 30.5 | 1,074,000 | - | 0.250 |
    """
    rows = []
    for speed in speeds:
        memory = f"{speed['GiB']:.1f}" if "GiB" in speed else _ABSENT
        step = [f"{speed['parameters'] / 1e6:.1f}", f"{speed['ms']:.1f}", f"{speed['tokens/s']:,.0f}", memory]
        rows.append([speed["point"], *step, f"{speed['token_ms']:.3f}"])
    return table(["model", "million parameters", "ms a step", "tokens/s", "GiB", "ms a token in generation"], rows)


def long_table(results: Sequence[Result], rivals: Sequence[Result]) -> str:
    """Models that were trained longer, the best first, each beside its shorter training with the same first seed.

    ``rivals``: the shorter ones; "a" is that of "a-long".

    >>> long_table([], [])
    ''
    """
    if not results:
        return ""
    shorter, rows = {rival.name: rival for rival in rivals}, []
    for result in sorted(results, key=lambda r: r.accuracy):
        before = shorter.get(result.name.removesuffix("-long"))
        cells = [_ABSENT, _ABSENT, _ABSENT]
        if before is not None:
            fall = result.accuracies[0] - before.accuracies[0]
            cells = [f"{before.epochs:g}", f"{before.accuracies[0]:.4f}", f"{fall:+.4f}"]
        tokens = result.records[0]["steps"] * result.settings["train"]["batch"] * result.settings["data"]["length"]
        head = [f"{result.kind} ({result.name})", f"{result.epochs:g}", f"{tokens / 1e6:.1f}"]
        rows.append([*head, *_bits(result)[:1], _carried(result), *cells, f"{result.chosen.rate:g}"])
    names = ["model", "passes", "million tokens", "bits a byte", "memory carried"]
    return table([*names, "shorter: passes", "bits a byte", "change", "learning rate"], rows)


def past_table(results: Sequence[Result]) -> str:
    """The loss by the position in the book, with the memory carried through the book where that can be.

    >>> past_table([])
    ''
    """
    if not results:
        return ""
    ranges = list(dict.fromkeys(name for result in results for name in by_position(result)))
    rows = []
    for result in results:
        line = by_position(result)
        cells = [f"{line[name]:.4f}" if name in line else _ABSENT for name in ranges]
        use, rate = _slot_use(result), f"{result.chosen.rate:g}"
        rows.append([result.name, f"{result.state:,}", _way_of(result), *cells, *use, rate])
    return table(["model", "elements of state", "memory", *ranges, *_SLOT_USE, "learning rate"], rows)


def saved_table(results: Sequence[Result]) -> str:
    """How many bits a byte the carried memory saves, by the position in the book and in all; of the first seed.

    >>> saved_table([])
    ''
    """
    tested = [result for result in results if _way_of(result) == "carried"]
    ranges = list(dict.fromkeys(name for result in tested for name in by_position(result)))
    rows = []
    for result in tested:
        windows, carried = by_position(result, "windows"), by_position(result)
        both = carried.keys() & windows.keys()
        saved = [f"{windows[name] - carried[name]:+.4f}" if name in both else _ABSENT for name in ranges]
        accuracy = result.records[0]["accuracy"]
        rows.append([result.name, *saved, f"{accuracy['bits_per_byte'] - accuracy['carried bits_per_byte']:+.4f}"])
    return table(["model", *ranges, "all"], rows) if rows else ""


def recipe_table(results: Sequence[Result]) -> str:
    """Every setting beside the first one: bits a byte, and how evenly the layers' writes use the slots.

    >>> recipe_table([])
    ''
    """
    if not results:
        return ""
    base, rows = results[0], []
    for result in results:
        change = _ABSENT if result is base else f"{result.accuracy - base.accuracy:+.4f}"
        use = _slot_use(result)
        cells = [*_bits(result), _carried(result), change, f"{_parameters(result) / 1e6:.1f}", f"{result.state:,}"]
        rows.append([result.name, *cells, *use, f"{result.chosen.rate:g}"])
    head = ["setting", "bits a byte", "each seed", "memory carried", f"- {base.name}", "million parameters"]
    return table([*head, "elements of state", *_SLOT_USE, "learning rate"], rows)


def _bits(result: Result) -> list[str]:
    """Bits a byte of the held-out books: the mean, and each seed."""
    return [f"{result.accuracy:.4f}", ", ".join(f"{one:.4f}" for one in result.accuracies)]


def _carried(result: Result) -> str:
    """The same with the memory carried through the books, mean over the seeds."""
    found = result.by_setting.get("carried bits_per_byte")
    return _ABSENT if found is None else f"{found:.4f}"


def _way_of(result: Result) -> str:
    """How the memory of the first seed's test was used: "carried" where that was tested."""
    return "carried" if "carried" in result.records[0].get("by_position", {}) else "windows"


def by_position(result: Result, way: str = "") -> dict[str, float]:
    """Bits a byte by ranges of bytes before the token, of the first seed.

    ``way``: "windows" or "carried"; "": carried where that was tested.

    >>> from types import SimpleNamespace
    >>> rows = [{"begin": 0, "end": 1000, "bits_per_byte": 2.0}]
    >>> by_position(SimpleNamespace(records=[{"by_position": {"windows": rows}}]))
    {'up to 1k': 2.0}
    """
    rows = result.records[0].get("by_position", {}).get(way or _way_of(result), [])
    return {range_name(row["begin"], row["end"]): row["bits_per_byte"] for row in rows}


def _slot_use(result: Result) -> list[str]:
    """The cells of ``_SLOT_USE`` at the end of training, mean over the layers that have slots.

    As many slots as M to the power of the entropy, written alike, would have the same entropy: so many are in use.
    """
    measured = result.records[0].get("slots", [])
    layers = [layer for layer in (measured[-1]["layers"] if measured else []) if layer]
    if not layers:
        return [_ABSENT] * len(_SLOT_USE)
    in_use = sum(result.run.model.slots ** layer["entropy"] for layer in layers) / len(layers)
    means = [f"{sum(layer[name] for layer in layers) / len(layers):.2f}" for name in ("touched", "entropy")]
    return [*means, f"{in_use:.0f}"]


def training_slots_table(results: Sequence[Result]) -> str:
    """How evenly the writes used the slots whenever a run was measured: the mean over its layers, and the lowest layer.

    Of the first seed; "" without a model that has slots.

    >>> from types import SimpleNamespace
    >>> layers = [{"touched": 0.5, "entropy": 0.75}, {"touched": 1.0, "entropy": 0.5}, {}]
    >>> print(training_slots_table([SimpleNamespace(name="a", records=[{"slots": [{"step": 10, "layers": layers}]}])]))
    | model | step | touched | lowest layer | entropy | lowest layer |
    | --- | --- | --- | --- | --- | --- |
    | a | 10 | 0.750 | 0.500 | 0.625 | 0.500 |
    """
    rows = []
    for result in results:
        for measured in result.records[0].get("slots", []):
            if not (layers := [layer for layer in measured["layers"] if layer]):
                continue
            columns = [[layer[name] for layer in layers] for name in ("touched", "entropy")]
            numbers = [number for column in columns for number in (sum(column) / len(column), min(column))]
            rows.append([result.name, str(measured["step"]), *(f"{number:.3f}" for number in numbers)])
    head = ["model", "step", "touched", "lowest layer", "entropy", "lowest layer"]
    return table(head, rows) if rows else ""


def range_name(begin: int | None, end: int | None) -> str:
    """Such as "1k to 10k".

    >>> range_name(0, 1000), range_name(1000, 10_000), range_name(100_000, None), range_name(None, None)
    ('up to 1k', '1k to 10k', '100k on', 'first mention')
    """
    if begin is None:
        return "first mention"
    if end is None:
        return f"{_short(begin)} on"
    return f"{_short(begin)} to {_short(end)}" if begin else f"up to {_short(end)}"


def books_table(books: Sequence[Book], test: str, value: str) -> str:
    """A row for each model and way of its memory, a column for each range or distance of the test.

    ``value``: which number of a row of the test.

    >>> rows = [{"begin": 0, "end": 100, "bits_per_byte": 1.5}]
    >>> print(books_table([{"test": "names", "model": "a", "tables": {"carried": rows}}], "names", "bits_per_byte"))
    | model | memory | up to 100 |
    | --- | --- | --- |
    | a | carried | 1.500 |
    """
    lines, ranges = book_lines(books, test, value), book_ranges(books, test)
    rows = [[*who, *(f"{line[r]:.3f}" if r in line else _ABSENT for r in ranges)] for who, line in lines.items()]
    return table(["model", "memory", *ranges], rows)


def book_lines(books: Sequence[Book], test: str, value: str) -> dict[tuple[str, str], dict[str, float]]:
    """The numbers of a test by model and way, and then by range or distance; later records replace earlier ones.

    >>> rows = [{"tokens": 1000, "asked": 64, "accuracy": 0.25}]
    >>> book_lines([{"test": "needles", "model": "a", "tables": {"carried": rows}}], "needles", "accuracy")
    {('a', 'carried'): {'1k tokens': 0.25}}
    """
    lines = {}
    for book in books:
        if book["test"] == test:
            for way, rows in book["tables"].items():
                lines[book["model"], way] = {_place(row): float(row[value]) for row in rows}
    return lines


def book_ranges(books: Sequence[Book], test: str) -> list[str]:
    """The names of all ranges or distances of a test, the nearest first.

    >>> rows = [{"tokens": 1000, "asked": 64}], [{"tokens": 100, "asked": 64}, {"tokens": 1000, "asked": 64}]
    >>> book_ranges([{"test": "needles", "model": "a", "tables": {"carried": one}} for one in rows], "needles")
    ['100 tokens', '1k tokens']
    """
    rows = [row for book in books if book["test"] == test for table in book["tables"].values() for row in table]
    begins = {_place(row): row["tokens"] if "asked" in row else row["begin"] for row in rows}
    return sorted(begins, key=lambda name: -1 if begins[name] is None else begins[name])  # first mentions come first


def slots_table(books: Sequence[Book]) -> str:
    """The layers of every model whose slots were tested, a row each.

    >>> rows = [{"layer": 0, "touched": 0.5}]
    >>> print(slots_table([{"test": "slots", "model": "a", "tables": {"carried": rows}}]))
    | model | layer | touched |
    | --- | --- | --- |
    | a | 0 | 0.500 |
    """
    tests = {book["model"]: book["tables"]["carried"] for book in books if book["test"] == "slots"}
    names = list(dict.fromkeys(name for rows in tests.values() for row in rows for name in row))
    found = [[model, *(_cell(row.get(name)) for name in names)] for model, rows in tests.items() for row in rows]
    return table(["model", *names], found)


def _place(row: dict[str, Any]) -> str:
    return f"{_short(row['tokens'])} tokens" if "asked" in row else range_name(row["begin"], row["end"])


def _cell(value: Any) -> str:
    return _ABSENT if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _short(number: int) -> str:
    return f"{number / 1000:g}k" if number >= 1000 else str(number)


def _parameters(result: Result) -> int:
    return result.records[0]["parameters"]
