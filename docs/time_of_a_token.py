"""Draw what a token costs against the context, from the records of ramnet_np.kernels.bench.generation:

    python docs/time_of_a_token.py docs/results/generation/cpu.jsonl docs/images/sampling-context.png

Writes the picture for a light page and, as NAME-dark, one for a dark page. Of a GPU's records those of one text with
CUDA graphs count, and the last one of each context.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from ramnet_np.model.mixers import MIXERS
from ramnet_np.plot import curves
from ramnet_np.plot.style import theme
from ramnet_np.runs.pictures import save_picture

PEERS = {"transformer": "Transformer in PyTorch, one graph"}


def main(records: Path, out: Path) -> None:
    """A line for each mixer."""
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("batch") == 1 and row.get("graphs") != "off" and "context" in row]
    if not rows:
        raise SystemExit(f"records must be a file of ramnet_np.kernels.bench.generation, got none in {str(records)!r}")
    contexts: dict[str, set[int]] = {}
    for row in rows:
        contexts.setdefault(row["dtype"], set()).add(row["context"])
    dtypes = {dtype for dtype, measured in contexts.items() if len(measured) > 1}  # a line has two points at least
    rows = [row for row in rows if row["dtype"] in dtypes]
    lines: dict[str, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row["context"]):
        name = PEERS[row["peer"]] if "peer" in row else MIXERS[row["mixer"]].variants[0].label
        name += f", {row['parameters'] / 1e6:.1f}M parameters"
        name += f", {row['dtype']}" if len(dtypes) > 1 else ""
        lines.setdefault(name, {})[row["context"]] = row["ms"]
    threads = "" if "cupy" in rows[0]["versions"] else f", {rows[0]['threads']} threads"
    x, y = ({name: list(part(line)) for name, line in lines.items()} for part in (dict.keys, dict.values))
    figure = partial(
        curves, x, y, xlabel="tokens of context", ylabel="ms a token", xscale="log", yscale="log",
        title=f"one text, {rows[0]['device']}{threads}, {' and '.join(sorted(dtypes))}",
    )  # fmt: skip
    save_picture(figure, out)
    with theme("dark"):
        save_picture(figure, out.with_stem(f"{out.stem}-dark"))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
