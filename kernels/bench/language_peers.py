"""What one would train instead, in PyTorch and bfloat16 autocast: one peer a process, for ``language_model.py``:

    python -m ramnet_np.kernels.bench.language_peers transformer-compiled 8 4096 8

Peers: "transformer-eager", "transformer-compiled" (the usual pre-norm Transformer of the same size: RMSNorm, rotary
positions, fused causal attention, SwiGLU, fused AdamW) and "authors" (PyPI ramnet with ramnet-ops). Prints one JSON
object: ms, tokens/s, GiB, loss, parameters. For ``generation.py``, "authors-generate" with a batch, a prompt's length
and tokens: the likeliest tokens behind random prompts, by the package's own ``generate``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

VOCAB, WIDTH, LAYERS, HEADS, INNER = 32_000, 1024, 24, 16, 2816


def transformer(length: int) -> Any:
    """A language model whose head is its embedding table; called with ids and labels it returns the loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        """Causal attention with rotary positions, then SwiGLU, each behind a norm."""

        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, eps=1e-6) for _ in range(2))
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            self.gate_up, self.down = nn.Linear(WIDTH, 2 * INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            def rotated(x: Any) -> Any:
                a, b = x.chunk(2, -1)
                return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

            B, T, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, WIDTH))
            gate, up = self.gate_up(self.norms[1](x)).chunk(2, -1)
            return x + self.down(functional.silu(gate) * up)

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCAB, WIDTH)
            nn.init.normal_(self.embedding.weight, std=0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
            channels = WIDTH // HEADS
            angles = torch.outer(torch.arange(length), 1e4 ** (-torch.arange(0, channels, 2) / channels))
            self.register_buffer("cos", angles.cos())
            self.register_buffer("sin", angles.sin())

        def forward(self, ids: Any, labels: Any) -> Any:
            x, cos, sin = self.embedding(ids), self.cos.to(torch.bfloat16), self.sin.to(torch.bfloat16)
            for block in self.blocks:
                x = block(x, cos, sin)
            logits = functional.linear(self.norm(x), self.embedding.weight)
            return functional.cross_entropy(logits.float().view(-1, VOCAB), labels.reshape(-1))

    return Transformer().cuda()


def authors() -> Any:
    """The authors' model of 340M parameters; called with ids and labels it returns an object with their loss."""
    from ramnet import RAMNetConfig, RAMNetForCausalLM

    config = RAMNetConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_hidden_layers=27, addr_order=5, addr_radix=4, value_chs=64,
        embed_num=(16,) * 4 + (8,) * 4, addr_top_k=8, vocab_size=VOCAB, gamma=0.0, gamma_mode="dynamic",
        output_norm=True, hidden_act="SwiGLU", fuse_norm=False, fuse_cross_entropy=False, pad_token_id=None,
        bos_token_id=1, eos_token_id=2, dtype="float32", tie_word_embeddings=True,
    )  # fmt: skip
    return RAMNetForCausalLM(config).cuda()


def measure(model: Any, loss_of: Callable[[Any, Any], Any], batch: int, length: int, steps: int) -> dict[str, Any]:
    """Milliseconds of a step (median of three rounds), tokens a second, GiB, loss, parameters."""
    import torch
    from torch import nn

    torch.set_float32_matmul_precision("high")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    tokens = torch.randint(3, VOCAB, (batch, length + 1), device="cuda")
    ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    for _ in range(3):
        step()
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            loss = step()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / steps)
    seconds = sorted(times)[1]
    return {
        "ms": 1e3 * seconds,
        "tokens/s": batch * length / seconds,
        "GiB": torch.cuda.max_memory_allocated() / 2**30,
        "loss": loss.item(),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def measure_generation(model: Any, batch: int, length: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of a token: what twice as many take longer, so that the prompt does not count; tokens a second."""
    import torch

    torch.set_float32_matmul_precision("high")
    ids = torch.randint(3, VOCAB, (batch, length), device="cuda")

    def seconds(count: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    seconds(3)
    each = (seconds(2 * tokens) - seconds(tokens)) / tokens
    parameters = sum(p.numel() for p in model.parameters())
    return {"ms": 1e3 * each, "tokens/s": batch / each, "parameters": parameters, "dtype": "bfloat16 autocast"}


def main() -> None:
    """Time the peer that the command names, and print the record."""
    import torch

    parser = argparse.ArgumentParser(description="Time one peer's training step; prints a JSON object.")
    parser.add_argument("peer", choices=("transformer-eager", "transformer-compiled", "authors", "authors-generate"))
    for name in ("batch", "length", "steps"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.peer == "authors-generate":
        print(json.dumps(measure_generation(authors().eval(), options.batch, options.length, options.steps)))
        return
    if options.peer == "authors":
        model = authors()  # it shifts the labels itself

        def loss_of(ids: Any, labels: Any) -> Any:
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    else:
        model = transformer(options.length)
        loss_of = torch.compile(model) if options.peer == "transformer-compiled" else model
    print(json.dumps(measure(model, loss_of, options.batch, options.length, options.steps)))


if __name__ == "__main__":
    main()
