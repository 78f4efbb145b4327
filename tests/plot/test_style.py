"""Every plot function draws labelled axes in both themes, and its figure keeps its theme; the colours can be seen."""

import itertools

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ramnet_np import plot
from ramnet_np.plot import style as plot_style
from ramnet_np.runs.pictures import save_picture
from tests.plot.test_plot import addresses, records

# one call of every public plot function; a new function needs one here
CALLS = {
    "training_curves": lambda: plot.training_curves(list(records(sets=("a", "b"))), title="a run"),
    "slot_trace": lambda: plot.slot_trace([addresses(cape_heads=1)], slots=64, cape_heads=(1,)),
    "ramnet_picture": plot.ramnet_picture,
    "curves": lambda: plot.curves(
        [1, 2, 3], {str(i): [i, 2, 4] for i in range(7)}, xlabel="n", ylabel="y", mark={"here": 2}
    ),
    "bars": lambda: plot.bars({"a": 1.0, "b": [2.0, 3.0]}, xlabel="seconds", ylabel="way", mark={"guess": 0.5}),
    "heatmaps": lambda: plot.heatmaps(
        {"a": np.eye(3), "b": -np.eye(3)},
        xlabel="fact",
        ylabel="query",
        label="weight",
        signed=True,
        marks={"a": {"write": [(0, 1)], "read": [(2, 2)]}},
    ),
    "digit_product": lambda: plot.digit_product(LOGITS, top_k=4, title="an address"),
    "address_tree": lambda: plot.address_tree(LOGITS, top_k=4),
    "beam_merge": lambda: plot.beam_merge([(np.log(np.full((3, 4), 0.1)), np.eye(3, 4) > 0)], top_k=3),
    "cape_grid": lambda: plot.cape_grid(slots=4, tokens=6, follow=[1]),
    "chunk_accesses": lambda: plot.chunk_accesses([[5], [5]], [[9], [5]], slots=16),
    "slot_life": lambda: plot.slot_life({"ema": [0, 1, 1]}, {"ema": [0.1, 1, 1]}, [1], [0, 1, 0], reads=[2]),
    "pigeonholes": lambda: plot.pigeonholes(
        ["Tom"], {1: "fox"}, 2, 2, arrows=[("write", 0, 1)], erased=0, title="a wall"
    ),
    "rack": lambda: plot.rack(["Tom", "Fox"], {0: "Tom"}, slots=8, t=1, arrows=[("read", 1, 0)]),
    "slot_jars": lambda: plot.slot_jars({"a": 0.5}, {"a": 1.0}, ends=("cat", "fox"), title="jars"),
    "slot_adjoint": lambda: plot.slot_adjoint([0, 1, 1], [0.5, 1, 1], writes=[1], reads=[2]),
    "text_weights": lambda: plot.text_weights(
        "abc", {"answer": [0.1, 0.9, 0]}, xlabel="byte", ylabel="asked at", at={"answer": 2}
    ),
    "accuracy_by_order": lambda: plot.accuracy_by_order({64: {1: [0.2, 0.3], 6: [0.6]}}, {64: {1: 0.25}}),
    "accuracy_by_state": lambda: plot.accuracy_by_state(
        {"RAM-Net": {4224: [0.6], 16896: [0.9]}}, {"RAM-Net": [(18000, 0.9, 0.9)]}
    ),
    "accuracy_by_setting": lambda: plot.accuracy_by_setting({"U = 1": {"base": [0.6, 0.7]}}, {"U = 1": 0.3}),
    "scores_by_model": lambda: plot.scores_by_model({"a": [1.2, 1.3], "b": [1.4]}, "bits a byte", "models"),
    "lines_by_range": lambda: plot.lines_by_range(
        {str(i): {"first 1k": 1.0, "1k on": 0.9} for i in range(8)}, "bytes", "bits a byte", guess=0.1
    ),
    "roofline": lambda: plot.roofline({"ours": (4.0, 2e12), "theirs": (0.4, 1e12)}, peak=67e12, bandwidth=3e12),
}
LOGITS = np.random.default_rng(0).standard_normal((3, 4))
ILLUSTRATIONS = {"ramnet_picture", "pigeonholes", "rack", "slot_jars"}  # named by headings instead of axis labels


def test_every_plot_function_has_a_call():
    public = {
        name
        for name, item in vars(plot).items()
        if getattr(item, "__module__", "").startswith(f"{plot.__name__}.") and not name.startswith("_")
    }
    assert public == set(plot.__all__) == set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_a_users_settings_change_nothing(function, tmp_path):
    """LaTeX, which most machines lack, is the one that would end in an error."""
    with mpl.rc_context({"text.usetex": True, "font.family": "cursive", "axes.grid": True, "lines.linewidth": 9}):
        CALLS[function]().savefig(tmp_path / "theirs.png")
        save_picture(CALLS[function], tmp_path / "ours.png")
    assert (tmp_path / "theirs.png").read_bytes()[:4] == b"\x89PNG"
    save_picture(CALLS[function], tmp_path / "again.png")
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("name", plot_style.THEMES)
@pytest.mark.parametrize("function", CALLS)
def test_labelled_axes_in_both_themes(function, name, tmp_path):
    before = dict(mpl.rcParams)
    with plot_style.theme(name) as theme:
        figure = CALLS[function]()
    assert isinstance(figure, Figure)
    assert dict(mpl.rcParams) == before
    figure.savefig(tmp_path / "figure.png")  # outside of the theme: the figure must not change its colours here
    assert to_rgb(figure.get_facecolor()) == to_rgb(theme.paper)
    for axes in figure.axes:
        labels = [axes.get_xlabel(), axes.get_ylabel()]
        outer = axes.get_subplotspec()
        if function in ILLUSTRATIONS:
            pass
        elif outer is None:  # a colour bar, labelled on one side
            assert labels[1]
        else:
            assert labels[0] or not outer.is_last_row()
            assert labels[1] or not outer.is_first_col()
        assert to_rgb(axes.get_facecolor()) == to_rgb(theme.paper)
        for text in (axes.title, axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()):
            assert contrast(text.get_color(), theme.paper) > 4.5


@plot_style.themed
def plain():
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4])
    return figure


def test_ticks_made_later_are_of_the_theme():
    with plot_style.theme("dark") as dark:
        figure = plain()
    figure.axes[0].set_xlim(-1000, 1000)
    figure.draw_without_rendering()
    assert {label.get_color() for label in figure.axes[0].get_xticklabels()} == {dark.ink}


@pytest.mark.parametrize("name", plot_style.THEMES)
def test_colours_can_be_told_apart(name):
    """Against the page, and from one another as someone sees them who lacks one kind of cone."""
    theme = plot_style.THEMES[name]
    for text in (theme.ink, theme.muted):
        assert contrast(text, theme.paper) > 7 or (text == theme.muted and contrast(text, theme.paper) > 4.5)
    for color in (theme.write, theme.read, *theme.series):
        assert contrast(color, theme.paper) > 1.9
    for missing in (PROTANOPIA, DEUTERANOPIA):
        for a, b in itertools.combinations(theme.series, 2):
            difference = missing @ np.subtract(linear(a), linear(b))
            assert np.abs(difference).max() > 0.06, (a, b)


def test_unknown_theme():
    with (
        pytest.raises(ValueError, match="theme must be one of 'light', 'dark', got 'sepia'"),
        plot_style.theme("sepia"),
    ):
        pass


# Viénot, Brettel and Mollon (1999): linear RGB as seen without the long-wave, or without the middle-wave cones
PROTANOPIA = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTERANOPIA = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


def linear(color):
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG contrast ratio."""
    low, high = sorted(float(linear(c) @ (0.2126, 0.7152, 0.0722)) for c in (a, b))
    return (high + 0.05) / (low + 0.05)
