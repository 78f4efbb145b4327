import math

import pytest

from ramnet_np.train.schedule import cosine_with_warmup

SETTINGS = {"peak": 2e-3, "floor": 2e-4, "warmup": 10, "total": 110}


def test_cosine_with_warmup_landmarks():
    assert cosine_with_warmup(0, **SETTINGS) == pytest.approx(2e-4)  # a tenth of the peak: the first step moves
    assert cosine_with_warmup(9, **SETTINGS) == pytest.approx(2e-3)
    assert cosine_with_warmup(10, **SETTINGS) == pytest.approx(2e-3)
    assert cosine_with_warmup(60, **SETTINGS) == pytest.approx(1.1e-3)  # half way: the middle of peak and floor
    assert cosine_with_warmup(35, **SETTINGS) == pytest.approx(2e-4 + 9e-4 * (1 + math.sqrt(0.5)))
    assert cosine_with_warmup(110, **SETTINGS) == pytest.approx(2e-4)
    assert cosine_with_warmup(500, **SETTINGS) == pytest.approx(2e-4)


def test_cosine_with_warmup_rises_then_falls():
    rates = [cosine_with_warmup(step, **SETTINGS) for step in range(111)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 5, 9])
def test_cosine_with_warmup_longer_than_the_run(warmup):
    rate = cosine_with_warmup(4, peak=1.0, floor=0.0, warmup=warmup, total=5)
    assert 0 < rate <= 1
