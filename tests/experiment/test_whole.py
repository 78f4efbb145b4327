"""From a grid to its page, as the command does it, with a kill on the way; and runs spread over GPUs that are not real.

The models are tiny and train for a few steps on a CPU: what they recall means nothing.
"""

import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from ramnet_np.cli import main
from ramnet_np.experiment import runner
from ramnet_np.experiment.grid import read_grid
from ramnet_np.experiment.records import read_records, run_of
from ramnet_np.experiment.report import BEGIN, END
from ramnet_np.experiment.runner import Options, run_experiment
from ramnet_np.experiment.summary import collect
from ramnet_np.experiment.sweep import count_left
from tests.experiment.grids import TINY

# The higher of these two rates is far ahead: it gets 15% of the answers right, the other 6%.
SEARCHED = """
epochs = 3
search_epochs = 2
finalists = 2
seeds = [0, 1]
learning_rates = [1e-3, 8e-3]
widest = [1e-4, 4e-2]
validation = 200
evaluations = 2
model = { width = 16, heads = 1, order = 2, radix = 2, top_k = 2, ffn = "none", short_conv = 2 }
data = { vocab = 16, train = [[2, 12, 200]], test = [[2, 12, 8]] }
train = { batch = 8, learning_rate_floor = 0.0, warmup = 2 }

[[points]]
name = "a"
variants = { gate = { output_gate = true } }
"""


def test_from_a_grid_to_its_page_with_a_kill_on_the_way(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text(SEARCHED)
    out, results = tmp_path / "out", tmp_path / "out" / "results.jsonl"
    command = ["experiment", "mqar-order", "--grid", str(tmp_path / "mine.toml"), "--out", str(out)]
    killed = subprocess.Popen([sys.executable, "-m", "ramnet_np.cli", *command], stdout=subprocess.DEVNULL)
    while not (results.exists() and results.read_bytes().count(b"\n") >= 2):
        assert killed.poll() is None, "it ended by itself"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = results.read_bytes()
    assert main(command) == 0
    assert " 0 left, 0 failed; in " in capsys.readouterr().out
    assert results.read_bytes().startswith(before)

    records = read_records([results])
    runs = [run_of(record) for record in records]
    assert set(Counter(run.key for run in runs).values()) == {1}  # what was done was not done again
    assert count_left(read_grid(SEARCHED, "mine"), {run.key: r for run, r in zip(runs, records, strict=True)}) == 0
    short = {run.train.learning_rate for run in runs if run.search and not run.variant}
    assert short >= {1e-3, 8e-3, 1.6e-2}  # the sweep went on at its end
    assert all(bool(record["accuracy"]) != run.search for run, record in zip(runs, records, strict=True))
    [result] = collect(records)
    assert result.end == "" or result.chosen.rate in (1.25e-4, 3.2e-2)  # 6.4e-2 is not within "widest"
    assert len(result.accuracies) == 2

    (out / "mqar.md").write_text(f"# Mine\n\n{BEGIN.format('mine')}\n{END.format('mine')}\n")
    assert main(["experiment", "plot", str(results)]) == 0
    page = (out / "mqar.md").read_text()
    assert f"| a | 4 | 2 | {result.accuracy:.3f} | " in page
    assert f"of {len(result.rates)}) | 3 |" in page
    assert "| a | gate | " in page.replace("**", "")
    assert (out / "mine.png").stat().st_size > 5000
    assert (out / "mine-dark.png").stat().st_size > 5000


class Recorded:
    """A pool that only says what it was asked for: each run ends at once on the next of its GPUs."""

    def __init__(self, device, gpus, side_by_side, out, invocation, text, keep_model):
        Recorded.asked = device, gpus, side_by_side
        self.running, self.free = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(("named", "used"), [((), (0, 1, 2)), ((2,), (2,)), ((0, 0), (0, 0))])
def test_runs_spread_over_all_gpus_unless_some_are_named(monkeypatch, tmp_path, named, used):
    gpu = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 3)))
    monkeypatch.setattr(runner, "gpu_namespace", lambda: gpu)
    monkeypatch.setattr(runner, "WorkerPool", Recorded)
    (tmp_path / "tiny.toml").write_text(TINY)
    options = Options(out=tmp_path, grid=tmp_path / "tiny.toml", device="gpu", gpus=named, side_by_side=8)
    run_experiment("x", options, log=print, progress=False)
    assert Recorded.asked == ("gpu", used, 8)


def test_a_gpu_that_is_not_there(monkeypatch, tmp_path):
    gpu = SimpleNamespace(cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 2)))
    monkeypatch.setattr(runner, "gpu_namespace", lambda: gpu)
    with pytest.raises(ValueError, match=r"gpus must be below 2, as many as there are, got \[1, 2\]"):
        run_experiment("mqar-order", Options(out=tmp_path, device="gpu", gpus=(1, 2)), progress=False)


def test_several_grids_share_a_folder_and_an_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["mqar-cape", "mqar-digit"]
    assert main(["experiment", *names, "--quick", "--max-minutes", "1e-9"]) == 0
    printed = capsys.readouterr().out
    assert "time is up: 30 runs left" in printed
    assert "0 finished now, " in printed
    assert "in runs/mqar-cape+mqar-digit-quick/results.jsonl" in printed
    (tmp_path / "tiny.toml").write_text(TINY)
    assert main(["experiment", *names, "--grid", "tiny.toml"]) == 2
    assert "grid takes the place of one grid, got 2: mqar-cape, mqar-digit" in capsys.readouterr().err
    assert main(["experiment", "mqar-cape", "mqar-cape", "--quick"]) == 2
    assert "points of grids that run together must have names of their own" in capsys.readouterr().err
