"""Links from a page into the repository work on the site: the file gets a page that shows it.

``[memory.py](../ramnet_np/core/memory.py)`` in a page works on a code host as it is. Here it leads to
``source/ramnet_np/core/memory.py.html``; a folder gets a page that lists its files. Links between notebooks and pages,
which live in different folders of the repository but in one of the site, are put right as well.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
LEXERS = {".cu": "x.cpp", ".cuh": "x.cpp"}


class LinksIntoTheRepository(SphinxTransform):
    default_priority = 8  # before Sphinx takes links to files for downloads

    def apply(self, **kwargs: Any) -> None:
        for node in [
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(addnodes.pending_xref),
        ]:
            if node.tagname == "pending_xref" and node.get("reftype") != "myst":
                continue
            if address := self._address(unquote(node["reftarget"])):
                link = nodes.reference("", "", *node.children, refuri=address, internal=True)
                node.replace_self(link)

    def _address(self, target: str) -> str | None:
        """The link relative to the page's place in the site, or None where Sphinx knows better."""
        docname = self.env.docname
        folder = ROOT / "notebooks" if docname.startswith("notebooks/") else (DOCS / docname).parent
        path, _, fragment = target.partition("#")
        found = (folder / path).resolve()
        if not path or not found.exists() or not found.is_relative_to(ROOT):
            return None
        if found.is_relative_to(DOCS / "_static"):
            page = found.relative_to(DOCS).as_posix()
        elif found.is_relative_to(DOCS):
            inside = found.relative_to(DOCS)
            if not docname.startswith("notebooks/") or inside.suffix != ".md":
                return None
            page = inside.with_suffix(".html").as_posix()
        elif found.is_relative_to(ROOT / "notebooks") and found.suffix == ".ipynb":
            page = f"notebooks/{found.with_suffix('.html').name}"
        else:
            shown = found.relative_to(ROOT).as_posix()
            self.env.domaindata.setdefault("source_pages", {}).setdefault(docname, set()).add(shown)
            page = f"source/{shown}.html"
        return posixpath.relpath(page, posixpath.dirname(docname) or ".") + (f"#{fragment}" if fragment else "")


def forget(app: Any, env: Any, docname: str) -> None:
    env.domaindata.get("source_pages", {}).pop(docname, None)


def pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    linked = app.env.domaindata.get("source_pages", {}).values()
    wanted = {path for paths in linked for path in paths}
    for folder in [path for path in wanted if (ROOT / path).is_dir()]:
        wanted |= {f"{folder}/{file.name}" for file in _files(ROOT / folder)}
    for path in sorted(wanted):
        body = _listing(ROOT / path) if (ROOT / path).is_dir() else _listed(ROOT / path)
        yield f"source/{path}", {"title": path, "body": f"<h1>{escape(path)}</h1>\n{body}"}, "page.html"


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix in (".py", *LEXERS)]


def _listing(folder: Path) -> str:
    items = (
        f'<li><a href="{folder.name}/{f.name}.html"><code>{escape(f.name)}</code></a></li>' for f in _files(folder)
    )
    return f"<ul>{''.join(items)}</ul>"


def _listed(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(LEXERS.get(file.suffix, file.name))
    except ClassNotFound:
        return f"<pre>{escape(text)}</pre>"
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True)
    return highlight(text, lexer, formatter)


def setup(app: Any) -> dict[str, bool]:
    app.add_transform(LinksIntoTheRepository)
    app.connect("env-purge-doc", forget)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
