"""What notebooks 6, 7, 9 and 10 compute outside their cells: adjoints of a few slots, saved figures, erased slots."""

import ast
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

import ablations  # noqa: E402
from course import erase, facts_model, read_text, recall  # noqa: E402
from course.flow import Token, adjoints, adjoints_so_far  # noqa: E402

TOKENS = [
    Token("a", slot=0, eta=0.9),
    Token("b", slot=1, eta=0.8),
    Token("c", slot=0, eta=0.3),
    Token("b?", slot=1),
    Token("a?", slot=0),
]


def answer_of(tokens, values, before, asked):
    s = np.array(before, dtype=float)
    for t, token in enumerate(tokens):
        if t == asked:
            return s[token.slot]
        s[token.slot] += token.eta * (values[t] - s[token.slot])


@pytest.mark.parametrize("asked", [3, 4])
def test_adjoints_are_what_differences_say(asked):
    ds, dv = adjoints(TOKENS, slots=2, asked=asked)
    values, before = np.arange(5.0), np.array([0.5, -1.0])
    base = answer_of(TOKENS, values, before, asked)
    for t in range(asked):
        np.testing.assert_allclose(dv[t], answer_of(TOKENS, values + np.eye(5)[t], before, asked) - base, atol=1e-12)
    for a in range(2):
        np.testing.assert_allclose(ds[a, 0], answer_of(TOKENS, values, before + np.eye(2)[a], asked) - base, atol=1e-12)


def test_the_picture_of_adjoints_shows_what_the_backward_has_reached():
    texts = [{t.get_text() for t in adjoints_so_far(TOKENS, "xy", 4, back_to).axes[0].texts} for back_to in (5, 2, 0)]
    assert not {"1.00", "0.70", "0.07"} & texts[0]
    assert {"1.00", "0.70", "to c: 0.30"} <= texts[1]
    assert {"0.07", "to a: 0.63"} <= texts[2]


def saved(name, variable):
    """The dictionary that a notebook's cell assigns to ``variable``."""
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    cell = next(c.source for c in notebook.cells if c.cell_type == "code" and f"{variable} =" in c.source)
    tree = ast.parse(cell)
    value = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == variable)
    return ast.literal_eval(value)


def test_saved_times_stand_in_the_docs():
    name = "07_from_numpy_to_fast.ipynb"
    tried, figures = ((ROOT / "docs" / f"kernels-{page}.md").read_text() for page in ("notebook", "figures"))
    *steps, today = saved(name, "SAVED").values()
    for time in steps:
        assert re.search(rf"(\| |: ){time:.2f}( / |: |;| \|)", tried), time
    assert f"`content_forward` | {today:.2f} |" in figures
    papers = [line for line in figures.splitlines() if "paper 340M" in line]
    assert any(f"| {saved(name, 'WHOLE_FORWARD')} / " in line for line in papers)


def test_lines_are_told_without_their_repeats():
    line = erase.told_lines(2, seed=99)[1]
    assert line.text.count(". ") == 3
    assert [f"{name}{letter}" for name, letter in zip(line.names, line.letters, strict=True)] == [
        fact[: len(name) + 1] for fact, name in zip(line.text.split(". "), line.names, strict=False)
    ]


def test_every_copy_has_one_slot_erased_and_asking_changes_nothing():
    model, line = facts_model(), erase.Line("TomFox. AdaOwl. AnnHen. ", ("Tom", "Ann"), ("F", "H"))
    state = read_text(model, line.text)
    copies = erase.every_slot_erased(state)
    assert copies[1].mass.shape == (257, 4, 64)
    np.testing.assert_array_equal(copies[1].slots[0], state[1].slots[0])
    np.testing.assert_array_equal(copies[0].slots[200], state[0].slots[0])
    changed = (copies[1].slots != copies[1].slots[:1]).any(axis=-1)
    assert changed.sum(axis=(1, 2)).max() == 1
    assert not copies[1].slots[1 + 3 * 64 + 61, 3, 61].any()
    before = copies[1].slots.copy()
    p, lead = erase.ask(model, copies, line)
    np.testing.assert_array_equal(copies[1].slots, before)
    assert (p[:, 0] > 0.9).all()
    assert lead[0, 1 + 3 * 64 + 61] < 0 < lead[1, 1 + 3 * 64 + 61]  # the fox is gone, the hen is not
    assert (lead[p > 0.5] > 0).all()


def test_the_prior_can_be_taken_away():
    with_prior, without = (recall.fresh(prior=prior).params for prior in (True, False))
    name = "model.layers.0.attn.w_proj.bias"
    assert with_prior[name].any()
    assert not without[name].any()
    np.testing.assert_array_equal(with_prior["model.embeddings.weight"], without["model.embeddings.weight"])


def test_the_saved_runs_are_those_that_the_script_makes():
    records = [json.loads(line) for line in ablations.RECORDS.read_text(encoding="utf-8").splitlines()]
    made = [(name, changes, seed) for name, changes in ablations.CHANGES.items() for seed in ablations.SEEDS]
    assert [(run["bar"], run["changes"], run["seed"]) for run in records] == [
        (name, json.loads(json.dumps(changes)), seed) for name, changes, seed in made
    ]
    for run in records:
        assert (run["preset"], run["steps"], run["command"]) == (recall.PRESET, recall.STEPS, ablations.COMMAND)
        assert run["right"] == pytest.approx(run["accuracies"][-1], abs=1e-4)
        assert len(run["accuracies"]) == recall.STEPS // 50
        assert {"date", "name", "python", "numpy", "numba", "ramnet_np"} <= run.keys()
    assert (ROOT / ablations.COMMAND.split()[1]).samefile(ablations.__file__)


def test_the_script_trains_every_bar_and_seed(monkeypatch, tmp_path):
    monkeypatch.setattr(ablations, "RECORDS", tmp_path / "runs.jsonl")
    monkeypatch.setattr(ablations, "trained_together", lambda jobs: [([0.25, seed], changes) for changes, seed in jobs])
    monkeypatch.setattr(ablations, "CHANGES", {"as above": {}, "K=4": {"top_k": 4}})
    ablations.main()
    records = [json.loads(line) for line in ablations.RECORDS.read_text(encoding="utf-8").splitlines()]
    assert [(run["bar"], run["accuracies"], run.get("top_k")) for run in records] == [
        (name, [0.25, seed], k) for name, k in (("as above", None), ("K=4", 4)) for seed in ablations.SEEDS
    ]


@pytest.mark.parametrize("changes", ablations.CHANGES.values(), ids=ablations.CHANGES)
def test_every_change_makes_another_model(changes):
    config = recall.fresh(**changes).config
    assert (config == recall.fresh().config) == (not changes.keys() - {"prior"})
