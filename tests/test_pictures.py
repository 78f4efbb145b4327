"""The pictures that scripts in docs/ make are those that are committed; the README's shows what ramnet_np computes."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

DOCS = Path(__file__).parent.parent / "docs"
PICTURE = DOCS / "images/ramnet-moves.svg"


def load(name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, DOCS / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_script_makes(tmp_path):
    assert load("moving_picture.py").main([str(tmp_path / "made.svg")]) == 0
    made = (tmp_path / "made.svg").read_text()
    assert made == PICTURE.read_text(), "python docs/moving_picture.py docs/images/ramnet-moves.svg makes another one"
    assert PICTURE.stat().st_size < 300_000
    assert ElementTree.parse(PICTURE).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_answer_is_the_fox():
    module = load("moving_picture.py")
    index, contents, y = module.computed()
    assert index[:, 0].tolist() == [slot for *_, slot in module.LINES]
    np.testing.assert_allclose(contents[1][27], module.ANIMALS["fox"], atol=0.05)
    np.testing.assert_allclose(y[-1], module.ANIMALS["fox"], atol=0.1)
    assert ">fox</tspan>" in PICTURE.read_text()


def test_drawings_are_what_their_script_makes():
    module = load("drawings.py")
    drawings = module.files()
    assert len(drawings) == 28
    for name, text in drawings.items():
        assert (DOCS / "images" / name).read_text() == text, f"python docs/drawings.py docs/images makes another {name}"
        (page,) = (page for page in module.DRAWINGS if name.startswith(f"{page.removesuffix('.md')}-"))
        assert f"images/{name}" in (DOCS / page).read_text()
        ElementTree.fromstring(text)


def test_the_losses_in_both_precisions_are_as_close_as_the_page_says():
    _, series = load("precision_curves.py").losses()
    difference = series["bfloat16"] / series["float32"] - 1
    size, page = np.abs(difference), (DOCS / "gpu-training.md").read_text()
    assert f"never differs by more than {size.max():.2%}. On average it differs by {size.mean():.2%}," in page
    assert f"and bfloat16 is lower by {-difference.mean():.2%}:" in page
    assert page.count(f"between {100 * difference.min():.2f} and {100 * difference.max():.2f} percent") == 2


def test_the_drawing_of_a_tokens_time_wants_records_of_it(tmp_path):
    with pytest.raises(
        SystemExit, match=r"^records must be a file of .*bench\.generation, got none in '.*h200\.jsonl'$"
    ):
        load("time_of_a_token.py").main(DOCS / "results/scaling/h200.jsonl", tmp_path / "drawn.png")
    assert list(tmp_path.iterdir()) == []


def test_facts_are_recalled_as_the_records_say():
    module = load("slots_recall.py")
    records = module.read(module.RECORDS)
    assert {(row["slots"], row["facts"]) for row in records} == {(4**u, n) for u in module.ORDERS for n in module.FACTS}
    for order, facts in ((3, 256), (10, 256)):
        (record,) = (row for row in records if row["slots"] == 4**order and row["facts"] == facts)
        measured = module.measure(order, facts)
        assert measured["written"] == record["written"]
        assert abs(measured["recalled"] - record["recalled"]) < 0.02


def test_speeds_by_the_share_of_rows_are_those_of_the_page():
    page = (DOCS / "hierarchical-memory.md").read_text()
    speeds = load("tiers_curves.py").speeds()
    assert [sorted(line) for line in speeds.values()] == [[0, 0.01, 0.1, 0.5, 1]] * 4
    assert all(line[0] < line[1] < 1 for line in speeds.values())
    for name, times in (("memories alone, float32", "1.36"), ("memories alone, bfloat16", "1.36")):
        assert f"{1 / speeds[name][1]:.2f}" == times
        assert f"| {times} |" in page
