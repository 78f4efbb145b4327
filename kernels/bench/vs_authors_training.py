"""A training step on the CPU, ours and that of the authors' package, in one run. To start it:

    pip install torch einops transformers && pip install --no-deps ramnet ramnet-ops
    python -m ramnet_np.kernels.bench.vs_authors_training

A text model of bytes with 10 million parameters, the same weights and batches on both sides: forward, loss, backward,
clipping, AdamW, in float32. Two things of the authors' package need a GPU. In their place it gets the Torch reference
of the memory in its package ``ramnet-ops``, and PyTorch's functions for SwiGLU. The loss of the first step must agree
before anything is timed.
"""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from ramnet_np.data.batches import Batch
from ramnet_np.model import RAMNet
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.optim import adamw_init
from ramnet_np.train.trainer import CPUTrainer

from .cpu import append_jsonl, describe_machine
from .vs_authors_cpu import peer_versions

VOCAB, WIDTH, LAYERS, HEADS = 256, 384, 6, 6


@dataclass(frozen=True)
class Options:
    """Time training steps of the authors' package and of ours on the CPU."""

    batch: int = 4
    """Sequences of a step."""
    length: int = 256
    """Tokens of a sequence."""
    steps: int = 5
    """Steps that are timed on each side, in turn; medians count."""
    out: Path | None = None
    """Append the result to this file, one JSON object a line."""


def main(options: Options) -> None:
    """Check that both compute the same, then print both times and their ratio."""
    machine = describe_machine()
    machine["versions"] |= peer_versions()
    ids = np.random.default_rng(0).integers(0, VOCAB, (options.batch, options.length))
    theirs, our_model = both_models()
    steps = {"authors": peer_step(theirs, ids), "ours": our_step(our_model, ids, options)}
    first = {name: step() for name, step in steps.items()}
    if abs(first["authors"] - first["ours"]) > 1e-3:
        raise SystemExit(f"the losses of the first step differ: {first}")
    took: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            took[name].append(1e3 * (time.perf_counter() - started))
    ms = {name: float(np.median(times)) for name, times in took.items()}
    print(f"{machine['device']}, {machine['threads']} threads, {our_model.num_parameters():,} parameters, float32")
    for name, each in ms.items():
        print(f"{name:8} {each:10,.1f} ms a step of {options.batch} x {options.length} tokens")
    print(f"ours is {ms['authors'] / ms['ours']:.2f} times as fast")
    if options.out is not None:
        sizes = {"batch": options.batch, "length": options.length, "parameters": our_model.num_parameters()}
        append_jsonl(options.out, [{"ms": ms, "first_loss": first} | sizes | machine])


def both_models() -> tuple[Any, RAMNet]:
    """The authors' model, on their Torch reference, and ours with its weights."""
    import torch

    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that its CUDA part cannot load
        from fla.modules import mlp
        from ramnet import RAMNetConfig, RAMNetForCausalLM
        from ramnet.layers import ram_attn_block
    attention = ram_attn_block.random_access_memory_attention

    @functools.wraps(attention)
    def on_torch(*args: Any, **kwargs: Any) -> Any:
        return attention(*args, **kwargs | {"impl_backend": "torch"})

    ram_attn_block.random_access_memory_attention = on_torch
    mlp.swiglu = lambda gate, up: torch.nn.functional.silu(gate) * up
    config = RAMNetConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=LAYERS, addr_order=5, addr_radix=4,
        value_chs=64, embed_num=(HEADS,) + (0,) * (LAYERS - 1), addr_top_k=8, vocab_size=VOCAB, gamma=0.0,
        gamma_mode="dynamic", output_norm=True, hidden_act="SwiGLU", fuse_norm=False, fuse_cross_entropy=False,
        pad_token_id=None, bos_token_id=1, eos_token_id=2, dtype="float32", tie_word_embeddings=True,
    )  # fmt: skip
    theirs = RAMNetForCausalLM(config)
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, RAMNet.from_pretrained(folder)


def peer_step(model: Any, ids: np.ndarray) -> Callable[[], float]:
    """One training step of the authors' model; returns its loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.1, betas=(0.9, 0.95))
    tokens = torch.from_numpy(ids)

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss  # it shifts the labels itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def our_step(model: RAMNet, ids: np.ndarray, options: Options) -> Callable[[], float]:
    """One training step of ours; returns its loss."""
    config = TrainConfig(steps=10_000, batch=options.batch, learning_rate=1e-4, learning_rate_floor=1e-4, warmup=0)
    trainer = CPUTrainer(model, config, adamw_init(model.params))
    labels = np.full_like(ids, -100)
    labels[:, :-1] = ids[:, 1:]
    batch = Batch(ids, labels)

    def step() -> float:
        trainer.step(batch)
        return trainer.report().loss

    return step


if __name__ == "__main__":
    main(tyro.cli(Options))
