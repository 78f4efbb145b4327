"""What the notebooks share: the reference ``mine.py`` passes every check, and a planted fault in any function fails."""

import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).parent.parent / "notebooks"
sys.path.insert(0, str(FOLDER))

from course import checks, show, story  # noqa: E402
from course.cases import CASES  # noqa: E402

READ_AFTER_WRITE = """\
        s[a] += eta[..., None] * (v[:, t, :, None] - s[a])  # 4
        a = b, h, read[:, t]
        share = mass_aware(r[:, t], z[a], eps) if aware else r[:, t]
        y[:, t] = (share[..., None] * s[a]).sum(axis=-2)  # 5
"""
READ_BEFORE_WRITE = """\
        at, a = a, (b, h, read[:, t])
        share = mass_aware(r[:, t], z[a], eps) if aware else r[:, t]
        y[:, t] = (share[..., None] * s[a]).sum(axis=-2)
        s[at] += eta[..., None] * (v[:, t, :, None] - s[at])
"""
# in the reference solution: the function, what it says, and what a reader could have written
FAULTS = [
    ("product_softmax", "place = P ** np.arange(U)[:, None]", "place = P ** np.arange(U)[::-1, None]"),
    ("product_softmax", "weight = weight / weight.sum(axis=-1, keepdims=True)", "pass"),
    ("product_softmax", "np.exp(logits - logits.max(axis=-1, keepdims=True))", "np.exp(logits)"),
    ("beam", "np.lexsort((slot, -score), axis=-1)", "np.argsort(-score, axis=-1, kind='stable')"),
    ("beam", "slots = slot[..., :, None] + np.arange(P) * P**u", "slots = slot[..., :, None] * P + np.arange(P)"),
    ("cape", "(slot - position) % M", "(slot + position) % M"),
    ("retention", "np.exp(gamma) * w)", "gamma * w)"),
    ("mass_aware", "r.sum(axis=-1, keepdims=True) * n", "n"),
    ("mass_aware", "(n.sum(axis=-1, keepdims=True) + eps)", "n.sum(axis=-1, keepdims=True)"),
    ("memory", "eta = w[:, t] / (z[a] + eps)  # 3\n        s[a]", "eta = w[:, t] / z[a]\n        s[a]"),
    ("memory", "s, z = state[0].copy(), state[1].copy()", "s, z = state"),
    ("memory", "np.full((B, H, M), 1 / M)", "np.zeros((B, H, M))"),
    ("memory", "if mask is not None:\n        w, r =", "if False:\n        w, r ="),
    ("memory", "if aware else r[:, t]\n        y", "if False else r[:, t]\n        y"),
    ("memory", READ_AFTER_WRITE, READ_BEFORE_WRITE),
    ("product_softmax_backward", "g = g - weight * g.sum(axis=-1, keepdims=True)", "pass"),
    ("product_softmax_backward", "return pulled - digit_softmax(logits) *", "return pulled - 0 *"),
    ("retention_backward", "-odds / ((1 - w) + odds * w) ** 2", "-odds / ((1 - w) + odds * w)"),
    ("retention_backward", "kept = 1 - (1 - proxy_eps) * w", "kept = 1 - w"),
    ("retention_backward", "np.maximum(kept, np.finfo(w.dtype).epsneg)", "kept"),
    ("mass_aware_backward", "return dn * z + dR, dn * r", "return dn * z, dn * r"),
    ("memory_backward", "ds[a] *= (1 - eta)[..., None]", "pass"),
    ("memory_backward", "dz[a] *= retention(w[:, t], g, update)", "pass"),
    ("memory_backward", "dz[a] -= deta * w[:, t] / (z[a] + eps) ** 2", "pass"),
    ("memory_backward", "s[a], z[a] = s_old, z_old", "pass"),
    ("memory_backward", "s, z = s.copy(), z.copy()\n    ds, dz", "ds, dz"),
    ("memory_backward", "dz[a] += dz_read", "pass"),
    ("memory_backward", "ds, dz = dstate[0].copy(), dstate[1].copy()", "pass"),
    ("memory_backward", "dw, dr, dv = (np.where(mask[:, :, None, None], x, 0) for x in (dw, dr, dv))", "pass"),
    ("layer", "if use_cape else a for", "if use_cape and side == 'write' else a for"),
    ("layer", "+ params[side + \"_bias\"]) / tau", ") / tau + params[side + \"_bias\"]"),
    ("layer_backward", "slot[side]) / tau", "slot[side])"),
    ("layer_backward", "dx += np.tensordot(d, params[side]", "dx = np.tensordot(d, params[side]"),
    ("train_step", "np.add.at(grads[\"embeddings\"], ids, dx)", "grads[\"embeddings\"][ids] += dx"),
    ("train_step", "dx = dx + through_norm", "dx = through_norm"),
]  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    return checks.load(checks.SOLUTION)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_passes_every_check(reference, name):
    assert checks.outcome(reference, name) == "correct"


@pytest.mark.parametrize(("name", "right", "wrong"), FAULTS, ids=lambda text: text[:40] if " " in text else text)
def test_a_planted_fault_fails_the_check_of_its_function(tmp_path, name, right, wrong):
    text = checks.SOLUTION.read_text()
    assert text.count(right) == 1
    path = tmp_path / "mine.py"
    path.write_text(text.replace(right, wrong))
    with np.errstate(all="ignore"), pytest.raises(AssertionError, match=rf"^{name}, "):
        checks.outcome(checks.load(path), name)


def test_every_function_has_a_fault_planted_in_it():
    assert {name for name, _, _ in FAULTS} == CASES.keys()


def test_what_is_not_written_is_open(reference, monkeypatch, tmp_path, capsys):
    start = checks.load(checks.MINE)
    for name in CASES:
        assert getattr(start, name).__doc__
        assert checks.outcome(start, name).startswith("open")
    monkeypatch.setattr(checks, "MINE", tmp_path / "mine.py")
    checks.MINE.write_text("def cape(slot, position, M):\n    return (slot - position) % M\n")
    checks.check_mine("beam", "cape", "memory_backward")
    said = "beam: open\ncape: correct\nmemory_backward: open (it needs memory, which is open)\n"
    assert capsys.readouterr().out == said
    cape, memory = checks.mine("cape", "memory")
    assert cape.__code__.co_filename == str(checks.MINE)  # the reader's own where it is there
    assert memory.__code__.co_filename == str(checks.SOLUTION)
    with pytest.raises(ValueError, match=r"names must be of .*cape.*, got capes"):
        checks.check_mine("capes")


def test_mine_is_the_reference_without_its_bodies(reference):
    import inspect

    start = checks.load(checks.MINE)
    for name in CASES:
        assert inspect.signature(getattr(start, name)) == inspect.signature(getattr(reference, name))


def test_a_solution_is_folded():
    html = checks.solution("cape", "mass_aware").data
    assert html.startswith("<details>")
    assert "return (slot - position) % M" in html
    assert "def mass_aware" in html


def one_bar(height=1, colour="red"):
    figure = Figure(figsize=(1, 1))
    figure.subplots().bar([0], [height], color=colour)
    return figure


def images(html, kind):
    from base64 import b64decode

    found = re.findall(rf"data:image/{kind};base64,([^\"]+)", html)
    return [Image.open(io.BytesIO(b64decode(data))) for data in found]


def test_a_movie_moves_and_can_stand_still():
    html = show.movie(one_bar, [1, 2, 3], alt="a bar that <grows>").data
    (moving,), (still,) = images(html, "gif"), images(html, "png")
    assert moving.n_frames == 3
    assert moving.size == still.size
    assert "prefers-reduced-motion" in html
    assert 'alt="a bar that &lt;grows&gt;"' in html


def test_a_slider_holds_every_frame_and_shows_the_start():
    html = show.slider(one_bar, start={"colour": "blue"}, height=[1, 2, 3], colour=["red", "blue"]).data
    assert len(images(html, "png")) == 6
    shown = re.findall(r'alt="([^"]*)"(?! hidden)>', html)
    assert shown == ["height 1, colour blue"]
    assert html.count('type="range"') == 2


def test_a_prediction_hides_its_replies():
    html = show.predict("Which?", {"this": "No.", "that": "Yes."}).data
    assert html.count("<details>") == 2
    assert "open" not in html


def draws(cell):
    return any(
        "image/png" in data or "data:image/" in data.get("text/html", "")
        for data in (output.get("data", {}) for output in cell.get("outputs", ()))
    )


def unasked(cells):
    """The plots that no question stands before: none in the cell itself, none since the plot before it.

    A plot tagged "illustration" draws what the text has said; it needs no question and uses none up.
    """
    asked, found = False, []
    for cell in cells:
        asked = asked or (cell.cell_type == "code" and "predict(" in cell.source)
        if draws(cell) and "illustration" not in cell.metadata.get("tags", ()):
            if not asked:
                found.append(cell.source)
            asked = False
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_a_prediction_stands_before_each_plot(path):
    cells = nbformat.read(path, as_version=4).cells
    assert unasked(cells) == []
    questions = [cell for cell in cells if cell.cell_type == "code" and "predict(" in cell.source]
    for cell in questions:
        (html,) = (output.data["text/html"] for output in cell.outputs)
        assert 2 <= html.count("<summary>") <= 3, cell.source
        assert "remove-input" in cell.metadata.get("tags", ()), "the site would show the replies"
    for cell in cells:
        assert draws(cell) or "illustration" not in cell.metadata.get("tags", ()), "illustrates nothing"


def test_a_plot_without_a_prediction_is_found():
    def code(source, plot=False, tags=()):
        outputs = [nbformat.v4.new_output("display_data", data={"image/png": "AAAA"})] if plot else []
        return nbformat.v4.new_code_cell(source, outputs=outputs, metadata={"tags": list(tags)})

    question, text = code("predict('?', {})"), nbformat.v4.new_markdown_cell("predict( is not called here")
    first, second, drawing = code("a", True), code("b", True), code("c", True, ["illustration"])
    assert unasked([question, first, question, drawing, text, second]) == []
    assert unasked([code("predict('?', {})\nplot.curves()", True)]) == []
    assert unasked([question, first, text, drawing, second]) == ["b"]
    assert unasked([first, question]) == ["a"]


def test_the_model_of_the_facts_is_the_saved_one():
    from ramnet_np.model import RAMNet

    ours, saved = story.facts_model(), RAMNet.from_pretrained(story.FACTS)
    assert ours.config == saved.config
    for name, array in saved.params.items():
        np.testing.assert_array_equal(ours.params[name], array)


def test_the_story_begins_with_a_model_that_knows():
    model = story.facts_model()
    state = story.read_text(model, story.TEXT)
    assert {name: story.answer(model, state, name) for name in story.PEOPLE} == story.PEOPLE


def test_only_numpy_and_matplotlib_are_left():
    code = "import alone\nimport course\ncourse.check_mine()\nimport importlib.util as u\n"
    code += "assert not any(map(u.find_spec, alone.HIDDEN))\nassert not alone.HIDDEN & set(__import__('sys').modules)"
    subprocess.run([sys.executable, "-c", code], cwd=FOLDER, check=True, capture_output=True)
