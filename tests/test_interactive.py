"""The interactive page's mathematics, run by node, computes what ramnet_np computes; its scenes do what they say.

Where there is no node, the same cases run in the browser by `make test-site` (tests/site/test_browser.py).
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.interactive_cases import RUN, assert_agrees, draw

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/_static/interactive"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


def node(*arguments, script=None):
    run = subprocess.run([NODE, *arguments], input=script, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_node
def test_ram_js_agrees_with_ramnet_np():
    cases = draw()
    script = f"const RAM = require({json.dumps(str(PAGE / 'ram.js'))});\nconst cases = {json.dumps(cases)};\n{RUN}"
    for case, result in zip(cases, node("-", script=script + "\nconsole.log(JSON.stringify(results));"), strict=True):
        assert_agrees(case, result)


@pytest.fixture(scope="module")
def played():
    return node(str(HERE / "scene_cases.js"), str(PAGE))


@needs_node
def test_a_goal_is_open_until_its_answer_is_given(played):
    scenes = played["found"]
    assert len({scene["name"] for scene in scenes}) == 8
    assert {scene["order"] for scene in scenes} == {1, 2, 3, 6}
    for scene in scenes:
        if scene["goal"]:
            assert (scene["before"], scene["after"]) == (False, True), scene
    story = [scene for scene in scenes if scene["name"] == "watch"]
    assert all(word == "clear" for scene in story for word, _ in scene["verdicts"])


@needs_node
def test_captions_have_numbers(played):
    for scene in played["found"]:
        for said in scene["captions"]:
            assert len(said) > 30
            assert not re.search("NaN|undefined|null|Infinity", said)


@needs_node
def test_a_clear_answer_has_a_threshold(played):
    verdicts = [verdict for scene in played["found"] for verdict in scene["verdicts"]]
    assert {word for word, _ in verdicts} == {"clear", "blurred", "lost"}
    for word, error in verdicts:
        assert word == ("clear" if error <= 0.1 else "blurred" if error < 0.4 else "lost")


@needs_node
def test_a_text_in_pieces_a_mask_and_an_erased_slot(played):
    np.testing.assert_array_equal(played["halves"], played["whole"][3:])
    assert played["masked"]["y"] == [0, 0, 0, 0]
    assert np.abs(played["masked"]["answer"]).max() < 0.2  # Tom's fox was never written
    assert "masked" in played["masked"]["said"]
    assert played["erased"]["before"] > 0.9
    assert played["erased"]["after"] == 1 / 64
    assert played["erased"]["writer"] is None
    assert np.abs(played["erased"]["answer"]).max() < 0.2
    assert played["writers"][27] == "Tom: fox"


def test_cases_reach_the_edges():
    cases = draw()
    assert {case["update"] for case in cases} == {"pdma", "gsu"}
    assert any(case["top_k"] == case["radix"] ** case["order"] for case in cases)
    assert any(case["cape"] and case["first"] > case["radix"] ** case["order"] for case in cases)
    for update in ("pdma", "gsu"):
        options = [case for case in cases if case["update"] == update and not all(case["mask"])]
        assert any(case["mass_aware"] and case["state"] for case in options)
        assert any(not case["mass_aware"] and not case["state"] for case in cases if case["update"] == update)


def test_a_wrong_result_is_seen():
    case = draw(1)[0]
    with pytest.raises(AssertionError):
        assert_agrees(case, {name: [{"index": [0], "weight": [1.0]}] * 7 for name in ("write", "read")})


def test_the_page_loads_its_own_files_and_they_stay_small():
    page = (PAGE / "index.html").read_text()
    loaded = re.findall(r'(?:src|href)="([\w-]+\.(?:js|css))"', page)
    assert sorted(loaded) == sorted(path.name for path in PAGE.iterdir() if path.suffix in (".js", ".css"))
    assert all(len(path.read_text().splitlines()) <= 400 for path in PAGE.iterdir())
