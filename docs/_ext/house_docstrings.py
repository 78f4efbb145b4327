"""The docstrings of this project as reStructuredText.

They are written to be read in the source: equations stand indented, and arguments follow one another as lines that
begin with their name. Here equations become literal blocks and lines of arguments become lists. Fields of named tuples,
whose meaning their class explains, and contexts, which callers pass on unopened, are left out of the reference.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

ARGUMENT = re.compile(r"``[^`]+``(, ``[^`]+``)*( \([^)]*\))?:|``[a-z_]+\(.*\).*``$")
SPEC = re.compile(r"\bspec sections? \d+(?:(?:,| to| and) \d+)*")  # its derivations are on the page of mathematics
LITERAL = [".. code-block:: text", "    :class: formula", ""]
OPENING = re.compile(r"(Returns?|Raises|Cost|Source|Keeps)\b")
FORMULA = re.compile(r"(?!.*``)(?!.*\w\. [A-Z])([\w\[\], ()./|]+ += \S|.*\S {3,}\S)")


def blocks(lines: list[str]) -> list[list[str]]:
    """The runs of lines between blank ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def converted(lines: list[str]) -> list[str]:
    """
    >>> for line in converted(["Doubles:", "", "    y = x * 2", "", "``x``: (N,), any", "    numbers.", "Returns y."]):
    ...     print(line or "|")
    Doubles:
    |
    .. code-block:: text
        :class: formula
    |
        y = x * 2
    |
    - ``x``: (N,), any numbers.
    |
    Returns y.
    |
    """
    out: list[str] = []
    for block in blocks(lines):
        if block[0].startswith((">>>", "- ", "::")) or block[0].lstrip().startswith(">>>"):
            out += [*(line.strip() if line.lstrip().startswith(">>>") else line for line in block), ""]
        elif all(line.startswith("  ") for line in block):
            out += [*LITERAL, *("  " * (not line.startswith("    ")) + plain(line) for line in block), ""]
        elif all(FORMULA.match(line) and not ARGUMENT.match(line) for line in block):
            out += [*LITERAL, *("    " + plain(line) for line in block), ""]
        else:
            out += _prose(block)
    return out


def plain(line: str) -> str:
    """Marks around code mean nothing where everything is code."""
    return line.replace("``", "")


def _prose(block: list[str]) -> list[str]:
    out: list[str] = []
    for line in block:
        if ARGUMENT.match(line):
            out.append("- " + line)
        elif OPENING.match(line) or not out:
            out += ["", line] if out else [line]
        else:
            out[-1] += " " + line.strip()
    spaced: list[str] = []
    # what a function returns, raises, costs and where it comes from has a paragraph of its own
    out = [part for line in out for part in re.split(r"(?<=[.;]) (?=(?:Returns|Raises|Cost:|Source:))", line)]
    for line in out:  # a list is set off by blank lines, and so are those paragraphs
        if (
            spaced
            and spaced[-1]
            and line
            and (line.startswith("- ") != spaced[-1].startswith("- ") or OPENING.match(line))
        ):
            spaced.append("")
        spaced.append(line)
    # a colon that announces a literal block is put in front of that block; bars are no substitutions
    marked = (re.sub(r"::$", ":", line).replace("|", "\\|") for line in spaced)
    return [*(SPEC.sub(":doc:`/mathematics`", line) for line in marked), ""]


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)


def short_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Without ``Any``, which says nothing; without a dataclass's fields, which stand below it one by one."""
    if what == "class" and dataclasses.is_dataclass(obj):
        return "(...)", None
    return signature and re.sub(r": (~typing\.)?Any(?= = |[,)])", "", signature), returns


def skip(app: Any, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    is_field = type(obj).__name__ == "_tuplegetter" or (isinstance(obj, property) and obj.__doc__ is None)
    return True if is_field or name.endswith("Context") else None


def without_tables(app: Any, domain: str, kind: str, content: Any) -> None:
    """A name's value is shown beside it only if it is a number or a word, not a table or an array."""
    for part in list(content.parent.findall()):
        if type(part).__name__ == "desc_annotation" and part.astext().lstrip(" =").startswith(("{", "array(")):
            part.parent.remove(part)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", short_signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("object-description-transform", without_tables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
