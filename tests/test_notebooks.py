"""The course is whole: every notebook is small, was executed without trouble, and has the parts it should have.

That the notebooks run is checked by ``make notebooks``, which executes them all.
"""

import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
COLUMN = 88  # characters of code that the site shows without sideways scrolling
sys.path.insert(0, str(FOLDER))


def load(name):
    return importlib.import_module(name)


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", ())]


def test_the_course_is_whole():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, len(NOTEBOOKS) + 1)]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 5_000_000
    index = (FOLDER / "README.md").read_text()
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", index)
    assert linked == [path.name for path in NOTEBOOKS]


def test_small_and_valid(path, notebook):
    assert path.stat().st_size < 1_000_000
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_committed_with_outputs_and_without_trouble(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None, f"not executed: {cell.source[:60]}"
    kinds = {output.output_type for output in outputs(notebook)}
    assert "error" not in kinds
    assert not [o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"]
    data = [o.get("data", {}) for o in outputs(notebook)]
    assert sum("image/png" in d or "data:image" in d.get("text/html", "") for d in data) >= 2


def test_the_word_before_compiling_is_no_trouble_and_no_output():
    from ramnet_np.kernels.cpu import cache

    run = load("run")
    assert run.NOTICE in Path(cache.__file__).read_text(encoding="utf-8")
    texts = [f"{run.NOTICE}, about 10 s, once\n", f"{run.NOTICE}, once\nUserWarning: two\n", "a result\n"]
    names = ["stderr", "stderr", "stdout"]
    given = [nbformat.v4.new_output("stream", name=n, text=t) for n, t in zip(names, texts, strict=True)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=given)])
    run.without_notices(notebook)
    assert [o.text for o in outputs(notebook)] == ["UserWarning: two\n", "a result\n"]
    assert run.warnings_in(notebook) == "UserWarning: two\n"


def test_nothing_of_one_machine(path):
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp)/|site-packages|widget-view|Traceback", text)


def test_sections_in_order_and_a_way_on(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.match(rf"# {int(path.name[:2])}\. ", text)
    assert text.index("## Exercises") < text.index("## Summary")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert not [
        link for link in links if not link.startswith("http") and not (FOLDER / link.partition("?")[0]).exists()
    ]
    if path != NOTEBOOKS[-1]:
        assert f"]({NOTEBOOKS[NOTEBOOKS.index(path) + 1].name})" in text.rsplit("Next:", 1)[-1]


def test_one_line_brings_what_a_notebook_uses(notebook):
    first = next(cell for cell in notebook.cells if cell.cell_type == "code").source
    imports = [line for line in first.splitlines() if re.match(r"(import|from) ", line)]
    assert imports[0].startswith("from course import ")
    assert len(imports) <= 4, "a wall of imports"


def test_code_fits_the_column(notebook):
    folded = tagged(notebook, "hide-input") + tagged(notebook, "remove-input")
    shown = [cell for cell in notebook.cells if cell.cell_type == "code" and cell not in folded]
    assert not [line for cell in shown for line in cell.source.splitlines() if len(line) > COLUMN]


def test_numbers_in_prose_come_from_cells(notebook):
    """A measured number (a decimal fraction or a percentage) stands in the prose only if a cell holds or prints it."""
    shown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for output in outputs(notebook):
        html = output.get("data", {}).get("text/html", "")
        shown += (
            output.get("text", "")
            + re.sub(r"data:image[^\"]*", "", html)
            + output.get("data", {}).get("text/plain", "")
        )
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    parts = [part for text in prose for part in re.sub(r"\$[^$]*\$|`[^`]*`|<code>.*?</code>", "", text).split("\n\n")]
    said = [n for part in parts if "paper" not in part for n in re.findall(r"(?<![\w.])\d+\.\d+|\d+ ?%", part)]
    assert not [number for number in said if number.replace(" ", "") not in shown.replace(" ", "")]


def test_exercises_have_checks_that_the_solutions_pass(notebook):
    exercises, checks, solutions = (tagged(notebook, tag) for tag in ("exercise", "check", "solution"))
    assert len(exercises) == len(checks) == len(solutions)
    assert len(exercises) + len(tagged(notebook, "mine")) >= 2
    for number, (exercise, test, solution) in enumerate(zip(exercises, checks, solutions, strict=True), start=1):
        assert "..." in exercise.source
        assert "assert" in test.source
        assert solution.metadata.jupyter.source_hidden
        said = ["".join(o.get("text", "") for o in cell.outputs) for cell in (test, solution)]
        assert said[0].startswith(f"Exercise {number} is open")
        assert said[1].endswith(f"Exercise {number}: correct.\n")


def test_check_tells_open_wrong_and_right_apart(capsys):
    check = load("course").check

    def test_7(answer):
        assert answer(2) == 4, "two squared is four"

    check(test_7, ...)
    check(test_7, lambda x: ...)
    assert capsys.readouterr().out.count("Exercise 7 is open") == 2
    check(test_7, lambda x: x**2)
    assert capsys.readouterr().out == "Exercise 7: correct.\n"
    with pytest.raises(AssertionError, match="two squared is four"):
        check(test_7, lambda x: 3 * x)


def test_printed_lines_are_saved_as_one_output():
    run = load("run")
    streams = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in ("one\n", "two\n")]
    figure = nbformat.v4.new_output("display_data", data={"text/plain": "figure"})
    assert [o.get("text") for o in run.joined([*streams, figure, streams[1]])] == ["one\ntwo\n", None, "two\n"]


@pytest.mark.parametrize(
    ("source", "trouble"),
    [
        ("print(1)", ""),
        ("assert 1 == 2, 'not the same'", "not the same"),
        ("import warnings; warnings.warn('old')", "old"),
    ],
)
def test_run_finds_errors_and_warnings(tmp_path, source, trouble):
    run = load("run")
    path = tmp_path / "99_trial.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), path)
    before = path.read_bytes()
    _, found = run.execute(path, save=False, threads=1)
    assert (trouble in found) if trouble else (found == "")
    assert path.read_bytes() == before
    _, found = run.execute(path, save=True, threads=1)
    assert (path.read_bytes() != before) == (not trouble)  # what failed is not written
