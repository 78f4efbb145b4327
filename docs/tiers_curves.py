"""The figure of docs/hierarchical-memory.md: speed against the share of rows on the GPU.

    python docs/tiers_curves.py docs/images

Draws docs/results/tiers/gpu.jsonl, for light and for dark pages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from ramnet_np.plot.curves import curves
from ramnet_np.plot.style import theme

RECORDS = Path(__file__).parent / "results/tiers/gpu.jsonl"
COMMAND = "python -m ramnet_np.kernels.bench.tiers --parts "
# for each line: the command that measured it, and the field of its records that holds the speed
LINES = {
    "generation, paper-340m": (f"{COMMAND}generation", "tokens/s"),
    "generation, text model with M = 4**10": (
        f"{COMMAND}generation --model text-10 --prompt-file novels.txt --prompt 65536",
        "tokens/s",
    ),
    "memories alone, float32": (f"{COMMAND}memory", "us a token"),
    "memories alone, bfloat16": (f"{COMMAND}memory --rows bfloat16", "us a token"),
}


def speeds() -> dict[str, dict[float, float]]:
    """For every line the speed by the share of rows on the GPU, that of the dense state being 1."""
    records = [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]
    series = {}
    for name, (command, figure) in LINES.items():
        own = [row for row in records if row["command"] == command]
        power = 1 if figure == "tokens/s" else -1
        (dense,) = (row[figure] for row in own if row["share"] == "dense")
        series[name] = {
            row["share"]: (row[figure] / dense) ** power for row in own if not isinstance(row["share"], str)
        }
    return series


def figure() -> Figure:
    """A line for each."""
    series = speeds()
    shares = sorted(next(iter(series.values())))
    return curves(
        shares,
        {name: [line[share] for share in shares] for name, line in series.items()},
        xlabel="share of rows on the GPU, the others in the host's memory",
        ylabel="speed; the dense state is 1",
    )


def main(folder: Path) -> None:
    """Write the two figures."""
    for name, kind in (("tiers-curves", "light"), ("tiers-curves-dark", "dark")):
        with theme(kind):
            drawn = figure()
            drawn.axes[0].set_ylim(0, 1.05)
            drawn.savefig(folder / f"{name}.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
