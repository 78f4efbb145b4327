"""Grid files: what they mean, what is refused, and that those of the command are what they should be."""

import json
import re

import pytest

from ramnet_np.data.mqar import TEST_SETTINGS, TRAIN_SETTINGS, MQARSettings
from ramnet_np.experiment.grid import GRIDS, load_grid, read_grid, together
from ramnet_np.experiment.points import run_from
from ramnet_np.model import RAMNetConfig, state_elements
from ramnet_np.model.mixers import MIXERS, variant_labels
from ramnet_np.train.config import TrainConfig
from tests.experiment.grids import TINY


def test_a_point_is_the_shared_settings_then_its_own():
    a, b = read_grid(TINY, "tiny").points
    assert (a.name, a.seeds, a.learning_rates) == ("a", (0, 1), (1e-3, 1e-2))
    assert (b.name, b.seeds, b.learning_rates) == ("b", (5,), (3e-3,))  # learning_rate: no sweep
    assert a.base.model == RAMNetConfig(vocab=32, width=16, heads=1, order=2, radix=2, top_k=2, ffn="none")
    assert b.base.model.radix == 4
    assert b.base.data == MQARSettings(vocab=32, train=((2, 12, 40), (3, 16, 24)), test=((2, 12, 8), (3, 20, 8)))
    run = a.run(1, 1e-2)
    # 40 // 8 + 24 // 8 batches an epoch, two epochs
    assert run.train == TrainConfig(steps=16, batch=8, learning_rate=1e-2, learning_rate_floor=0.0, warmup=2)
    assert (run.seed, run.epochs, run.validation, run.evaluations, run.quick) == (1, 2.0, 10, 2, False)


def test_quick_overrides_points_too_and_epochs_override_all():
    text = TINY.replace('points = ["a"]', 'points = ["b"]') + "model = { radix = 3, order = 3 }"
    grid = read_grid(text, "tiny", quick=True)
    assert [p.name for p in grid.points] == ["b"]
    assert grid.points[0].base.quick
    assert (grid.points[0].base.model.slots, grid.points[0].seeds, grid.points[0].base.train.steps) == (27, (0,), 8)
    [a] = read_grid(TINY, "tiny", quick=True, epochs=0.5).points
    assert a.base.train.steps == 4


def test_kinds_and_variants():
    text = TINY.replace("[[points]]", "[kinds.k]\nmodel = { radix = 3 }\nvariants.a = { top_k = 1 }\n[[points]]", 1)
    text = text.replace('name = "b"', 'name = "b"\nkind = "k"\nvariants = { b = { order = 3 } }')
    text = text.replace("model = { radix = 4 }", "model = { top_k = 4 }").replace("learning_rate = 3e-3\n", "")
    a, b = read_grid("search_epochs = 0.5\n" + text, "tiny").points
    assert list(a.variants) == [""]
    assert [(name, m.radix, m.top_k, m.order) for name, m in b.variants.items()] == [
        ("", 3, 4, 2), ("a", 3, 1, 2), ("b", 3, 4, 3),
    ]  # fmt: skip
    run, short = b.run(7, 1e-2, "a"), b.search_run(1e-2, "a")
    assert (run.seed, run.train.steps, run.search, run.variant, run.model) == (7, 16, False, "a", b.variants["a"])
    assert (short.seed, short.train.steps, short.search, short.epochs) == (5, 4, True, 0.5)
    assert run_from(json.loads(json.dumps(short.settings))) == short
    assert len({run.key, short.key, b.run(7, 1e-2).key, b.search_run(1e-2).key}) == 4
    [_, alone] = read_grid("search_epochs = 0.5\n" + TINY, "tiny").points
    assert alone.searching == alone.base  # one rate, no variant: nothing to search
    assert a.searching != a.base
    assert read_grid("search_epochs = 0.5\n" + TINY, "tiny", epochs=0.5).points[0].searching.search is False


def test_grids_together():
    order, state = load_grid("mqar-order"), load_grid("mqar-state")
    both = together([order, state])
    assert [(p.grid, p.name) for p in both.points] == [
        (grid.name, p.name) for grid in (order, state) for p in grid.points
    ]
    assert both.only("delta-*").points == state.only("delta-*").points
    with pytest.raises(ValueError, match="points of grids that run together must have names of their own, got 'm1024"):
        together([order, order])


def test_all_grids_run_together():
    assert len(together([load_grid(name) for name in GRIDS]).points) > 100


def test_settings_are_json_and_come_back():
    run = read_grid(TINY, "tiny").points[0].base
    settings = json.loads(json.dumps(run.settings))
    assert run_from(settings) == run
    assert run_from(settings).key == run.key
    del settings["model"]["output_gate"]  # as records of a version without it are
    assert run_from(settings).key == run.key


@pytest.mark.parametrize(
    ("changed", "to", "message"),
    [
        ("order = 2", "ordre = 2", r"point 'a': \[model\] has no setting 'ordre'; its settings are vocab, width"),
        ("epochs = 2", "epoch = 2", "the grid has no setting 'epoch'; its settings are title, task, like"),
        ('name = "b"', 'nam = "b"', "point 2 must have a name, got None"),
        ('name = "b"', 'name = "a"', "points must have names of their own, got 'a' twice"),
        ("learning_rate = 3e-3", "learning_rat = 3e-3", "point 'b' has no setting 'learning_rat'"),
        ("seeds = [0, 1]", "", "point 'a': seeds must be given, for all points or for this one"),
        ("epochs = 2", "epochs = -1", "point 'a': epochs must be between 1e-30 and"),
        ("epochs = 2", "epochs = inf", "point 'a': epochs must be between 1e-30 and 1e\\+30, got inf"),
        ("epochs = 2", "epochs = nan", "point 'a': epochs must be between 1e-30 and"),
        ("epochs = 2", "epochs = 1e20", r"point 'a': train\.steps must be between 1 and 2147483647"),
        ("epochs = 2", 'epochs = "two"', "point 'a': epochs must be a number, got 'two'"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "point 'a': seeds must differ from each other, got 0 twice"),
        ("seeds = [0, 1]", "seeds = [0, -1]", "point 'a': seeds must be at least 0, got -1"),
        ("seeds = [0, 1]", "seeds = [0.5]", r"point 'a': seeds must be an integer, got 0\.5"),
        ("seeds = [0, 1]", "seeds = []", "point 'a': seeds must be given, for all points or for this one"),
        ("[1e-3, 1e-2]", "[1e-3, 0.001]", r"learning_rates must differ from each other, got 0\.001 twice"),
        ("[1e-3, 1e-2]", "[1e-3, -1.0]", "learning_rates must be between 1e-30 and"),
        ("[1e-3, 1e-2]", "[1e-3, inf]", "learning_rates must be between 1e-30 and"),
        ("validation = 10", "validation = 1000000000", "validation must be between 1 and 1000000, got 1000000000"),
        ("evaluations = 2", "evaluations = 1000000000", "evaluations must be at most the 16 steps of a run"),
        ("warmup = 2", "warmup = 16", r"point 'a': train\.warmup must be below train\.steps \(16\), got 16"),
        ("batch = 8", "batch = 0", r"train\.batch must be at least 1, got 0"),
        ("batch = 8", "batch = 8.0", r"train\.batch must be an integer, got 8\.0"),
        ("[3, 20, 8]]", "[2, 12, 9]]", r"data\.test must hold a setting once, got '2 pairs, length 12' twice"),
        ("[3, 16, 24]]", "[2, 12, 24]]", r"data\.train must hold a setting once, got '2 pairs, length 12' twice"),
        ('title = "tiny"', "title = 5", "title must be a text, got 5"),
        ('points = ["a"]', 'points = "ab"', r"\[quick\] points must be a list of names, got 'ab'"),
        ('points = ["a"]', 'points = ["a", "a"]', r"\[quick\] points must be names of their own, got 'a' twice"),
        ("batch = 8", "batch = 8\nsteps = 9", r"\[train\] steps follows from epochs, which is set instead"),
        ("batch = 8", "batch = 99", r"train\.batch must be at most a training set, got 99"),
        ("radix = 4", "radix = 0", "point 'b': radix must be at least 1, got 0"),
        ("vocab = 32", 'vocab = "many"', "point 'a'"),
        ("validation = 10", "validation = 0", "validation must be between 1 and 1000000, got 0"),
        ('points = ["a"]', 'points = ["c"]', r"\[quick\] points must be names of points, got 'c'"),
        ('title = "tiny"', 'like = "mine"', "like must be one of mqar-order, .*, language-bytes, got 'mine'"),
        ("width = 16", "width = = 16", "Invalid value"),
        (
            "validation = 10",
            "widest = 1e-2\nvalidation = 10",
            "widest must be the lowest and the highest learning rate",
        ),
        (
            "validation = 10",
            "widest = [1e-2, 1e-3]\nvalidation = 10",
            "widest must name the lowest learning rate first",
        ),
        ("validation = 10", "search_epochs = 0\nvalidation = 10", "search_epochs must be between 1e-30 and"),
        ("validation = 10", "finalists = 0\nvalidation = 10", "finalists must be at least 1, got 0"),
        ("radix = 4 }", "radix = 4 }\nvariants = 5", "point 'b': variants must be a table, got 5"),
        ("radix = 4 }", "radix = 4 }\nvariants.x = { ordre = 1 }", "point 'b': variant 'x' has no setting 'ordre'"),
        ("radix = 4 }", 'radix = 4 }\nkind = "c"', r"point 'b': kind must be one of \[kinds\] \(none\), got 'c'"),
        ("radix = 4 }", "radix = 4 }\nkind = []", r"point 'b': kind must be one of \[kinds\] \(none\), got \[\]"),
        ("radix = 4 }", 'radix = 4 }\nvariants."" = { radix = 3 }', "point 'b': variants must have names, got ''"),
    ],
)
def test_what_is_wrong_is_said(changed, to, message, tmp_path):
    assert TINY.count(changed) == 1
    (tmp_path / "mine.toml").write_text(TINY.replace(changed, to))
    quick = "[quick]" in message.replace("\\", "")
    with pytest.raises((ValueError, TypeError), match=message) as refused:
        load_grid(tmp_path / "mine.toml", quick=quick)
    assert str(refused.value).startswith("mine.toml: ")


@pytest.mark.parametrize("points", ["points = 5", "points = [5]", 'points = ["a"]', "points = { name = 1 }"])
def test_points_that_are_no_tables(points):
    with pytest.raises(ValueError, match=r"points must be tables \[\[points\]\], got"):
        read_grid(points, "mine")


def test_files_that_are_no_grid(tmp_path):
    path = tmp_path / "mine.toml"
    for content, message in (
        (b"x = " + b"[" * 100_000, r"mine\.toml: .*(nested too deeply|[Nn]esting)"),
        (b"title = '\xff'", r"mine\.toml: 'utf-8' codec can't decode"),
        (b"", r"mine\.toml: a grid must hold at least one point"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_grid(path)
    with pytest.raises(FileNotFoundError, match="grid must be a file or one of"):
        load_grid(tmp_path)


def test_only_and_missing_files():
    grid = load_grid("mqar-order")
    assert [p.name for p in grid.only("m64-*").points] == ["m64-u6", "m64-u3", "m64-u2", "m64-u1"]
    places = {p.name: p.place for p in grid.only("m64-u[12]", "m64-*").points}
    assert places == {"m64-u6": 1, "m64-u3": 1, "m64-u2": 0, "m64-u1": 0}
    with pytest.raises(ValueError, match="only must match a point of grid 'mqar-order', got 'y'"):
        grid.only("m64-*", "y")
    with pytest.raises(ValueError, match="only must have at least one pattern, got none"):
        grid.only()
    with pytest.raises(ValueError, match="only must match a point of grid 'mqar-order', got 'x'; its points are m1024"):
        grid.only("x")
    with pytest.raises(FileNotFoundError, match=r"grid must be a file or one of .* got 'mine'"):
        load_grid("mine")


def test_figure_4_has_all_its_points():
    points = load_grid("mqar-order").points
    assert {(p.base.model.slots, p.base.model.order) for p in points} == {
        *((1024, u) for u in (1, 2, 5, 10)), *((512, u) for u in (1, 3, 9)), *((256, u) for u in (1, 2, 4, 8)),
        *((64, u) for u in (1, 2, 3, 6)), *((16, u) for u in (1, 2, 4)),
    }  # fmt: skip


def test_figure_3_has_sizes_enough_of_every_kind():
    sizes = {}
    for point in load_grid("mqar-state").points:
        sizes.setdefault(kind_of(point), []).append(state_elements(point.base.model))
    ours = sizes.pop("RAM-Net")
    assert len(ours) >= 8
    assert min(ours) < 3700
    assert max(ours) > 100_000
    assert {"RAM-Net", *sizes} == set(variant_labels())
    assert all(len(set(of_kind)) >= 4 and min(of_kind) < 34_000 for of_kind in sizes.values())


def kind_of(point):
    return MIXERS[point.base.model.mixer].variant(point.base.model).label


@pytest.mark.parametrize("name", ["mqar-order", "mqar-state"])
def test_every_model_of_a_figure_is_searched_alike(name):
    points = load_grid(name).points
    assert (
        len({(p.learning_rates, p.widest, p.finalists, p.seeds, p.base.epochs, p.searching.epochs) for p in points})
        == 1
    )
    assert set(points[0].learning_rates) >= {7.5e-4, 1.5e-3, 3e-3, 6e-3, 1e-2}
    assert points[0].widest[0] < 7.5e-4 / 2
    assert points[0].widest[1] > 2e-2
    assert points[0].base.epochs >= 6


def test_each_kind_of_model_may_do_without_the_convolution():
    tried = {kind_of(p) for p in load_grid("mqar-state").points if "no-conv" in p.variants}
    assert tried == set(variant_labels())


@pytest.mark.parametrize("name", ["mqar-digit", "mqar-cape"])
def test_studies_have_every_setting_beside_the_first(name):
    sizes = {}
    for point in load_grid(name).points:
        setting, slots, order = re.fullmatch(r"(.+)-m(\d+)-u(\d+)", point.name).groups()
        model = point.base.model
        assert (model.slots, model.order) == (int(slots), int(order))
        sizes.setdefault(setting, []).append(point.name)
    assert all(len(names) == 2 for setting, names in sizes.items() if "epochs" not in setting)


def test_ablations_change_one_thing_each():
    base, *others = load_grid("mqar-ablations").points
    assert base.name == "base"
    for point in others:
        ours, theirs = vars(base.base.model), vars(point.base.model)
        changed = {name for name in ours if ours[name] != theirs[name]}
        of_one_thing = {"gamma", "gamma_mode"}
        if "short_conv" in changed:
            of_one_thing.add("cape")  # the other way to the token before
        assert len(changed - of_one_thing) <= 1, point.name
        assert changed, point.name


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith("mqar")])
def test_the_task_is_zoologys_unless_quick(name):
    for point in load_grid(name).points:
        data = point.base.data
        assert (data.vocab, data.train, data.test) == (8192, TRAIN_SETTINGS["zoology"], TEST_SETTINGS["zoology"])
        assert point.base.train.batch == 256
        assert len(point.seeds) >= (1 if point.base.epochs > 24 else 2)
        assert all(1e-4 <= rate <= 1e-2 for rate in point.learning_rates)
    quick = load_grid(name, quick=True)
    assert all(p.base.quick and p.base.data.vocab < 1000 for p in quick.points)
    assert sum(len(p.seeds) * p.base.train.steps for p in quick.points) < 6000
