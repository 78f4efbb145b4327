"""The benchmark of a grid's models: what it prints and records. No test asserts a time."""

import json

import pytest
from ramnet_np.kernels.bench import points

GRID = """
task = "text"
epochs = 1
seeds = [0]
learning_rates = [1e-3, 2e-3]
evaluations = 1
model = { width = 8, layers = 1, heads = 2, ffn = "none" }
data = { length = 16, held_out = 0.1 }
train = { batch = 2, warmup = 0 }

[[points]]
name = "ram"
model = { order = 2, radix = 2, top_k = 2 }

[[points]]
name = "left-out"
model = { mixer = "linear" }

[[points]]
name = "softmax"
model = { mixer = "softmax", layers = 2 }
"""


def records(tmp_path, device):
    (tmp_path / "mine.toml").write_text(GRID)
    (tmp_path / "book.txt").write_text("Tom has a fox. " * 40)
    out = tmp_path / "speed.jsonl"
    options = points.Options(
        grid=str(tmp_path / "mine.toml"), only=("softmax", "ram"), text=tmp_path / "book.txt", device=device,
        steps=2, repeats=1, tokens=5, out=out,
    )  # fmt: skip
    points.main(options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_point_is_timed(tmp_path, capsys):
    ram, softmax = records(tmp_path, "cpu")
    assert [ram["point"], softmax["point"]] == ["ram", "softmax"]
    for record in (ram, softmax):
        assert record["ms"] * record["tokens/s"] == pytest.approx(1000 * 2 * 16)
        assert (record["batch"], record["length"], record["dtype"]) == (2, 16, "float32")
        assert record["token_ms"] > 0
    assert softmax["parameters"] != ram["parameters"]
    assert capsys.readouterr().out.count("ms a token") == 2


@pytest.mark.gpu
def test_memory_is_measured_on_a_gpu(tmp_path):
    for record in records(tmp_path, "gpu"):
        assert record["GiB"] > 0
