"""The README's example runs and prints what the README says; what it links to exists."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_example_prints_what_the_readme_says():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    printed = re.search(r"prints `(.*)`", README).group(1)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    assert out.getvalue().strip() == printed


def test_further_examples_print_what_stands_below_them():
    examples = re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    for code, printed in examples:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {})
        assert out.getvalue() == printed


def test_links_and_folders_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    folders = re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)
    assert links
    assert folders
    missing = [name for name in links + folders if not (ROOT / name.partition("#")[0]).exists()]
    assert not missing
