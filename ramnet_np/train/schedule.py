"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, *, peak: float, floor: float, warmup: int, total: int) -> float:
    """Rise in a straight line to ``peak`` over ``warmup`` steps, then fall along a cosine to ``floor`` at ``total``.

        step <  warmup:  peak * (step + 1) / warmup
        step >= warmup:  floor + (peak - floor) * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2

    ``step`` counts from 0, so the first update already moves. From ``total`` on the rate stays at ``floor``.
    Source: Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), eq. 5, without restarts.

    >>> [round(cosine_with_warmup(s, peak=1.0, floor=0.1, warmup=2, total=10), 3) for s in (0, 1, 2, 6, 10, 99)]
    [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2
