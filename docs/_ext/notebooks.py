"""The notebooks of ../notebooks in the site: mirrored into docs/notebooks, and listed at the end of the page "course".

They are shown with the outputs they were committed with; nothing is executed. Widgets, which need a kernel, are left
out: what they move stands beside them as a figure. A line that is nothing but a link to a scene of the interactive
page becomes that scene. Below its title each one says where it can be run without installing anything: in the
browser, or in Colab. Colab opens notebooks of repositories at GitHub only, so the badge is there if the site is built
with the repository's name in GITHUB_REPOSITORY, as GitHub's workflows do.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from lite import IN_BROWSER

HERE = Path(__file__).parent.parent
FROM, TO, LISTED_IN = HERE.parent / "notebooks", HERE / "notebooks", "course"

WIDGET = "application/vnd.jupyter.widget-view+json"
IN_COLAB = {  # those that the browser cannot run, and what a GPU is for
    "07": "Choose a GPU (Runtime, Change runtime type): the last part runs on it.",
    "08": "It needs no GPU.",
    "09": "Its small models train on the processor; they need no GPU.",
    "10": "With a GPU, `ramnet-np train text --device gpu` trains the larger models that its end speaks of.",
}
BROWSER = """\
<a class="run" href="../lite/lab/index.html?path={name}">Run this notebook in your browser</a>
Nothing to install; the first start takes a while, as it fetches Python, NumPy and Matplotlib."""
COLAB = """\
<a href="https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}">\
<img src="../_static/colab.svg" alt="Open in Colab" width="117" height="20"></a>
{gpu} Run this first: `!git clone --depth 1 https://github.com/{repository} repo && \
pip install "./repo[cuda12]" && cp -r repo/notebooks/* .`"""
SCENE = re.compile(r"^\[([^\]]+)\]\(\.\./docs/_static/interactive/index\.html\?([\w&=]+)\)$", re.MULTILINE)
FRAME = r'<iframe class="scene" src="../_static/interactive/index.html?embed&\2" title="\1"></iframe>'
LIST = """

```{toctree}
:maxdepth: 1
:glob:

notebooks/*
```
"""


def mirror(app: Any, config: Any) -> None:
    """Copy what is new or changed, remove what is gone; an unchanged copy keeps its time and is not built again."""
    wanted = {path.name: path for path in FROM.glob("[0-9][0-9]_*.ipynb")}
    TO.mkdir(exist_ok=True)
    for stale in TO.glob("*"):
        if stale.name not in wanted:
            stale.unlink()
    for name, path in wanted.items():
        copy, text = TO / name, shown(path)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def shown(path: Path) -> str:
    """The notebook as the site has it: without widgets, with a line that says where to run it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook.get("cells", []):
        if cell.get("cell_type") == "markdown":
            cell["source"] = SCENE.sub(FRAME, "".join(cell["source"]))
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
    if line := where_to_run(path.name):
        notebook["cells"].insert(1, {"cell_type": "markdown", "id": "run", "metadata": {}, "source": line})
    return json.dumps(notebook, ensure_ascii=False)


def where_to_run(name: str) -> str:
    """A link to the notebook in JupyterLite, or a badge that opens it in Colab; "" without a repository to open."""
    if name.startswith(IN_BROWSER):
        return BROWSER.format(name=name)
    repository, gpu = os.environ.get("GITHUB_REPOSITORY"), IN_COLAB.get(name[:2])
    return COLAB.format(name=name, repository=repository, gpu=gpu) if repository and gpu else ""


def list_notebooks(app: Any, docname: str, content: list[str]) -> None:
    if docname == LISTED_IN and any(TO.glob("*.ipynb")):
        content[0] += LIST


def outdated(app: Any, *changes: Any) -> list[str]:
    """The list is read again in every build: which notebooks there are may have changed."""
    return [LISTED_IN]


def setup(app: Any) -> dict[str, bool]:
    app.connect("config-inited", mirror)
    app.connect("source-read", list_notebooks)
    app.connect("env-get-outdated", outdated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
