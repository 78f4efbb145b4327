"""The README's moving picture is what its script makes, shows what ramnet_np computes, and is small."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

DOCS = Path(__file__).parent.parent / "docs"
PICTURE = DOCS / "images/ramnet-moves.svg"


def script():
    spec = importlib.util.spec_from_file_location("moving_picture", DOCS / "moving_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_what_the_script_makes(tmp_path):
    assert script().main([str(tmp_path / "made.svg")]) == 0
    assert (tmp_path / "made.svg").read_text() == PICTURE.read_text()
    assert PICTURE.stat().st_size < 300_000
    assert ElementTree.parse(PICTURE).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_answer_is_the_fox():
    module = script()
    index, contents, y = module.computed()
    assert index[:, 0].tolist() == [slot for *_, slot in module.LINES]
    np.testing.assert_allclose(contents[1][27], module.ANIMALS["fox"], atol=0.05)
    np.testing.assert_allclose(y[-1], module.ANIMALS["fox"], atol=0.1)
    assert ">fox</tspan>" in PICTURE.read_text()
