"""When each page last changed, and for which version, at its foot.

The date is that of the last commit that changed the page's source. Without git, or in a clone without its history, no
page has a date; the version stands in the title of every page in any case.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("docs", "notebooks")


def git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return run.stdout if run.returncode == 0 else ""


def last_changes() -> dict[str, str]:
    """The day of the last commit of every file below docs and notebooks."""
    if git("rev-parse", "--is-shallow-repository").strip() != "false":
        return {}
    found: dict[str, str] = {}
    day = ""
    for line in git("log", "-c", "--format=%x00%cs", "--name-only", "--", *FOLDERS).splitlines():
        if line.startswith("\0"):
            day = line[1:]
        elif line:
            found.setdefault(line, day)  # the newest commit comes first
    return found


def mirrored(source: str) -> str:
    """Notebooks are read from a copy in docs/notebooks."""
    return source.removeprefix("docs/") if source.startswith("docs/notebooks/") else source


def read(app: Any) -> None:
    app.days_of_pages = last_changes()


def date(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if pagename in app.env.found_docs:
        source = app.env.doc2path(pagename, base=True)
        if day := app.days_of_pages.get(mirrored(Path(source).relative_to(ROOT).as_posix())):
            context["last_updated"] = f"{day}, for version {app.config.release}"


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", read)
    app.connect("html-page-context", date)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
