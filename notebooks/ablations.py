"""Train the models of notebook 9's bars: the model of the notebook with one thing changed, with several seeds.

python notebooks/ablations.py    all of them, two at a time (minutes), into data/ablations.jsonl

A line of that file is one run: what was changed, the seed, the accuracies on unseen sequences after 50, 100, ... steps,
``measure`` at the end, and what it ran on. Another processor may round differently, and a run may then end elsewhere.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from course.recall import PRESET, STEPS, trained_together

import ramnet_np
from ramnet_np.runs.hardware import hardware

RECORDS = Path(__file__).parent / "data" / "ablations.jsonl"
COMMAND = "python notebooks/ablations.py"
SEEDS = (0, 1, 2, 3, 4)
# what the bar is called -> what is changed in the preset
CHANGES = {
    "as above": {},
    "no digit scales": {"address_scale": False},
    "biases at 0": {"prior": False},
    "U=6, P=2 (M=64)": {"order": 6, "radix": 2},
    "U=1, P=64 (M=64)": {"order": 1, "radix": 64},
    "K=4": {"top_k": 4},
    "M=16: U=2": {"order": 2},
    "M=256: U=4": {"order": 4},
    "M=256 and K=64": {"order": 4, "top_k": 64},
    "tau = sqrt(U)": {"temperature": None},
    "output not tied": {"tie_embeddings": False},
    "no CAPE": {"cape": (0, 0)},
    "CAPE in both layers": {"cape": (2, 2)},
}


def main() -> None:
    """Train and write; the file is replaced when every run has ended."""
    jobs = [(name, seed) for name in CHANGES for seed in SEEDS]
    found = trained_together([(CHANGES[name], seed) for name, seed in jobs])
    about = hardware("cpu") | {"ramnet_np": ramnet_np.__version__, "date": time.strftime("%Y-%m-%d")}
    lines = []
    for (name, seed), (accuracies, end) in zip(jobs, found, strict=True):
        run = {"bar": name, "preset": PRESET, "changes": CHANGES[name], "seed": seed, "steps": STEPS}
        end = {measured: round(value, 4) for measured, value in end.items()}
        lines.append(json.dumps(run | {"accuracies": accuracies} | end | about | {"command": COMMAND}))
    RECORDS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
