"""The notebooks of ../notebooks in the site: mirrored into docs/notebooks, and listed at the end of the page "course".

They are shown with the outputs they were committed with; nothing is executed. Widgets, which need a kernel, are left
out: what they move stands beside them as a figure.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
FROM, TO, LISTED_IN = HERE.parent / "notebooks", HERE / "notebooks", "course"

WIDGET = "application/vnd.jupyter.widget-view+json"
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
        copy, text = TO / name, without_widgets(path.read_text(encoding="utf-8"))
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def without_widgets(text: str) -> str:
    notebook = json.loads(text)
    notebook.get("metadata", {}).pop("widgets", None)
    for cell in notebook.get("cells", []):
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if WIDGET not in output.get("data", {})]
    return json.dumps(notebook, ensure_ascii=False)


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
