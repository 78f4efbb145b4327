"""Named cases of the operation, inputs drawn for them, and the comparison of one backend with another.

Every backend is held to the NumPy core on the same grid: its own test file says which dtypes and how arrays get there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ramnet_np import RAMState, decode_address, ram_attention_backward, ram_attention_forward, ram_attention_step
from ramnet_np.core.retention import RULES
from tests.tolerances import assert_close

STATES = ("slots", "mass", "dslots", "dmass")  # results with a row for each sequence


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call. ``options`` go to ``ram_attention_forward`` as they are."""

    name: str
    B: int = 2
    T: int = 17
    H: int = 3
    U: int = 3
    P: int = 4
    C: int = 16
    K: int | tuple[int, int] = 8
    gamma: float | str = 1.0  # a number, or "token" for one a token and head
    options: dict[str, Any] = field(default_factory=dict)
    positions: bool = False  # given ones, that jump and go back
    masked: float = 0.0  # the share of masked tokens; 1: all of them
    state: bool = False  # given, and its gradient wanted
    dstate: bool = True  # gradient of the returned state; without it the state is not returned
    lengths: tuple[int, ...] = ()  # of the sequences of a packed row: B = 1, T their sum
    logits: str = "normal"  # or "equal", "ties" (a few whole numbers), "huge" (weights round to 0 and 1)

    @property
    def slots(self) -> int:
        return self.P**self.U


CASES = [
    # shapes
    Case("plain"),
    Case("one-token", T=1),
    Case("one-token-given-state", T=1, state=True),
    Case("K-is-M", U=2, P=3, K=9),
    Case("K-is-M-many", B=1, T=9, H=1, U=3, P=5, K=125),
    Case("K-1", K=1),
    Case("K-1-of-1-slot", U=1, P=1, K=1),
    Case("K-pair", K=(5, 11)),
    Case("K-pair-read-1", K=(9, 1), options={"mass_aware": True}),
    Case("U-1", U=1, P=37, K=8),
    Case("U-1-K-is-M", U=1, P=37, K=37),
    Case("P-odd", U=4, P=5, K=13),
    Case("P-1", U=4, P=1, K=1),
    Case("P-2", U=10, P=2, K=32, T=40),
    Case("P-3-deep", U=19, P=3, K=7, dstate=False),  # digits of 2 bits: 38 bits of code
    Case("M-large", U=8, P=4, T=50),
    Case("M-largest", U=30, P=2, T=9, K=6, dstate=False),
    Case("C-1", C=1),
    Case("C-odd", C=7),
    Case("C-odd-slices", B=1, H=1, C=53),
    Case("slices", B=1, H=1, C=64, T=70),
    Case("slices-uneven", B=1, H=3, C=80, T=33),
    Case("many-sequences", B=34, H=2, C=32, T=35, state=True),  # a GPU takes slices twice as wide
    Case("one-head-given-state-slices", B=1, H=1, C=48, state=True, options={"mass_aware": True}),
    Case("tiles", B=3, T=43, H=2, C=4),
    Case("empty-batch", B=0),
    Case("empty-batch-given-state", B=0, state=True, gamma="token"),
    # forgetting
    Case("gamma-0", gamma=0.0),
    Case("gamma-0.3", gamma=0.3),
    Case("gamma-2.5", gamma=2.5, T=60),
    Case("gamma-per-token", gamma="token"),
    Case("gamma-per-token-given-state", gamma="token", state=True),
    Case("proxy", gamma=0.3, options={"proxy_eps": 0.01}),
    Case("proxy-1", gamma=2.5, options={"proxy_eps": 1.0}),
    Case("gsu", gamma=2.2, options={"update": "gsu"}),
    Case("gsu-0", gamma=0.0, options={"update": "gsu"}),
    Case("gsu-negative", gamma=-3.0, options={"update": "gsu"}),
    *(Case(f"{update}-per-token", gamma="token", options={"update": update}) for update in RULES),
    Case("eps-large", options={"eps": 0.25, "mass_aware": True}),
    # addresses
    Case("renorm", options={"renorm": True}),
    Case("renorm-write", options={"renorm": (True, False)}),
    Case("renorm-read", options={"renorm": (False, True)}, K=(3, 6)),
    Case("cape", options={"cape_heads": 2}, T=80),
    Case("cape-all-positions", options={"cape_heads": 3}, positions=True),
    Case("cape-M-odd", U=3, P=3, options={"cape_heads": 2}, positions=True),
    Case("positions-without-cape", positions=True),
    Case("equal-logits", logits="equal"),
    Case("equal-logits-cape-K-odd", logits="equal", K=5, options={"cape_heads": 1}),
    Case("ties", logits="ties", U=4, P=3, K=10),
    Case("ties-P-9", logits="ties", U=2, P=9, K=16),
    Case("huge-logits", logits="huge", gamma=1.0),
    Case("huge-logits-gamma-0.5", logits="huge", gamma=0.5, K=2),
    Case("huge-logits-gamma-0", logits="huge", gamma=0.0, options={"mass_aware": True}),
    Case("huge-logits-gamma-3-proxy", logits="huge", gamma=3.0, options={"proxy_eps": 0.05}),
    Case("huge-logits-gsu", logits="huge", gamma=1.5, options={"update": "gsu"}),
    # masks and states
    Case("mask", masked=0.4),
    Case("mask-given-state", masked=0.4, state=True, options={"mass_aware": True, "cape_heads": 1}),
    Case("mask-gsu-per-token", masked=0.3, gamma="token", options={"update": "gsu"}),
    Case("mask-all", masked=1.0),
    Case("mask-all-given-state", masked=1.0, state=True),
    Case("given-state", state=True),
    Case("given-state-no-dstate", state=True, dstate=False),
    Case("given-state-M-large", state=True, U=6, P=4, T=5, C=3),
    Case("mass-aware", options={"mass_aware": True}),
    Case("mass-aware-given-state", state=True, options={"mass_aware": True}, K=(4, 12)),
    Case("no-state-returned", dstate=False, gamma=0.7),
    Case(
        "everything",
        gamma="token",
        K=(6, 10),
        positions=True,
        masked=0.2,
        state=True,
        T=31,
        options={"proxy_eps": 0.02, "mass_aware": True, "renorm": (True, False), "cape_heads": 2},
    ),
]


def packed(name: str, *lengths: int, **rest: Any) -> Case:
    return Case(name, B=1, T=sum(lengths), lengths=lengths, **rest)


PACKED = [
    packed("packed", 7, 0, 16, 2),
    packed("packed-one", 17),
    packed("packed-empty-at-the-ends", 0, 5, 0, 0, 3, 0, state=True),
    packed("packed-many", *(n % 7 for n in range(60)), H=2),
    packed("packed-longer-than-a-chunk", 33, 1, 64, 100, 32, C=64, options={"cape_heads": 2}),
    packed("packed-given-state", 9, 2, 21, state=True, gamma="token", options={"mass_aware": True}),
    packed("packed-given-state-no-dstate", 9, 2, 21, state=True, dstate=False),
    packed("packed-no-state-returned", 40, 3, 33, dstate=False, gamma=0.7),
    packed("packed-C-odd-slices", 8, 30, 3, H=1, C=53),
    packed("packed-M-large", 3, 50, 0, 20, U=8, P=4, dstate=False),
    packed("packed-M-large-mass-aware", 30, 7, U=8, P=4, dstate=False, masked=0.2, options={"mass_aware": True}),
    packed("packed-K-many", 4, 0, 5, U=3, P=5, K=125, state=True),
    packed("packed-K-many-M-large", 7, 2, 3, U=8, P=4, K=70, dstate=False, options={"mass_aware": True}),
    packed(
        "packed-everything", 12, 0, 1, 18, gamma="token", K=(6, 10), positions=True, masked=0.2, state=True,
        options={"proxy_eps": 0.02, "mass_aware": True, "renorm": (True, False), "cape_heads": 2},
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What one call is given. ``arrays``: write_logits, read_logits, values; ``options``: everything named."""

    arrays: tuple[Any, Any, Any]
    gamma: Any
    options: dict[str, Any]
    dy: Any
    dstate: Any


def draw(case: Case, dtype: Any = np.float64, seed: int = 0) -> Inputs:
    """Random inputs for a case, the same for the same seed."""
    rng = np.random.default_rng(seed)
    B, T, H, U, P, C, M = case.B, case.T, case.H, case.U, case.P, case.C, case.slots

    def normal(*shape: int) -> Any:
        return rng.normal(size=shape).astype(dtype)

    logits = {
        "normal": lambda: 1.5 * rng.normal(size=(2, B, T, H, U, P)),
        "equal": lambda: np.full((2, B, T, H, U, P), 0.7),
        "ties": lambda: rng.integers(0, 3, (2, B, T, H, U, P)),
        "huge": lambda: 500 * rng.normal(size=(2, B, T, H, U, P)),
    }[case.logits]()
    options: dict[str, Any] = {"top_k": case.K, "return_state": case.dstate, **case.options}
    if case.positions:
        options["positions"] = rng.integers(-5, 10 * M, (B, T))
    elif case.state and options.get("cape_heads"):
        options["positions"] = np.broadcast_to(np.arange(T), (B, T))  # a state does not say where its tokens were
    if case.lengths:
        options["cu_seqlens"] = np.cumsum((0, *case.lengths), dtype=np.int32)
    if case.masked:
        options["mask"] = rng.random((B, T)) >= case.masked

    def state() -> RAMState:
        N = len(case.lengths) or B
        return RAMState(normal(N, H, M, C), rng.uniform(0.1, 2, (N, H, M)).astype(dtype))

    if case.state:
        options["state"] = state()
    gamma = rng.uniform(0, 3, (B, T, H)).astype(dtype) if case.gamma == "token" else case.gamma
    write, read = logits.astype(dtype)
    return Inputs(
        (write, read, normal(B, T, H, C)), gamma, options, normal(B, T, H, C), state() if case.dstate else None
    )


def run(inputs: Inputs, backend: str, convert: Callable[[Any], Any] = lambda a: a) -> dict[str, Any]:
    """Everything that a backend computes for these inputs, by name; ``convert`` makes arrays of the backend's kind."""

    def to(x: Any) -> Any:
        if isinstance(x, RAMState):
            return RAMState(*map(convert, x))
        return convert(x) if isinstance(x, np.ndarray) else x

    arrays, gamma, dy, dstate = tuple(map(to, inputs.arrays)), to(inputs.gamma), to(inputs.dy), to(inputs.dstate)
    options = {name: to(value) for name, value in inputs.options.items()}
    results: dict[str, Any] = {}
    renorms, top_ks = options.get("renorm", False), options["top_k"]
    for which, side in enumerate(("write", "read")):
        address = decode_address(
            arrays[which],
            top_ks[which] if isinstance(top_ks, tuple) else top_ks,
            renorms[which] if isinstance(renorms, tuple) else renorms,
            options.get("cape_heads", 0),
            options.get("positions"),
            backend=backend,
        )
        results[f"{side} index"], results[f"{side} weight"] = address
    y, state, ctx = ram_attention_forward(*arrays, gamma, backend=backend, **options)
    results["y"] = y
    if state is not None:
        results["slots"], results["mass"] = state
    grads = ram_attention_backward(dy, ctx, dstate)
    for name, grad in zip(grads._fields[:4], grads, strict=False):
        results[f"d{name}"] = grad
    assert (grads.state is None) == (options.get("state") is None)
    if grads.state is not None:
        results["dslots"], results["dmass"] = grads.state
    return results


def run_without_gradients(inputs: Inputs, backend: str, convert: Callable[[Any], Any] = lambda a: a) -> dict[str, Any]:
    """y and the state that :func:`run` has, too, of a forward that no backward follows."""
    gamma = convert(inputs.gamma) if isinstance(inputs.gamma, np.ndarray) else inputs.gamma
    options = {
        name: RAMState(*map(convert, value)) if isinstance(value, RAMState) else value
        for name, value in inputs.options.items()
    }
    options |= {name: convert(value) for name, value in options.items() if isinstance(value, np.ndarray)}
    arrays = map(convert, inputs.arrays)
    y, state, ctx = ram_attention_forward(*arrays, gamma, backend=backend, gradients=False, **options)
    assert ctx is None
    return {"y": y} if state is None else {"y": y, "slots": state.slots, "mass": state.mass}


def run_one_by_one(
    inputs: Inputs, backend: str, convert: Callable[[Any], Any] = lambda a: a, join: Callable[..., Any] = np.concatenate
) -> dict[str, Any]:
    """As :func:`run`, without the addresses, for a packed row: each sequence alone, and what they give put together."""
    rest, parts = dict(inputs.options), []
    offsets = rest.pop("cu_seqlens").tolist()
    for n, (begin, end) in enumerate(itertools.pairwise(offsets)):
        if begin == end:
            continue
        own = slice(begin, end)
        options = {
            name: value[..., own] if isinstance(value, np.ndarray) else value
            for name, value in rest.items()
            if name != "state"
        }
        if "state" in rest:
            options["state"] = RAMState(*(part[n : n + 1] for part in rest["state"]))
        part = Inputs(
            tuple(a[:, own] for a in inputs.arrays),
            inputs.gamma[:, own] if isinstance(inputs.gamma, np.ndarray) else inputs.gamma,
            {"batch_invariant": True, **options},
            inputs.dy[:, own],
            None if inputs.dstate is None else RAMState(*(a[n : n + 1] for a in inputs.dstate)),
        )
        parts.append(run(part, backend, convert))
    return {
        name: join([part[name] for part in parts], axis=int(name not in STATES))
        for name, value in parts[0].items()
        if _of_sequences(name, value)
    }


def of_filled(results: dict[str, Any], lengths: tuple[int, ...]) -> dict[str, Any]:
    """What :func:`run` gives for a packed row, to be compared with :func:`run_one_by_one`."""
    filled = [n for n, length in enumerate(lengths) if length]
    return {
        name: value[filled] if name in STATES else value
        for name, value in results.items()
        if _of_sequences(name, value)
    }


def _of_sequences(name: str, value: Any) -> bool:
    """Whether a result has a part for each sequence: no address, and not the gradient of one gamma for all."""
    return not name.endswith(("index", "weight")) and value.ndim > 0


def run_steps(inputs: Inputs, backend: str, convert: Callable[[Any], Any] = lambda a: a) -> dict[str, Any]:
    """The same sequence fed token by token: y and the state after the last token."""
    B, T, H, C = inputs.arrays[2].shape
    options = {k: v for k, v in inputs.options.items() if k not in ("return_state", "proxy_eps", "state")}
    mask, positions = options.pop("mask", None), options.pop("positions", np.broadcast_to(np.arange(T), (B, T)))
    given = inputs.options.get("state")
    if given is None:
        given = RAMState.initial(B, H, inputs.arrays[0].shape[-1] ** inputs.arrays[0].shape[-2], C, inputs.dy.dtype)
    state = RAMState(*(convert(a.copy()) for a in given))
    ys = []
    for t in range(T):
        now = slice(t, t + 1)
        y, returned = ram_attention_step(
            *(convert(a[:, now]) for a in inputs.arrays),
            inputs.gamma if isinstance(inputs.gamma, float) else convert(inputs.gamma[:, now]),
            state=state,
            positions=convert(positions[:, now]),
            mask=None if mask is None else convert(mask[:, now]),
            backend=backend,
            **options,
        )
        assert returned is state
        ys.append(y)
    return {"y": ys, "slots": state.slots, "mass": state.mass}


def assert_agree(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same slots exactly; everything else within the tolerance of its dtype."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("index"):
            np.testing.assert_array_equal(actual[name], value, err_msg=name)
            assert actual[name].dtype == np.int32
        else:
            assert_close(actual[name], value, gradient=name.startswith("d"), name=name)


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal to the last bit, the signs of zeros and NaN included."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert np.asarray(actual[name]).tobytes() == np.asarray(value).tobytes(), name
