"""The figures of docs/hierarchical-memory.md: how many facts a head recalls, by its number of slots M.

    python docs/slots_recall.py docs/images              draws docs/results/tiers/slots-recall.jsonl and -trained.jsonl
    python docs/slots_recall.py docs/images --measure    measures first, on one CPU

A fact is a key, random digit logits, and a value of C numbers, each 1 or -1. All facts are written, one a token; then
the keys of some are asked for. A fact is recalled if no value of another fact is nearer to what is read. Nothing is
trained, so this is what the memory can hold, with addresses that are spread evenly. The trained models' records are of

    ramnet-np train mqar --device gpu --model.order U --data.test 4 64 1000 64 256 1000 128 512 500 256 1024 500 \\
        512 2048 200 1024 4096 100
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import ramnet_np
from ramnet_np import SparseRAMState, ram_attention_forward
from ramnet_np.plot.curves import curves
from ramnet_np.plot.style import theme

RECORDS = Path(__file__).parent / "results/tiers/slots-recall.jsonl"
TRAINED = RECORDS.with_name("slots-recall-trained.jsonl")
ORDERS, FACTS, QUERIES, RADIX, C = (3, 5, 7, 10, 13), tuple(4**n for n in range(2, 10)), 256, 4, 32


def measure(order: int, facts: int) -> dict[str, object]:
    """The share of facts that a head with 4**order slots recalls, and what its sparse state takes."""
    rng = np.random.default_rng(0)
    keys = 3 * rng.normal(size=(1, facts, 1, order, RADIX)).astype(np.float32)
    values = rng.choice(np.array([-1, 1], np.float32), (1, facts, 1, C))
    state = SparseRAMState.initial(1, 1, RADIX**order, C)
    ram_attention_forward(keys, keys, values, state=state)
    written, size = state.written, state.nbytes
    asked = rng.permutation(facts)[:QUERIES]
    aside = np.broadcast_to(3 * rng.normal(size=(order, RADIX)).astype(np.float32), keys[:, asked].shape)  # writes too
    y, _, _ = ram_attention_forward(aside, keys[:, asked], np.zeros_like(values[:, asked]), state=state)
    recalled = float(((y[0, :, 0] @ values[0, :, 0].T).argmax(axis=1) == asked).mean())
    return {"slots": RADIX**order, "facts": facts, "recalled": recalled, "written": written, "bytes": size}


def figure(records: list[dict[str, float]], xlabel: str) -> Figure:
    """A line for each M."""
    slots = sorted({row["slots"] for row in records})
    facts = sorted({row["facts"] for row in records})
    series = {
        f"M = 4**{round(np.log2(M) / 2)}": [row["recalled"] for row in records if row["slots"] == M] for M in slots
    }
    return curves(facts, series, xlabel=xlabel, ylabel="share recalled", xscale="log")


def read(path: Path) -> list[dict[str, float]]:
    """The records of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(folder: Path, measured: bool) -> None:
    """Write the figures, the first from new records if they are wanted."""
    if measured:
        rows = [measure(order, facts) for order in ORDERS for facts in FACTS]
        about = {"ramnet_np": ramnet_np.__version__, "numpy": np.__version__, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        RECORDS.write_text("".join(json.dumps(row | about) + "\n" for row in rows), encoding="utf-8")
    for name, path, xlabel in (
        ("slots-recall", RECORDS, "facts in one head"),
        ("slots-recall-trained", TRAINED, "pairs in the sequence"),
    ):
        for kind in ("light", "dark"):
            with theme(kind):
                drawn = figure(read(path), xlabel)
                drawn.savefig(folder / f"{name}{'' if kind == 'light' else '-dark'}.png", dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--measure" in sys.argv)
