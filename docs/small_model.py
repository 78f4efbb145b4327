r"""The small folder of a trained language model, such as models/novels-20m, from a run of an experiment:

    ramnet-np experiment language-long --only ram-20m-long --text tokens --device gpu \
        --keep-models --out runs/long
    python docs/small_model.py runs/long/models/ram-20m-long-seed0 runs/long/results.jsonl models/novels-20m

Writes the parameters in bfloat16, the tokenizer, and as README.md what the model has read, how it was trained and how
well it predicts. The numbers are those of the run's record.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from ramnet_np.data.tokens import TOKENIZER
from ramnet_np.experiment.one_run import RUN
from ramnet_np.experiment.records import Record, read_records
from ramnet_np.experiment.tables import hardware_in_words
from ramnet_np.model.files import read_json, write_text
from ramnet_np.runs.text import load_text_model

CARD = """\
# {title}

A language model of pieces of text, {parameters:,} parameters in bfloat16: {what}.
It needs the library tokenizers (`pip install ".[text]"`). From the repository's root:

    ramnet-np generate {folder} --prompt "It was a dark evening, and"

{quick}## What it has read

75 English novels, 60.4 MB. Nine further ones, of Gaskell, Kipling and Stevenson, are held out: neither the model nor
its tokenizer has seen them. All 84 are of 1839 to 1930 and out of copyright. They are from the public collection
[100 English novels](https://github.com/computationalstylistics/100_english_novels) of the Computational Stylistics
Group; `docs/results/novels.sha256` lists them, and the texts are not in this repository. The tokenizer is a byte-level
BPE of {vocab:,} pieces, trained on the 75 novels.

The model writes in the manner of these novels, with their views and prejudices, and knows nothing else.
The weights are under the repository's licence.

## How it was trained

| setting | value |
| --- | --- |
| model | {settings} |
| tokens | {tokens:,}: {epochs:g} passes, {steps:,} steps of {batch} windows of {length} |
| learning rate | {rate:g}, {warmup} steps of warm-up, then half a cosine down to {floor:g} |
| computed in | {dtype}, parameters in float32; seed {seed} |
| took | {minutes:.1f} minutes, ended {date} |
| on | {hardware}; ramnet_np {version} |

## How well it predicts the nine novels

| in windows of {length} tokens that each begin with an empty memory | |
| --- | --- |
| bits a byte | {bits} |
| next token right | {right} |
| bits a byte with the memory carried through each novel | {carried} |

These are the run's own figures, before the parameters were rounded to 16 bits. This measures the rounded ones:

    ramnet-np evaluate {folder} --path tokens --length {length} --no-carry-state

## Make it again

    ramnet-np tokenize novels --out tokens --held-out 'valid/*'
    ramnet-np experiment {grid} --only {name} --text tokens --device gpu \\
        --keep-models --out runs/long
    python docs/small_model.py runs/long/models/{kept} runs/long/results.jsonl {folder}

`docs/results/language.md` says how to make the folder `novels`.
"""

QUICK = """\
**A stand-in**: a tiny model of a reduced grid, to see that everything works. It writes nothing that makes sense.

"""


def small_model(kept: Path, results: Path, out: Path) -> str:
    """Write ``out`` from a model that an experiment kept, and from the record of its run; returns what was written.

    FileNotFoundError or ValueError where the model or its record is not there; then nothing is written.
    """
    record = record_of(kept, results)
    model = load_text_model(kept)
    if not (kept / TOKENIZER).is_file():
        raise ValueError(f"kept must hold a model of pieces of text, but {str(kept)!r} has no {TOKENIZER}")
    model.save_pretrained(out, dtype="bfloat16")
    shutil.copyfile(kept / TOKENIZER, out / TOKENIZER)
    write_text(out / "README.md", card(record, kept.name, out))
    size = sum(path.stat().st_size for path in out.iterdir())
    return f"{model.num_parameters():,} parameters, {size / 1e6:.1f} MB in {out}"


def record_of(kept: Path, results: Path) -> Record:
    """The record of the run that left the model."""
    if not (kept / RUN).is_file():
        raise FileNotFoundError(f"kept must be a folder that --keep-models made, but {str(kept)!r} has no {RUN}")
    settings = {name: value for name, value in read_json(kept / RUN).items() if name != "measured"}
    found = [record for record in read_records([results]) if record["settings"] == settings]
    if not found:
        raise ValueError(f"results must have the record of the run in {str(kept)!r}, but {str(results)!r} has none")
    return found[-1]


def card(record: Record, kept: str, out: Path) -> str:
    """README.md of the folder ``out``, from the record of the run."""
    settings, accuracy = record["settings"], record["accuracy"]
    model, data, train = (settings[part] for part in ("model", "data", "train"))
    return CARD.format(
        title=out.name,
        folder=out.as_posix(),
        what="the RAM-Net of docs/results/language.md, as in the paper, trained longer",
        quick=QUICK if record["quick"] else "",
        kept=kept,
        settings=model_in_words(model),
        tokens=record["steps"] * train["batch"] * data["length"],
        minutes=record["seconds"] / 60,
        date=record["date"][:10],
        hardware=hardware_in_words(record["hardware"]),
        bits=f"{accuracy['bits_per_byte']:.4f}",
        right=f"{accuracy['mean']:.1%}",
        carried=f"{accuracy['carried bits_per_byte']:.4f}",
        rate=train["learning_rate"],
        floor=train["learning_rate_floor"],
        **{name: record[name] for name in ("parameters", "steps", "epochs", "seed", "version", "grid", "name")},
        **{name: train[name] for name in ("batch", "warmup", "dtype")},
        length=data["length"],
        vocab=model["vocab"],
    )


def model_in_words(model: dict[str, Any]) -> str:
    """The sizes of a RAM-Net."""
    slots = model["radix"] ** model["order"]
    return (
        f"{model['layers']} layers of width {model['width']}, {model['heads']} heads of {slots:,} slots, "
        f"{model['top_k']} of them written and read"
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python docs/small_model.py KEPT RESULTS OUT")
    try:
        print(small_model(*map(Path, sys.argv[1:])))
    except (OSError, ValueError) as error:
        raise SystemExit(f"small_model.py: {error}") from error
