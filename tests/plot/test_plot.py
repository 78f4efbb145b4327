"""Every figure comes back as a Figure with labelled axes, and saves."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from ramnet_np import plot
from ramnet_np.core.attention import decode_address
from ramnet_np.plot.picture import main
from ramnet_np.train.metrics import read_metrics


def records(sets=("8 pairs, length 64",)):
    for step in range(1, 41):
        yield {"step": step, "kind": "train", "loss": 5 / step, "accuracy": step / 40}
        if step % 10 == 0:
            yield {"step": step, "kind": "held_out", "accuracy": dict.fromkeys((*sets, "mean"), step / 50)}


def addresses(cape_heads, tokens=12):
    rng = np.random.default_rng(0)
    same = np.broadcast_to(rng.standard_normal((1, 1, 2, 3, 4)), (2, tokens, 2, 3, 4))
    return {
        kind: decode_address(np.ascontiguousarray(same) + shift, top_k=4, cape_heads=cape_heads, backend="numpy")
        for kind, shift in (("write", 0.0), ("read", rng.standard_normal((1, 1, 2, 3, 4))))
    }


def test_training_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records()))
    for source in (read_metrics(path), list(records())):
        figure = plot.training_curves(source, title="a run")
        assert isinstance(figure, Figure)
        accuracy, loss = figure.axes
        assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("step", "recall accuracy")
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("step", "cross-entropy (nats)")
        held_out = next(line for line in accuracy.lines if line.get_label() == "held out")
        np.testing.assert_allclose(held_out.get_xydata(), [(10, 0.2), (20, 0.4), (30, 0.6), (40, 0.8)])
    figure.savefig(tmp_path / "curves.png")


def test_training_curves_one_line_per_held_out_set():
    figure = plot.training_curves(list(records(sets=("a", "b"))))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["training batches", "a", "b", "held out"]


def test_training_curves_draw_each_number_at_its_step():
    """Steps at uneven distances, and numbers of which no two are alike."""
    steps = np.cumsum(1 + np.arange(40) % 3)
    values = np.random.default_rng(0).uniform(0.1, 0.9, (2, 40))
    trained = [
        {"step": int(step), "kind": "train", "loss": loss, "accuracy": right}
        for step, loss, right in zip(steps, *values, strict=True)
    ]
    measured = [
        {"step": step, "kind": "held_out", "accuracy": {"a": a, "b": b, "mean": (a + b) / 2}}
        for step, a, b in ((5, 0.1, 0.7), (31, 0.3, 0.2))
    ]
    figure = plot.training_curves([*trained[:7], measured[0], *trained[7:], measured[1]])
    for axes, numbers in zip(figure.axes, values[::-1], strict=True):
        raw, mean = axes.lines[:2]
        np.testing.assert_array_equal(raw.get_xydata(), np.stack([steps, numbers], axis=1))
        pairs = [numbers[max(0, i - 1) : i + 1].mean() for i in range(40)]  # a twentieth of 40
        np.testing.assert_allclose(mean.get_xydata(), np.stack([steps, pairs], axis=1))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["a"] == [[5, 0.1], [31, 0.3]]
    assert drawn["b"] == [[5, 0.7], [31, 0.2]]
    np.testing.assert_allclose(drawn["held out"], [[5, 0.4], [31, 0.25]])


def test_training_curves_without_records():
    with pytest.raises(ValueError, match="at least one training record, got none"):
        plot.training_curves([])


def test_training_curves_of_a_path(tmp_path):
    for path in (tmp_path / "metrics.jsonl", "metrics.jsonl"):
        with pytest.raises(TypeError, match=r"records must be the records of a metrics file, .* got .*metrics.jsonl'"):
            plot.training_curves(path)


def test_slot_trace(tmp_path):
    trace = [addresses(cape_heads=2), addresses(cape_heads=1)]
    figure = plot.slot_trace(trace, slots=64, example=1, cape_heads=(2, 1))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "layer 0, head 0 (CAPE)",
        "layer 0, head 1 (CAPE)",
        "layer 1, head 0 (CAPE)",
        "layer 1, head 1 (content)",
    ]
    assert figure.axes[2].get_xlabel() == "token"
    assert figure.axes[2].get_ylabel() == "slot (of 64)"
    for axes, layer, head in zip(figure.axes, (0, 0, 1, 1), (0, 1, 0, 1), strict=True):
        for drawn, kind in zip(axes.collections, ("write", "read"), strict=True):
            index = trace[layer][kind].index[1, :, head]
            expected = np.stack([np.repeat(np.arange(12), 4), index.ravel()], axis=1)
            np.testing.assert_array_equal(np.asarray(drawn.get_offsets()), expected)
    named = plot.slot_trace(trace, slots=64, tokens=list("kvkvqqqqqqqq"))
    assert [label.get_text() for label in named.axes[2].get_xticklabels()] == list("kvkvqqqqqqqq")
    figure.savefig(tmp_path / "trace.png")


def test_ramnet_picture(tmp_path):
    path = tmp_path / "images" / "ramnet.png"
    main([str(path)])
    for drawn in (path, path.with_name("ramnet-dark.png")):
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert drawn.stat().st_size < 200_000
    words = " ".join(text.get_text() for text in plot.ramnet_picture().texts)
    for stage in ("digits", "product softmax", "memory", "write, then read"):
        assert stage in words


def test_main_without_a_file():
    with pytest.raises(SystemExit, match=r"usage: python -m ramnet_np\.plot"):
        main([])


def test_curves_draw_what_they_are_given():
    two = {"a": [1, 2, 3], "b": [3, 2, 1]}
    figure = plot.curves([1, 10, 100], two, xlabel="n", ylabel="y", xscale="log", mark={"m": 7})
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [(1, 3), (10, 2), (100, 1)])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert axes.get_xscale() == "log"
    assert axes.lines[2].get_xdata()[0] == 7


def test_bars_are_means_of_repeats():
    axes = plot.bars({"a": 1.0, "b": [2.0, 4.0]}, xlabel="s", ylabel="way").axes[0]
    assert [patch.get_width() for patch in axes.patches] == [1.0, 3.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["1", "3"]


def test_heatmaps_share_a_scale():
    figure = plot.heatmaps({"a": np.eye(2), "b": -3 * np.eye(2)}, xlabel="x", ylabel="y", label="w", signed=True)
    assert [axes.images[0].get_clim() for axes in figure.axes[:2]] == [(-3.0, 3.0)] * 2


def test_digit_product_frames_the_best_slots():
    logits = np.log([[0.9, 0.1], [0.2, 0.8]])  # slots 0 to 3: .18 .02 .72 .08
    digits = plot.digit_product(logits, top_k=2)
    one, zero, slots = digits.axes
    np.testing.assert_allclose([bar.get_height() for bar in one.patches], [0.2, 0.8])
    np.testing.assert_allclose([bar.get_height() for bar in zero.patches], [0.9, 0.1])
    np.testing.assert_allclose(np.asarray(slots.images[0].get_array()) ** 2, [[0.18, 0.02], [0.72, 0.08]])
    assert sorted((p.get_x() + 0.5, p.get_y() + 0.5) for p in slots.patches) == [(0, 0), (0, 1)]  # slots 0 and 2
    tree = plot.address_tree(logits, top_k=2)
    assert [t.get_text() for t in tree.axes[0].texts] == ["slot 0 = 00  (0.18)", "slot 2 = 10  (0.72)"]


def test_beam_merge_names_the_digit_that_it_adds():
    scores = np.log(np.outer([0.6, 0.4], [0.9, 0.1]))
    axes = plot.beam_merge([(scores, scores > -1)], top_k=2, first=3).axes[0]
    assert axes.get_title() == "merge 3: 1 of 4 kept"
    assert axes.get_xlabel() == "value of digit 3, by rank"


def test_pigeonholes_join_tokens_and_slots():
    arrows = [("write", 0, 5), ("read", 1, 2)]
    figure = plot.pigeonholes(["Tom", "Ada"], {5: "fox"}, columns=4, rows=2, arrows=arrows, erased=2)
    axes = figure.axes[0]
    holes = [patch for patch in axes.patches if hasattr(patch, "get_xy") and patch.get_width() < 1]
    assert len(holes) == 8
    assert [holes[slot].get_linewidth() for slot in (0, 2, 5)] == [0.7, 2, 2]
    drawn = {text.get_text(): text.get_position() for text in axes.texts}
    x, y = drawn["fox"]
    assert (round(x), round(y)) == (1, 1)  # slot 5 of rows of four
    assert len(axes.lines) == 2  # the cross


def test_a_rack_turns():
    def place(t):
        axes = plot.rack(["Tom", "Fox", "Ada"], {0: "owl"}, slots=8, t=t).axes[0]
        return next(text.get_position() for text in axes.texts if text.get_text() == "owl")

    np.testing.assert_allclose(place(0), (0, 0.94), atol=1e-9)  # address 0, at the top
    np.testing.assert_allclose(place(2), (0.94, 0), atol=1e-9)  # a quarter further


def test_jars_are_filled_up_to_their_mass():
    axes = plot.slot_jars({"a": 1.0, "b": -1.0}, {"a": 0.5, "b": 9.0}, ends=("cat", "fox"), title="now").axes[0]
    assert [patch.get_height() for patch in axes.patches] == [0.5, 2.5]
    fox, cat = (patch.get_facecolor()[:3] for patch in axes.patches)
    assert fox[0] > fox[2]
    assert cat[2] > cat[0]


def test_cape_grid_names_the_content_of_every_slot():
    axes = plot.cape_grid(slots=4, tokens=5, follow=[2]).axes[0]
    named = {tuple(text.get_position()): int(text.get_text()) for text in axes.texts}
    assert named == {(t, i): (i + t) % 4 for t in range(5) for i in range(4)}
    assert len(axes.patches) == 5


@pytest.mark.parametrize("draw", [plot.curves, plot.bars, plot.heatmaps])
def test_nothing_to_draw(draw):
    names = {"label": "w"} if draw is plot.heatmaps else {}
    with pytest.raises(ValueError, match="must hold at least one"):
        draw(*([[]] if draw is plot.curves else []), {}, xlabel="x", ylabel="y", **names)
