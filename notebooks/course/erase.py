"""Many lines of text, one slot erased at a time: what notebook 10 counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from course.story import _ids
from ramnet_np import RAMState
from ramnet_np.data.synthetic_facts import facts_text
from ramnet_np.model import RAMNet

__all__ = ["Line", "ask", "every_slot_erased", "told_lines"]


class Line(NamedTuple):
    """What a line tells, and the names and first letters of its facts."""

    text: str
    names: tuple[str, ...]
    letters: tuple[str, ...]


def told_lines(lines: int, facts: int = 3, seed: int = 99) -> list[Line]:
    """Lines that the model has not seen, without their repeats."""
    found = []
    for line in facts_text(lines, facts, repeats=1, seed=seed).decode().splitlines():
        told = line.split(". ")[:facts]
        begins = [next(i for i in range(1, len(fact)) if fact[i].isupper()) for fact in told]
        names, letters = zip(*((fact[:i], fact[i]) for fact, i in zip(told, begins, strict=True)), strict=True)
        found.append(Line(". ".join(told) + ". ", names, letters))
    return found


def every_slot_erased(state: Sequence[RAMState], layer: int = 1) -> list[RAMState]:
    """A batch of 1 + H M memories: the first is ``state``, each other one has one slot of ``layer`` set to zero."""
    _, H, M = state[layer].mass.shape
    copies = [RAMState(np.repeat(s.slots, H * M + 1, axis=0), np.repeat(s.mass, H * M + 1, axis=0)) for s in state]
    head, slot = np.divmod(np.arange(H * M), M)
    copies[layer].slots[1 + np.arange(H * M), head, slot] = 0
    return copies


def ask(model: RAMNet, state: Sequence[RAMState], line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Ask a batch of B memories, all after ``line.text``, for every fact of the line. They stay as they are.

    Returns p (facts, B), the probability of the right letter among all bytes, and lead (facts, B), its log odds against
    the likeliest other byte: above 0 the model says the right letter.
    """
    p, lead = [], []
    for name, letter in zip(line.names, line.letters, strict=True):
        now = [RAMState(s.slots.copy(), s.mass.copy()) for s in state]
        for t, byte in enumerate(_ids(name)[0], start=len(line.text)):
            ids = np.full((len(now[0].slots), 1), byte, dtype=np.int32)
            logits = model.step(ids, now, np.array([t]))[:, 0].astype(float)
        right, others = logits[:, ord(letter)], np.delete(logits, ord(letter), axis=1)
        lead.append(right - others.max(axis=1))
        p.append(1 / (1 + np.exp(others - right[:, None]).sum(axis=1)))
    return np.array(p), np.array(lead)
