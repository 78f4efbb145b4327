"""Training runs by name, for the command and the demo."""

from __future__ import annotations

from pathlib import Path

from ramnet_np.data.mqar import MQAR_PRESETS
from ramnet_np.data.text import TextSettings
from ramnet_np.model import preset
from ramnet_np.runs.mqar import MQARRun
from ramnet_np.runs.text import TextRun
from ramnet_np.train.config import TrainConfig

MQAR_RUNS: dict[str, MQARRun] = {
    # The paper's task and batch, with the settings of docs/results/mqar.md. An epoch is 702 steps; this is six.
    "mqar-small": MQARRun(
        train=TrainConfig(steps=4212, batch=256, learning_rate=1.5e-3, learning_rate_floor=0.0, evaluate_every=702)
    ),
    # Eight pairs among 64 tokens: minutes on a CPU.
    "demo": MQARRun(
        model=preset("mqar-demo"),
        data=MQAR_PRESETS["demo"],
        train=TrainConfig(
            steps=2000,
            batch=32,
            learning_rate=1.5e-3,
            learning_rate_floor=1.5e-4,
            warmup=50,
            log_every=10,
            evaluate_every=50,
            stop_at=0.995,
        ),
        out=Path("demo"),
    ),
}

_TEXT = TrainConfig(steps=4000, batch=32, learning_rate=3e-3, learning_rate_floor=1e-4, warmup=50, log_every=10)

TEXT_RUNS: dict[str, TextRun] = {
    # The text made here: a sequence is a line and a little.
    "facts": TextRun(train=_TEXT, data=TextSettings(length=80, start="line")),
    # Any file.
    "file": TextRun(train=_TEXT, data=TextSettings(length=256)),
}
