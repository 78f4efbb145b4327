"""From records to the page: the choice of the rate, tables, figures, the part between the markers."""

import re
import tomllib
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from ramnet_np.cli import main
from ramnet_np.experiment.grid import load_grid
from ramnet_np.experiment.report import BEGIN, END, between_markers, report, write_report
from ramnet_np.experiment.report import page_of as page_name
from ramnet_np.experiment.summary import collect, gpu_minutes
from ramnet_np.experiment.sweep import Choice
from ramnet_np.experiment.tables import (
    ends_of,
    order_table,
    provenance,
    search_table,
    settings_table,
    shared_settings,
    state_table,
    study_table,
)
from ramnet_np.model import state_elements
from ramnet_np.model.files import append_record
from ramnet_np.model.mixers import variant_labels
from ramnet_np.plot.recall import accuracy_by_order, accuracy_by_setting, accuracy_by_state
from ramnet_np.plot.style import palette, theme

RESULTS = Path(__file__).parent.parent.parent / "docs" / "results"
PAPER = tomllib.loads((RESULTS / "paper.toml").read_text())


def record(run, grid, validation, test, status="finished", **more):
    return {
        "grid": grid, "session": "s", "gpu": "0", "name": run.name, "status": status, "seed": run.seed,
        "learning_rate": run.train.learning_rate, "accuracy": {"4 pairs, length 64": test, "mean": test},
        "validation": {"mean": validation}, "steps": run.train.steps, "epochs": run.epochs, "seconds": 30.0,
        "tokens_per_second": 1000, "state_elements": state_elements(run.model), "quick": run.quick, "version": "1",
        "hardware": {"device": "gpu", "name": "H100", "cuda": 13000, "cupy": "14", "numpy": "2", "python": "3"},
        "date": "2026-01-01T10:01:00.000+00:00", "settings": run.settings, **more,
    }  # fmt: skip


def point(grid, name):
    return next(p for p in load_grid(grid).points if p.name == name)


def of_two_rates(p, grid, *, validation, test):
    """A sweep over 1e-3 and 1e-2, and a second seed with the first of them."""
    first, second = p.run(0, 1e-3), p.run(0, 1e-2)
    return [
        record(first, grid, validation[0], test[0]),
        record(second, grid, validation[1], test[1]),
        record(p.run(1, 1e-3), grid, 0.0, test[2]),
    ]


def test_the_rate_is_that_of_the_best_validation():
    p = point("mqar-order", "m256-u4")
    records = of_two_rates(p, "mqar-order", validation=(0.8, 0.7), test=(0.5, 0.9, 0.6))
    [result] = collect(records)
    assert (result.chosen, result.accuracies, result.rates) == (Choice("", 1e-3), (0.5, 0.6), (1e-3, 1e-2))
    assert result.end == "lowest"
    assert result.accuracy == pytest.approx(0.55)
    assert result.by_setting == {"4 pairs, length 64": pytest.approx(0.55)}
    records[1]["validation"]["mean"] = 0.9
    [result] = collect(records)
    assert (result.chosen.rate, result.accuracies) == (1e-2, (0.9,))  # the second seed ran with the other rate
    records[0]["validation"]["mean"] = 0.9
    assert collect(records)[0].chosen.rate == collect(records[::-1])[0].chosen.rate == 1e-3  # of two equals the lower
    records[1] |= {"status": "diverged", "accuracy": {}, "validation": {}}
    assert collect(records)[0].chosen.rate == 1e-3
    assert collect(records)[0].accuracies == (0.5, 0.6)
    records[2] |= {"status": "diverged", "accuracy": {}}  # of the second seed nothing is left
    assert collect(records)[0].accuracies == (0.5,)
    records[2] = record(p.run(1, 1e-3), "mqar-order", 0.0, 0.6, "reached stop_at", epochs=2.0)
    assert collect(records)[0].epochs == 6.0  # those of the longest run


def test_numbers_that_differ_everywhere_are_summed_up_each_by_its_rule():
    """Two settings and three seeds, no number twice; the third seed diverged."""
    p, records = point("mqar-order", "m256-u4"), []
    for seed, (easy, hard, epochs, speed) in enumerate(
        [(0.9, 0.2, 4.0, 900), (0.7, 0.36, 6.0, 700), (0.1, 0.05, 9.0, 1)]
    ):
        one = record(p.run(seed, 1e-3), "mqar-order", 0.5, 0.0, epochs=epochs, tokens_per_second=speed)
        one["accuracy"] = {"4 pairs, length 64": easy, "8 pairs, length 64": hard, "mean": (easy + hard) / 2}
        records.append(one)
    records[2] |= {"status": "diverged", "accuracy": {}, "validation": {}}
    [result] = collect(records)
    assert result.accuracies == (pytest.approx(0.55), pytest.approx(0.53))
    assert result.accuracy == pytest.approx(0.54)
    assert result.by_setting == {"4 pairs, length 64": pytest.approx(0.8), "8 pairs, length 64": pytest.approx(0.28)}
    assert (result.epochs, result.tokens_per_second, len(result.records)) == (6.0, 700, 2)
    assert settings_table([result]).splitlines() == [
        "| point | 4 pairs, length 64 | 8 pairs, length 64 |",
        "| --- | --- | --- |",
        "| m256-u4 | 0.800 | 0.280 |",
    ]
    other = record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.5, 0.125)
    rows = order_table(collect([*records, other]), PAPER).splitlines()[2:]
    assert rows[0].startswith("| 256 | 4 | 0.885 | 0.540 | 0.550, 0.530 | -0.345 |")
    assert rows[1].startswith("| 64 | 2 | 0.485 | 0.125 | 0.125 | -0.360 |")
    assert settings_table(collect([*records, other])).endswith("| m64-u2 | 0.125 | - |")


def with_variants(short, full, seed=0):
    """Records of a point: validation of short runs and of runs at full length by (variant, rate)."""
    p = point("mqar-state", "delta-64")
    records = [
        record(p.search_run(rate, name), "mqar-state", value, None, accuracy={})
        for (name, rate), value in short.items()
    ]
    return records + [
        record(p.run(seed, rate, name), "mqar-state", value, value / 2) for (name, rate), value in full.items()
    ]


def test_short_runs_search_and_long_ones_decide():
    short = {("", 1e-3): 0.5, ("", 2e-3): 0.6, ("", 4e-3): 0.4, ("norm", 2e-3): 0.9, ("norm", 4e-3): 0.95}
    assert collect(with_variants(short, {})) == []  # nothing that could be shown
    records = with_variants(short, {("", 2e-3): 0.8, ("norm", 2e-3): 0.7, ("norm", 4e-3): 0.6})
    [result] = collect([*records, *with_variants({}, {("", 2e-3): 0.7}, seed=1)])
    assert (result.chosen, result.accuracies) == (Choice("", 2e-3), (0.4, 0.35))
    assert (result.rates, result.end, result.variants) == ((1e-3, 2e-3, 4e-3), "", ("", "norm"))
    assert state_table([result], {}).splitlines()[-1] == (
        "| DeltaNet | 8,320 | 0.375 | 0.400, 0.350 | - | - | plain (of 2) | 0.002 (of 3) | 6 |"
    )
    assert search_table([result]).splitlines()[2:] == [
        "| delta-64 | **plain** | 0.001: 0.500, 0.002: 0.600, 0.004: 0.400 | 0.002: 0.800 |",
        "| delta-64 | norm | 0.002: 0.900, 0.004: 0.950 | 0.002: 0.700, 0.004: 0.600 |",
    ]
    [result] = collect([*records, *with_variants({}, {("norm", 2e-3): 0.99})])  # run again: the newer record counts
    assert (result.chosen, result.end) == (Choice("norm", 2e-3), "lowest")
    assert state_table([result], {}).endswith("| norm (of 2) | 0.002 (lowest of 2) | 6 |")
    assert ends_of([result]) == (
        "1 point had a sweep. These chose the lowest learning rate tried: delta-64; these the highest: none."
    )
    records[0] |= {"status": "diverged", "validation": {}}
    assert "| 0.001: diverged, 0.002: 0.600," in search_table(collect(records))
    assert provenance(records).startswith("8 runs (5 short ones to choose by, 1 diverged), ")


def test_of_each_variant_the_newest_settings_count():
    old = with_variants({}, {("norm", 2e-3): 0.9})
    old[0]["settings"]["model"]["output_gate"] = True  # what "norm" was before
    old[0]["date"] = "2026-01-01T09:00:00.000+00:00"
    [result] = collect([*old, *with_variants({}, {("", 2e-3): 0.5, ("norm", 4e-3): 0.6})])
    assert (result.chosen, result.rates) == (Choice("norm", 4e-3), (4e-3,))


def test_the_newest_settings_count_and_quick_ones_only_alone():
    old = point("mqar-order", "m64-u6")
    new = next(p for p in load_grid("mqar-order", epochs=3).points if p.name == "m64-u6")
    quick = next(p for p in load_grid("mqar-order", quick=True).points if p.name == "m64-u6")
    records = [
        record(new.run(0, 1e-3), "mqar-order", 0.5, 0.3, date="2026-01-02T10:00:00.000+00:00"),
        record(old.run(0, 1e-3), "mqar-order", 0.9, 0.9),
    ]
    assert [r.accuracies for r in collect(records)] == [(0.3,)]
    fast = record(quick.run(0, 1e-3), "mqar-order", 0.9, 0.7, date="2026-01-03T10:00:00.000+00:00")
    assert [r.accuracies for r in collect([*records, fast])] == [(0.3,)]
    assert [r.accuracies for r in collect([fast])] == [(0.7,)]


def test_tables_put_ours_beside_the_papers():
    p = point("mqar-order", "m256-u4")
    results = collect(of_two_rates(p, "mqar-order", validation=(0.8, 0.7), test=(0.9, 0.5, 0.89)))
    row = order_table(results, PAPER).splitlines()[-1]
    assert row == "| 256 | 4 | 0.885 | 0.895 | 0.900, 0.890 | +0.010 | 0.001 (lowest of 2) | 6 |"
    names = ["window-28", "window-64", "softmax-8-plain", "softmax-8", "gated-delta-128", "c48-m1024", "delta-40"]
    results = collect([record(point("mqar-state", name).run(0, 1e-3), "mqar-state", 0.9, 0.8) for name in names])
    lines = state_table(results, PAPER).splitlines()[2:]
    assert lines == [
        "| RAM-Net | 100,480 | 0.800 | 0.800 | 0.99 | 100,000 | 0.001 | 6 |",
        "| softmax attention | 32,896 | 0.800 | 0.800 | 0.65 to 0.71 | 33,000 | 0.001 | 6 |",
        "| sliding window | 3,712 | 0.800 | 0.800 | 0.31 | 3,600 | 0.001 | 6 |",
        "| sliding window | 8,320 | 0.800 | 0.800 | - | - | 0.001 | 6 |",  # its 9,700 are 17% away
        "| DeltaNet | 3,328 | 0.800 | 0.800 | - | - | 0.001 | 6 |",  # the paper has none near
        "| Gated DeltaNet | 32,896 | 0.800 | 0.800 | 0.98 | 34,000 | 0.001 | 6 |",
        "| softmax, no positions | 32,896 | 0.800 | 0.800 | - | - | 0.001 | 6 |",
    ]


def test_settings_stand_beside_the_first():
    results = collect(
        [
            record(point("mqar-cape", f"{name}-m{m}").run(0, 1e-3), "mqar-cape", 0.9, test)
            for name, m, test in (("conv", "64-u3", 0.8), ("neither", "64-u3", 0.7), ("neither", "256-u4", 0.6))
        ]
    )
    table = study_table(results).splitlines()
    assert table[0].startswith("| setting | M | U | ours | each seed | ours - conv |")
    assert table[2:] == [
        "| conv | 64 | 3 | 0.800 | 0.800 | - | 0.001 | 24 |",
        "| neither | 64 | 3 | 0.700 | 0.700 | -0.100 | 0.001 | 24 |",
        "| neither | 256 | 4 | 0.600 | 0.600 | - | 0.001 | 24 |",
    ]
    results = results[:1]
    shared = shared_settings(results)
    assert tomllib.loads(shared)["model"]["order"] == 3
    assert tomllib.loads(shared)["data"]["vocab"] == 8192


def test_gpu_minutes_count_a_shared_gpu_once():
    p = point("mqar-order", "m256-u4")
    shared = [record(p.run(seed, 1e-3), "mqar-order", 0.9, 0.9) for seed in (0, 1)]  # 30 s each, at the same time
    assert gpu_minutes(shared) == 0.5
    apart = [*shared, record(p.run(2, 1e-3), "mqar-order", 0.9, 0.9, gpu="1")]
    assert gpu_minutes(apart) == 1.0
    later = record(p.run(3, 1e-3), "mqar-order", 0.9, 0.9, date="2026-01-01T10:01:15.000+00:00")
    assert gpu_minutes([*shared, later]) == pytest.approx(0.75)
    calls = [
        {"session": session, "gpu": "0", "seconds": 30.0, "date": f"2026-01-01T10:0{minute}:00.000+00:00"}
        for session, minute in (("s", 1), ("t", 5))
    ]
    resumed = record(p.run(3, 1e-3), "mqar-order", 0.9, 0.9, **calls[-1] | {"seconds": 60.0, "calls": calls})
    assert gpu_minutes([resumed]) == 1.0
    assert gpu_minutes([*shared, resumed]) == 1.0  # its first call beside theirs
    on_cpu = record(p.run(3, 1e-3), "mqar-order", 0.9, 0.9, hardware={"device": "cpu"})
    assert gpu_minutes([on_cpu]) == 0.0
    said = provenance(apart)
    assert said.startswith("3 runs (0 diverged), 1.0 GPU minutes, 2026-01-01, on H100, CUDA 13.0, CuPy 14, NumPy 2,")


def page_of(*grids):
    return "before\n" + "".join(f"\n{BEGIN.format(g)}\nold\n{END.format(g)}\n\nafter {g}\n" for g in grids)


def test_the_page_keeps_what_is_outside_its_markers(tmp_path):
    grids = ("mqar-order", "mqar-state", "mqar-cape")
    (tmp_path / "mqar.md").write_text(page_of("mqar-cape", "mqar-order", "mqar-state", "mqar-digit"))
    (tmp_path / "paper.toml").write_text((RESULTS / "paper.toml").read_text())
    results = tmp_path / "results.jsonl"
    for grid, name in zip(grids, ("m64-u2", "c16-m125", "neither-m64-u3"), strict=True):
        append_record(results, record(point(grid, name).run(0, 1e-3), grid, 0.9, 0.5))
    text = write_report([results], tmp_path)
    page = (tmp_path / "mqar.md").read_text()
    parts = report([results], PAPER, {})
    assert list(parts) == list(grids)
    assert text == "\n\n".join(f"### {grid}\n\n{parts[grid]}" for grid in grids)
    expected = page_of("mqar-cape", "mqar-order", "mqar-state", "mqar-digit")
    for grid in grids:
        expected = between_markers(expected, grid, parts[grid])
        assert f"\n\nafter {grid}\n" in page
    assert page == expected
    assert f"{BEGIN.format('mqar-digit')}\nold\n" in page  # no records of it
    assert "| 64 | 2 | 0.485 | 0.500 |" in page
    for name in grids:
        for suffix in ("", "-dark"):
            assert f"{name}{suffix}.png" in page
            assert (tmp_path / f"{name}{suffix}.png").stat().st_size > 5000
    write_report([results], tmp_path)  # once more changes nothing
    assert (tmp_path / "mqar.md").read_text() == page
    with pytest.raises(ValueError, match="the page must hold '<!-- mine: begin -->' and"):
        between_markers("no markers", "mine", "text")


def test_points_stand_in_the_order_of_the_grid_whichever_ended_first(tmp_path):
    names = ["conv-m64-u3", "neither-m64-u3", "cape-both-m64-u3"]
    for name in names[::-1]:
        append_record(tmp_path / "r.jsonl", record(point("mqar-cape", name).run(0, 1e-3), "mqar-cape", 0.9, 0.5))
    text = report([tmp_path / "r.jsonl"], {}, {})["mqar-cape"]
    assert re.findall(r"^\| (\S+) \| 64 ", text, re.MULTILINE) == ["conv", "neither", "cape-both"]


def test_the_committed_pages_have_the_tables_of_the_committed_records():
    sections = report(sorted(RESULTS.glob("*.jsonl")), PAPER, {})
    for grid, text in sections.items():
        page = (RESULTS / page_name(grid)).read_text()
        assert between_markers(page, grid, text) == page, f"ramnet-np experiment plot docs/results/*.jsonl: {grid}"
    pages = "".join((RESULTS / name).read_text() for name in ("mqar.md", "language.md"))
    shown = re.findall(r"<!-- (\S+): begin -->\n\n(?!No results yet)", pages)
    assert sorted(shown) == sorted(sections)  # no table whose records are gone


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_a_result_nothing_is_written(tmp_path, capsys):
    (tmp_path / "mqar.md").write_text(page_of("mqar-order"))
    diverged = record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.9, 0.5, "diverged")
    append_record(tmp_path / "diverged.jsonl", diverged | {"accuracy": {}, "validation": {}})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "empty.jsonl").write_text("")
    append_record(tmp_path / "good.jsonl", record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.9, 0.5))
    before = contents(tmp_path)
    no_record = "be files of records, such as an experiment's results.jsonl, got none in '{}'"
    for names, message in (
        (["diverged.jsonl"], "hold at least one run at full length that did not diverge, got none in {}"),
        (["metrics.jsonl"], no_record),
        (["good.jsonl", "metrics.jsonl"], no_record),  # not silently left out, either
        (["empty.jsonl", "good.jsonl"], no_record),
    ):
        files = [str(tmp_path / name) for name in names]
        assert main(["experiment", "plot", *files, "--out", str(tmp_path)]) == 2
        wrong = next(file for file in files if "good" not in file)
        assert capsys.readouterr().err == f"ramnet-np: results must {message.format(wrong)}\n"
    assert contents(tmp_path) == before


def test_figures_go_beside_the_results_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "results").mkdir()
    results = tmp_path / "results" / "results.jsonl"
    append_record(results, record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.9, 0.5))
    assert main(["experiment", "plot", str(results)]) == 0
    assert sorted(contents(tmp_path / "results")) == ["mqar-order-dark.png", "mqar-order.png", "results.jsonl"]
    assert contents(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [("mqar.md", "my own page", "the page must hold"), ("paper.toml", "= [", "must hold the paper's values as TOML")],
)
def test_what_only_has_the_name_of_ours_is_refused_before_anything_is_written(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    results = tmp_path / "results.jsonl"
    append_record(results, record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.9, 0.5))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        write_report([results])
    assert contents(tmp_path) == before


def test_an_out_that_is_no_folder_is_one_sentence(tmp_path):
    results = tmp_path / "results.jsonl"
    append_record(results, record(point("mqar-order", "m64-u2").run(0, 1e-3), "mqar-order", 0.9, 0.5))
    with pytest.raises(
        ValueError, match=r"^out must be a folder that can be written to, got '.*\.jsonl': File exists$"
    ):
        write_report([results], results)


def test_quick_results_say_so_and_stand_beside_no_paper(tmp_path):
    (tmp_path / "paper.toml").write_text((RESULTS / "paper.toml").read_text())
    p = load_grid("mqar-order", quick=True).points[0]
    append_record(tmp_path / "r.jsonl", record(p.run(0, 1e-3), "mqar-order", 0.9, 0.5))
    text = write_report([tmp_path / "r.jsonl"], tmp_path)
    full = load_grid("mqar-order").points[0].run(0, 1e-3)
    append_record(tmp_path / "full.jsonl", record(full, "mqar-order", 0.9, 0.5))
    both = write_report([tmp_path / "r.jsonl", tmp_path / "full.jsonl"], tmp_path)
    assert "--quick" not in both
    assert "\n1 run (0 diverged), 0.5 GPU minutes" in both
    assert "A reduced grid, to see that everything works. Its figures say nothing" in text
    assert "Its figures say nothing about the paper's." in text
    assert "| 64 | 6 | - | 0.500 |" in text


def test_the_papers_values_are_complete():
    for p in load_grid("mqar-order").points:
        assert 0 < PAPER["order"][str(p.base.model.slots)][str(p.base.model.order)] < 1
    assert {"RWKV-7", "H3"} == PAPER["state"].keys() - set(variant_labels())  # not rebuilt here
    assert set(variant_labels()) <= PAPER["state"].keys()
    for marks in PAPER["state"].values():
        assert all(0 <= low <= high <= 1 and size > 1000 for size, low, high in marks)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_figures(name):
    with theme(name) as colors:
        figure = accuracy_by_order(
            {64: {1: [0.2, 0.4], 6: [0.6]}, 256: {4: [0.9]}}, {64: {1: 0.255}, 512: {1: 0.43}}, "a title"
        )
        [axes] = figure.axes
        assert (axes.get_xlabel(), axes.get_ylabel()) == (
            "order U (digits of an address)",
            "accuracy, mean of the test settings",
        )
        assert axes.get_title() == "a title"
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["M = 64"].get_xydata().tolist() == [[1, pytest.approx(0.3)], [6, 0.6]]
        assert [to_hex(lines[label].get_color()).upper() for label in ("M = 256", "M = 64")] == palette(2)
        bars = [line.tolist() for many in axes.collections for line in many.get_segments()]
        assert [[1, 0.2], [1, 0.4]] in bars  # from the lowest seed to the highest
        [read_off] = [line for line in axes.lines if line.get_markerfacecolor() == "none"]  # none for M = 512
        assert read_off.get_xydata().tolist() == [[1, 0.255]]
        assert read_off.get_color() == lines["M = 64"].get_color()
        assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "4", "6"]
        [legend] = figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels == ["M = 256", "M = 64", "the paper's, read off"]
        figure.draw_without_rendering()
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0  # it hides no mark

        figure = accuracy_by_state({"RAM-Net": {4000: [0.5]}, "DeltaNet": {9000: [0.7]}}, PAPER["state"])
        [axes] = figure.axes
        assert axes.get_xscale() == "log"
        ours, *_ = axes.lines
        assert ours.get_linewidth() > 2
        open_marks = [line.get_xydata() for line in axes.lines if line.get_markerfacecolor() == "none"]
        assert [len(marks) for marks in open_marks] == [len(PAPER["state"][kind]) for kind in ("RAM-Net", "DeltaNet")]
        assert open_marks[0][0].tolist() == [3600, pytest.approx(0.485)]
        assert to_hex(figure.get_facecolor()).upper() == colors.paper

        figure = accuracy_by_setting({"U = 1": {"a": [0.2, 0.4], "b": [0.1]}, "U = 3": {"b": [0.5]}}, {"U = 3": 0.6})
        [axes] = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "the paper's, read off"]
        marks = [(line.get_xydata().round(2).tolist(), line.get_markerfacecolor() == "none") for line in axes.lines]
        assert marks == [([[0.3, -0.15], [0.1, 0.85]], False), ([[0.5, 1.15]], False), ([[0.6, 2.15]], True)]
        assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first setting on top
    with pytest.raises(ValueError, match="ours must hold at least one"):
        accuracy_by_setting({})
    with pytest.raises(ValueError, match="ours must hold at least one"):
        accuracy_by_order({})
    with pytest.raises(ValueError, match="ours must hold at least one"):
        accuracy_by_state({})
