"""What every function of ``mine.py`` must do: reference cases, computed by ``ramnet_np``'s NumPy core from fixed seeds.

``CASES[name](mine)`` calls the function of the module ``mine``. Where an answer is wrong, it raises AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from course import model_cases
from course.same import same
from ramnet_np.contract import Address, MemoryOptions, RAMState
from ramnet_np.core.decoder import decode_backward, decode_forward
from ramnet_np.core.mass_aware import mass_aware_backward, mass_aware_forward
from ramnet_np.core.memory import memory_backward, memory_forward
from ramnet_np.core.retention import retention_backward, retention_forward


def decoded(logits: np.ndarray, K: int, renorm: bool = False) -> tuple[np.ndarray, np.ndarray, Any]:
    """Slots, weights and ctx of (N, U, P) logits, by the core."""
    batch = logits[None, :, None]
    index, weight, ctx = decode_forward(batch, K, renorm, 0, np.arange(len(logits))[None])
    return index[0, :, 0], weight[0, :, 0], ctx


def product_softmax(mine: Any) -> None:
    draws = np.random.default_rng(0)
    for U, P, K in ((1, 5, 3), (3, 4, 6), (5, 2, 4)):
        logits = 2 * draws.standard_normal((7, U, P))
        for renorm in (False, True):
            index, weight, _ = decoded(logits, K, renorm)
            said = f"U = {U}, P = {P}, renorm = {renorm}"
            same(said, mine.product_softmax(logits, index, renorm), weight)
            same(said + ", one token", mine.product_softmax(logits[2], index[2], renorm), weight[2])
    wide = mine.product_softmax(np.zeros((30, 4)), np.array([0, 4**20]))
    same("30 digits: all 4**30 slots cannot be built", np.log(wide), np.full(2, -30 * np.log(4)))
    same("logits of 1000", mine.product_softmax(np.array([[1000.0, 999.0]]), np.array([0])), [1 / (1 + np.exp(-1))])


def beam(mine: Any) -> None:
    draws = np.random.default_rng(1)
    for U, P, K in ((1, 6, 4), (2, 4, 16), (4, 4, 6), (6, 2, 9), (3, 3, 1)):
        logits = draws.standard_normal((9, U, P))
        index, _, _ = decoded(logits, K)
        same(f"U = {U}, P = {P}, K = {K}", mine.beam(logits, K), index)
        same(f"U = {U}, P = {P}, K = {K}, one token", mine.beam(logits[0], K), index[0])
    same("all logits equal: the smallest slots win", mine.beam(np.zeros((4, 4)), 6), np.arange(6))
    ties = draws.integers(-1, 2, size=(60, 4, 3)).astype(float)
    same("many ties, smaller slots first", mine.beam(ties, 7), decoded(ties, 7)[0])
    large = mine.beam(draws.standard_normal((20, 4)), 5)  # a million million slots
    assert large.shape == (5,), f"U = 20, K = 5: the shape is {large.shape}, and should be (5,)"


def cape(mine: Any) -> None:
    slot = np.array([0, 5, 15])
    same("slots 0, 5 and 15 of 16 at token 0", mine.cape(slot, 0, 16), slot)
    same("slots 0, 5 and 15 of 16 at token 7", mine.cape(slot, 7, 16), [9, 14, 8])
    same("the same at token 100", mine.cape(slot, 100, 16), [12, 1, 11])
    many, t = np.arange(24).reshape(1, 4, 2, 3) % 9, np.arange(4)[:, None, None]
    same("positions as an array", mine.cape(many, t, 9), (many - t) % 9)


def retention(mine: Any) -> None:
    w = np.array([0.0, 1e-3, 0.4, 0.999, 1.0])
    for update, gamma in (("pdma", 0.0), ("pdma", 0.3), ("pdma", 2.5), ("gsu", 0.0), ("gsu", -1.5), ("gsu", 2.0)):
        same(f"{update}, gamma = {gamma}", mine.retention(w, gamma, update), retention_forward(w, gamma, update))


def mass_aware(mine: Any) -> None:
    draws = np.random.default_rng(2)
    r, z = draws.uniform(0, 0.3, (5, 4)), draws.uniform(0, 2, (5, 4))
    same("weights whose sum is not 1", mine.mass_aware(r, z), mass_aware_forward(r, z, 1e-12))
    same("a large eps", mine.mass_aware(r, z, 0.5), mass_aware_forward(r, z, 0.5))
    same("a token that reads nothing", mine.mass_aware(np.zeros(3), np.ones(3)), np.zeros(3))


class MemoryCase:
    """Arguments of a memory, and what the core makes of them."""

    def __init__(self, seed: int, K: tuple[int, int] = (3, 4), given: bool = False, **options: Any):
        draws = np.random.default_rng(seed)
        B, T, H, C, M = 2, 7, 2, 3, 8
        some = draws.random((2, B, T, H, M)).argsort(axis=-1)  # different slots in every token
        self.write, self.read = some[0, ..., : K[0]], some[1, ..., : K[1]]
        self.w, self.r = draws.uniform(0, 0.6, self.write.shape), draws.uniform(0, 0.4, self.read.shape)
        self.v, self.dy = draws.standard_normal((2, B, T, H, C))
        self.gamma: Any = draws.uniform(0.2, 2, (B, T, H))
        self.M, self.options = M, options
        self.mask = draws.random((B, T)) < 0.6 if options.pop("masked", False) else None
        shapes = (B, H, M, C), (B, H, M)
        self.state = (draws.standard_normal(shapes[0]), draws.uniform(0.1, 1.5, shapes[1])) if given else None
        self.dstate = tuple(draws.standard_normal(s) for s in shapes)

    def of(self, mine: Any) -> tuple[Any, Any, Any]:
        """(y, state, ctx) of the reader's memory."""
        a = self
        return mine.memory(
            a.write, a.w, a.read, a.r, a.v, a.gamma, a.M, mask=a.mask, state=a.state, **a.options
        )  # fmt: skip

    def expected(self, proxy_eps: float = 0.0) -> tuple[Any, Any, Any]:
        o = self.options
        options = MemoryOptions(
            update=o.get("update", "pdma"), slots=self.M, mass_aware=o.get("aware", False),
            eps=o.get("eps", 1e-12), proxy_eps=proxy_eps,
        )  # fmt: skip
        given = None if self.state is None else RAMState(*self.state)
        addresses = Address(self.write, self.w), Address(self.read, self.r)
        return memory_forward(*addresses, self.v, self.gamma, self.mask, given, options, True)


MEMORY_CASES = {
    "PDMA": {"seed": 3},
    "GSU": {"seed": 4, "update": "gsu"},
    "a large eps": {"seed": 5, "eps": 0.3},
    "a mask": {"seed": 6, "masked": True},
    "a given state": {"seed": 7, "given": True},
    "a mass-aware read": {"seed": 8, "aware": True},
    "everything at once": {"seed": 9, "update": "gsu", "eps": 0.1, "masked": True, "given": True, "aware": True},
    "more written than read": {"seed": 10, "K": (5, 2)},
}


def memory(mine: Any) -> None:
    for name, settings in MEMORY_CASES.items():
        case = MemoryCase(**dict(settings))
        before = None if case.state is None else [x.copy() for x in case.state]
        y, (s, z), _ = case.of(mine)
        y_expected, state, _ = case.expected()
        same(f"{name}: mass after the last token", z, state.mass)
        same(f"{name}: content after the last token", s, state.slots)
        same(f"{name}: y", y, y_expected)
        if before is not None:
            for what, now, then in zip(("s", "z"), case.state, before, strict=True):
                same(f"{name}: {what} of the given state was changed", now, then)
    case = MemoryCase(seed=11)
    case.gamma = 0.7
    same("one gamma for all", case.of(mine)[0], case.expected()[0])


def product_softmax_backward(mine: Any) -> None:
    draws = np.random.default_rng(12)
    for renorm in (False, True):
        logits, dweight = draws.standard_normal((6, 3, 4)), draws.standard_normal((6, 5))
        index, _, ctx = decoded(logits, 5, renorm)
        expected = decode_backward(dweight[None, :, None], ctx)[0, :, 0]
        same(f"renorm = {renorm}", mine.product_softmax_backward(dweight, logits, index, renorm), expected)


def retention_slopes(mine: Any) -> None:
    w = np.array([0.0, 0.2, 0.9, 0.999999, 1.0])
    for update, gamma, e in (
        ("pdma", 1.0, 0.0), ("pdma", 0.3, 0.0), ("pdma", 2.5, 0.0), ("pdma", 0.3, 0.1), ("pdma", 3.0, 0.05),
        ("gsu", -1.0, 0.0), ("gsu", 1.5, 0.0),
    ):  # fmt: skip
        expected = retention_backward(w, gamma, retention_forward(w, gamma, update), update, e)
        got = mine.retention_backward(w, gamma, update, e)
        for what, ours, slope in zip(("w", "gamma"), got, expected, strict=True):
            same(f"{update}, gamma = {gamma}, proxy_eps = {e}: slope in {what}", ours, slope)


def mass_aware_slopes(mine: Any) -> None:
    draws = np.random.default_rng(13)
    r, z, d = draws.uniform(0, 0.3, (5, 4)), draws.uniform(0, 2, (5, 4)), draws.standard_normal((5, 4))
    for eps in (1e-12, 0.5):
        expected = mass_aware_backward(d, r, z, eps)
        for what, got, slope in zip(("dr", "dz"), mine.mass_aware_backward(d, r, z, eps), expected, strict=True):
            same(f"eps = {eps}: {what}", got, slope)


def memory_gradients(mine: Any) -> None:
    for name, settings in MEMORY_CASES.items():
        for with_state in (False, True):
            case = MemoryCase(**dict(settings))
            case.state = case.state or (np.zeros((2, 2, 8, 3)), np.full((2, 2, 8), 1 / 8))
            proxy_eps = 0.1 if name == "PDMA" and with_state else 0.0
            dstate = case.dstate if with_state else None
            ctx = case.of(mine)[2]
            for _ in range(2):
                got = mine.memory_backward(case.dy, ctx, dstate, proxy_eps)
            core_ctx = case.expected(proxy_eps)[2]
            expected = memory_backward(case.dy, RAMState(*dstate) if dstate else None, core_ctx)
            said = name + (", with a gradient of the state" if with_state else "")
            parts = zip(("dw", "dr", "dv", "dgamma"), got[:4], expected[:4], strict=True)
            for what, mine_, core in parts:
                same(f"{said}: {what}", mine_, core)
            same(f"{said}: gradient of the given s", got[4][0], expected.state.slots)
            same(f"{said}: gradient of the given z", got[4][1], expected.state.mass)


CASES: dict[str, Callable[[Any], None]] = {
    "product_softmax": product_softmax,
    "beam": beam,
    "cape": cape,
    "retention": retention,
    "mass_aware": mass_aware,
    "memory": memory,
    "product_softmax_backward": product_softmax_backward,
    "retention_backward": retention_slopes,
    "mass_aware_backward": mass_aware_slopes,
    "memory_backward": memory_gradients,
    "layer": model_cases.layer,
    "layer_backward": model_cases.layer_backward,
    "train_step": model_cases.train_step,
}

NEEDS = {
    "memory_backward": ("memory",),
    "layer": ("product_softmax", "beam", "cape", "memory"),
    "layer_backward": ("layer", "product_softmax_backward", "memory_backward"),
    "train_step": ("layer_backward",),
}
