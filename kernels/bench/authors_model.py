"""The authors' own model with its operation and with ours, in one process on one GPU:

    pip install torch einops transformers flash-linear-attention && pip install --no-deps --pre ramnet-ops ramnet
    python -m ramnet_np.kernels.bench.authors_model
    python -m ramnet_np.kernels.bench.authors_model --parts generation

The part "agreement" compares one layer of each with float64, and the whole model with both in float32: logits, loss and
gradients. "generation" times greedy tokens in evaluation mode and float32, and compares them; "training" times steps in
bfloat16 autocast, as in ``language_peers.py``. The model has 370M parameters. The last lines are a table in Markdown.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from .cpu import append_jsonl, describe_machine
from .language_peers import VOCAB, authors, measure

PARTS = "agreement", "generation", "training"
BATCHES, ROUNDS = (1, 16), 3  # of generation


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
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    """What to measure, among agreement, generation and training."""
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


def accuracy(operations: dict[str, Callable[..., Any]], tokens: int, device: str) -> dict[str, dict[str, float]]:
    """How far y and the gradient of the values are from those in float64: norm of the difference over the norm.

    In float32 by each operation, in float64 by this library's. Rounding decides near ties among addresses, and a model
    of many layers carries such a difference on. Here there is one layer, with random addresses.
    """
    import torch

    torch.manual_seed(2)
    shapes = [(1, tokens, 16, 5, 4), (1, tokens, 16, 5, 4), (1, tokens, 16, 64), (1, tokens, 16)]
    drawn = [torch.randn(shape) for shape in shapes]

    def run(operation: Callable[..., Any], dtype: Any) -> list[Any]:
        inputs = [x.to(device, dtype, copy=True).requires_grad_() for x in drawn]
        y, _ = operation(*inputs, embed_num=8, top_k=8)
        y.square().sum().backward()
        return [x.detach().double() for x in (y, inputs[2].grad)]

    exact = run(operations["ramnet_np"], torch.float64)

    def distances_of(operation: Callable[..., Any]) -> list[float]:
        return [float((x - e).norm() / e.norm()) for x, e in zip(run(operation, torch.float32), exact, strict=True)]

    names = "y", "gradient of values"
    return {who: dict(zip(names, distances_of(operation), strict=True)) for who, operation in operations.items()}


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

    model.eval()  # else the layers copy their state for every token
    with torch.no_grad():
        generate(4)
        _, start = generate(4)
        ids, seconds = generate(count)
    model.train()
    return ids, 1e3 * (seconds - start) / (count - 4)


def check_agreement(model: Any, operations: dict[str, Callable[..., Any]], rows: list[dict[str, Any]]) -> None:
    """Compare one layer of each with float64, and the whole models with one another."""
    import torch

    from ramnet_np.bridges.ramnet_ops import use_in

    one_layer = accuracy(operations, 512, "cuda")
    for name, found in one_layer.items():
        print(f"one layer of {name}, float32 from float64, difference over norm: {_said(found)}", flush=True)
    ids = torch.randint(3, VOCAB, (2, 512), device="cuda")
    results = {name: gradients_of(use_in(model, operation), ids) for name, operation in operations.items()}
    agreement = distances(results.pop("ramnet_np"), results.pop("authors"))
    print(f"the whole model, float32, one from the other, difference over norm: {_said(agreement)}", flush=True)
    for row in rows:
        row |= {"one layer from float64": one_layer[row["operation"]], "agreement": agreement}
    model.zero_grad(set_to_none=True)


def time_generation(
    model: Any, operations: dict[str, Callable[..., Any]], rows: list[dict[str, Any]], count: int
) -> None:
    """Time greedy tokens of each, and compare them."""
    from ramnet_np.bridges.ramnet_ops import use_in

    tokens: dict[tuple[str, int], Any] = {}
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):  # by turns: the host's speed drifts, and a token is mostly Python
        for name, operation in operations.items():
            use_in(model, operation)
            for batch in BATCHES:
                tokens[name, batch], ms = greedy(model, batch, count)
                times[name, batch].append(ms)
    for row in rows:
        for batch in BATCHES:
            rounds = times[row["operation"], batch]
            row |= {f"ms a token, B {batch}": statistics.median(rounds), f"rounds, B {batch}": rounds}
            said = ", ".join(f"{ms:.1f}" for ms in rounds)
            print(f"{row['operation']}, a token, B {batch}: median of {said} ms", flush=True)
    same = {b: (tokens["authors", b] == tokens["ramnet_np", b]).float().mean().item() for b in BATCHES}
    for batch in BATCHES:
        print(f"greedy tokens, B {batch}: {same[batch]:.1%} the same", flush=True)
    for row in rows:
        row["same greedy tokens"] = same


def time_training(
    model: Any, operations: dict[str, Callable[..., Any]], rows: list[dict[str, Any]], options: Options
) -> None:
    """Time training steps of each."""
    import torch

    from ramnet_np.bridges.ramnet_ops import use_in

    for row in rows:
        use_in(model, operations[row["operation"]])
        torch.cuda.reset_peak_memory_stats()
        row |= measure(
            model, lambda ids, _: model(input_ids=ids, labels=ids, use_cache=False).loss,
            options.batch, options.length, options.steps,
        )  # fmt: skip
        print(f"{row['operation']}, a training step: {row['ms']:.1f} ms, {row['GiB']:.1f} GiB", flush=True)


def main(options: Options) -> None:
    """Check, time, print."""
    for part in options.parts:
        if part not in PARTS:
            raise ValueError(f"parts must be among {', '.join(PARTS)}, got {part!r}")
    import ramnet_ops
    import torch

    from ramnet_np.bridges.ramnet_ops import random_access_memory_attention

    print("a few minutes, most of them for compilers and tuners of kernels", flush=True)
    torch.manual_seed(0)
    model = authors()
    operations: dict[str, Callable[..., Any]] = {
        "authors": ramnet_ops.random_access_memory_attention,
        "ramnet_np": random_access_memory_attention,
    }
    rows: list[dict[str, Any]] = [{"operation": name} for name in operations]
    if "agreement" in options.parts:
        check_agreement(model, operations, rows)
    if "generation" in options.parts:
        time_generation(model, operations, rows, options.new_tokens)
    if "training" in options.parts:
        time_training(model, operations, rows, options)
    print("\n| operation | training step, ms | tokens/s | GiB | a generated token, B 1, ms | B 16, ms |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    columns = {"ms": ".0f", "tokens/s": ",.0f", "GiB": ".1f"} | {f"ms a token, B {batch}": ".1f" for batch in BATCHES}
    for row in rows:
        cells = (format(row[name], how) if name in row else "" for name, how in columns.items())
        print(f"| {row['operation']} | {' | '.join(cells)} |")
    if options.out:
        machine = describe_machine() | {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
        append_jsonl(options.out, (row | machine for row in rows))


def _said(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


if __name__ == "__main__":
    main(tyro.cli(Options))
