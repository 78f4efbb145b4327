"""Our CPU backends and the authors' own CPU implementation, timed in one run. To start it:

    pip install torch einops && pip install --no-deps ramnet-ops
    python -m ramnet_np.kernels.bench.vs_authors_cpu

The peer is the Torch reference of the package ``ramnet-ops`` (``impl_backend="torch"``). It computes the gated
sparse update, so our backends use ``update="gsu"``. Outputs and gradients must agree before anything is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from .cpu import (
    FORWARD,
    GRADIENT,
    BenchOptions,
    Shape,
    append_jsonl,
    available,
    calls,
    copy_bandwidth,
    describe_machine,
    draw,
    print_table,
    require_close,
    timed,
    traffic,
)

SHAPES = (Shape(4, 256, 2, 5, 4, 64), Shape(4, 256, 2, 4, 4, 32), Shape(1, 1024, 4, 5, 4, 64))
GAMMA = 0.0  # makes the gated sparse update an exponential moving average


@dataclass(frozen=True)
class Options:
    """Time the authors' Torch reference and our CPU backends on the same inputs."""

    seconds: float = 5.0
    """Seconds to repeat each measurement for (at least 5 repeats)."""
    out: Path | None = None
    """Append the raw results to this file, one JSON object per line."""


def main(options: Options) -> None:
    """Check, time and print each shape, the authors' implementation first."""
    machine, bandwidth = describe_machine(), copy_bandwidth()
    machine["versions"] |= peer_versions()
    print(f"{machine['device']}, {machine['threads']} threads, {machine['versions']}")
    settings = BenchOptions(gamma=GAMMA, update="gsu")
    for shape in SHAPES:
        inputs = draw(shape)
        implementations = {"authors, torch CPU": peer_calls(inputs)}
        y_peer, grads_peer = implementations["authors, torch CPU"][1]()
        for name in available():
            implementations[name] = calls(inputs, name, settings)
            y, grads = implementations[name][1]()
            require_close(f"{name} against the authors: y", y, y_peer, FORWARD)
            for field, grad, expected in zip(grads._fields[:3], grads, grads_peer, strict=False):
                require_close(f"{name} against the authors: gradient of {field}", grad, expected, GRADIENT)
        rows = []
        for name, (forward, both) in implementations.items():
            row = {"backend": name, "shape": shape._asdict(), "dtype": "float32", "tokens": shape.B * shape.T}
            for key, call, gradients in (("forward", forward, False), ("forward+backward", both, True)):
                row[key] = timed(call, options.seconds)._asdict()
                row[f"{key} floor"] = 1e3 * traffic(shape, gradients) / bandwidth
            rows.append(row | machine)
        print_table(shape, rows)
        if options.out is not None:
            append_jsonl(options.out, rows)


def peer_calls(inputs: tuple[np.ndarray, ...]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The authors' (forward without gradients recorded, forward and backward) as functions without arguments."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that its CUDA part cannot load; the Torch part does not need that
        from ramnet_ops import random_access_memory_attention

    *arrays, dy = (torch.from_numpy(a) for a in inputs)

    def attend(write: Any, read: Any, values: Any) -> Any:
        return random_access_memory_attention(
            write, read, values, GAMMA, embed_num=dy.shape[2] // 2, top_k=8, impl_backend="torch"
        )[0]

    def forward() -> Any:
        with torch.no_grad():
            return attend(*arrays)

    def both() -> Any:
        leaves = [a.clone().requires_grad_() for a in arrays]
        y = attend(*leaves)
        y.backward(dy)
        return y.detach().numpy(), [leaf.grad.numpy() for leaf in leaves]

    return forward, both


def peer_versions() -> dict[str, str]:
    """Versions of the packages that the comparison needs; SystemExit, naming the one that is missing."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {name: version(name) for name in ("torch", "ramnet-ops")}
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed; see the first lines of {__name__}") from None


if __name__ == "__main__":
    main(tyro.cli(Options))
