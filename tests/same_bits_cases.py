"""What ``test_same_bits.py`` holds to the last bit: the operation, small models, and runs as the command starts them.

A subject of the record must give the same results from run to run, and be nowhere near a choice that rounding could
turn: a slot, a token, an answer counted as right.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

# what comes from within the package; all else goes through its front doors
from ramnet_np import use_backend
from ramnet_np.cli import main
from ramnet_np.layers.loss import cross_entropy_and_gradient
from ramnet_np.model import RAMNet, RAMNetConfig
from tests.operation_cases import Case, draw, run, run_steps

OLD_RUN = Path(__file__).parent / "same_bits" / "old_run"
DTYPES = ("float32", "float64")

Arrays = dict[str, Any]


class Subject(NamedTuple):
    """Something whose results are recorded: ``results(variant)`` gives arrays, by name."""

    dtype: str  # in which it is computed
    variants: tuple[str, ...]  # other bits, but the same numbers: backends
    results: Callable[[str], Arrays]


# The operation. Kernels order slots by sums of the logits alone, so that rounding elsewhere cannot change a choice.

OPTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # name, fields of a case, options of the operation
    ("mask", {"masked": 0.4}, {}),
    ("renorm", {"gamma": "token", "K": 5}, {"renorm": True}),
    ("cape at positions", {"positions": True}, {"cape_heads": 2}),
    ("state", {"state": True, "gamma": 0.3}, {}),
    ("state mass-aware", {"state": True, "K": (3, 5), "C": 7}, {"mass_aware": True}),
    ("channels in slices", {"B": 1, "H": 1, "C": 53, "gamma": "token"}, {}),
    (
        "everything",
        {"gamma": "token", "K": (5, 8), "positions": True, "masked": 0.2, "state": True},
        {"mass_aware": True, "renorm": (True, False), "cape_heads": 2},
    ),
    ("proxy", {"gamma": 0.3}, {"proxy_eps": 0.01}),
    ("proxy and state", {"gamma": "token", "state": True}, {"proxy_eps": 0.5, "mass_aware": True}),
    ("gamma=0", {"gamma": 0.0}, {}),
]


def operations() -> Iterator[Case]:
    """Shapes, K (M among them) and both kinds of gamma; then every option."""
    for update, (U, P), K in itertools.product(("pdma", "gsu"), ((1, 9), (5, 2)), (1, 8, 0, (3, 5))):
        gamma, top_k = 0.7 if K in (1, 0) else "token", K or P**U
        yield Case(f"{update} U={U} K={top_k}", U=U, P=P, K=top_k, gamma=gamma, options={"update": update})
    for update, (name, fields, options) in itertools.product(("pdma", "gsu"), OPTIONS):
        if update == "pdma" or "proxy_eps" not in options:
            yield Case(f"{update} {name}", U=3, P=3, T=13, **fields, options={"update": update, **options})


def operation(case: Case, dtype: str, backend: str) -> Arrays:
    inputs = draw(case, np.dtype(dtype))
    return run(inputs, backend) | {f"step {name}": array for name, array in run_steps(inputs, backend).items()}


# Models. Their addresses come out of rounded sums, so that a choice may be near: `choices` is for a test of that.

TINY: dict[str, Any] = {
    "vocab": 16, "width": 8, "layers": 1, "heads": 2, "order": 2, "radix": 3, "top_k": 4, "ffn": "none",
    "init_std": 0.5,
}  # fmt: skip
RAM: dict[str, dict[str, Any]] = {
    "ram": {},
    "ram conv": {"short_conv": 3, "ffn": "swiglu", "ffn_width": 5},
    "ram cape": {
        "layers": 2, "cape": (2, 1), "ffn": "gelu", "ffn_width": 6, "norm": "layernorm", "value_bias": True,
        "tie_embeddings": False,
    },
    "ram gsu": {
        "update": "gsu", "gamma": 0.0, "gamma_mode": "dynamic", "output_gate": True, "output_norm": True,
        "mass_aware": True, "renorm": (True, False), "top_k": (3, 5),
    },
    "ram learnable": {"gamma_mode": "learnable", "gamma": 1.5, "proxy_eps": 0.01, "ffn": "silu", "ffn_width": 5},
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "softmax"},
    "softmax conv": {"mixer": "softmax", "short_conv": 4, "rotary": False, "key_channels": 3, "value_bias": True},
    "window": {"mixer": "window", "window": 70},
    "window conv": {"mixer": "window", "window": 7, "short_conv": 4, "output_gate": True},
    "linear": {"mixer": "linear", "key_channels": 5},
    "linear conv": {"mixer": "linear", "short_conv": 4, "output_norm": True},
    "delta": {"mixer": "delta", "key_channels": 4, "channels": 3},
    "delta conv": {"mixer": "delta", "short_conv": 4},
    "gated delta": {"mixer": "delta", "delta_gate": True},
    "gated delta conv": {"mixer": "delta", "delta_gate": True, "short_conv": 4, "output_norm": True},
    "linear identity": {"mixer": "linear", "feature_map": "identity", "normaliser": False, "output_norm": True},
    "gla": {"mixer": "gla", "key_channels": 5},
    "mamba2 gate": {"mixer": "mamba2", "output_norm": True, "output_gate": True, "gate_activation": "silu"},
}


def tokens() -> np.ndarray:
    """(2, 140): more than a chunk or a block of queries."""
    return np.random.default_rng(1).integers(TINY["vocab"], size=(2, 140), dtype=np.int32)


def small_model(fields: dict[str, Any], dtype: str) -> RAMNet:
    return RAMNet(RAMNetConfig(**TINY | fields), seed=1, dtype=np.dtype(dtype))


def network(fields: dict[str, Any], dtype: str, backend: str) -> Arrays:
    """Forward, loss and gradients as in training; the sequence in two pieces and steps; tokens generated."""
    ids, labels = tokens(), np.roll(tokens(), -1, axis=1)
    labels[:, ::3] = -100
    asked = labels >= 0
    model = small_model(fields, dtype)
    with use_backend(backend):
        logits, ctx = model.forward(ids, select=asked)
        results: Arrays = {"logits": logits.copy()}
        loss = cross_entropy_and_gradient(logits, labels[asked])
        results |= {"loss": loss.loss, "correct": loss.correct}
        results |= {f"d {name}": grad for name, grad in model.backward(loss.dlogits, ctx).items()}
        first, state = model.forward_with_state(ids[:, :100])
        second, state = model.forward_with_state(ids[:, 100:137], state, positions=np.arange(100, 137))
        steps = [model.step(ids[:, t : t + 1], state, np.array([t])) for t in range(137, 140)]
        results["streamed"] = np.concatenate([first, second, *steps], axis=1)
        results["generated"] = generated(model)
    return results | dict(flat("state", state))


def generated(model: RAMNet) -> np.ndarray:
    return model.generate(tokens()[:, :9], 8, temperature=0.7, seed=5)[:, 9:]


def choices(fields: dict[str, Any], shaken: float) -> list[np.ndarray]:
    """Slots and tokens that a small model chooses, after a random change of every parameter by a share of itself."""
    model, rng = small_model(fields, "float32"), np.random.default_rng(4)
    for p in model.params.values():
        p *= 1 + shaken * rng.standard_normal(p.shape, dtype=p.dtype)
    with use_backend("numpy"):
        layers = model.trace(tokens()) if model.config.mixer == "ram" else []
        return [generated(model), *(address.index for layer in layers for address in layer.values())]


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The arrays within lists and tuples."""
    if isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from flat(f"{name}.{i}", part)
    elif value is not None:
        yield name, value


# Training, through the command alone.

TASK = (
    *("--data.vocab", "32", "--data.train", "2", "12", "40", "3", "16", "40", "--data.test", "2", "12", "10"),
    *("--model.vocab", "32", "--model.width", "8", "--model.order", "2", "--train.steps", "5", "--train.batch", "8"),
    *("--model.init-std", "0.3", "--train.warmup", "2", "--train.log-every", "1", "--train.evaluate-every", "3"),
)
TEXT = (
    *("--model.width", "4", "--model.layers", "1", "--model.heads", "1", "--model.cape", "1", "--model.order", "2"),
    *("--model.radix", "3", "--model.top-k", "4", "--model.ffn", "none", "--model.init-std", "0.3"),
    *("--data.length", "16", "--data.held-out-sequences", "5", "--train.batch", "4", "--train.steps", "6"),
    *("--train.warmup", "1", "--train.log-every", "1", "--train.evaluate-every", "2", "--train.checkpoint-every", "3"),
)
DEMO = ("mqar", "--preset", "demo", *TASK, "--model.top-k", "4")
RUNS: dict[str, tuple[str, ...]] = {
    "mqar demo": DEMO,
    "mqar small": ("mqar", "--preset", "mqar-small", *TASK, "--model.channels", "4", "--model.top-k", "4"),
    "mqar softmax": (*DEMO, "--model.mixer", "softmax", "--model.short-conv", "3", "--model.ffn", "swiglu"),
    "mqar window": (*DEMO, "--model.mixer", "window", "--model.window", "5"),
    "mqar linear": (*DEMO, "--model.mixer", "linear", "--model.output-gate"),
    "mqar gated delta": (*DEMO, "--model.mixer", "delta", "--model.delta-gate", "--model.short-conv", "3"),
    "text facts": ("text", "--preset", "facts", *TEXT, "--data.length", "80"),
    "text file": ("text", "--preset", "file", *TEXT),
}


def command(*args: object) -> str:
    """What ``ramnet-np args`` prints."""
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        status = main([str(arg) for arg in args])
    assert status == 0, complaint.getvalue()
    return said.getvalue()


def train(args: tuple[str, ...], folder: Path, *more: str) -> None:
    """``ramnet-np train args`` into ``folder``/run."""
    if "file" in args:
        letters = np.random.default_rng(2).integers(ord("a"), ord("m"), 2000, dtype=np.uint8)
        (folder / "text").write_bytes(letters.tobytes())
        more = (*more, "--data.path", str(folder / "text"))
    command("train", *args, *more, "--out", folder / "run")


def left_by(out: Path) -> Arrays:
    """Parameters, moments and metrics of a run."""
    checkpoint = max((out / "checkpoints").glob("step-*"))  # the newest
    results = load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "optimizer.safetensors")
    columns: dict[str, list[float]] = {}
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        kind, _ = record.pop("kind"), record.pop("seconds")
        if kind == "held_out":
            record |= record.pop("accuracy")
            for name in ("nats", "bits_per_byte", "perplexity", "slots"):  # the recorded runs did not have them
                record.pop(name, None)
        for name, value in record.items():
            columns.setdefault(f"{kind} {name}", []).append(value)
    return results | {name: np.array(values, np.float64) for name, values in columns.items()}


def from_scratch(args: tuple[str, ...], backend: str) -> Arrays:
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder), "--backend", backend)
        return left_by(Path(folder, "run"))


def from_old_run(backend: str) -> Arrays:
    """What the old run is read as, what it writes, and how it ends when it is resumed."""
    [checkpoint] = (OLD_RUN / "checkpoints").glob("step-*")
    results = {f"loaded {name}": p for name, p in RAMNet.from_pretrained(checkpoint).params.items()}
    with use_backend(backend):
        for temperature in (0.0, 0.8):
            said = command("generate", OLD_RUN, "--prompt", "abc", "--length", 24, "--temperature", temperature)
            results[f"written at {temperature}"] = np.frombuffer(said.encode(), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(OLD_RUN, Path(folder, "run"))
        train(RUNS["text file"], Path(folder), "--backend", backend, "--resume")
        return results | left_by(Path(folder, "run"))


def write_old_run() -> None:
    """Half of a run: the earlier of the two checkpoints that a whole one leaves, without what came later."""
    with tempfile.TemporaryDirectory() as folder:
        train(RUNS["text file"], Path(folder))
        out, half = Path(folder, "run"), Path("checkpoints", "step-00000003")
        shutil.copytree(out / half, OLD_RUN / half)
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        earlier = [line for line in lines if json.loads(line)["step"] <= 3]
        (OLD_RUN / "metrics.jsonl").write_text("".join(earlier), encoding="utf-8")


BACKENDS, ANY = ("numpy", "numba"), ("numpy",)
SUBJECTS: dict[str, dict[str, Subject]] = {
    "operation": {
        f"{case.name} {dtype}": Subject(dtype, BACKENDS, lambda backend, c=case, d=dtype: operation(c, d, backend))
        for case, dtype in itertools.product(operations(), DTYPES)
    },
    "model": {
        f"{name} {dtype}": Subject(
            dtype, BACKENDS if name in RAM else ANY, lambda backend, f=fields, d=dtype: network(f, d, backend)
        )
        for (name, fields), dtype in itertools.product((RAM | OTHERS).items(), DTYPES)
    },
    "run": {
        name: Subject(
            "float32",
            BACKENDS if name in ("mqar demo", "mqar small", "text file") else ANY,
            lambda backend, a=args: from_scratch(a, backend),
        )
        for name, args in RUNS.items()
    },
    "old run": {"old run": Subject("float32", BACKENDS, from_old_run)},
}
