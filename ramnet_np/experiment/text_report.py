"""The sections of docs/results/language.md: grids on text, tests on books, and the speed of each model alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from ramnet_np.data.needles import WORDS
from ramnet_np.experiment.book_records import Book, Speed
from ramnet_np.experiment.summary import Result
from ramnet_np.experiment.text_tables import (
    book_lines,
    book_ranges,
    books_table,
    by_position,
    long_table,
    past_table,
    recipe_table,
    rivals_table,
    saved_table,
    slots_table,
    speed_table,
)
from ramnet_np.plot.language import lines_by_range, scores_by_model

Draw = Callable[[], Figure]

SIMILAR = 1.5  # times as many parameters
SAVES = "What the carried memory saves: bits a byte with an empty memory in every window, less those with it carried."
_NUMBERS = {"positions": "bits_per_byte", "names": "bits_per_byte", "needles": "accuracy"}
_XLABELS = {
    "positions": "bytes of the book before the token",
    "names": "bytes since the name was mentioned before",
    "needles": "tokens since the facts",
}
_WHAT = {
    "positions": "Bits a byte against the position in the book, a line for each model.",
    "names": "Bits a byte of names against the distance to the mention before, a line for each model.",
    "needles": "Share of right answers against the distance to the facts, a line for each model.",
}


def text_section(
    grid: str, results: Sequence[Result], title: str = "", rivals: Sequence[Result] = ()
) -> tuple[str, Draw, str]:
    """The table of a grid on text, how to draw its figure, and what is to be seen in it.

    ``rivals``: results of language-rivals, beside which those of language-long stand. Of those of a like size, the
    first of each kind of model stands in the table of language-past, too.

    >>> text_section("language-past", [])[2]
    'Bits a byte against the position in the book, a line for each model.'
    """
    bits, what = "bits a byte of the held-out books", "Bits a byte of every model."
    if grid == "language-past":
        largest = max((result.records[0]["parameters"] for result in results), default=0)
        similar = [rival for rival in rivals if rival.records[0]["parameters"] < SIMILAR * largest]
        firsts = {rival.kind: rival for rival in reversed(similar)}.values()
        shown = [*results, *(rival for rival in similar if rival in firsts)]
        lines = {result.name: by_position(result) for result in shown}
        what = "Bits a byte against the position in the book, a line for each model."
        rows = "\n\n".join([past_table(shown), *([SAVES, saved] if (saved := saved_table(shown)) else [])])
        return rows, lambda: lines_by_range(lines, _XLABELS["positions"], "bits a byte", title), what
    if grid == "language-recipe":
        scores = {result.name: result.accuracies for result in sorted(results, key=lambda r: r.accuracy)}
        what = "Bits a byte of every setting, the best first."
        return recipe_table(results), lambda: scores_by_model(scores, bits, title, "setting"), what
    if grid == "language-long":
        scores = {result.name: result.accuracies for result in sorted(results, key=lambda r: r.accuracy)}
        return long_table(results, rivals), lambda: scores_by_model(scores, bits, title), what
    ordered = sorted(results, key=lambda r: (round(r.records[0]["parameters"] / 10e6), r.accuracy))
    scores = {result.name: result.accuracies for result in ordered}
    return rivals_table(results), lambda: scores_by_model(scores, bits, title), what


def speed_section(speeds: Sequence[Speed]) -> str:
    """The table of models that were timed alone, and how they were timed.

    >>> speed_section([])
    ''
    """
    if not speeds:
        return ""
    about = {
        f"Steps of {one['batch']} windows of {one['length']} tokens in {one['dtype']}, on {one['device']}, "
        + ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        + f", {one['date'][:10]}; one text in generation, behind {one['length']} tokens."
        for one in speeds
    }
    return "\n\n".join([speed_table(speeds), *sorted(about)])


def book_sections(books: Sequence[Book], figures: dict[str, Draw]) -> dict[str, tuple[str, str]]:
    """For each test on books that has records: its Markdown, and what is to be seen in its figure ("" without one).

    Figures are added to ``figures`` under the name of the section, "books-" and the test.

    >>> book_sections([], {})
    {}
    """
    sections = {}
    for test, value in _NUMBERS.items():
        lines = book_lines(books, test, value)
        if lines:
            carried = {model for model, way in lines if way == "carried"}  # one line a model is enough
            shown = {
                f"{model}, {way}": line
                for (model, way), line in lines.items()
                if way == "carried" or model not in carried
            }
            guess = 1 / len(WORDS) if test == "needles" else None
            ylabel = "share of right answers" if test == "needles" else "bits a byte"
            name = f"books-{test}"
            figures[name] = _draw(shown, _XLABELS[test], ylabel, guess, book_ranges(books, test))
            sections[name] = books_table(books, test, value) + _note(books, test), _WHAT[test]
    if any(book["test"] == "slots" for book in books):
        sections["books-slots"] = slots_table(books), ""
    return sections


def _draw(
    lines: Mapping[str, Mapping[str, float]], xlabel: str, ylabel: str, guess: float | None, ranges: Sequence[str]
) -> Draw:
    return lambda: lines_by_range(lines, xlabel, ylabel, guess=guess, ranges=ranges)


def _note(books: Sequence[Book], test: str) -> str:
    """How much the test measured, in a sentence."""
    tables = [rows for book in books if book["test"] == test for rows in book["tables"].values()]
    if test == "needles":
        asked = max((row["asked"] for row in tables[0]), default=0)
        return f"\n\n{asked} questions at each distance, {len(WORDS)} answers each: a guess is right in {_guess()}."
    unit = "mentions" if test == "names" else "tokens"
    counts = ", ".join(f"{row[unit]:,}" for row in tables[0])
    return f"\n\nThe columns have {counts} {unit}."


def _guess() -> str:
    return f"{1 / len(WORDS):.1%} of them, and costs {math.log(len(WORDS)):.2f} nats"
