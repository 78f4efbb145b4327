"""How the figures look: colours that colour-blind readers can tell apart, on a light or a dark page.

The colours are those of Okabe and Ito ("Color Universal Design", 2008). Two have a fixed meaning: writes are vermilion,
reads are bluish green.

A plot function is decorated with :func:`themed` and takes its colours from :func:`current`::

    @themed
    def loss_curve(losses) -> Figure:
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        axes.plot(losses, color=current().ink)
        axes.set(xlabel="step", ylabel="loss")
        return figure

    figure = loss_curve(losses)          # light
    with theme("dark"):
        figure = loss_curve(losses)      # dark, also when it is saved later
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

VERMILION, GREEN, BLUE, PURPLE, ORANGE, SKY = "#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9"

_Args = ParamSpec("_Args")


class Theme(NamedTuple):
    """The colours of a page."""

    name: str
    paper: str  # background
    ink: str  # text, axes, the main line
    muted: str  # less important text
    faint: str  # lines for comparison
    write: str  # accesses that write
    read: str  # accesses that read
    series: tuple[str, ...]  # lines of one kind, in this order; all differ from paper and from each other

    def shades(self, color: str) -> LinearSegmentedColormap:
        """From the background to ``color``, for values from 0 up such as weights and masses."""
        return LinearSegmentedColormap.from_list(f"shades of {color}", [self.paper, color])

    def diverging(self) -> LinearSegmentedColormap:
        """From blue over the background to orange, for values of both signs such as contents; 0 is the middle."""
        return LinearSegmentedColormap.from_list("diverging", [BLUE, self.paper, ORANGE])


THEMES = {
    "light": Theme(
        "light", "#FCFBF8", "#222222", "#555555", "#8A8A8A", VERMILION, GREEN,
        (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, "#222222"),
    ),
    "dark": Theme(
        "dark", "#16181D", "#E8E6E1", "#A9A9A9", "#7A7A7A", "#E8702A", "#1FB98B",
        (SKY, "#E8702A", "#1FB98B", PURPLE, ORANGE, "#3D8FD1", "#E8E6E1"),
    ),
}  # fmt: skip

_current: ContextVar[Theme] = ContextVar("ramnet_np_theme", default=THEMES["light"])


def current() -> Theme:
    """The current theme of figures.

    >>> current().name
    'light'
    """
    return _current.get()


@contextmanager
def theme(name: str) -> Iterator[Theme]:
    """Draw the figures of a block in ``"light"`` or ``"dark"``. ValueError for another name.

    >>> with theme("dark") as dark:
    ...     current() is dark
    True
    """
    if name not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(map(repr, THEMES))}, got {name!r}")
    token = _current.set(THEMES[name])
    try:
        yield THEMES[name]
    finally:
        _current.reset(token)


def palette(count: int) -> list[str]:
    """The first ``count`` colours for lines of one kind. They repeat after seven, so vary the dashes too.

    >>> palette(2)
    ['#0072B2', '#D55E00']
    """
    series = current().series
    return [series[i % len(series)] for i in range(count)]


def themed(plot: Callable[_Args, Figure]) -> Callable[_Args, Figure]:
    """A plot function that draws in the current theme, whatever Matplotlib's settings are, and does not change them.

    >>> @themed
    ... def empty():
    ...     return Figure()
    >>> empty().get_facecolor() != Figure().get_facecolor()
    True
    """

    @functools.wraps(plot)
    def draw(*args: _Args.args, **kwargs: _Args.kwargs) -> Figure:
        with own_settings():
            return plot(*args, **kwargs)

    return draw


@contextmanager
def own_settings() -> Iterator[None]:
    """Matplotlib's defaults and the current theme, in place of what the user has set, for a block.

    A figure is saved in such a block too: texts at the ticks are made only then, and a user's ``text.usetex`` would
    ask for LaTeX.

    >>> with mpl.rc_context({"text.usetex": True}), own_settings():
    ...     mpl.rcParams["text.usetex"]
    False
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_settings(current()))
        yield


def _settings(colors: Theme) -> Any:
    """The theme as Matplotlib's rcParams."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(ink, colors.ink),
        "figure.facecolor": colors.paper,
        "axes.facecolor": colors.paper,
        "legend.facecolor": colors.paper,
        "legend.edgecolor": colors.faint,
        "grid.color": colors.faint,
        "axes.prop_cycle": cycler(color=colors.series),
        "image.cmap": "cividis",
        "font.size": 10,
    }
