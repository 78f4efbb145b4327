"""The learning rate as a function of the step."""

from __future__ import annotations

import math


def cosine_with_warmup(step: int, *, peak: float, floor: float, warmup: int, total: int) -> float:
    """Rise in a straight line to ``peak`` over ``warmup`` updates, then fall along a cosine to ``floor`` at the last.

        n = step + 1, so that n = 1 is the first update and n = total the last one
        n <= warmup:  peak * n / warmup
        n >= warmup:  floor + (peak - floor) * (1 + cos(pi * (n - warmup) / (total - warmup))) / 2

    ``step`` counts the updates made before, from 0. From the last update on the rate stays at ``floor``.
    Source: Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), eq. 5, without restarts.

    >>> [round(cosine_with_warmup(s, peak=1.0, floor=0.1, warmup=2, total=10), 3) for s in (0, 1, 2, 5, 9, 99)]
    [0.5, 1.0, 0.966, 0.55, 0.1, 0.1]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if step + 1 >= total:
        return floor
    done = (step + 1 - warmup) / (total - warmup)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2
