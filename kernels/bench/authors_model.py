"""The authors' own model with its operation and with ours, in one process on one GPU:

    pip install torch einops transformers flash-linear-attention && pip install --no-deps --pre ramnet-ops ramnet
    python -m ramnet_np.kernels.bench.authors_model

Before anything is timed, logits, loss and gradients of the two must agree in float32, and greedy tokens are compared.
The model has 340M parameters; training is bfloat16 autocast, as in ``language_peers.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from .cpu import append_jsonl
from .language_peers import VOCAB, authors, measure


@dataclass(frozen=True)
class Options:
    """Time the authors' model with its own operation and with this library's."""

    batch: int = 8
    """Sequences of a training step."""
    length: int = 4096
    """Tokens of a sequence."""
    steps: int = 4
    """Training steps in each of three rounds."""
    new_tokens: int = 48
    """Tokens that are generated greedily, for 1 and for 16 prompts of 64 tokens."""
    out: Path | None = None
    """Append the results to this file, one JSON object per line."""


def gradients_of(model: Any, ids: Any) -> dict[str, Any]:
    """Logits, loss and all gradients in float32."""
    model.zero_grad(set_to_none=True)
    result = model(input_ids=ids, labels=ids, use_cache=False)
    result.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": result.logits.detach(), "loss": result.loss.detach(), **found}


def distances(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Norm of the difference over the norm, of the logits, the loss and the gradient that differs most."""

    def distance(name: str) -> float:
        return float((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-30))

    worst = max(distance(name) for name in other.keys() - {"logits", "loss"})
    return {"logits": distance("logits"), "loss": distance("loss"), "worst gradient": worst}


def greedy(model: Any, batch: int, count: int) -> tuple[Any, float]:
    """Greedy tokens behind prompts of 64 tokens, and the milliseconds that one takes."""
    import torch

    torch.manual_seed(1)
    prompt = torch.randint(3, VOCAB, (batch, 64), device="cuda")

    def generate(length: int) -> tuple[Any, float]:
        torch.cuda.synchronize()
        started = time.perf_counter()
        ids = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length, min_new_tokens=length,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        torch.cuda.synchronize()
        return ids[:, 64:], time.perf_counter() - started

    with torch.no_grad():
        generate(4)
        _, start = generate(4)
        ids, seconds = generate(count)
    return ids, 1e3 * (seconds - start) / (count - 4)


def main(options: Options) -> None:
    """Check, time, print."""
    import ramnet_ops
    import torch

    from ramnet_np.bridges.ramnet_ops import random_access_memory_attention, use_in

    print("about three minutes, most of them for compilers and tuners of kernels", flush=True)
    torch.manual_seed(0)
    model = authors()
    operations: dict[str, Callable[..., Any]] = {
        "authors": ramnet_ops.random_access_memory_attention,
        "ramnet_np": random_access_memory_attention,
    }
    ids = torch.randint(3, VOCAB, (2, 512), device="cuda")
    results = {name: gradients_of(use_in(model, operation), ids) for name, operation in operations.items()}
    agreement = distances(results.pop("ramnet_np"), results.pop("authors"))
    said = ", ".join(f"{name} {value:.1e}" for name, value in agreement.items())
    print("float32, difference over norm:", said, flush=True)

    rows, tokens = [], {}
    for name, operation in operations.items():
        use_in(model, operation)
        row: dict[str, Any] = {"operation": name}
        for batch in (1, 16):
            tokens[name, batch], row[f"ms a token, B {batch}"] = greedy(model, batch, options.new_tokens)
        rows.append(row)
    for batch in (1, 16):
        same = (tokens["authors", batch] == tokens["ramnet_np", batch]).float().mean().item()
        print(f"greedy tokens, B {batch}: {same:.1%} the same", flush=True)
    model.zero_grad(set_to_none=True)
    for row, (_, operation) in zip(rows, operations.items(), strict=True):
        use_in(model, operation)
        torch.cuda.reset_peak_memory_stats()
        row |= measure(
            model, lambda ids, _: model(input_ids=ids, labels=ids, use_cache=False).loss,
            options.batch, options.length, options.steps,
        )  # fmt: skip
    print(f"\n{'operation':12}{'step ms':>10}{'tokens/s':>12}{'GiB':>8}{'ms a token, B 1':>18}{'B 16':>8}")
    for row in rows:
        cells = f"{row['ms']:>10.1f}{row['tokens/s']:>12,.0f}{row['GiB']:>8.1f}"
        print(f"{row['operation']:12}{cells}{row['ms a token, B 1']:>18.1f}{row['ms a token, B 16']:>8.1f}")
    if options.out:
        machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        append_jsonl(options.out, (row | machine | {"agreement": agreement} for row in rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
