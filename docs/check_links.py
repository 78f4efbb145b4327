"""Check the links of the built site: every page, image, script and anchor that a page points to must be in it.

    python docs/check_links.py docs/_build/html

Sphinx checks what it resolves itself; this looks at the HTML that came out, written-by-hand pages included. Links to
other sites are not followed, but what a page loads (images, scripts, styles, fonts) must come from the site itself.
JupyterLite, in the folder lite, is another project's program: links into it are checked, its own pages are not.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page and what it points to: (what to look for, whether the browser loads it by itself)."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[tuple[str, bool]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attributes if value is not None}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        loads = tag in ("img", "script", "source", "iframe") or (tag == "link" and found.get("rel") != "canonical")
        self.targets += [(found[name], loads) for name in ("href", "src") if name in found]


def broken_links(site: Path) -> list[str]:
    """One line for every link that leads nowhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in without_lite(site, "*.html")}
    problems = []
    for path, page in pages.items():
        for target, loads in page.targets:
            if problem := _problem(site, path, target, loads, pages):
                problems.append(f"{path.relative_to(site)}: {target!r} {problem}")
    for path in without_lite(site, "*.css"):
        for target in re.findall(r"url\(['\"]?([^'\")]+)", path.read_text(encoding="utf-8")):
            if problem := _problem(site, path, target, True, pages):
                problems.append(f"{path.relative_to(site)}: {target!r} {problem}")
    return problems


def without_lite(site: Path, pattern: str) -> list[Path]:
    """The files of the site itself."""
    return [path for path in sorted(site.rglob(pattern)) if path.relative_to(site).parts[0] != "lite"]


def _problem(site: Path, path: Path, target: str, loads: bool, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(target)
    if parts.scheme == "data" or parts.scheme in ("mailto", "javascript"):
        return None
    if parts.scheme or parts.netloc:
        return "is loaded from another site" if loads else None
    if parts.path.startswith("/"):
        return "is absolute: the site may live in a folder"
    found = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if found.is_dir():
        found /= "index.html"
    if not found.is_relative_to(site.resolve()) or not found.is_file():
        return "leads to no file of the site"
    if parts.fragment and found in pages and unquote(parts.fragment) not in pages[found].anchors:
        return "names an anchor that the page does not have"
    return None


def main(arguments: list[str]) -> int:
    """Print what is broken; 1 if anything is."""
    if len(arguments) != 1:
        raise SystemExit("usage: python docs/check_links.py FOLDER")
    site = Path(arguments[0]).resolve()
    problems = broken_links(site)
    print("\n".join(problems) if problems else f"all links of {len(without_lite(site, '*.html'))} pages lead somewhere")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
