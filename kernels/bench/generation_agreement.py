"""How far greedy tokens of bfloat16 agree with those of float32, on a GPU:

    python -m ramnet_np.kernels.bench.generation_agreement --folder runs/book --text novel.txt      # a trained model
    python -m ramnet_np.kernels.bench.generation_agreement                         # paper-340m as it is initialised

Both continue the same prompts. Behind the first token in which two texts differ nothing can be compared, so there the
two logits are: in float32, behind the text that both have. A number of bfloat16 has 8 bits, so a logit l is rounded to
multiples of its unit, 2**-7 times the power of two below l. Two logits lie within rounding where their distance is at
most ``--units`` of these: one for the logits themselves, and what the layers before have rounded. As that adds up, the
distances between the logits of the two dtypes behind the same texts are told too, the median and the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from ramnet_np.core.arrays import at_least_float32, gpu_namespace, on_host
from ramnet_np.model import RAMNet, preset
from ramnet_np.model.generation import Generation
from ramnet_np.model.sampling import Sampling
from ramnet_np.runs.text import load_codec, load_text_model

from .cpu import append_jsonl
from .gpu_timing import machine_record


@dataclass(frozen=True)
class Options:
    """Count where greedy tokens of two dtypes differ."""

    preset: str = "paper-340m"
    """The network, with initial values."""
    folder: Path | None = None
    """A run or checkpoint of `ramnet-np train text` whose model is taken instead."""
    text: Path | None = None
    """A text whose passages are the prompts, at least as long as one; none: random tokens."""
    length: int = 16
    """Tokens of a prompt."""
    dtype: str = "bfloat16"
    """What is compared with float32."""
    prompts: int = 20
    """How many texts are written."""
    tokens: int = 200
    """Tokens behind each."""
    units: float = 2.0
    """Two logits lie within rounding if they are at most so many units of the dtype apart."""
    out: Path | None = None
    """Append the result to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Print a line for each text that differs, and the counts."""
    xp = gpu_namespace()
    model = RAMNet(preset(options.preset)) if options.folder is None else load_text_model(options.folder)
    model = model.to("gpu", "float32")
    prompts = xp.asarray(prompts_for(model, options))
    lower = model.to("gpu", options.dtype)
    exact, rounded = (greedy(one, prompts, options.tokens) for one in (model, lower))
    gaps = [gap for row in range(options.prompts) if (gap := first_gap(model, prompts[row], exact[row], rounded[row]))]
    for gap in gaps:
        print("token {token:>4}: {units:6.2f} units apart, {distance:.5f} at {logit:.3f}".format(**gap))
    errors = logit_errors(model, lower, xp.concatenate([prompts, xp.asarray(exact)], axis=1))
    print(
        "logits of {} differ from those of float32 by {median:.5f}, at most {largest:.5f}".format(
            options.dtype, **errors
        )
    )
    within = sum(gap["units"] <= options.units for gap in gaps)
    alike = options.prompts - len(gaps)
    print(
        f"{alike} of {options.prompts} texts agree in all {options.tokens} tokens; of the {len(gaps)} others "
        f"{within} part where two logits lie within {options.units:g} units of {options.dtype}"
    )
    if options.out is not None:
        counts: dict[str, Any] = {"prompts": options.prompts, "tokens": options.tokens, "alike": alike}
        told = {
            "within": int(within),
            "errors": errors,
            "units": options.units,
            "dtype": options.dtype,
            "model": repr(model),
        }
        append_jsonl(options.out, [counts | told | {"gaps": gaps} | machine_record(xp)])


def prompts_for(model: RAMNet, options: Options) -> np.ndarray:
    """Passages of the text, else random tokens, (prompts, length)."""
    rng, length = np.random.default_rng(0), options.length
    if options.text is None or options.folder is None:
        return rng.integers(0, model.config.vocab, (options.prompts, length))
    tokens = np.asarray(load_codec(options.folder).encode(options.text.read_text(encoding="utf-8")))
    starts = rng.integers(0, len(tokens) - length + 1, options.prompts)
    return np.stack([tokens[start : start + length] for start in starts])


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


def logit_errors(exact: RAMNet, rounded: RAMNet, texts: Any) -> dict[str, float]:
    """How far the logits of two models are apart behind every token of ``texts`` (N, T): the median and the largest."""
    apart = []
    for text in texts:
        one, other = (on_host(at_least_float32(model.forward(text[None])[0])) for model in (exact, rounded))
        apart.append(np.abs(one - other))
    return {"median": float(np.median(apart)), "largest": float(np.max(apart))}


if __name__ == "__main__":
    main(tyro.cli(Options))
