import math

import pytest

from ramnet_np.train.config import TrainConfig, learning_rate
from ramnet_np.train.schedule import cosine_with_warmup

SETTINGS = {"peak": 2e-3, "floor": 2e-4, "warmup": 10, "total": 110}


def test_cosine_with_warmup_landmarks():
    assert cosine_with_warmup(0, **SETTINGS) == pytest.approx(2e-4)  # a tenth of the peak: the first step moves
    assert cosine_with_warmup(9, **SETTINGS) == 2e-3  # the peak, once
    assert cosine_with_warmup(59, **SETTINGS) == pytest.approx(1.1e-3)  # half way: the middle of peak and floor
    assert cosine_with_warmup(34, **SETTINGS) == pytest.approx(2e-4 + 9e-4 * (1 + math.sqrt(0.5)))
    assert cosine_with_warmup(108, **SETTINGS) > 2e-4
    assert cosine_with_warmup(109, **SETTINGS) == 2e-4  # the last of 110 updates
    assert cosine_with_warmup(500, **SETTINGS) == 2e-4


def test_cosine_with_warmup_rises_then_falls():
    rates = [cosine_with_warmup(step, **SETTINGS) for step in range(110)]
    assert rates[:10] == sorted(set(rates[:10]))
    assert rates[9:] == sorted(set(rates[9:]), reverse=True)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (0, 7), (1, 2), (6, 7), (100, 2000)])
def test_the_last_update_has_the_floor(warmup, steps):
    config = TrainConfig(steps=steps, warmup=warmup, learning_rate=0.3, learning_rate_floor=0.1)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert rates[-1] == 0.1
    assert max(rates) == (0.3 if warmup else rates[0])
    assert rates.count(0.1) == 1


def test_cosine_with_warmup_of_a_run_that_ends_before_the_peak():
    for warmup in (5, 9):
        assert 0 < cosine_with_warmup(4, peak=1.0, floor=0.0, warmup=warmup, total=5) <= 1
    assert cosine_with_warmup(9, peak=1.0, floor=0.25, warmup=9, total=5) == 0.25
