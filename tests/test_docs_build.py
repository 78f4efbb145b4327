"""What the site is built with: the link checker sees what is broken, docstrings are converted, notebooks mirrored."""

import doctest
import importlib.util
import json
import re
import zipfile
from pathlib import Path

import pytest
from docutils import nodes
from packaging.requirements import Requirement

import ramnet_np

DOCS = Path(__file__).parent.parent / "docs"


def load(name, monkeypatch=None):
    if monkeypatch:
        monkeypatch.syspath_prepend(DOCS / "_ext")  # extensions import each other
    spec = importlib.util.spec_from_file_location(Path(name).stem, DOCS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = """
<a href="b.html#there">b</a> <img src="images/a.png"> <a href="https://example.org">away</a> <a href="#top" id="top">
"""


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        (GOOD, None),
        ('<a href="c.html">', "a.html: 'c.html' leads to no file of the site"),
        ('<a href="b.html#gone">', "a.html: 'b.html#gone' names an anchor that the page does not have"),
        ('<img src="images/b.png">', "a.html: 'images/b.png' leads to no file of the site"),
        (
            '<script src="https://example.org/x.js"></script>',
            "a.html: 'https://example.org/x.js' is loaded from another",
        ),
        ('<a href="/b.html">', "a.html: '/b.html' is absolute"),
        ('<a href="../outside.html">', "leads to no file of the site"),
    ],
)
def test_check_links(html, problem, tmp_path, capsys):
    site = tmp_path / "site"
    (site / "images").mkdir(parents=True)
    (tmp_path / "outside.html").write_text("")
    (site / "images/a.png").write_text("")
    (site / "a.html").write_text(html)
    (site / "b.html").write_text('<h2 id="there">b</h2>')
    failed = load("check_links.py").main([str(site)])
    printed = capsys.readouterr().out
    assert failed == (problem is not None)
    assert (problem or "all links of 2 pages lead somewhere") in printed


def test_the_reference_has_every_module():
    shown = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for folder in ("core", "model", "model/mixers", "train", "experiment"):
        for path in (DOCS.parent / "ramnet_np" / folder).glob("*.py"):
            # the operation's two modules are shown as names of ramnet_np; presets are values
            if path.stem not in ("__init__", "attention", "state", "presets"):
                assert f"automodule:: ramnet_np.{folder.replace('/', '.')}.{path.stem}\n" in shown, path
    of_other_pages = {"RAMNet", "RAMNetConfig", "gradcheck"}  # shown with their modules
    for name in set(ramnet_np.__all__) - of_other_pages:
        assert f":: ramnet_np.{name}\n" in shown, name


@pytest.mark.parametrize("folder", ["layers", "data", "runs", "gradcheck", "plot"])
def test_the_reference_has_the_other_rooms(folder):
    shown = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    files = list((DOCS.parent / "ramnet_np" / folder).glob("*.py"))
    assert files
    for path in files:
        if path.stem not in ("__init__", "__main__", "check", "presets"):  # check.py is shown as its package
            assert f"automodule:: ramnet_np.{folder}.{path.stem}\n" in shown, path


def test_the_reference_has_the_contract():
    assert "automodule:: ramnet_np.contract\n" in (DOCS / "api/backend.md").read_text()


def test_docstrings_are_converted():
    assert doctest.testmod(load("_ext/house_docstrings.py")).failed == 0


def test_tables_are_not_shown_as_values():
    class desc_annotation(nodes.inline):
        pass

    shown = [desc_annotation("", text) for text in (" = {'pdma': <function>}", " = array([1])", " = 16.0")]
    content = nodes.paragraph()
    entry = nodes.section("", nodes.paragraph("", "", *shown), content)
    load("_ext/house_docstrings.py").without_tables(None, "py", "data", content)
    assert entry.astext().strip() == "= 16.0"


def test_arguments_and_equations():
    converted = load("_ext/house_docstrings.py").converted
    text = [
        "Sum.",
        "",
        "    y = a + b",
        "",
        "``a``: one",
        "    number. Source: here.",
        "``b``, ``c``: more",
        "",
        ">>> 1",
        "1",
    ]
    expected = [
        "Sum.",
        "",
        ".. code-block:: text",
        "    :class: formula",
        "",
        "    y = a + b",
        "",
        "- ``a``: one number.",
        "",
        "Source: here.",
    ]
    expected += ["", "- ``b``, ``c``: more", "", ">>> 1", "1", ""]
    assert converted(text) == expected


def test_notebooks_are_mirrored(tmp_path, monkeypatch):
    notebooks = load("_ext/notebooks.py", monkeypatch)
    monkeypatch.setattr(notebooks, "FROM", tmp_path / "from")
    monkeypatch.setattr(notebooks, "TO", tmp_path / "to")
    content = ["# The course"]
    notebooks.mirror(None, None)  # there is no folder of notebooks
    notebooks.list_notebooks(None, "course", content)
    assert content == ["# The course"]
    (tmp_path / "from").mkdir()
    outputs = [
        {"data": {notebooks.WIDGET: {}, "text/plain": "slider"}},
        {"data": {"text/plain": "figure"}},
        {"text": "x"},
    ]
    notebook = {"cells": [{"outputs": outputs}, {"source": "prose"}], "metadata": {"widgets": {}, "kernelspec": {}}}
    (tmp_path / "from/01_slots.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "from/draft.ipynb").write_text("{}")
    (tmp_path / "to/02_gone.ipynb").write_text("{}")
    notebooks.mirror(None, None)
    notebooks.list_notebooks(None, "course", content)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["01_slots.ipynb"]
    assert "notebooks/*" in content[0]
    mirrored = json.loads((tmp_path / "to/01_slots.ipynb").read_text())
    button = mirrored["cells"].pop(1)
    assert "../lite/lab/index.html?path=01_slots.ipynb" in button["source"]
    assert mirrored == {"cells": [{"outputs": outputs[1:]}, {"source": "prose"}], "metadata": {"kernelspec": {}}}


def test_formulas():
    made = load("_ext/mathml.py").mathml(r"\arg \max_i x_i + \argmin_j y_j")
    assert "\\arg" not in made
    assert made.count("<mo") == 3  # argmax, plus, argmin


@pytest.mark.parametrize(
    ("formula", "made"),
    [
        (r"\bar x", '<mover accent="true"><mi>x</mi><mo stretchy="true">\u203e</mo></mover>'),
        ("M'", '<mrow><mi>M</mi><mo form="postfix" lspace="0" rspace="0">\u2032</mo></mrow>'),
        (r"= -x", '<mo form="prefix">\u2212</mo>'),
        (r") - x", "<mo>\u2212</mo>"),
        (r"\operatorname{act}(x)", '<mo lspace="0" rspace="0">act</mo>'),
        (r"a \min b", '<mo lspace="0.167em" rspace="0.167em">min</mo>'),
        (r"a \bmod b", "<mo>mod</mo>"),
        (r"K\ln 2", '<mo lspace="0.167em" rspace="0.167em">ln</mo>'),
        (r"= \ln(2)", '<mo lspace="0" rspace="0">ln</mo>'),
        (r"\pmod M", '<mo stretchy="false">(</mo><mi>mod</mi>'),
        (r"\lVert x \rVert^2", '<msup><mo form="prefix" stretchy="false" lspace="0" rspace="0">\u2016</mo>'),
    ],
)
def test_formulas_are_set_close(formula, made):
    assert made in load("_ext/mathml.py").mathml(formula)


def test_a_link_to_a_scene_becomes_the_scene(monkeypatch):
    notebooks = load("_ext/notebooks.py", monkeypatch)
    link = "[Lose the fox](../docs/_static/interactive/index.html?scene=lose)"
    frame = (
        '<iframe class="scene" src="../_static/interactive/index.html?embed&scene=lose" title="Lose the fox"></iframe>'
    )
    assert notebooks.SCENE.sub(notebooks.FRAME, f"Try it.\n\n{link}\n") == f"Try it.\n\n{frame}\n"
    assert notebooks.SCENE.sub(notebooks.FRAME, f"See {link}.") == f"See {link}."


def test_where_a_notebook_runs(monkeypatch):
    notebooks = load("_ext/notebooks.py", monkeypatch)
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    assert "browser" in notebooks.where_to_run("06_backward.ipynb")
    assert notebooks.where_to_run("07_from_numpy_to_fast.ipynb") == ""
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/ramnet")
    assert "browser" in notebooks.where_to_run("06_backward.ipynb")
    for path in sorted((DOCS.parent / "notebooks").glob("[0-9]*.ipynb"))[6:]:
        badge = notebooks.where_to_run(path.name)
        assert f"github/someone/ramnet/blob/main/notebooks/{path.name}" in badge
        assert 'src="../_static/colab.svg"' in badge  # from the site itself: docs/check_links.py asks for that
        assert "GPU" in badge
    assert (DOCS / "_static/colab.svg").is_file()
    assert notebooks.where_to_run("99_draft.ipynb") == ""


def test_notebooks_for_the_browser(tmp_path):
    lite = load("_ext/lite.py")
    lite.gather(tmp_path)
    gathered = sorted(path.name for path in tmp_path.glob("*.ipynb"))
    assert [name[:2] for name in gathered] == list(lite.IN_BROWSER)
    if tried := re.search(r"^IN_BROWSER = (.*)$", (DOCS.parent / "notebooks/run.py").read_text(), re.MULTILINE):
        assert tried[1] == str(lite.IN_BROWSER).replace(
            "'", '"'
        )  # those that run.py runs with NumPy and Matplotlib alone
    for name in gathered:
        first, *others = json.loads((tmp_path / name).read_text())["cells"]
        assert "piplite.install" in first["source"]
        assert others == json.loads((DOCS.parent / "notebooks" / name).read_text())["cells"]


def test_the_wheel_for_the_browser_needs_no_numba(tmp_path):
    name = load("_ext/lite.py").build_wheel(tmp_path)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        assert {"ramnet_np/core/memory.py", "ramnet_np/kernels/__init__.py"} <= set(wheel.namelist())
        (metadata,) = (file for file in wheel.namelist() if file.endswith(".dist-info/METADATA"))
        required = re.findall(r"^Requires-Dist: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)
    browser = {"sys_platform": "emscripten", "platform_machine": "wasm32", "extra": ""}
    needed = [Requirement(line) for line in required]
    names = {line.name for line in needed if line.marker is None or line.marker.evaluate(browser)}
    assert "numpy" in names
    assert "numba" not in names


def test_pages_have_the_day_of_their_last_change():
    dates = load("_ext/page_dates.py")
    days = dates.last_changes()
    if not days:
        pytest.skip("no git history here")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", days["docs/mathematics.md"])
    assert dates.mirrored("docs/notebooks/01_why_slots.ipynb") in days
    assert dates.mirrored("docs/kernels.md") == "docs/kernels.md"
