"""What the arguments of a command describe, and one line on what they must be where they are wrong."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from functools import wraps
from itertools import groupby, pairwise
from typing import Any

import tyro

_NOT_A_NUMBER = {  # how Python says it
    r"invalid literal for int\(\) with base 10": "an integer",
    "could not convert string to float": "a number",
}
_MAY_BE_EMPTY = ("--prompt", "--match")  # the first is refused with a sentence of its own


def call(function: Callable[..., None], args: list[str], name: str = "") -> None:
    """Call ``function`` with what the arguments describe, under its own name in the command, or ``name``.

    A parameter without a default is given without its name, any other as ``--name value``.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from ramnet_np.model.files import write_text
    >>> with TemporaryDirectory() as folder:
    ...     call(write_text, [f"{folder}/a.txt", "hello"])
    ...     Path(folder, "a.txt").read_text()
    'hello'
    """

    @wraps(function)
    def collect(*positional: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return positional, named

    as_said = (tyro.conf.PositionalRequiredArgs,)
    positional, named = parse(collect, args, f"ramnet-np {name or function.__name__}", config=as_said)
    function(*positional, **named)


def parse(what: Any, args: list[str], prog: str, **options: Any) -> Any:
    """What the arguments describe. ValueError, in a line of its own, for what the parser would put into a box.

    ``prog``: the command as it was called, for its help; ``options``: more for ``tyro.cli``.

    >>> parse(int, ["three"], "ramnet-np count")
    Traceback (most recent call last):
        ...
    ValueError: invalid literal for int() with base 10: 'three' (ramnet-np count --help)
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(what, args=args, prog=prog, **options)
    except SystemExit as end:
        if end.code in (0, None):  # it was asked for help
            raise
    raise ValueError(_unboxed(said.getvalue()) + f" ({prog} --help)")


def _unboxed(text: str) -> str:
    """The first paragraph of a box of text.

    >>> _unboxed("╭─ Value error ─╮\\n│ Error parsing model: order must │\\n│ be above 0 │\\n│ ──── │\\n│ See x │")
    'order must be above 0'
    """
    lines = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    by_rule = groupby(lines, lambda line: set(line) <= {"─", "-"})
    paragraphs = [" ".join(words) for is_rule, words in by_rule if not is_rule]
    title = 0 if "╭" in text else 1  # a terminal without these lines gets the title as a paragraph
    if len(paragraphs) <= title:
        return text.strip()
    for words, kind in _NOT_A_NUMBER.items():
        if found := re.fullmatch(rf"Error parsing (-\S+): {words}: (.*)", paragraphs[title]):
            return f"{found[1]} must be {kind}, got {found[2]}"
    return re.sub("^Error parsing (?!-)[^:]*: ", "", paragraphs[title])


def require_values(args: Sequence[str]) -> None:
    """ValueError for an option with an empty value: ``--out ""`` would mean the current folder.

    >>> require_values(["--out", ""])
    Traceback (most recent call last):
        ...
    ValueError: --out must have a value, got ''
    """
    for before, arg in pairwise(args):
        name, equals, value = arg.partition("=")
        if arg == "" and before not in _MAY_BE_EMPTY:
            raise ValueError(f"{before if before.startswith('--') else 'an argument'} must have a value, got ''")
        if name.startswith("--") and equals and not value and name not in _MAY_BE_EMPTY:
            raise ValueError(f"{name} must have a value, got ''")


def take_preset(args: list[str], presets: dict[str, Any]) -> tuple[str, list[str]]:
    """The preset named by ``--preset NAME`` or ``--preset=NAME`` (else the first), and the other arguments.

    ValueError for one that is not among ``presets``.

    >>> take_preset(["--seed", "1", "--preset", "demo"], {"paper": None, "demo": None})
    ('demo', ['--seed', '1'])
    """
    name, rest = next(iter(presets)), []
    remaining = iter(args)
    for arg in remaining:
        if arg == "--preset":
            name = next(remaining, "")
        elif arg.startswith("--preset="):
            name = arg.partition("=")[2]
        else:
            rest.append(arg)
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {name!r}")
    return name, rest
