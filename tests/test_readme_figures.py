"""The figures of the README's table "What it reaches" are those of the committed records and of the pages it names."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ROWS = re.findall(r"^\| (.+?) \| (.+) \| .+ \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def row(beginning):
    """The result of the row that begins so, without bold type."""
    [found] = [result for what, result in ROWS if what.startswith(beginning)]
    return found.replace("**", "")


def records(name):
    return [json.loads(line) for line in (DOCS / "results" / name).read_text(encoding="utf-8").splitlines()]


def accuracy(file, grid, point, number):
    """The mean over seeds of a number of a point's runs at full length, at the rate that validation chose."""
    runs = [r for r in records(file) if (r["grid"], r["name"]) == (grid, point) and not r["settings"]["search"]]
    best = max((r for r in runs if r["settings"]["seed"] == 0), key=lambda r: r["validation"]["mean"])
    seeds = [r["accuracy"][number] for r in runs if r["learning_rate"] == best["learning_rate"]]
    return sum(seeds) / len(seeds)


def test_recall():
    said = row("recall of 4 to 256")
    right, of_256 = (
        f"{accuracy('mqar.jsonl', 'mqar-order', 'm1024-u5', number):.1%}"
        for number in ("mean", "256 pairs, length 1024")
    )
    assert said == f"{right} (the paper's figure: 98.5%); {of_256} of 256 pairs"


def test_novels():
    two, eight, larger = row("predicting unseen novels").split("; ")[:3]
    for part, grid, ending, order in (
        (two, "language-rivals", "-20m", ("ram", "gated-delta", "window", "delta", "softmax")),
        (eight, "language-long", "-20m-long", ("softmax", "window", "ram", "gated-delta")),
        (larger, "language-rivals", "-60m", ("ram", "gated-delta", "window", "softmax")),
    ):
        bits = [accuracy("language.jsonl", grid, point + ending, "bits_per_byte") for point in order]
        assert [float(number) for number in re.findall(r"\d\.\d{3}\b", part)] == pytest.approx(bits, abs=0.00051), part
        assert bits == sorted(bits)  # the best comes first


def test_generation_on_a_gpu():
    runs = records("generation/gpu.jsonl")

    def ms(batch, context, peer=None):
        """The last run of that kind."""
        found = [r for r in runs if (r["batch"], r.get("context"), r.get("peer")) == (batch, context, peer)]
        return found[-1]["ms"]

    authors = next(r["ms"] for r in runs if r.get("peer") == "authors")  # that of the earlier run
    assert f"{ms(1, 1_000_000):.2f} ms a token" in (said := row("generating text with that model"))
    assert f"takes {ms(1, 1_000_000, 'transformer'):.1f} ms; the authors' package {authors:.1f} ms" in said
    for batch, texts in ((64, "{:,} tokens/s for 64 texts"), (256, "{:,} for 256")):
        assert texts.format(round(1000 * batch / ms(batch, 1000), -2)).replace(".0", "") in said


def test_several_gpus():
    speed = {(r["gpus"], r["date"]): r["tokens/s"] for r in records("scaling/h200.jsonl") if not r["shard_optimizer"]}
    (first, *_, last) = sorted((date, rate) for (gpus, date), rate in speed.items() if gpus == 1)
    two, four = (next(rate for (gpus, _), rate in speed.items() if gpus == n) for n in (2, 4))
    said = row("the same on four GPUs")
    assert said.startswith(f"{round(four, -3):,.0f} tokens/s, {four / last[1]:.2f} times one of them")
    assert said.endswith(f"on two {two / first[1]:.2f} times")


ON_PAGES = [  # what the README says, and how it stands on the page; no record of these is kept
    ("the operation at the paper's size", "kernels-figures.md", {
        "2.98 ms from a CUDA graph": "/ 2.980** |", "3.24 ms from Python": "1.26 / 3.24",
        "11.71 ms in the same process": "4.53 / 11.71",
    }),
    ("training a language model", "gpu-training.md", {
        "171,400 tokens/s": "| 171,400 |", "authors' package 62,000": "| 62,000 |",
        "of that size 161,000": "| 161,000 |",
    }),
    ("generating text on a CPU", "guide/sampling.md", {
        "324 to 563 tokens/s": "between 324 and 563 in 16 bits",
        "227 to 351 in float32": "between 227 and 351 tokens/s",
    }),
    ("the operation on a CPU", "benchmarks.md", {"1.36 ms": "| 1.36 (", "33.4 ms": "| 33.44 ("}),
]  # fmt: skip


@pytest.mark.parametrize(("beginning", "page", "figures"), ON_PAGES)
def test_figures_without_records_stand_on_their_page(beginning, page, figures):
    said, text = row(beginning), (DOCS / page).read_text(encoding="utf-8")
    assert [here for here, there in figures.items() if here not in said or there not in text] == []
