"""Sequences that step together: one batch, its state, and the logits after one more token of each.

This is the inner loop of generation. Whatever makes a step cheaper on a device belongs here: what comes in and goes out
stays on the device, and nothing waits for it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ramnet_np.contract import Array
from ramnet_np.core.arrays import namespace_of
from ramnet_np.model.states import rows_of, stacked

# Tokens in one pass, of a sequence and of all together: longer prompts go through in pieces, so that activations fit.
PIECE, PIECES = 8192, 2**16


class Standing(NamedTuple):
    """Where the sequences of a generation stand: all that is needed to go on."""

    steppers: list[Stepper]  # each sequence is in one of them
    logits: Array  # (B, V) of the next token
    positions: Array  # (B,) int64, of the next token
    seen: Array  # (B, V) bool, the tokens that were there


class Stepper:
    """Sequences of one batch. ``rows``: their numbers; ``state``: of every layer, which steps may change in place.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> stepper, logits = read(model, np.array([[1, 2, 3]]), np.array([0]), None, None, None)
    >>> stepper.step(logits.argmax(axis=-1), np.array([3])).shape
    (1, 16)
    """

    def __init__(self, model: Any, rows: np.ndarray, state: list[Any], backend: str | None):
        self.model, self.rows, self.state, self.backend = model, rows, state, backend
        self._first = True  # step: the state is looked at once

    def step(self, tokens: Array, positions: Array) -> Array:
        """Logits (B, V) after ``tokens`` (B,) at ``positions`` (B,)."""
        step = self.model.step if self._first else self.model.step_checked
        self._first = False
        return step(tokens[:, None], self.state, positions[:, None], backend=self.backend)[:, 0]

    def some(self, rows: list[int]) -> Stepper:
        """The sequences at these places of the batch, with a state of their own."""
        return Stepper(self.model, self.rows[rows], rows_of(self.state, rows), self.backend)


def read(
    model: Any, ids: Array, rows: np.ndarray, positions: Array | None, state: list[Any] | None, backend: str | None
) -> tuple[Stepper, Array]:
    """Run prompts of one length, ``ids`` (B, T), in one parallel pass.

    ``positions``: (B,), where each begins, None for 0; ``state``: what was before, None for nothing.
    Returns what steps on from there, and logits (B, V). More than PIECE tokens of a sequence, or PIECES of all, take a
    pass for each piece.

    >>> from ramnet_np.model import RAMNet, RAMNetConfig
    >>> model = RAMNet(RAMNetConfig(vocab=16, width=8, layers=1, order=2), seed=0)
    >>> read(model, np.array([[1, 2, 3]]), np.array([0]), None, None, None)[1].shape
    (1, 16)
    """
    xp = namespace_of(ids)
    logits: Array = None
    length = min(PIECE, max(1, PIECES // len(ids)))
    for start in range(0, ids.shape[1], length):
        piece = ids[:, start : start + length]
        last = xp.zeros(piece.shape, dtype=bool)
        last[:, -1] = True
        where = None
        if positions is not None or start > 0:
            where = xp.arange(start, start + piece.shape[1])
            where = where if positions is None else positions[:, None] + where
        logits, state = model.forward_with_state(piece, state, positions=where, select=last, backend=backend)
    assert state is not None  # there is at least one token
    return Stepper(model, rows, state, backend), logits


def together(steppers: list[Stepper]) -> Stepper:
    """One batch of all their sequences, whose states must be alike.

    >>> make = lambda row: Stepper(None, np.array([row]), [np.ones((1, 2))], None)
    >>> together([make(0), make(1)]).rows.tolist()
    [0, 1]
    """
    first = steppers[0]
    rows = np.concatenate([stepper.rows for stepper in steppers])
    return Stepper(first.model, rows, stacked([stepper.state for stepper in steppers]), first.backend)
