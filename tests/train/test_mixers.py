"""Every mixer through the command: trains, resumes to the same bits, and learns."""

import json
import signal

import numpy as np
import pytest

from ramnet_np.cli import main
from ramnet_np.data.batches import Batch, ShuffledSets
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs import mqar as runs
from ramnet_np.train.checkpoint import latest_checkpoint
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.loop import train
from tests.mixer_cases import MIXERS

TASK = [
    *("--data.vocab", "32", "--data.train", "2", "12", "40", "3", "16", "40", "--data.test", "2", "12", "10"),
    *("--model.vocab", "32", "--model.width", "16", "--model.order", "2", "--train.steps", "6", "--train.batch", "8"),
    *("--train.warmup", "2", "--train.log-every", "2", "--train.evaluate-every", "3", "--train.checkpoint-every", "4"),
]


def flags(fields):
    """The fields of a model as they are written on the command line."""
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--model.{flag}" if value else f"--model.no-{flag}"
        else:
            yield from (f"--model.{flag}", str(value))


def weights(out):
    folder = latest_checkpoint(out / "checkpoints")
    return (folder / "model.safetensors").read_bytes(), (folder / "optimizer.safetensors").read_bytes()


@pytest.mark.parametrize("name", MIXERS)
def test_the_command_trains_and_resumes_to_the_same_bits(name, tmp_path, capsys, monkeypatch):
    command = ["train", "mqar", *TASK, *flags(MIXERS[name])]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    said = capsys.readouterr().out
    drawn = {"curves.png", "trace.png"} if MIXERS[name]["mixer"] == "ram" else {"curves.png"}
    assert {p.name for p in (tmp_path / "whole").glob("*.png")} == drawn
    assert ("trace.png" in said) == ("trace.png" in drawn)

    class Interrupted(ShuffledSets):
        def batch(self, step):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            return super().batch(step)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "ShuffledSets", Interrupted)
        with pytest.raises(SystemExit) as ended:
            main([*command, "--out", str(tmp_path / "parts")])
    assert ended.value.code == 130
    assert "interrupted after step 4" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "parts"), "--resume"]) == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    kept = json.loads(next((tmp_path / "whole" / "checkpoints").glob("*/training.json")).read_text())
    assert kept["settings"]["model"] | MIXERS[name] == kept["settings"]["model"]
    assert main([*command, "--out", str(tmp_path / "parts"), "--resume", "--model.window", "9"]) == 2
    assert "model.window must be" in capsys.readouterr().err


class Backwards:
    """After six tokens, say them again: needs each one's place, and for most mixers the convolution to find it."""

    def batch(self, step):
        ids = np.random.default_rng([0, step]).integers(8, size=(32, 12), dtype=np.int32)
        ids[:, 6:] = ids[:, :6]
        labels = np.full_like(ids, -100)
        labels[:, 6:11] = ids[:, 7:]
        return Batch(ids, labels)

    def held_out(self):
        return {"copy": self.batch(10**9)}


@pytest.mark.parametrize("mixer", ["softmax", "window", "linear", "delta", "gla", "mamba2"])
def test_every_mixer_learns_to_copy(mixer, tmp_path):
    config = RAMNetConfig(
        vocab=8, width=32, layers=2, mixer=mixer, window=8, short_conv=4, delta_gate=True, ffn="none", init_std=0.1
    )
    how = TrainConfig(steps=500, batch=32, learning_rate=1e-2, learning_rate_floor=1e-3, warmup=20, stop_at=0.9)
    result = train(RAMNet(config), Backwards(), how, tmp_path, settings={}, progress=False)
    assert result.status == "reached stop_at", result.accuracy


def test_a_run_of_another_mixer_refuses_a_checkpoint(tmp_path, capsys):
    command = ["train", "mqar", *TASK, "--out", str(tmp_path / "run")]
    assert main([*command, "--model.mixer", "linear"]) == 0
    assert main([*command, "--model.mixer", "delta", "--resume"]) == 2
    assert "model.mixer must be 'linear' as in the checkpoint" in capsys.readouterr().err
