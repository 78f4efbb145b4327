"""Every figure comes back as a Figure with labelled axes, and saves."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from ramnet_np import plot
from ramnet_np.core.attention import decode_address


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
    for source in (path, list(records())):
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


def test_training_curves_without_records():
    with pytest.raises(ValueError, match="at least one training record, got none"):
        plot.training_curves([])


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
    figure.savefig(tmp_path / "trace.png")


def test_ramnet_picture(tmp_path):
    path = tmp_path / "images" / "ramnet.png"
    plot.main([str(path)])
    for drawn in (path, path.with_name("ramnet-dark.png")):
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert drawn.stat().st_size < 200_000
    words = " ".join(text.get_text() for text in plot.ramnet_picture().texts)
    for stage in ("digits", "product softmax", "memory", "write, then read"):
        assert stage in words


def test_main_without_a_file():
    with pytest.raises(SystemExit, match=r"usage: python -m ramnet_np\.plot"):
        plot.main([])
