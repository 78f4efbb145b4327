"""Settings that hold for every test."""

import os

import pytest
from hypothesis import settings

# Two threads, whatever the machine: races need them. It must be set before numba is imported.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

# Shapes, not luck: the same draws every run, and no deadline on a machine that may be busy.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")


@pytest.fixture
def extra_rule(monkeypatch):
    """The name of an update rule that only the table of the core has: alpha = exp(-(gamma - 1/2) * w)."""
    import numpy as np

    from ramnet_np.core.retention import RULES, UpdateRule

    def forward(w, gamma):
        return np.exp(-(gamma - 0.5) * w)

    def backward(w, gamma, alpha, proxy_eps):
        return -(gamma - 0.5) * alpha, -w * alpha

    monkeypatch.setitem(RULES, "extra", UpdateRule("extra", forward, backward, 0.5, "alpha = exp(-(gamma - 1/2) * w)"))
    return "extra"
