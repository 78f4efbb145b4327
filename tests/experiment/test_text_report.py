"""The page on language: tables and figures of grids on text and of tests on books, from records to the markers."""

import json

import pytest

from ramnet_np.data.corpus import read_corpus
from ramnet_np.experiment.book_records import read_books, read_speeds
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.one_run import run_one
from ramnet_np.experiment.report import report, write_report
from ramnet_np.experiment.summary import collect
from ramnet_np.experiment.text_report import SAVES, book_sections, text_section
from ramnet_np.experiment.text_tables import (
    past_table,
    recipe_table,
    rivals_table,
    saved_table,
    training_slots_table,
)
from ramnet_np.model.files import append_record
from ramnet_np.model.mixers import MIXERS
from tests.experiment.test_text_grids import TINY, write_texts

NEEDLES = [{"tokens": 1000, "asked": 64, "accuracy": 0.25, "nats": 2.5}]
NAMES = [
    {"begin": None, "end": None, "mentions": 3, "nats": 9.0, "bits_per_byte": 2.0},
    {"begin": 100, "end": 1000, "mentions": 5, "nats": 4.0, "bits_per_byte": 1.25},
]
SPEED = {
    "parameters": 20_100_000, "tokens/s": 8e5, "GiB": 5.25, "token_ms": 0.25, "batch": 16, "length": 2048,
    "dtype": "bfloat16", "device": "a GPU", "versions": {"cupy": "14"}, "date": "2026-11-29T01:02:03+00:00",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The record of each point."""
    texts = write_texts(tmp_path_factory.mktemp("runs"))
    grid = read_grid(TINY, "tiny", corpus=read_corpus(texts))
    return {point.name: run_one(point.base, "cpu", text=texts) for point in grid.points}


@pytest.fixture
def records(runs):
    """Those of three models, each in three grids; two seeds of the first, whose numbers are set."""
    found = json.loads(json.dumps([runs[name] for name in ("plain", "carried", "softmax")]))
    for record, bits in zip(found, (1.5, 1.75, 1.625), strict=True):
        record["accuracy"]["bits_per_byte"] = bits
    again = json.loads(json.dumps(found[0]))
    again["settings"]["seed"], again["accuracy"]["bits_per_byte"] = 7, 1.25
    return [
        {"grid": grid, **record}
        for grid in ("language-rivals", "language-past", "language-recipe")
        for record in (*found, again)
    ]


def results_of(records, grid):
    return collect([record for record in records if record["grid"] == grid])


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_rivals_stand_from_the_best_on(records):
    head, _, *rows = cells(rivals_table(results_of(records, "language-rivals")))
    assert [row[0] for row in rows] == ["RAM-Net (plain)", "softmax attention (softmax)", "RAM-Net (carried)"]
    row = dict(zip(head, rows[0], strict=True))
    assert (row["bits a byte"], row["each seed"]) == ("1.3750", "1.5000, 1.2500")
    assert row["elements of state"] == str(2 * 4 * 9)
    assert row["touched by a token"] == str(2 * 2 * 2 * 9)  # layers, slots, written and read
    assert dict(zip(head, rows[1], strict=True))["memory carried"] == "-"
    assert dict(zip(head, rows[1], strict=True))["elements of state"] == str(2 * 2 * 8 * 16)  # of a window


def test_the_past_by_position(records):
    results = results_of(records, "language-past")
    head, _, *rows = cells(past_table(results))
    assert head[3:-1] == ["up to 1k", "touched", "entropy", "slots in use"]
    used = [4 ** layer["entropy"] for layer in results[0].records[0]["slots"][-1]["layers"]]
    assert rows[0][6] == f"{sum(used) / 2:.0f}"
    assert rows[2][4:7] == ["-", "-", "-"]  # softmax attention has no slots
    head, _, *measured = cells(training_slots_table(results))
    first = results[0].records[0]["slots"][0]
    touched = [layer["touched"] for layer in first["layers"]]
    assert measured[0] == [
        "plain",
        str(first["step"]),
        f"{sum(touched) / 2:.3f}",
        f"{min(touched):.3f}",
        *measured[0][4:],
    ]
    assert [row[0] for row in measured] == ["plain", "plain", "carried", "carried"]
    head, _, *rows = cells(past_table(results))
    assert [(row[0], row[2]) for row in rows] == [("plain", "carried"), ("carried", "carried"), ("softmax", "windows")]
    rivals = results_of(records, "language-rivals")
    table, draw, _ = text_section("language-past", results, rivals=rivals)
    table, saved = table.split(f"\n\n{SAVES}\n\n")
    # "plain" and "carried" are both RAM-Nets: the first of them stands for its kind among the rivals
    assert {row[0] for row in cells(table)[5:]} == {"plain", "softmax"}
    ways = results[0].records[0]["by_position"]
    change = ways["windows"][0]["bits_per_byte"] - ways["carried"][0]["bits_per_byte"]
    accuracy = results[0].records[0]["accuracy"]
    whole = accuracy["bits_per_byte"] - accuracy["carried bits_per_byte"]
    assert cells(saved)[2] == ["plain", f"{change:+.4f}", f"{whole:+.4f}"]
    assert [row[0] for row in cells(saved)[2:]] == ["plain", "carried", "plain"]
    assert draw().axes[0].get_xlabel() == "bytes of the book before the token"
    for rival in rivals:
        rival.records[0]["parameters"] *= 2  # of another size
    table = text_section("language-past", results, rivals=rivals)[0].split("\n\n")[0]
    assert cells(table)[2:] == rows
    ways = results[0].records[0]["by_position"]
    assert rows[0][3] == f"{ways['carried'][0]['bits_per_byte']:.4f}" != f"{ways['windows'][0]['bits_per_byte']:.4f}"


def test_what_was_not_measured_is_a_dash_or_no_row(records):
    results = results_of(records, "language-past")
    first = results[0].records[0]
    first["by_position"]["windows"] = []
    assert cells(saved_table(results))[2][:2] == ["plain", "-"]
    first["slots"] = [{"step": 10, "layers": [{}, {}]}]
    assert [row[0] for row in cells(training_slots_table(results))[2:]] == ["carried", "carried"]


def test_the_recipe_beside_its_first_point(records):
    head, _, *rows = cells(recipe_table(results_of(records, "language-recipe")))
    change = head.index("- plain")
    assert [row[change] for row in rows] == ["-", "+0.3750", "+0.2500"]
    use = records[0]["slots"][-1]["layers"]
    assert rows[0][head.index("touched")] == f"{sum(layer['touched'] for layer in use) / 2:.2f}"
    assert rows[2][head.index("touched")] == "-"
    axes = text_section("language-recipe", results_of(records, "language-recipe"))[1]().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["plain", "softmax", "carried"]  # the best first
    assert axes.get_ylabel() == "setting"


def longer(record, bits, epochs=4.0):
    """The record of a training of so many passes, with the test's bits a byte."""
    found = json.loads(json.dumps({**record, "grid": "language-long", "name": f"{record['name']}-long"}))
    found["settings"] |= {"name": found["name"], "epochs": epochs}
    found["settings"]["train"]["steps"] = found["steps"] = 40
    found["epochs"], found["accuracy"]["bits_per_byte"] = epochs, bits
    return found


def test_more_passes_stand_beside_fewer(records):
    long = [longer(records[0], 1.375), longer(records[2], 1.25), longer(records[1] | {"name": "new"}, 1.3125)]
    rivals = results_of(records, "language-rivals")
    text, draw, _ = text_section("language-long", results_of(long, "language-long"), rivals=rivals)
    head, _, *rows = cells(text)
    assert [row[0] for row in rows] == [
        "softmax attention (softmax-long)", "RAM-Net (new-long)", "RAM-Net (plain-long)",
    ]  # fmt: skip
    plain = dict(zip([*head[:5], "before", "bits before", *head[7:]], rows[2], strict=True))
    assert (plain["passes"], plain["bits a byte"]) == ("4", "1.3750")
    assert plain["million tokens"] == f"{40 * 2 * 16 / 1e6:.1f}"
    # the change is that of the first seed, as only it was trained longer; the second had 1.25
    assert (plain["bits before"], plain["change"]) == ("1.5000", "-0.1250")
    assert plain["before"] == f"{records[0]['epochs']:g}"
    assert rows[1][5:8] == ["-", "-", "-"]  # there is no shorter one
    names = [label.get_text() for label in draw().axes[0].get_yticklabels()]
    assert {"softmax-long", "new-long", "plain-long"} <= set(names)


def test_everything_reaches_the_page(records, tmp_path, monkeypatch):
    drawn = {}  # written files take seconds
    monkeypatch.setattr("ramnet_np.experiment.report._save", lambda draw, path: drawn.update({path.name: draw()}))
    for record in records:
        append_record(tmp_path / "language.jsonl", record)
    append_record(tmp_path / "language.jsonl", {"of": "another kind"})
    for model in ("a", "b", "a"):  # the last line of a model counts
        rows = [replace_bits(row, 1.0 if model == "b" else 1.5) for row in NAMES]
        for test, table in (("names", rows), ("needles", NEEDLES), ("slots", [{"layer": 0, "touched": 0.5}])):
            append_record(tmp_path / "books.jsonl", {"test": test, "model": model, "tables": {"carried": table}})
    for name, ms, quick in (("a", 20.0, False), ("a", 40.0, False), ("b", 10.0, False), ("b", 99.0, True)):
        append_record(tmp_path / "speed.jsonl", SPEED | {"point": name, "ms": ms, "quick": quick})
    files = [tmp_path / f"{name}.jsonl" for name in ("language", "books", "speed")]
    assert len(read_books(files)) == 9
    sections = report(files, {}, {})
    assert list(sections) == [
        "language-rivals", "language-past", "language-recipe", "language-speed",
        "books-names", "books-needles", "books-slots",
    ]  # fmt: skip
    assert list(report(files[2:], {}, {})) == ["language-speed"]
    markers = "".join(f"<!-- {name}: begin -->\nNo results yet.\n<!-- {name}: end -->\n" for name in sections)
    (tmp_path / "language.md").write_text(markers)
    write_report(files, tmp_path)
    page = (tmp_path / "language.md").read_text()
    assert "No results yet" not in page
    assert "| a | carried | 1.500 | 1.500 |\n| b | carried | 1.000 | 1.000 |" in page
    assert "The columns have 3, 5 mentions." in page
    assert "64 questions at each distance, 16 answers each: a guess is right in 6.2% of them" in page
    assert "| a | 0 | 0.500 |" in page
    # the last record of a model counts, and none of a reduced grid
    assert (
        "| a | 20.1 | 40.0 | 800,000 | 5.2 | 0.250 |\n| b | 20.1 | 10.0 | 800,000 | 5.2 | 0.250 |\n\nSteps of" in page
    )
    assert "16 windows of 2048 tokens in bfloat16, on a GPU, cupy 14, 2026-11-29; one text" in page
    plain = [name for name in sections if name not in ("language-speed", "books-slots")]  # these have no figure
    assert list(drawn) == [f"{name}.png" for name in plain]
    assert [axes.get_xlabel() for axes in drawn["books-names.png"].axes] == [
        "bytes since the name was mentioned before"
    ]
    write_report(files, tmp_path)
    assert (tmp_path / "language.md").read_text() == page
    assert list(report(files[1:2], {}, {})) == ["books-names", "books-needles", "books-slots"]  # without any grid


@pytest.mark.parametrize(
    ("read", "whole"),
    [
        (read_books, {"test": "names", "model": "a", "tables": {"carried": NAMES}}),
        (read_books, {"test": "needles", "model": "a", "tables": {"carried": NEEDLES}}),
        (read_books, {"test": "slots", "model": "a", "tables": {"carried": [{"layer": 0, "touched": 0.5}]}}),
        (read_speeds, SPEED | {"point": "a", "ms": 20.0, "quick": False}),
    ],
)
def test_a_record_without_a_part_is_left_out(tmp_path, read, whole):
    """What reaches the tables has all that they use."""

    def read_line(record):
        (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
        return read([tmp_path / "a.jsonl"])

    assert read_line(whole) == [whole]
    for name in set(whole) - {"GiB"}:
        assert read_line({**whole, name: None}) == [], name
        assert read_line({key: value for key, value in whole.items() if key != name}) == [], name
    if "tables" in whole:  # of a test on slots there is one table alone
        both = whole | {"tables": {way: whole["tables"]["carried"] for way in ("carried", "windows")}}
        assert read_line(both) == ([] if whole["test"] == "slots" else [both])
    if "GiB" in whole:
        assert read_line({**whole, "GiB": [5.25]}) == []
    for wrong in (
        ({}, {"windows": 3}, {"carried": [{}]}, {"windows": [{"layer": "first"}]}) if "tables" in whole else ()
    ):
        assert read_line(whole | {"tables": wrong}) == [], wrong


def test_a_figure_of_books_has_a_line_a_model():
    tables = ({"windows": NAMES, "carried": NAMES}, {"windows": NAMES})
    figures = {}
    book_sections(
        [{"test": "names", "model": model, "tables": t} for model, t in zip("ab", tables, strict=True)], figures
    )
    legend = figures["books-names"]().legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["a, carried", "b, windows"]


@pytest.mark.parametrize(("rows", "asked"), [(NEEDLES, 64), ([], 0)])
def test_how_many_questions_were_asked_is_said_of_one_book_too(rows, asked):
    sections = book_sections([{"test": "needles", "model": "a", "tables": {"carried": rows}}], {})
    assert f"\n\n{asked} questions at each distance" in sections["books-needles"][0]


def replace_bits(row, bits):
    return {**row, "bits_per_byte": bits}


def test_a_hybrid_is_named_by_both_mixers(runs):
    [result] = collect([{"grid": "mine", **runs["hybrid"]}])
    assert result.kind == f"{MIXERS['ram'].variants[0].label} with {MIXERS['window'].variants[0].label}"
    assert result.accuracy == runs["hybrid"]["accuracy"]["bits_per_byte"]
