"""Checking exercises, and the functions of ``mine.py``. What is not written yet is open, never an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

from IPython.display import HTML

from course.cases import CASES, NEEDS

FOLDER = Path(__file__).parent.parent
MINE, SOLUTION = FOLDER / "mine.py", FOLDER / "solutions" / "mine.py"


class Open(Exception):
    """The exercise still has its dots. The argument names the function."""


def check(test: Callable[[Any], None], answer: Any) -> None:
    """Run ``test(answer)``, which asserts what must hold; print whether the exercise is open or correct.

    An answer is open while it is ``...`` or, if it is a function, while it returns ``...``. A wrong answer raises the
    test's AssertionError.
    """
    number = test.__name__.rpartition("_")[2]
    try:
        if answer is ...:
            raise Open
        test(_watched(answer, number) if callable(answer) else answer)
    except Open:
        print(f"Exercise {number} is open: replace the dots in the cell above and run it again.")
    else:
        print(f"Exercise {number}: correct.")


def check_mine(*names: str) -> None:
    """Read ``mine.py`` again and check its functions of these names (none: all) against the reference cases."""
    if unknown := [name for name in names if name not in CASES]:
        raise ValueError(f"names must be of {', '.join(CASES)}, got {', '.join(unknown)}")
    module = load(MINE)
    for name in names or CASES:
        print(f"{name}: {outcome(module, name)}")


def outcome(module: ModuleType, name: str) -> str:
    """The word "correct", or that the function is open; AssertionError where an answer is wrong."""
    watched = ModuleType("mine")
    for other in (name, *NEEDS.get(name, ())):
        setattr(watched, other, _watched(getattr(module, other, lambda *_, **__: ...), other))
    for needed in NEEDS.get(name, ()):
        if not is_written(module, needed):
            return f"open (it needs {needed}, which is open)"
    try:
        CASES[name](watched)
    except Open as still:
        return "open" if still.args == (name,) else f"open (it needs {still.args[0]}, which is open)"
    except AssertionError as wrong:
        raise AssertionError(f"{name}, {wrong}") from None
    return "correct"


def is_written(module: ModuleType, name: str) -> bool:
    """Whether the function is there and does more than return dots."""
    function = getattr(module, name, None)
    return function is not None and not inspect.getsource(function).rstrip().endswith("return ...")


def load(path: Path) -> ModuleType:
    """The module in that file, as the file is now."""
    module = ModuleType(path.stem)
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    return module


def mine(*names: str) -> Any:
    """Your functions of these names; the reference solution's where yours are open. One name: the function itself."""
    own, reference = load(MINE), load(SOLUTION)
    chosen = [getattr(own if is_written(own, name) else reference, name) for name in names]
    return chosen[0] if len(chosen) == 1 else chosen


def solution(*names: str) -> HTML:
    """The reference solution of these functions, folded."""
    reference = load(SOLUTION)
    text = "\n\n".join(inspect.getsource(getattr(reference, name)).rstrip() for name in names)
    return HTML(f"<details><summary><b>A solution</b> (try first)</summary><pre>{escape(text)}</pre></details>")


def _watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def asked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result is ...:
            raise Open(name)
        return result

    return asked
