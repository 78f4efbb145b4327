"""Figures and tables from results: files beside one another, and the parts of a page between markers."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ramnet_np.experiment.book_records import read_books, read_speeds
from ramnet_np.experiment.grid import GRIDS, load_grid
from ramnet_np.experiment.records import Record, read_records
from ramnet_np.experiment.summary import Result, collect
from ramnet_np.experiment.tables import (
    addresses,
    ends_of,
    order_table,
    provenance,
    search_table,
    setting_of,
    settings_table,
    shared_settings,
    state_table,
    study_table,
)
from ramnet_np.experiment.text_report import book_sections, speed_section, text_section
from ramnet_np.experiment.text_tables import training_slots_table
from ramnet_np.model.files import why, write_text
from ramnet_np.model.mixers import variant_labels
from ramnet_np.plot.recall import accuracy_by_order, accuracy_by_setting, accuracy_by_state
from ramnet_np.plot.style import theme
from ramnet_np.runs.pictures import save_picture

BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"  # of a grid
PAPER = "paper.toml"
SPEED = "language-speed"  # the section of models that were timed alone
RIVALS = "language-rivals"  # whose models also stand beside those of language-past


def write_report(results: Sequence[Path], out: Path | None = None) -> str:
    """Draw the figures of ``results`` (JSONL files) into the folder ``out``, light and dark; returns the Markdown.

    ``out``: None: the folder of the first file.
    The paper's values are those of ``paper.toml`` in ``out``, where there is one. The pages ``mqar.md`` and
    ``language.md`` in ``out``, where they are, get the Markdown of their grids and tests between the markers of each.
    ValueError where there is no result, for a file without a record, and for a page without markers;
    FileNotFoundError for a missing file. Then nothing is written.

    >>> write_report([])
    Traceback (most recent call last):
        ...
    ValueError: results must be files results.jsonl of an experiment, got none
    """
    if not results:
        raise ValueError("results must be files results.jsonl of an experiment, got none")
    out = results[0].parent if out is None else out
    figures = dict[str, Callable[[], Figure]]()
    sections = report(results, _read_paper(out / PAPER) if (out / PAPER).is_file() else {}, figures)
    pages = dict[Path, str]()
    for grid, text in sections.items():
        page = out / page_of(grid)
        if page.is_file():
            pages[page] = between_markers(pages.get(page) or page.read_text(encoding="utf-8"), grid, text)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out must be a folder that can be written to, got {str(out)!r}: {why(error)}") from error
    for name, draw in figures.items():
        _save(draw, out / f"{name}.png")
    for page, text in pages.items():
        write_text(page, text)
    return "\n\n".join(f"### {grid}\n\n{text}" for grid, text in sections.items())


def report(
    results: Sequence[Path], paper: Mapping[str, Any], figures: dict[str, Callable[[], Figure]]
) -> dict[str, str]:
    """The Markdown of each grid, of the speeds and of each test on books, by its name; how to draw its figure is
    added to ``figures``. ValueError for a file without a record, and where there is no result.

    >>> from ramnet_np.experiment.report import report
    >>> report([], {}, {})
    Traceback (most recent call last):
        ...
    ValueError: results must hold at least one run at full length that did not diverge, got none in
    """
    for path in results:
        if not (read_records([path]) or read_books([path]) or read_speeds([path])):
            raise ValueError(
                f"results must be files of records, such as an experiment's results.jsonl, got none in {str(path)!r}"
            )
    records = read_records(results)
    points, books, speeds = collect(records), read_books(results), read_speeds(results)
    if not (points or books or speeds):
        names = ", ".join(map(str, results))
        raise ValueError(
            f"results must hold at least one run at full length that did not diverge, got none in {names}".rstrip()
        )
    sections = {}
    for grid in dict.fromkeys([*GRIDS, *(p.grid for p in points)]):
        if ours := _in_order(grid, [p for p in points if p.grid == grid]):
            runs = [r for r in records if r["grid"] == grid and r["quick"] == ours[0].run.quick]
            rivals = _in_order(RIVALS, [p for p in points if p.grid == RIVALS])
            sections[grid] = _section(grid, ours, runs, paper, figures, rivals)
    if speeds:
        sections[SPEED] = speed_section(speeds)
    for name, (text, what) in book_sections(books, figures).items():
        sections[name] = "\n\n".join([*_images(name, what), text]) if what else text
    return sections


def page_of(section: str) -> str:
    """The page that has a grid or a test on books.

    >>> page_of("mqar-order"), page_of("books-names")
    ('mqar.md', 'language.md')
    """
    return "language.md" if section.startswith(("language", "books")) else "mqar.md"


def _images(name: str, what: str) -> list[str]:
    files = ((name, "light"), (f"{name}-dark", "dark"))
    return [f"```{{image}} {file}.png\n:class: only-{only} picture\n:alt: {what}\n```" for file, only in files]


def _in_order(grid: str, results: Sequence[Result]) -> list[Result]:
    """As the grid lists its points, if it is one that comes with the command; else as they are."""
    names = [point.name for point in load_grid(grid).points] if grid in GRIDS else []
    place = {name: i for i, name in enumerate(names)}
    return sorted(results, key=lambda result: place.get(result.name, len(names)))


def _read_paper(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold the paper's values as TOML: {error}") from error


def between_markers(page: str, grid: str, text: str) -> str:
    """The page with ``text`` in place of what stands between the markers of ``grid``. ValueError without them.

    >>> between_markers("a <!-- mine: begin --> old <!-- mine: end --> b", "mine", "new").split()[5:6]
    ['new']
    """
    begin, end = BEGIN.format(grid), END.format(grid)
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page must hold {begin!r} and {end!r}, between which results go")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page)


def _section(
    grid: str, ours: Sequence[Result], runs: Sequence[Record], paper: Mapping[str, Any],
    figures: dict[str, Callable[[], Figure]], rivals: Sequence[Result],
) -> str:  # fmt: skip
    """The Markdown of a grid; its figure is added to ``figures``. ``rivals``: results of ``RIVALS``."""
    parts = []
    quick = ours[0].run.quick
    if quick:
        parts.append("A reduced grid, to see that everything works. Its figures say nothing about the paper's.")
        paper = {}
    title = "(reduced by --quick)" if quick else ""
    if ours[0].run.task == "text":
        rows, draw, what = text_section(grid, ours, title, rivals)
    else:
        draw, what = _figure(grid, ours, paper, title)
        rows = {"mqar-order": order_table, "mqar-state": state_table}.get(grid, _study)(ours, paper)
    figures[grid] = draw
    parts += [*_images(grid, what), rows]
    parts += [part for part in (ends_of(ours), provenance(runs)) if part]
    each = "All numbers of the test" if ours[0].run.task == "text" else "Accuracy on each test setting"
    parts.append(_folded(each, settings_table(ours)))
    parts.append(_folded("How each point chose its learning rate and settings", search_table(ours)))
    if slots := training_slots_table(ours):
        parts.append(_folded("How evenly the slots were written while the models trained", slots))
    parts.append(_folded("Settings that all of these runs share", f"```toml\n{shared_settings(ours)}\n```"))
    return "\n\n".join(parts)


def _study(ours: Sequence[Result], _: Mapping[str, Any]) -> str:
    return study_table(ours)


def _folded(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _figure(
    grid: str, ours: Sequence[Result], paper: Mapping[str, Any], title: str
) -> tuple[Callable[[], Figure], str]:
    """How to draw the grid's figure, and what is to be seen in it."""
    order = {int(m): {int(u): a for u, a in line.items()} for m, line in paper.get("order", {}).items()}
    if grid == "mqar-order":
        by_order: dict[int, dict[int, tuple[float, ...]]] = {}
        for result in ours:
            by_order.setdefault(result.run.model.slots, {})[result.run.model.order] = result.accuracies
        return lambda: accuracy_by_order(by_order, order, title), "Accuracy against order U, a line for each M."
    if grid == "mqar-state":
        by_state: dict[str, dict[int, tuple[float, ...]]] = {}
        for kind in variant_labels():
            if points := {r.state: r.accuracies for r in ours if r.kind == kind}:
                by_state[kind] = points
        marks, what = paper.get("state", {}), "Accuracy against elements of state, by kind of model."
        return lambda: accuracy_by_state(by_state, marks, title), what
    by_setting: dict[str, dict[str, tuple[float, ...]]] = {}
    for result in ours:
        by_setting.setdefault(addresses(result.run.model), {})[setting_of(result.name)] = result.accuracies
    theirs = {f"M = {m}, U = {u}": accuracy for m, line in order.items() for u, accuracy in line.items()}
    shown = {model: accuracy for model, accuracy in theirs.items() if model in by_setting}
    return lambda: accuracy_by_setting(by_setting, shown, title), "Accuracy under each setting, a mark for each model."


def _save(draw: Callable[[], Figure], path: Path) -> None:
    save_picture(draw, path, dpi=160)
    with theme("dark"):
        save_picture(draw, path.with_name(f"{path.stem}-dark.png"), dpi=160)
