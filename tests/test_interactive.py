"""The interactive page's mathematics, run by node, computes what ramnet_np computes.

Where there is no node, the same cases run in the browser by `make test-site` (tests/site/test_browser.py).
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interactive_cases import RUN, assert_agrees, draw

RAM_JS = Path(__file__).parent.parent / "docs/_static/interactive/ram.js"

if NODE := shutil.which("node"):

    def test_ram_js_agrees_with_ramnet_np():
        cases = draw()
        script = f"const RAM = require({json.dumps(str(RAM_JS))});\nconst cases = {json.dumps(cases)};\n{RUN}"
        run = subprocess.run(
            [NODE, "-"],
            input=script + "\nconsole.log(JSON.stringify(results));",
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        for case, result in zip(cases, json.loads(run.stdout), strict=True):
            assert_agrees(case, result)


def test_cases_reach_the_edges():
    cases = draw()
    assert {case["update"] for case in cases} == {"pdma", "gsu"}
    assert any(case["top_k"] == case["radix"] ** case["order"] for case in cases)
    assert any(case["cape"] and case["first"] > case["radix"] ** case["order"] for case in cases)


def test_a_wrong_result_is_seen():
    case = draw(1)[0]
    with pytest.raises(AssertionError):
        assert_agrees(case, {name: [{"index": [0], "weight": [1.0]}] * 7 for name in ("write", "read")})
