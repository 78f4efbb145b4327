"""The beam search of one address, with what every merge looked at: for the pictures of notebook 3."""

from __future__ import annotations

import numpy as np


def beam_steps(logits: np.ndarray, K: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For digits 1, 2, ... of logits (U, P): the scores of all pairs (n, P), both sides best first, and which are kept.

    A score is a log-probability. Equal scores: the smaller slot.
    """
    log_p = logits - logits.max(axis=-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))
    U, P = logits.shape
    slot = np.argsort(-log_p[0], kind="stable")[:K]
    best, steps = log_p[0][slot], []
    for u in range(1, U):
        value = np.argsort(-log_p[u], kind="stable")
        scores = best[:, None] + log_p[u][value]
        slots = slot[:, None] + value * P**u
        order = np.lexsort((slots.ravel(), -scores.ravel()))[:K]
        kept = np.zeros(scores.size, bool)
        kept[order] = True
        steps.append((scores, kept.reshape(scores.shape)))
        best, slot = scores.ravel()[order], slots.ravel()[order]
    return steps
