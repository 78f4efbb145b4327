"""How far greedy tokens of bfloat16 agree with those of float32, on a GPU:

    python -m ramnet_np.kernels.bench.generation_agreement --folder runs/book      # a trained model
    python -m ramnet_np.kernels.bench.generation_agreement                         # paper-340m as it is initialised

Both continue the same prompts. Behind the first token in which two texts differ nothing can be compared, so there the
two logits are: in float32, behind the text that both have. A number of bfloat16 has 8 bits, so a logit l is rounded to
multiples of its unit, 2**-7 times the power of two below l. Two logits lie within rounding where their distance is at
most ``--units`` of these: one for the logits themselves, and what the layers before have rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import gpu_namespace
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling

from .cpu import append_jsonl
from .gpu_timing import machine_record


@dataclass(frozen=True)
class Options:
    """Count where greedy tokens of two dtypes differ."""

    preset: str = "paper-340m"
    """The network, with initial values."""
    folder: Path | None = None
    """A run or checkpoint whose model is taken instead."""
    dtype: str = "bfloat16"
    """What is compared with float32."""
    prompts: int = 20
    """Random prompts of 16 tokens."""
    tokens: int = 200
    """Tokens behind each."""
    units: float = 2.0
    """Two logits lie within rounding if they are at most so many units of the dtype apart."""
    out: Path | None = None
    """Append the result to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each text that differs, and the counts."""
    xp = gpu_namespace()
    model = RAMNet(preset(options.preset)) if options.folder is None else RAMNet.from_pretrained(options.folder)
    model = model.to("gpu", "float32")
    prompts = xp.asarray(np.random.default_rng(0).integers(0, model.config.vocab, (options.prompts, 16)))
    exact, rounded = (greedy(model.to("gpu", dtype), prompts, options.tokens) for dtype in ("float32", options.dtype))
    gaps = [gap for row in range(options.prompts) if (gap := first_gap(model, prompts[row], exact[row], rounded[row]))]
    for gap in gaps:
        print("token {token:>4}: {units:6.2f} units apart, {distance:.5f} at {logit:.3f}".format(**gap))
    within = sum(gap["units"] <= options.units for gap in gaps)
    alike = options.prompts - len(gaps)
    print(
        f"{alike} of {options.prompts} texts agree in all {options.tokens} tokens; of the {len(gaps)} others "
        f"{within} part where two logits lie within {options.units:g} units of {options.dtype}"
    )
    if options.out is not None:
        counts: dict[str, Any] = {"prompts": options.prompts, "tokens": options.tokens, "alike": alike}
        told = {"within": within, "units": options.units, "dtype": options.dtype, "model": repr(model)}
        append_jsonl(options.out, [counts | told | {"gaps": gaps} | machine_record(xp)])


def greedy(model: RAMNet, prompts: Any, count: int) -> np.ndarray:
    """The likeliest tokens behind the prompts, (B, count)."""
    generation = Generation(model, prompts)
    return np.stack([generation.next_on_host(Sampling()) for _ in range(count)], axis=1)


def first_gap(model: RAMNet, prompt: Any, exact: np.ndarray, rounded: np.ndarray) -> dict[str, float] | None:
    """Where two texts part, and how far apart the logits of their tokens are in float32; None if they do not."""
    differ = np.flatnonzero(exact != rounded)
    if not differ.size:
        return None
    t, xp = int(differ[0]), gpu_namespace()
    before = xp.concatenate([prompt, xp.asarray(exact[:t])])
    select = xp.zeros((1, len(before)), dtype=bool)
    select[0, -1] = True
    logits = model.forward(before[None], select=select)[0][0].get()
    high, low = sorted((float(logits[exact[t]]), float(logits[rounded[t]])), reverse=True)
    unit = 2.0 ** (np.floor(np.log2(max(abs(high), abs(low)))) - 7)
    return {"token": t, "distance": high - low, "logit": high, "units": (high - low) / unit}


if __name__ == "__main__":
    main(tyro.cli(Options))
