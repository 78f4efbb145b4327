"""What one would train instead, in PyTorch and bfloat16 autocast: one peer a process, for ``language_model.py``:

    python -m ramnet_np.kernels.bench.language_peers transformer-compiled 8 4096 8

Peers: "transformer-eager", "transformer-compiled" (the usual pre-norm Transformer of the same size: RMSNorm, rotary
positions, fused causal attention, SwiGLU, fused AdamW) and "authors" (PyPI ramnet with ramnet-ops). Prints one JSON
object: ms, tokens/s, GiB, loss, parameters.

For ``generation.py`` two take the likeliest tokens, for every batch and every length in turn (1,16 is a list), and
print an object for each: "authors-generate" behind a random prompt, by the package's own ``generate``, and
"transformer-generate" with keys and values in a cache of that many tokens and one CUDA graph a token.
"""

from __future__ import annotations

import argparse
import itertools
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

        def forward(self, x: Any, cos: Any, sin: Any, cache: Any = None) -> Any:
            def rotated(x: Any) -> Any:
                a, b = x.chunk(2, -1)
                return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

            B, T, _ = x.shape
            q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k = rotated(q), rotated(k)
            if cache is not None:  # (2, B, H, S, d): the last place is this token's
                cache[:, :, :, -1:] = torch.stack((k, v))
                k, v = cache
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
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


def measure_decoding(batch: int, context: int, tokens: int) -> dict[str, Any]:
    """Milliseconds of a token behind ``context`` tokens, median of five rounds of CUDA graphs; tokens a second.

    A cache of a fixed size, as whoever serves a model uses it; what it holds does not matter for the time.
    """
    import torch
    from torch.nn import functional

    model = transformer(context).to(torch.bfloat16)
    cache = torch.randn(LAYERS, 2, batch, HEADS, context, WIDTH // HEADS, device="cuda", dtype=torch.bfloat16)
    token, graph = torch.zeros(batch, 1, dtype=torch.int64, device="cuda"), torch.cuda.CUDAGraph()

    def step() -> None:
        x, cos, sin = model.embedding(token), model.cos[-1:], model.sin[-1:]
        for block, past in zip(model.blocks, cache, strict=True):
            x = block(x, cos, sin, past)
        token.copy_(functional.linear(model.norm(x), model.embedding.weight).argmax(-1))

    torch.cuda.synchronize()
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):  # a library chooses its kernels before a graph is captured
            step()
        side.synchronize()
        with torch.cuda.graph(graph):
            step()
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(tokens):
            graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / tokens)
    seconds = sorted(times[1:])[2]
    return {
        "ms": 1e3 * seconds,
        "tokens_per_second": batch / seconds,
        "context": context,
        "parameters": sum(p.numel() for p in model.parameters()),
        "keys_and_values_bytes": cache.nbytes,
        "dtype": "bfloat16",
        "torch": torch.__version__,
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

    generating = "authors-generate", "transformer-generate"
    parser = argparse.ArgumentParser(description="Time one peer; prints a JSON object, or several where it generates.")
    parser.add_argument("peer", choices=("transformer-eager", "transformer-compiled", "authors", *generating))
    for name in ("batch", "length", "steps"):
        parser.add_argument(name, type=lambda word: [int(number) for number in word.split(",")])
    options = parser.parse_args()
    (steps,), sizes = options.steps, list(itertools.product(options.batch, options.length))
    torch.manual_seed(0)
    if options.peer in generating:
        model: Any = authors().eval() if options.peer == "authors-generate" else None
        for batch, length in sizes:
            found = measure_generation(model, batch, length, steps) if model else measure_decoding(batch, length, steps)
            print(json.dumps({"batch": batch} | found), flush=True)
            torch.cuda.empty_cache()
        return
    ((batch, length),) = sizes
    if options.peer == "authors":
        model = authors()  # it shifts the labels itself

        def loss_of(ids: Any, labels: Any) -> Any:
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    else:
        model = transformer(length)
        loss_of = torch.compile(model) if options.peer == "transformer-compiled" else model
    print(json.dumps(measure(model, loss_of, batch, length, steps)))


if __name__ == "__main__":
    main()
